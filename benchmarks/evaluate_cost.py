"""Evaluating a teacher and a student against the forward passes alone.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluate_cost --teacher HuggingFaceTB/SmolLM2-135M-Instruct

The student has 20 of the teacher's 30 layers; both bfloat16.  The text is the package's own
source, 512 tokens a row.

    forward         both trunks and both heads' products of a chunk at a time, in a buffer that is kept: the least
    forward_logits  the models' own `model(ids).logits`
    evaluate        `score_models` with bytes and rarity of the tokens: every number of the report
    report          what follows from the scores: metrics, comparisons, slices (no forward)

Claim: evaluate / forward at most 1.3, by process time, paired in each round.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # a tokenizer

import numpy as np
import torch
from torch import Tensor, nn

import tutelage
from benchmarks import measure
from tutelage.evaluation.cells import TokenFacts
from tutelage.evaluation.facts import SetFacts, bytes_of_tokens
from tutelage.evaluation.score import SequenceScore, score_models
from tutelage.evaluation.transfer import transfer_of
from tutelage.models import student, vocabulary
from tutelage.models.head import head_of, trained_hidden
from tutelage.models.layers import decoder_layers
from tutelage.models.load import load_model, load_tokenizer
from tutelage.types import Batch, TokenView

LENGTH, LAYERS, CHUNK, CLAIM = 512, 20, 256, 1.3


def batches_of(tokenizer: Any, n_rows: int, *, rows_per_batch: int) -> list[tuple[Batch, Tensor]]:
    """Rows of source text, each a document of its own."""
    text = "\n\n".join(p.read_text() for p in sorted(Path(tutelage.__file__).parent.rglob("*.py")))
    ids = torch.tensor(tokenizer(text)["input_ids"][: n_rows * LENGTH]).reshape(n_rows, LENGTH)
    made = []
    for start in range(0, n_rows, rows_per_batch):
        ids_BT = ids[start : start + rows_per_batch]
        view = TokenView.of(ids_BT, ids_BT)
        made.append((Batch(views={"t": view}), start + view.index_N // LENGTH))
    return made


@torch.no_grad()
def forward(models: Mapping[str, nn.Module], batches: list[tuple[Batch, Tensor]], *, n_vocabulary: int) -> None:
    for batch, _ in batches:
        for model in models.values():
            head = head_of(model, n_vocabulary=n_vocabulary)
            hidden_ND = trained_hidden(model, batch.view)
            buffer_NV = torch.empty(CHUNK, n_vocabulary, dtype=head.weight_VD.dtype)
            for start in range(0, batch.n_trained, CHUNK):
                part_CD = hidden_ND[start : start + CHUNK]
                head.product(part_CD, out_NV=buffer_NV[: len(part_CD)])


@torch.no_grad()
def forward_logits(models: Mapping[str, nn.Module], batches: list[tuple[Batch, Tensor]]) -> None:
    for batch, _ in batches:
        for model in models.values():
            _ = model(input_ids=batch.view.ids_BT).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    tokenizer, teacher = load_tokenizer(arguments.teacher), load_model(arguments.teacher, dtype="bfloat16")
    n_layers = len(decoder_layers(teacher)[1])
    learner = student.from_layers(teacher, student.evenly(n_layers, LAYERS)).to(torch.bfloat16)
    models = {name: m.eval().requires_grad_(False) for name, m in (("teacher", teacher), ("student", learner))}
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    batches = batches_of(tokenizer, arguments.rows, rows_per_batch=2)
    tokens = TokenFacts(
        n_bytes_V=bytes_of_tokens(tokenizer, n_vocabulary=n_vocabulary), rarity_V=np.arange(n_vocabulary) % 5
    )
    config = {"rows": arguments.rows, "length": LENGTH, "layers": LAYERS, "chunk": CHUNK, "clock": "process_time"}
    environment = measure.environment(config)

    def evaluate() -> dict[str, list[SequenceScore]]:
        return score_models(models, batches, teacher="teacher", n_vocabulary=n_vocabulary, chunk=CHUNK, tokens=tokens)

    scores = evaluate()
    facts = SetFacts(sources=("a", "b"), source=(0, 1) * (arguments.rows // 2), length=(LENGTH,) * arguments.rows)
    timings = measure.interleaved(
        {
            "forward": lambda: forward(models, batches, n_vocabulary=n_vocabulary),
            "forward_logits": lambda: forward_logits(models, batches),
            "evaluate": evaluate,
            "report": lambda: transfer_of({"held_out": scores}, "teacher", facts={"held_out": facts}),
        },
        rounds=arguments.rounds,
        clock=time.process_time,
    )
    n_tokens = sum(batch.n_trained for batch, _ in batches)
    found = measure.summary(timings, base="forward", n_tokens=n_tokens)
    ratio = found["evaluate"]["time_over_forward_median"]
    result = {
        "environment": environment,
        "timings": found,
        "claim": {"most": CLAIM, "found": ratio, "held": ratio <= CLAIM},
    }
    print(measure.write("evaluate_cost", result), f"evaluate / forward {ratio:.3f}")


if __name__ == "__main__":
    main()
