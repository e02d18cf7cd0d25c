"""Whole runs in a second: a BPE tokenizer trained on a little text, tiny Llama folders, recipes, processes."""

import contextlib
import io as streams
import json
import os
import random
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import tiny
from tests.models.architectures import FAMILIES, UNPACKED
from tests.models.tiny_models import CHATML, SPECIAL
from tutelage import cli

NOUNS = ("cat", "dog", "log", "mat", "hat", "frog", "teacher", "student", "river", "house")
VERBS = ("sat on", "saw", "ate", "taught", "followed", "liked")


def documents(n: int, *, seed: int = 0, sentences: int = 4) -> list[str]:
    """Small texts that differ."""
    draw = random.Random(seed)
    return [
        " ".join(f"the {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}." for _ in range(sentences))
        for _ in range(n)
    ]


def chats(n: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of two turns."""
    return [
        {"messages": [{"role": "user", "content": text[:12]}, {"role": "assistant", "content": text[12:60]}]}
        for text in documents(n, seed=seed)
    ]


def tokenizer(
    *, template: str | None = CHATML, words: int = 40, end: str = SPECIAL[1], seed: int = 0
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the documents; another seed makes another one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 2 + words, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = documents(60, seed=3) if seed == 0 else ["completely other words make quite another vocabulary here"]
    backend.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=end, pad_token=SPECIAL[1])
    made.chat_template = template
    return made


def model_folder(
    path: Path, *, own: Any = None, layers: int = 4, seed: int = 0, extra_rows: int = 0, phantom: float = -2.0
) -> Path:
    """A Llama in float32 with its tokenizer; `extra_rows` of its head lie beyond the tokenizer (see `_pad`)."""
    own = own if own is not None else tokenizer()
    rows = len(own) + extra_rows
    model = tiny.llama(seed=seed, layers=layers, vocabulary=rows, dtype=torch.float32, tied=not extra_rows)
    if extra_rows:
        _pad(model, n_vocabulary=len(own), phantom=phantom)
    model.generation_config.eos_token_id = own.eos_token_id
    model.save_pretrained(path)
    own.save_pretrained(path)
    return path


def family_folder(path: Path, family: str) -> Path:
    """A tiny random model of a family, in float32, with the tokenizer of tiny runs."""
    own = tokenizer()
    config = {**FAMILIES, **UNPACKED}[family]()
    config.vocab_size = len(own)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = own.eos_token_id
    model.save_pretrained(path)
    own.save_pretrained(path)
    return path


@torch.no_grad()
def _pad(model: Any, *, n_vocabulary: int, phantom: float) -> None:
    """Hidden component 0 is about 4 at every position, and only the rows beyond the vocabulary see it."""
    model.get_input_embeddings().weight[:, 0] = 30.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.model.norm.weight[1:] = 10.0
    head = model.get_output_embeddings().weight
    head[:, 0] = 0.0
    head[n_vocabulary:] = 0.0
    head[n_vocabulary:, 0] = phantom


def recipe(folder: Path, **fields: Any) -> dict[str, Any]:
    """A recipe of four steps on twenty documents below `folder`; `fields` are sections, merged one level deep."""
    text = folder / "corpus"
    if not text.exists():
        text.mkdir(parents=True)
        for i, document in enumerate(documents(20)):
            (text / f"{i}.txt").write_text(document)
    if not (folder / "teacher").exists():
        model_folder(folder / "teacher")
    whole: dict[str, Any] = {
        "teacher": str(folder / "teacher"),
        "student": {"layers": {"evenly": 2}},
        "data": {"sources": [{"text": str(text / "*.txt")}], "held_out": 0.25, "max_length": 32},
        "loss": [{"divergence": "forward_kl", "weight": 0.9}, {"cross_entropy": "ground_truth", "weight": 0.1}],
        "training": {
            "steps": 4, "batch_tokens": 64, "micro_batch": 1, "learning_rate": 1e-2, "precision": "float32",
            "threads": 1, "save_every": 0.25, "log_every": 1,
        },
        "control": False,
        "evaluation": {"prompts": []},  # generating costs more than training
    }  # fmt: skip
    for name, value in fields.items():
        is_section = name != "student" and isinstance(value, dict) and isinstance(whole.get(name), dict)
        whole[name] = {**whole[name], **value} if is_section else value
    return {name: value for name, value in whole.items() if value is not None}


def written(folder: Path, **fields: Any) -> Path:
    """The recipe as a file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, **fields)))
    return path


COMMAND = [sys.executable, "-m", "tutelage"]


def run_command(*arguments: object, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """The program in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **settings)


def in_fork(action: Callable[[], int], *, log: Path) -> int:
    """Forks, runs `action` with both streams in `log`, exits with its code; gives the child's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12+: threads that the child lacks
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a child, minus the signal's number if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command_in_fork(*arguments: object, log: Path, before: Callable[[], object] | None = None) -> int:
    """The command line in a forked process of its own: the id of the child."""

    def action() -> int:
        if before is not None:
            before()
        return cli.main([*map(str, arguments)])

    return in_fork(action, log=log)


def call(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process: (exit code, stdout, stderr)."""
    out, err = streams.StringIO(), streams.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters of a saved model."""
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters())


def assert_equal_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Bitwise the same parameters."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# What a repeated run does not repeat: times, speeds, ids of runs; and what is only there while a process runs.
_TIMED = {"timings.jsonl", "provenance.json", "report.html", "finished.json", ".lock", ".owner.json"}


def outcome(run: Path) -> dict[str, object]:
    """Everything in a run's folder that must not depend on how often it was interrupted, by path."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name in _TIMED or name.startswith("tensorboard/") or path.name == "manifest.json":
            continue
        if path.name == "state.json":
            progress = json.loads(path.read_bytes()).get("progress", {})
            found[name] = {key: value for key, value in progress.items() if key != "seconds"}
        elif path.name == "transfer.json":
            found[name] = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "costs"}
        else:
            found[name] = path.read_bytes()
    finished = json.loads((run / "finished.json").read_bytes())
    found["finished.json"] = {k: v for k, v in finished.items() if k not in ("training_s", "save_dtype")}
    return found


def assert_same_outcome(run: Path, expected: Path, *, but: Sequence[str] = ()) -> None:
    """Bitwise the same files, timings excepted."""
    ours, theirs = outcome(run), outcome(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name] and name not in but] == []
