"""One optimizer step of live soft labels, against its floor, a plain loop and TRL's trainers.

    python -m benchmarks.train_step --teacher FOLDER     (or --random: equal shapes, no download)
    python -m benchmarks.train_step --random --device cuda --shapes large --gpu h100        on a GPU

SmolLM2-135M teaches a Llama-type student (hidden 320, 8 layers, intermediate 1280, tied head: 28.8 M), 4 x 512 tokens,
forward KL at temperature 1, bfloat16 compute (or `--dtype float32`), float32 masters, AdamW.  All in one process,
each round in a random order.

    floor        teacher forward, student forward and backward with the bare head products of `loss_alone.Floor`, AdamW
    ours         `Trainer.train_step`: with clipping, logging and the checks before the update
    compiled     ours with `training.compile`: the layers of both models by torch.compile, which is not timed
    naive        forty lines: full logits, autocast, `kl_div` in float32, AdamW
    liger        a plain loop around Liger's compiled chunked loss on hidden states
    trl_gkd      TRL's GKDTrainer, lmbda=0, beta=0: its own `train()`, timed by a callback
    trl_distill  TRL's DistillationTrainer, beta=0, on fixed text: generation is replaced by the same tokens

`--shapes large`: teacher 1.2 B (Llama 3.2's shapes, vocabulary 128,256), student 0.32 B, 4 x 2048 tokens.  With `--gpu`
the share of the device's peak that the formula's FLOPs make (MFU) is told beside.  It was not run on a GPU yet.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any  # transformers is untyped

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import measure, rivals
from benchmarks.loss_alone import Floor, Problem, liger
from tutelage.losses.chunked import CHUNK_POSITIONS
from tutelage.losses.schedules import constant
from tutelage.losses.terms import Term
from tutelage.models.load import load_model
from tutelage.planning.flops import size_of_model
from tutelage.planning.machines import device_of
from tutelage.teachers.live import LiveTeacher
from tutelage.training.compiling import compiled
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath, MasterWeights
from tutelage.training.trainer import one_model
from tutelage.types import Batch, TokenView

ROWS = 4
SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "rope_theta": 100_000.0}
LARGE_STUDENT = {"hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 4096, "num_attention_heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "length": 512, "vocab_size": 49_152,
        "teacher": {**SMOLLM2, "num_attention_heads": 9, "num_key_value_heads": 3},
        "student": {"hidden_size": 320, "num_hidden_layers": 8, "intermediate_size": 1280, "num_attention_heads": 5},
    },
    "large": {
        "length": 2048, "vocab_size": 128_256,
        "teacher": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
                    "num_key_value_heads": 8},
        "student": {**LARGE_STUDENT, "num_key_value_heads": 8},
    },
}  # fmt: skip
LEARNING_RATE, BETAS = 1e-4, (0.9, 0.95)
Step = Callable[[], object]
_UNTIL_THE_END = ExitStack()


@dataclass(frozen=True, slots=True)
class Setup:
    """What every contender starts from; each takes its own copy of the student."""

    teacher: Any
    student: Any
    ids_BT: Tensor
    dtype: torch.dtype  # that models compute in

    @property
    def device(self) -> str:
        """Where everything lies."""
        return self.ids_BT.device.type

    @property
    def n_vocabulary(self) -> int:
        """Rows of both heads."""
        return int(self.student.config.vocab_size)


def setup(teacher: str | None, *, shapes: str, rows: int, dtype: torch.dtype, device: str) -> Setup:
    """`teacher` None: random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    of = SHAPES[shapes]
    shared: dict[str, Any] = {"vocab_size": of["vocab_size"], "max_position_embeddings": 2048}

    def made(sizes: dict[str, Any]) -> Any:
        return LlamaForCausalLM(LlamaConfig(**sizes, **shared, tie_word_embeddings=True))

    model = load_model(teacher, dtype="float32") if teacher else made(of["teacher"])
    return Setup(
        teacher=model.to(device, dtype).eval().requires_grad_(False),
        student=made(of["student"]).to(device, torch.float32),
        ids_BT=torch.randint(0, of["vocab_size"], (rows, of["length"])).to(device),
        dtype=dtype,
    )


