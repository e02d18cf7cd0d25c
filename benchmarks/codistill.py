"""What one optimizer step of co-distillation and of a family costs, against the steps of its models alone.

    python -m benchmarks.codistill [--rounds 9] [--rows 4]

A teacher (SmolLM2's shape with 12 layers, 71 M parameters), students of hidden size 320 with 8, 6 and 4 layers, all
with a head of 49,152 tokens; bfloat16 compute, float32 masters, AdamW; one process, each round in a random order.

    teacher, student_8 ...   a plain training step of one model: cross-entropy on the truth
    co_1, co_3               the teacher learns the truth; one student, or all three, learn from it and from the truth
    live_8 ...               a student on the same teacher, frozen, in a run of its own
    family_3                 the three students on it in one pass
    forward                  what the teacher costs when it is asked: its trunk and its head's product

Claims, ratios taken inside a round: co_1 / (teacher + student_8) and co_3 / (teacher + all students) at most 1.05;
(the three live steps - family_3) / (2 forwards) at least 0.95.  `--memory NAME` prints the peak of one contender above
what its weights take; co_1 may need the sum of teacher and student_8, and a chunk.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # results are JSON

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measure
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.models.head import head_of, trained_hidden
from tutelage.teachers.live import LiveTeacher
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer
from tutelage.types import Batch, TokenView

LENGTH, N_VOCABULARY, LAYERS = 512, 49_152, (8, 6, 4)
TRUTH = Term(kind="ground_truth", weight=constant(0.5))
SOFT = Term(kind="divergence", divergence="forward_kl", weight=constant(0.5))
Step = Callable[[], object]


def models() -> dict[str, Any]:
    """The teacher and the students, random, in float32."""
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vocab_size": N_VOCABULARY, "max_position_embeddings": 2048, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    teacher = LlamaConfig(hidden_size=576, num_hidden_layers=12, intermediate_size=1536, **heads, **shared)
    made = {"teacher": LlamaForCausalLM(teacher)}
    for layers in LAYERS:
        own = LlamaConfig(
            hidden_size=320, num_hidden_layers=layers, intermediate_size=1280, num_attention_heads=5, **shared
        )
        made[f"student_{layers}"] = LlamaForCausalLM(own)
    return made


def batch_of(rows: int) -> Batch:
    ids_BT = torch.randint(0, N_VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    return Batch(views={"": TokenView.of(ids_BT, ids_BT)})


def step(start: Mapping[str, Any], terms: Mapping[str, Sequence[Term]], batch: Batch, *, live: bool = False) -> Step:
    """A step of a trainer with these models."""
    settings = OptimizerSettings(schedule=constant(1e-4), n_steps=1_000_000)
    members = [
        Member(name=name, model=copy.deepcopy(start[name]), terms=tuple(own), optimizer=settings)
        for name, own in terms.items()
    ]
    teacher = LiveTeacher(copy.deepcopy(start["teacher"]).to(torch.bfloat16), n_vocabulary=N_VOCABULARY)
    trainer = Trainer(
        members,
        teacher=teacher if live else None,
        microbatches=lambda _: [batch],
        compute=ComputePath(device="cpu", weight_dtype=torch.bfloat16, threads=torch.get_num_threads()),
        n_vocabulary=N_VOCABULARY,
        seed=0,
    )
    return lambda: trainer.train_step([batch])


def forward(start: Mapping[str, Any], batch: Batch) -> Step:
    model = copy.deepcopy(start["teacher"]).to(torch.bfloat16).eval().requires_grad_(False)
    head = head_of(model, n_vocabulary=N_VOCABULARY)
    product_NV = torch.empty(512, N_VOCABULARY, dtype=torch.bfloat16)

    @torch.no_grad()
    def ask() -> None:
        hidden_ND = trained_hidden(model, batch.view)
        for part_ND in hidden_ND.split(512):
            head.product(part_ND, out_NV=product_NV[: len(part_ND)])

    return ask


def contenders(start: Mapping[str, Any], batch: Batch) -> dict[str, Callable[[], Step]]:
    students = [f"student_{layers}" for layers in LAYERS]
    both = (SOFT, TRUTH)
    made: dict[str, Callable[[], Step]] = {"teacher": lambda: step(start, {"teacher": (TRUTH,)}, batch)}
    for name in students:
        made[name] = lambda name=name: step(start, {name: (TRUTH,)}, batch)  # type: ignore[misc]
        made[name.replace("student", "live")] = lambda name=name: step(start, {name: both}, batch, live=True)  # type: ignore[misc]
    made["co_1"] = lambda: step(start, {"teacher": (TRUTH,), students[0]: both}, batch)
    made["co_3"] = lambda: step(start, {"teacher": (TRUTH,), **dict.fromkeys(students, both)}, batch)
    made["family_3"] = lambda: step(start, dict.fromkeys(students, both), batch, live=True)
    made["forward"] = lambda: forward(start, batch)
    return made


def claims(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Each claim's ratio: median and quartiles over rounds, with what is required of it."""
    students, lives = [f"student_{n}" for n in LAYERS], [f"live_{n}" for n in LAYERS]
    rounds = [dict(zip(samples, values, strict=True)) for values in zip(*samples.values(), strict=True)]
    found = {
        "co_1 over teacher + student": ([r["co_1"] / (r["teacher"] + r[students[0]]) for r in rounds], "<= 1.05"),
        "co_3 over teacher + students": (
            [r["co_3"] / (r["teacher"] + sum(r[s] for s in students)) for r in rounds],
            "<= 1.05",
        ),
        "forwards saved by family_3": (
            [(sum(r[s] for s in lives) - r["family_3"]) / (2 * r["forward"]) for r in rounds],
            ">= 0.95",
        ),
    }
    return {
        name: {"median": statistics.median(v), "quartiles": statistics.quantiles(v, n=4)[::2], "required": required}
        for name, (v, required) in found.items()
    }


def peak(make: Callable[[], Step]) -> int:
    made: list[Step] = []
    return measure.memory_above(lambda: made.append(make()), lambda: (made[0](), made[0](), None)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--memory", metavar="NAME", help="print one contender's peak bytes, nothing else")
    arguments = parser.parse_args()
    start, batch = models(), batch_of(arguments.rows)
    made = contenders(start, batch)
    if arguments.memory:
        print(peak(made[arguments.memory]))
        return
    environment = measure.environment({"rows": arguments.rows, "length": LENGTH, "rounds": arguments.rounds})
    samples = measure.interleaved({name: make() for name, make in made.items()}, rounds=arguments.rounds)
    names = ("teacher", "student_8", "co_1")
    memory = {
        n: measure.memory_in_new_process("benchmarks.codistill", n, ["--rows", str(arguments.rows)]) for n in names
    }
    result = {"environment": environment, "claims": claims(samples), "peak_bytes": memory, "samples_s": samples}
    measure.write("codistill", result)
    for name, claim in result["claims"].items():
        print(f"{name}: {claim['median']:.3f} (quartiles {claim['quartiles']}), required {claim['required']}")
    print(f"peak bytes above the weights: {memory}")


if __name__ == "__main__":
    main()
