"""TRL's trainers, driven one step at a time.

Each runs its own `train()` in a thread of its own; a callback holds it at the start of every step until it is asked
for one.  So a step is exactly what TRL's loop does between `on_step_begin` and `on_step_end`: forward, loss, backward,
clipping, optimizer.  Versions: `requirements-rivals.txt`.
"""

import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any  # trl and transformers are untyped

import torch
from torch import Tensor

Step = Callable[[], object]


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def leave() -> None:
    """End the process at once: the trainers' threads wait for a step that never comes."""
    sys.stdout.flush()
    os._exit(0)


class _Gate:
    """Lets a trainer in another thread do one step a call."""

    def __init__(self) -> None:
        self.may_start, self.is_done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None

    def run(self, train: Callable[[], object]) -> Step:
        def work() -> None:
            try:
                train()
            except BaseException as error:
                self.error = error
            self.is_done.release()

        threading.Thread(target=work, daemon=True).start()
        return self.step

    def step(self) -> None:
        self.may_start.release()
        self.is_done.acquire()
        if self.error is not None:
            raise self.error


def _callback(gate: _Gate) -> Any:
    from transformers import TrainerCallback

    class OneStep(TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            gate.may_start.acquire()

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            gate.is_done.release()

    return OneStep()


def _tokenizer(n_vocabulary: int) -> Any:
    """A tokenizer that nothing asks for text: the trainers only want its special ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, n_vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=template
    )


def _common(rows: int, learning_rate: float) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(prefix="tutelage-bench-"),
        "per_device_train_batch_size": rows,
        "max_steps": 1_000_000,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "bf16": True,
        "dataloader_pin_memory": False,  # the batch lies on the device already
        "use_cpu": not torch.cuda.is_initialized(),
        "gradient_checkpointing": False,
        "beta": 0.0,
        "temperature": 1.0,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def gkd(student: Any, teacher: Any, *, ids_BT: Tensor, learning_rate: float) -> Step:
    """GKDTrainer off-policy (lmbda=0) with forward KL (beta=0) on the batch's own tokens."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    gate = _Gate()
    rows = ids_BT.shape[0]
    batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT.clone()}
    batch |= {"prompts": ids_BT[:, :1], "prompt_attention_mask": torch.ones_like(ids_BT[:, :1])}
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**_common(rows, learning_rate), lmbda=0.0, seq_kd=False, max_length=ids_BT.shape[1]),
        train_dataset=Dataset.from_dict({"row": list(range(4096))}),
        data_collator=lambda _: {name: tensor.clone() for name, tensor in batch.items()},
        processing_class=_tokenizer(student.config.vocab_size),
        callbacks=[_callback(gate)],
    )
    return gate.run(trainer.train)


def distillation(student: Any, teacher: Any, *, ids_BT: Tensor, learning_rate: float) -> Step:
    """DistillationTrainer (beta=0: forward KL) on fixed text: one token is the prompt, the rest the completion."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    gate = _Gate()
    rows, length = ids_BT.shape
    fixed = {
        "prompt_ids": ids_BT[:, :1],
        "prompt_mask": torch.ones_like(ids_BT[:, :1]),
        "completion_ids": ids_BT[:, 1:],
        "completion_mask": torch.ones_like(ids_BT[:, 1:]),
        "num_items_in_batch": torch.tensor(float(rows * (length - 1))),
    }
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**_common(rows, learning_rate), max_completion_length=length - 1),
        train_dataset=Dataset.from_dict({"prompt": ["w2"] * 4096}),
        processing_class=_tokenizer(student.config.vocab_size),
        callbacks=[_callback(gate)],
    )
    trainer._prepare_inputs = lambda _: dict(fixed)  # instead of generating with the student
    return gate.run(trainer.train)
