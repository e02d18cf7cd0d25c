"""One optimizer step from stored targets, against plain cross-entropy training and DistillKit's offline step.

    python -m benchmarks.cached_step --recipe RECIPE      (with teacher.cache, after `tutelage label RECIPE`)
    python -m benchmarks.cached_step                      (a random sample of 11 tokens a position, ready in memory)

A Llama-type student (hidden 320, 8 layers, intermediate 1280, tied head: 28.8 M), 4 x 512 tokens or the recipe's
micro-batches, bfloat16 compute, float32 master weights, AdamW.  A small student is the hard case: what a cache costs is
the same for any.  All in one process, each round in a random order; no contender asks a teacher model.

    cross_entropy   `Trainer.train_step` on ground truth: what training without any teacher costs
    sampled         the same with `forward_kl` on `targets_of(batch)`: with a real cache, reading and decoding included
    blend           the same with 0.9 `forward_kl` + 0.1 cross-entropy
    distillkit      DistillKit's documented step: 0.5 cross-entropy + 0.5 KL, k = 128, missing probability zero, T = 1
    distillkit_kl   its KL alone, without the cross-entropy that its trainer computes in any case

The last two run on ready tensors: they neither read nor unpack their format, nor carry the trainer around it.  The KL
is the installed distillkit's, or else our own rendering of its documentation; the result says which.
"""

import argparse
import copy
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # transformers and distillkit are untyped

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.train_step import BETAS, LEARNING_RATE, ROWS, SHAPES, Step
from tutelage.losses.chunked import CHUNK_POSITIONS
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.recipe.load import load_recipe
from tutelage.teachers.cached import CachedTeacher
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.prepare import InMemory, prepare
from tutelage.training.trainer import one_model
from tutelage.types import Batch, SampledTargets, Targets, TokenView

LENGTH, N_VOCABULARY = SHAPES["small"]["length"], SHAPES["small"]["vocab_size"]
N_ENTRIES, K = 11, 128  # tokens a position of a sample, and of DistillKit's recommended format
N_BATCHES = 3  # that the steps go through in turn
HAS_DISTILLKIT = importlib.util.find_spec("distillkit") is not None
TargetsOf = Callable[[Batch], Targets]
SOFT, HARD = Term(kind="divergence", divergence="forward_kl"), Term(kind="ground_truth")
BLEND = (
    Term(kind="divergence", divergence="forward_kl", weight=constant(0.9)),
    Term(kind="ground_truth", weight=constant(0.1)),
)


def make_student() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shapes = {"hidden_size": 320, "num_hidden_layers": 8, "intermediate_size": 1280, "num_attention_heads": 5}
    config = LlamaConfig(vocab_size=N_VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, **shapes)
    return LlamaForCausalLM(config).to(torch.float32)


def random_batches(rows: int) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, N_VOCABULARY, (N_BATCHES, rows, LENGTH), generator=g)
    return [Batch(views={"": TokenView.of(ids_BT, ids_BT)}, row_keys=(str(n),)) for n, ids_BT in enumerate(ids)]


def random_sample(batch: Batch) -> SampledTargets:
    """About N_ENTRIES different tokens a position, from 1 to twice as many; half of the mass lies on the first."""
    g = torch.Generator().manual_seed(int(batch.view.ids_BT[0, 0]))
    counts_N = torch.randint(1, 2 * N_ENTRIES, (batch.n_trained,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)])
    first_M = torch.randint(0, N_VOCABULARY, (batch.n_trained,), generator=g).repeat_interleave(counts_N)
    rank_M = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts_N)
    rest_M = (0.5 / (counts_N - 1).clamp(min=1)).repeat_interleave(counts_N)
    weights_M = torch.where(rank_M == 0, torch.where(counts_N == 1, 1.0, 0.5).repeat_interleave(counts_N), rest_M)
    ids_M = (first_M + rank_M * 2203) % N_VOCABULARY  # no common factor: never a token twice
    return SampledTargets(ids_M=ids_M, weights_M=weights_M, offsets=offsets, temperature=1.0)


class FromStore:
    """A teacher that is asked for nothing but what was stored."""

    def __init__(self, targets_of: TargetsOf) -> None:
        self.targets = targets_of


def ours(student: Any, batches: Sequence[Batch], *, terms: tuple[Term, ...], targets_of: TargetsOf | None) -> Step:
    trainer = one_model(
        copy.deepcopy(student),
        terms=terms,
        teacher=FromStore(targets_of) if targets_of is not None else None,
        microbatches=lambda step: [batches[step % len(batches)]],
        compute=ComputePath(device="cpu", weight_dtype=torch.bfloat16, threads=torch.get_num_threads()),
        optimizer=OptimizerSettings(schedule=constant(LEARNING_RATE), n_steps=1_000_000, betas=BETAS),
        n_vocabulary=student.config.vocab_size,
        seed=0,
    )
    steps = trainer.steps()
    return lambda: next(steps)


