"""Does co-distillation pay?  A student from nothing, taught by a teacher that learns with it, against the alternatives.

    python -m benchmarks.codistill_quality --prose FOLDER                 prints the hours first; goes on after a stop
    python -m benchmarks.codistill_quality --prose FOLDER --tokens 410_000 --batch-tokens 2048

Text: Python's documentation and the .txt files of a folder, 5 % held out.  The tokenizer is a byte-level BPE of 4,096
entries trained on that text: with SmolLM2's 49,152 the heads would be five times the students' bodies, and the
comparison one of heads.  Teacher 9.2 M parameters without embeddings, student 2.7 M (Llama type), learning rates 6e-4
and 1e-3, windows of 256.  All arms of a seed start from the same weights and see the same rows in the same order.

    alone         the student, ground truth only
    constant      co-distillation: 0.5 forward KL to the teacher of this moment + 0.5 ground truth
    warm_up       the same, the KL's weight rising over the first fifth
    progress      the same, the weight following the teacher's running loss
    per_token     the same, only where the teacher gives the true token more probability
    finished      after the teacher: the same blend from the teacher that the arms above have trained, equal tokens
    equal_flops   teacher first, then the student, both on fewer tokens: FLOPs as co-distillation's (2 a parameter and
                  token forward, 4 backward; the head's parameters counted once each)

The first five arms are one run: they share the teacher's pass, and a teacher does not depend on its students.
Differences are paired over the held-out rows; a seed's rows are not independent of another's, so seeds are shown too.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # results are JSON

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tutelage
from benchmarks import measure
from benchmarks.cells import difference, run_of, scores_of
from tutelage import plugins
from tutelage.data.standard_library import read_docs
from tutelage.evaluation.transfer import METRICS
from tutelage.planning import pace

VOCABULARY, LENGTH = 4096, 256
RESULT = measure.RESULTS / "codistill_quality.json"
SIZES = {
    "teacher": {"hidden_size": 320, "num_hidden_layers": 8, "intermediate_size": 768, "num_attention_heads": 5},
    "student": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 3},
}
TRUTH = {"cross_entropy": "ground_truth", "weight": 0.5}
KL: dict[str, Any] = {"divergence": "forward_kl", "weight": {"schedule": "constant", "start": 0.5, "warmup": 0.0}}
ARMS: dict[str, list[dict[str, Any]]] = {
    "alone": [{"cross_entropy": "ground_truth"}],
    "constant": [KL, TRUTH],
    "warm_up": [{**KL, "weight": {**KL["weight"], "warmup": 0.2}}, TRUTH],
    "progress": [{**KL, "trust": "progress"}, TRUTH],
    "per_token": [{**KL, "trust": "per_token"}, TRUTH],
}


def tokenizer_of(prose: Path, folder: Path) -> Path:
    """The tokenizer as a folder, with the config that models from nothing take fields of."""
    if (folder / "config.json").is_file():
        return folder
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = [e.text for e in read_docs("docs")] + [path.read_text() for path in sorted(prose.glob("*.txt"))]
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(folder)
    _config("student").save_pretrained(folder)
    return folder


def _config(role: str) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2 * LENGTH, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, **SIZES[role],
    )  # fmt: skip


def start_of(role: str, *, seed: int, tokenizer: Path, folder: Path) -> Path:
    """Start weights of a role and seed, the same for all arms."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(1000 * seed + len(role))
        LlamaForCausalLM(_config(role)).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def parameters() -> dict[str, int]:
    """By role: those without embeddings, and the head's."""
    with torch.device("meta"):
        made = {role: LlamaForCausalLM(_config(role)) for role in SIZES}
    bodies = {role: sum(p.numel() for p in model.model.layers.parameters()) for role, model in made.items()}
    heads = {role: model.get_output_embeddings().weight.numel() for role, model in made.items()}
    return {**bodies, **{f"{role} head": n for role, n in heads.items()}}


def share_of_tokens() -> float:
    """On which share of the tokens teacher first, then the student, costs what both together cost."""
    n = parameters()
    teacher, student = n["teacher"] + n["teacher head"], n["student"] + n["student head"]
    return 6 * (teacher + student) / (6 * (teacher + student) + 2 * teacher)


def recipe(prose: Path, *, seed: int, batch: int, tokens: int, **models_and_loss: Any) -> dict[str, Any]:
    """What all runs share."""
    return {
        "data": {
            "sources": ["python_docs", {"text": str(prose / "*.txt")}], "held_out": 0.05, "max_length": LENGTH,
        },
        "training": {
            "tokens": tokens, "batch_tokens": batch, "learning_rate": 1e-3, "schedule": "wsd", "warmup": 0.05,
            "decay": 0.3, "weight_decay": 0.1, "seed": seed, "save_every": 0.1, "log_every": 20,
        },
        "evaluation": {"rows": 400},
        **models_and_loss,
    }  # fmt: skip