def floor(start: Setup) -> Step:
    student = copy.deepcopy(start.student).train()
    masters = MasterWeights(student, weight_dtype=start.dtype)
    adamw = torch.optim.AdamW(masters.parameters.values(), lr=LEARNING_RATE, betas=BETAS, fused=True)
    products = Floor(dtype=start.dtype, device=start.device)

    def step() -> None:
        with torch.no_grad():
            teacher_hidden_NE = (
                start.teacher.base_model(start.ids_BT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            )
        hidden_ND = student.base_model(start.ids_BT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        weight_VD = student.get_output_embeddings().weight
        gradient_ND, gradient_VD = products(
            Problem(
                hidden_ND=hidden_ND.detach(),
                weight_VD=weight_VD.detach(),
                teacher_hidden_NE=teacher_hidden_NE,
                teacher_weight_VE=start.teacher.get_output_embeddings().weight,
                next_ids_N=start.ids_BT,
            )
        )
        # The products stand for gradients: their numbers mean nothing, so they are made small enough to be harmless.
        hidden_ND.backward(gradient_ND.mul_(1e-6))
        weight_VD.grad = weight_VD.grad.add_(gradient_VD.mul_(1e-6))
        masters.collect()
        adamw.step()
        masters.publish()
        masters.zero_grad()

    return step


def ours(start: Setup) -> Step:
    return _steps_of(start, copy.deepcopy(start.student))


def _steps_of(start: Setup, student: Any) -> Step:
    batch = Batch(views={"": TokenView.of(start.ids_BT, start.ids_BT)})
    trainer = one_model(
        student,
        terms=(Term(kind="divergence", divergence="forward_kl"),),
        teacher=LiveTeacher(start.teacher, n_vocabulary=start.n_vocabulary),
        microbatches=lambda _: [batch],
        compute=ComputePath(device=start.device, weight_dtype=start.dtype, threads=torch.get_num_threads()),
        optimizer=OptimizerSettings(schedule=constant(LEARNING_RATE), n_steps=1_000_000, betas=BETAS),
        n_vocabulary=start.n_vocabulary,
        seed=0,
    )
    return lambda: trainer.train_step([batch])


def ours_compiled(start: Setup) -> Step:
    """On copies, which stay compiled until the process ends."""
    own = copy.deepcopy(start)
    step = _steps_of(own, own.student)
    _UNTIL_THE_END.enter_context(compiled([own.student, own.teacher]))
    return step


def naive(start: Setup) -> Step:
    student = copy.deepcopy(start.student).train()
    adamw = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, betas=BETAS)

    def step() -> None:
        with torch.no_grad():
            teacher_logits_BTV = start.teacher(start.ids_BT, use_cache=False).logits[:, :-1]
        with torch.autocast(start.device, torch.bfloat16, enabled=start.dtype == torch.bfloat16):
            logits_BTV = student(start.ids_BT, use_cache=False).logits[:, :-1]
        loss = functional.kl_div(
            functional.log_softmax(logits_BTV.float(), -1).flatten(0, 1),
            functional.log_softmax(teacher_logits_BTV.float(), -1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    return step


def with_liger(start: Setup, loss: Callable[[Problem], Tensor]) -> Step:
    """Both trunks in the compute dtype, the student's heads and loss by Liger; AdamW on float32 masters."""
    student = copy.deepcopy(start.student).train()
    masters = MasterWeights(student, weight_dtype=start.dtype)
    adamw = torch.optim.AdamW(masters.parameters.values(), lr=LEARNING_RATE, betas=BETAS, fused=True)

    def step() -> None:
        with torch.no_grad():
            teacher_BTE = start.teacher.base_model(start.ids_BT, use_cache=False).last_hidden_state
        hidden_BTD = student.base_model(start.ids_BT, use_cache=False).last_hidden_state
        loss(
            Problem(
                hidden_ND=hidden_BTD[:, :-1].flatten(0, 1),
                weight_VD=student.get_output_embeddings().weight,
                teacher_hidden_NE=teacher_BTE[:, :-1].flatten(0, 1),
                teacher_weight_VE=start.teacher.get_output_embeddings().weight,
                next_ids_N=start.ids_BT[:, 1:].flatten(),
            )
        ).backward()
        masters.collect()
        nn.utils.clip_grad_norm_(masters.parameters.values(), 1.0)
        adamw.step()
        masters.publish()
        masters.zero_grad()

    return step


def _awaited(make: Callable[[], Step]) -> Step:
    """A step that is over when the GPU has done it."""
    step = make()

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    return whole


def contenders(start: Setup) -> dict[str, Callable[[], Step]]:
    made: dict[str, Callable[[], Step]] = {
        "floor": lambda: floor(start),
        "ours": lambda: ours(start),
        "compiled": lambda: ours_compiled(start),
        "naive": lambda: naive(start),
    }
    if (loss := liger()) is not None:
        made["liger"] = lambda: with_liger(start, loss)
    if rivals.has_trl():
        # Copies of the teacher too: accelerate wraps the forward of the model that it is given.
        options: dict[str, Any] = {"ids_BT": start.ids_BT, "learning_rate": LEARNING_RATE}
        made["trl_gkd"] = lambda: rivals.gkd(*copy.deepcopy((start.student, start.teacher)), **options)
        made["trl_distill"] = lambda: rivals.distillation(*copy.deepcopy((start.student, start.teacher)), **options)
    return made if start.device == "cpu" else {name: partial(_awaited, make) for name, make in made.items()}


def flops(start: Setup) -> float:
    """Of a step, by formula: the teacher's forward, the student's forward and backward."""
    rows, length = start.ids_BT.shape
    teacher, student = (size_of_model(model) for model in (start.teacher, start.student))
    return rows * length * (teacher.forward_flops(context=length) + student.training_flops(context=length))


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--teacher", help="what `tutelage.models.load` reads: folder, .gguf, hub id, package:NAME")
    source.add_argument(
        "--random", action="store_true", help="random weights in SmolLM2's shapes: the speed is the same"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="what models compute in")
    parser.add_argument("--shapes", choices=list(SHAPES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--gpu", help="which one, as in tutelage plan --gpu: for the share of its peak")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="leave the other contenders out")
    parser.add_argument("--memory", metavar="NAME", help="print one contender's peak bytes, nothing else")
    arguments = parser.parse_args()
    if arguments.gpu and arguments.dtype != "bfloat16":
        parser.error("--gpu gives the share of a peak in bfloat16; leave --dtype out")
    return arguments


def main() -> None:
    arguments = arguments_of()
    start = setup(
        arguments.teacher, shapes=arguments.shapes, rows=arguments.rows, dtype=getattr(torch, arguments.dtype),
        device=arguments.device,
    )  # fmt: skip
    length = start.ids_BT.shape[1]
    made = contenders(start)
    if arguments.memory:
        print(_peak(made[arguments.memory]))
        rivals.leave()
    names = arguments.only or list(made)
    config = {
        "rows": arguments.rows,
        "length": length,
        "shapes": arguments.shapes,
        "device": arguments.device,
        "gpu": arguments.gpu,
        "gpu_name": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "chunk_positions": CHUNK_POSITIONS,
        "teacher": arguments.teacher,
        "dtype": arguments.dtype,
    }
    environment = measure.environment(config)
    samples = measure.interleaved({name: made[name]() for name in names}, rounds=arguments.rounds)
    base = "floor" if "floor" in names else names[0]
    if arguments.device == "cuda":
        torch.cuda.empty_cache()  # the contenders are gone; their memory is measured in processes of their own
    rows = measure.summary(samples, base=base, n_tokens=start.ids_BT.numel())
    extra = ["--random"] if arguments.random else ["--teacher", arguments.teacher]
    extra += ["--dtype", arguments.dtype, "--shapes", arguments.shapes, "--device", arguments.device]
    memory = {
        n: measure.memory_in_new_process("benchmarks.train_step", n, [*extra, "--rows", str(arguments.rows)])
        for n in names
    }
    doubled = [*extra, "--rows", str(2 * arguments.rows)]
    memory_doubled = {
        n: measure.memory_in_new_process("benchmarks.train_step", n, doubled) for n in names if n in ("floor", "ours")
    }
    if arguments.gpu:
        peak = device_of(arguments.gpu).peak_flops
        for row in rows.values():
            row["mfu"] = flops(start) / row["median_s"] / peak
    result = {
        "environment": environment,
        "flops": flops(start),
        "timings": rows,
        "peak_bytes_above_models": memory,
        "peak_bytes_above_models_with_twice_the_rows": memory_doubled,
    }
    print(measure.write("train_step" if arguments.device == "cpu" else "train_step_gpu", result))
    sys.stdout.flush()
    rivals.leave()


def _peak(make: Callable[[], Step]) -> int:
    """Above the models and the contender's own copies of them: optimizer state, gradients and two steps."""
    made: list[Step] = []

    def act() -> None:
        for _ in range(2):
            made[0]()

    return measure.memory_above(lambda: made.append(make()), act)


if __name__ == "__main__":
    main()