def sparse_kl(logits_BTV: Tensor, ids_BTK: Tensor, logp_BTK: Tensor) -> Tensor:
    """KL on the kept tokens alone, the teacher renormalised over them: a sum in nats.  Own rendering."""
    student_logp_BTK = logits_BTV.gather(-1, ids_BTK) - torch.logsumexp(logits_BTV.float(), -1, keepdim=True)
    teacher_logp_BTK = torch.log_softmax(logp_BTK, -1)
    return (teacher_logp_BTK.exp() * (teacher_logp_BTK - student_logp_BTK)).sum()


def distillkit(student: Any, batches: Sequence[Batch], *, with_cross_entropy: bool) -> Step:
    """Hugging Face logits [B, T, V], whole; autocast to bfloat16, AdamW fused, clipping."""
    model = copy.deepcopy(student).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
    g = torch.Generator().manual_seed(1)
    B, T = batches[0].view.ids_BT.shape
    start_BT1 = torch.randint(0, N_VOCABULARY, (B, T, 1), generator=g)
    ids_BTK = (start_BT1 + 2203 * torch.arange(K)) % N_VOCABULARY
    logp_BTK = torch.log_softmax(torch.randn(B, T, K, generator=g), -1)
    turn = itertools.cycle(batches)
    kl = sparse_kl
    if HAS_DISTILLKIT:
        from distillkit.lossfuncs.kl import sparse_kl_div

        kl = sparse_kl_div

    def step() -> None:
        ids_BT = next(turn).view.ids_BT
        with torch.autocast("cpu", torch.bfloat16):
            out = model(ids_BT, labels=ids_BT if with_cross_entropy else None, use_cache=False)
            loss = kl(out.logits, ids_BTK, logp_BTK) / ids_BT.numel()
        if with_cross_entropy:
            loss = 0.5 * out.loss + 0.5 * loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    return step


def contenders(student: Any, batches: Sequence[Batch], *, targets_of: TargetsOf) -> dict[str, Callable[[], Step]]:
    """By name, what makes the step; `targets_of` is a cache's reader, or `random_sample`."""
    return {
        "cross_entropy": lambda: ours(student, batches, terms=(HARD,), targets_of=None),
        "sampled": lambda: ours(student, batches, terms=(SOFT,), targets_of=targets_of),
        "blend": lambda: ours(student, batches, terms=BLEND, targets_of=targets_of),
        "distillkit": lambda: distillkit(student, batches, with_cross_entropy=True),
        "distillkit_kl": lambda: distillkit(student, batches, with_cross_entropy=False),
    }


def compare(
    student: Any, batches: Sequence[Batch], *, targets_of: TargetsOf, rounds: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The result of a measurement, ready for `measure.write`."""
    environment = measure.environment(
        {
            "rows": batches[0].view.ids_BT.shape[0],
            "length": batches[0].view.ids_BT.shape[1],
            "chunk_positions": CHUNK_POSITIONS,
            "distillkit": "installed" if HAS_DISTILLKIT else "own rendering of its documented step, not installed",
            **config,
        }
    )
    made = contenders(student, batches, targets_of=targets_of)
    samples = measure.interleaved({name: make() for name, make in made.items()}, rounds=rounds)
    n_tokens = batches[0].view.ids_BT.numel()

    def speed(name: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(samples[name], samples[other], strict=True))

    return {
        "environment": environment,
        "timings": measure.summary(samples, base="cross_entropy", n_tokens=n_tokens),
        "speed_over_cross_entropy": {name: speed(name, "cross_entropy") for name in ("sampled", "blend")},
        "speed_over_distillkit": {name: speed("sampled", name) for name in ("distillkit", "distillkit_kl")},
    }


def from_recipe(path: str) -> tuple[list[Batch], TargetsOf, dict[str, Any]]:
    """The first micro-batches of a recipe, the reader of its cache, and what the cache is."""
    prepared = prepare(load_recipe(path), memory=InMemory())
    teacher = prepared.teacher
    assert isinstance(teacher, CachedTeacher), f"{path}: set teacher.cache and run tutelage label first"
    steps = (prepared.loader.step(number) for number in itertools.count())
    batches = list(itertools.islice(itertools.chain.from_iterable(steps), N_BATCHES))
    manifest = teacher.cache.manifest
    return batches, teacher.targets, {"targets": manifest.asked.codec, "settings": dict(manifest.settings)}


def random_targets(rows: int) -> tuple[list[Batch], TargetsOf, dict[str, Any]]:
    """Ready tensors: the step then shows what the objective costs, and a cache's reader adds its own time."""
    batches = random_batches(rows)
    ready = {batch.row_keys: random_sample(batch) for batch in batches}
    told = f"random, about {N_ENTRIES} entries a position, ready in memory"
    return batches, lambda batch: ready[batch.row_keys], {"targets": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a random batch")
    parser.add_argument("--recipe", help="its cache is read and decoded at every step")
    arguments = parser.parse_args()
    made = from_recipe(arguments.recipe) if arguments.recipe else random_targets(arguments.rows)
    batches, targets_of, config = made
    result = compare(make_student(), batches, targets_of=targets_of, rounds=arguments.rounds, config=config)
    print({name: result[name] for name in ("speed_over_cross_entropy", "speed_over_distillkit")}, file=sys.stderr)
    print(measure.write("cached_step", result))


if __name__ == "__main__":
    main()