def trained(asked: dict[str, Any], folder: Path) -> tutelage.Run:
    """A run: made, taken up, or found whole."""
    return run_of(asked, folder)


def run_arms(seed: int, *, prose: Path, tokens: int, batch: int, folder: Path) -> dict[str, Path]:
    """Runs what is missing of a seed; the run and the model's name of each arm."""
    tokenizer = tokenizer_of(prose, folder / "tokenizer")
    here = folder / f"seed-{seed}-{tokens}-{batch}"
    start = {role: start_of(role, seed=seed, tokenizer=tokenizer, folder=here / f"{role}-start") for role in SIZES}
    common: dict[str, Any] = {"prose": prose, "seed": seed, "batch": batch}
    rate = {"learning_rate": 6e-4}
    students = {name: {"model": str(start["student"]), "loss": loss} for name, loss in ARMS.items()}
    teacher = {"model": str(start["teacher"]), "train": rate}
    co = trained(recipe(**common, tokens=tokens, teacher=teacher, students=students), here / "co")

    def distilled(name: str, taught_by: Path, n: int) -> Path:
        asked: dict[str, Any] = {"teacher": str(taught_by), "student": str(start["student"]), "loss": ARMS["constant"]}
        return trained(recipe(**common, tokens=n, **asked), here / name).path

    finished = distilled("finished", co.path / "models" / "teacher", tokens)
    fewer = round(share_of_tokens() * tokens)
    first = recipe(**common, tokens=fewer, student=str(start["teacher"]), loss=["ground_truth"])
    first["training"] |= rate
    teacher_first = trained(first, here / "teacher-first")
    equal = distilled("equal-flops", teacher_first.path / "student", fewer)
    return dict.fromkeys(ARMS, co.path) | {"finished": finished, "equal_flops": equal}


def compared(arms: Mapping[str, Path]) -> dict[str, Any]:
    """By arm: held-out loss, ECE, KL to its teacher, and the paired difference in loss to `alone` and to `finished`."""
    names = {arm: arm if arm in ARMS else "student" for arm in arms}
    scores = {arm: scores_of(run, names[arm]) for arm, run in arms.items()}
    loss = plugins.load(METRICS, "held_out_loss")
    found: dict[str, Any] = {}
    for arm in arms:
        row = {
            m: plugins.load(METRICS, m).compute(scores[arm]).value for m in ("held_out_loss", "ece", "kl_to_teacher")
        }
        for other in ("alone", "finished"):
            row[f"loss_minus_{other}"] = difference("held_out_loss", scores[arm], scores[other])
        found[arm] = row
    found["teacher"] = {"held_out_loss": loss.compute(scores_of(arms["alone"], "teacher")).value}
    return found


def hours(tokens: int) -> float:
    """What a seed will take here: the FLOPs of its runs at the rate that a plan expects of this machine."""
    n = parameters()
    teacher, student = n["teacher"] + n["teacher head"], n["student"] + n["student head"]
    fewer = share_of_tokens()
    flops = 1.0 * tokens * (6 * teacher + 6 * len(ARMS) * student + 2 * teacher + 6 * student)
    flops += tokens * fewer * (6 * teacher + 2 * teacher + 6 * student)
    return flops / pace.products_here().training_per_s / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=4_100_000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--folder", type=Path, default=Path("runs/codistill-quality"))
    arguments = parser.parse_args()
    print(f"parameters: {parameters()}; equal FLOPs at {share_of_tokens():.1%} of the tokens")
    print(f"about {hours(arguments.tokens):.1f} hours a seed on this machine, {len(arguments.seeds)} seeds", flush=True)
    settings = {"vocabulary": VOCABULARY, "sizes": SIZES}
    state: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"by_length": {}}
    length = f"{arguments.tokens} tokens in steps of {arguments.batch_tokens}"
    for seed in arguments.seeds:
        of_seed = state["by_length"].setdefault(length, {})
        if str(seed) not in of_seed:
            arms = run_arms(
                seed, prose=arguments.prose.resolve(), tokens=arguments.tokens, batch=arguments.batch_tokens,
                folder=arguments.folder,
            )  # fmt: skip
            of_seed[str(seed)] = compared(arms)
            measure.write("codistill_quality", {**state, "environment": measure.environment(settings)})
    for length, by_seed in state["by_length"].items():
        print(f"{length}, {len(by_seed)} seeds: held-out loss, and the difference to alone by seed")
        for arm in (*ARMS, "finished", "equal_flops"):
            rows = [row[arm] for row in by_seed.values()]
            differences = ", ".join(
                f"{r['loss_minus_alone']['value']:+.4f} ± {r['loss_minus_alone']['stderr']:.4f}" for r in rows
            )
            print(f"  {arm:12} {statistics.mean(r['held_out_loss'] for r in rows):.4f}   {differences}")


if __name__ == "__main__":
    main()
