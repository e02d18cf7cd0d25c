"""A trained model as a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads with no code of ours.

Shape legend: N positions, D hidden size, V vocabulary (real), R rows of the head (R >= V).
"""

import copy
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tutelage import console, io
from tutelage.errors import IntegrityError, ResourceError
from tutelage.models.adapters import learned_parameters
from tutelage.models.cast import cast
from tutelage.models.head import head_of, padding_mass, spread_ids, trained_hidden, trunk
from tutelage.models.quiet import quiet_transformers
from tutelage.types import Batch, CausalLM, TokenView

MAX_PADDING_MASS = 1e-6
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors words what the system said


@torch.no_grad()
def with_weights(model: CausalLM, weights: Mapping[str, Tensor], *, dtype: torch.dtype) -> CausalLM:
    """A copy of `model` on the CPU in `dtype` that holds `weights`: by name, all or those of its adapters."""
    other = cast(copy.deepcopy(model), dtype, device="cpu")
    parameters = learned_parameters(other)
    assert parameters.keys() == weights.keys(), "the weights of another model"
    for name, value in weights.items():
        parameters[name].copy_(value)
    return other.eval().requires_grad_(False)


def cut_padding(model: CausalLM, *, n_vocabulary: int) -> None:
    """Cut the head's rows beyond the tokenizer's vocabulary when their unmasked mass is 1e-6 or more, with a note."""
    mass = padding_mass(model, n_vocabulary=n_vocabulary)
    if mass < MAX_PADDING_MASS:
        return
    rows = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(n_vocabulary)
    console.note(
        "VOCAB_PAD", f"{rows - n_vocabulary} rows beyond the tokenizer's {n_vocabulary} held a mass of {mass:.1e}: cut"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """A folder that was read back and compared."""

    path: Path
    n_bytes: int


def save_model(
    model: CausalLM, tokenizer: Any, folder: Path, *, replace: bool = True, beside: Callable[[Path], None] | None = None
) -> SavedModel:
    """Write `model` (in its own dtype) and its tokenizer, whole or not at all, and check what was written.

    `beside` puts more into the folder.

    Raises IntegrityError[EXPORT_MISMATCH] when the folder read back does not give the same weights and logits bitwise.
    """
    io.make_directory(folder.parent)
    partial = folder.with_name(folder.name + ".partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    with _full_disk(folder), quiet_transformers():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    if beside is not None:
        beside(partial)
    _require_equal(model, partial)
    io.commit_directory(partial, folder, replace=replace)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return SavedModel(path=folder, n_bytes=weights)


def save_start(model: CausalLM, tokenizer: Any, folder: Path, *, replace: bool) -> None:
    """Write tokenizer and config alone: what a student can start from without weights.

    One that is there stays; with `replace` only if it is the same, byte for byte.
    """
    if folder.is_dir() and not replace:
        return
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    io.remove_tree(partial)
    io.make_directory(partial)
    with _full_disk(folder), quiet_transformers():
        model.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    if folder.is_dir() and _contents(folder) == _contents(partial):
        io.remove_tree(partial)
        return
    try:
        io.commit_directory(partial, folder, replace=True)
    except ResourceError:
        if not folder.is_dir():  # else another process was faster
            raise
        io.remove_tree(partial)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """What transformers and safetensors raise when they cannot write becomes one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        worded = _OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(worded[1]) if worded else None
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"no space left to write {folder} ({errno.errorcode[number]}); make room"
            raise ResourceError("DISK_FULL", f"{message} and rerun the same command to continue") from error
        raise ResourceError("IO", f"cannot write {folder} ({error}); check the path and its permissions") from error


@torch.no_grad()
def difference(a: CausalLM, b: CausalLM, batches: Sequence[Batch], *, n_vocabulary: int) -> dict[str, float]:
    """KL(a || b) in nats and the share of equal top-1 tokens, means over the trained positions of `batches`."""
    kl = agree = n = 0.0
    for batch in batches:
        logp = [
            torch.log_softmax(head_of(m, n_vocabulary=n_vocabulary).logits(trained_hidden(m, batch.view)), -1)
            for m in (a, b)
        ]
        kl += float((logp[0].exp() * (logp[0] - logp[1])).sum())
        agree += float((logp[0].argmax(-1) == logp[1].argmax(-1)).sum())
        n += batch.n_trained
    return {"kl_nats": kl / n, "top1_agreement": agree / n}


@torch.no_grad()
def _require_equal(model: CausalLM, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        dtype = next(model.parameters()).dtype
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=model.config._attn_implementation
        )
        again = cast(again, dtype)  # of a mixture, that it can compute in float64
    expected, found = model.state_dict(), again.state_dict()
    wrong = [name for name in expected if name not in found or not torch.equal(expected[name].cpu(), found[name])]
    ids_BT = spread_ids(again.get_output_embeddings().weight.shape[0])
    view = TokenView.of(ids_BT, ids_BT)
    if not wrong and not torch.equal(trunk(model.cpu(), view), trunk(again.eval(), view)):
        wrong = ["the output on a probe"]
    if wrong:
        io.remove_tree(folder)
        raise IntegrityError(
            "EXPORT_MISMATCH",
            f"{folder.name} read back differs in {', '.join(wrong[:3])}; nothing was saved; please report the model",
        )
