"""The verb `cache inspect`: what a cache holds, what it costs, and how wrong it is, measured now."""

import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage import reading, visible
from tutelage.cache import manifest as manifests
from tutelage.cache.error import CacheError
from tutelage.cache.given import is_given
from tutelage.cache.manifest import Manifest
from tutelage.cache.measured import measured
from tutelage.cache.reader import TeacherCache

_WIDTH, _NAMES = 100, 10  # columns of the table, and of the names at its left
_HEATED = ("threshold", "topk")  # codecs that store the distribution at one temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Bytes of the shards for each trained position, all draws together; `raw` is the whole distribution in fp16."""

    targets: float
    witness: float
    index: float  # keys, counts, lengths and the files' headers
    total: float
    raw: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What `inspect` gives back; `beside` are the bytes of each file and folder beside the shards."""

    path: Path
    manifest: Manifest
    costs: Costs
    beside: dict[str, int]
    held_out: Manifest | None
    error: CacheError | None
    why_no_error: str

    @property
    def loss_nats(self) -> float:
        """The teacher's own mean loss on the rows."""
        return _loss_nats(self.manifest)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        asked = self.manifest.asked
        return {
            "cache": str(self.path),
            "codec": asked.codec,
            "settings": self.manifest.settings,
            "why": self.manifest.why,
            "temperature": asked.temperature,
            "draws": asked.draws,
            "rows": self.manifest.n_rows,
            "positions": self.manifest.n_positions,
            "shards": len(self.manifest.shards),
            "bytes_per_token": asdict(self.costs),
            "bytes_beside_the_shards": self.beside,
            "vocabulary": asked.n_vocabulary,
            "max_length": asked.max_length,
            "teacher": asked.teacher.model_dump(mode="json"),
            "tokenizer": asked.tokenizer,
            "template": asked.template,
            "made_with": self.manifest.made_with,
            "teacher_loss_nats": self.loss_nats,
            "teacher_perplexity": _perplexity(self.loss_nats),
            "members": [member.model_dump(mode="json") for member in self.manifest.members],
            "error": asdict(self.error) if self.error is not None else None,
            "held_out_rows": self.held_out.n_rows if self.held_out else 0,
            "held_out_positions": self.held_out.n_positions if self.held_out else 0,
        }

    def __str__(self) -> str:
        parts = [
            ("cache", [str(self.path)]),
            ("codec", [f"{self.manifest.asked.codec}  {_settings(self.manifest)}", self.manifest.why]),
            ("asked at", [f"temperature {self.manifest.asked.temperature:g}, draws {self.manifest.asked.draws}"]),
            ("holds", [_holds(self.manifest)]),
            ("bytes", _bytes(self.costs, beside=self.beside, draws=self.manifest.asked.draws)),
            ("held out", _held_out(self.manifest, self.held_out, beside=self.beside)),
            ("teacher", _teacher(self.manifest, loss_nats=self.loss_nats)),
            ("average", _average(self.manifest)),
            ("made for", [_made_for(self.manifest)]),
            ("made with", [", ".join(f"{name} {version}" for name, version in self.manifest.made_with.items())]),
            ("error", _error(self.error, why_none=self.why_no_error)),
        ]
        return "\n".join(line for name, texts in parts for line in _lines(name, texts))


def inspect(path: str | Path) -> Inspected:
    """What the cache in a folder holds and costs; its error is measured now on the positions kept in full.

    Raises what `TeacherCache` raises when there is none, or it is unfinished or damaged.
    """
    cache = TeacherCache(path)
    error, why_none = measured(cache)
    return Inspected(
        path=cache.folder,
        manifest=cache.manifest,
        costs=_costs(cache.manifest),
        beside=_beside(cache),
        held_out=cache.held_out.manifest if cache.held_out is not None else None,
        error=error,
        why_no_error=why_none,
    )


def _costs(manifest: Manifest) -> Costs:
    n = max(1, manifest.n_positions)
    row_bytes, witness = (sum(getattr(s, field) for s in manifest.shards) for field in ("row_bytes", "witness_bytes"))
    file_bytes = sum(shard.file_bytes for shard in manifest.shards)
    return Costs(
        targets=(row_bytes - witness) / n,
        witness=witness / n,
        index=(file_bytes - row_bytes) / n,
        total=file_bytes / n,
        raw=2.0 * manifest.asked.n_vocabulary,
    )


def _beside(cache: TeacherCache) -> dict[str, int]:
    """Bytes of what is stored once a cache, whatever the number of rows; and of the held-out rows' cache."""
    sizes = {name: (cache.folder / name).stat().st_size for name in [manifests.MANIFEST, *cache.manifest.files]}
    held_out = [member.held_out for member in cache.manifest.members if member.held_out]
    for folder in (cache.folder / name for name in (manifests.START, manifests.HELD_OUT, *held_out)):
        if folder.is_dir():
            sizes[folder.name] = reading.size_of_folder(folder)
    return sizes


def _loss_nats(manifest: Manifest) -> float:
    return sum(shard.nll_nats for shard in manifest.shards) / max(1, manifest.n_positions)


def _perplexity(loss_nats: float) -> float:
    return math.exp(min(loss_nats, 700.0))  # a float ends there


# --- for people ------------------------------------------------------------------------------------------------------


def _lines(name: str, texts: list[str]) -> list[str]:
    """`name` at the left of the first line, every text folded beside it."""
    folded = [line for text in texts for line in textwrap.wrap(visible.line(text), _WIDTH - _NAMES - 2) or [""]]
    return [f"{name if n == 0 else '':<{_NAMES}}  {line}" for n, line in enumerate(folded)]


def _settings(manifest: Manifest) -> str:
    return ", ".join(f"{name} {value}" for name, value in manifest.settings.items() if value not in (None, ""))


def _holds(manifest: Manifest) -> str:
    return (
        f"{manifest.n_rows:,} rows, {manifest.n_positions:,} positions, {len(manifest.shards)} "
        f"shard{'s' * (len(manifest.shards) != 1)}; "
        f"vocabulary {manifest.asked.n_vocabulary:,}, rows of at most {manifest.asked.max_length:,} tokens"
    )


def _bytes(costs: Costs, *, beside: dict[str, int], draws: int) -> list[str]:
    once = {name: n for name, n in beside.items() if not name.startswith(manifests.HELD_OUT)}
    each = f" for {draws} draws" if draws > 1 else ""
    return [
        f"{costs.total:.2f} a token{each}: targets {costs.targets:.2f}, witness {costs.witness:.2f}, keys and index "
        f"{costs.index:.2f}",
        f"1/{costs.raw / costs.total:,.0f} of the whole distribution in fp16 ({costs.raw:,.0f})" if costs.total else "",
        "once a cache: " + ", ".join(f"{name.removesuffix('.safetensors')} {n:,}" for name, n in once.items()),
    ]


def _held_out(manifest: Manifest, held_out: Manifest | None, *, beside: dict[str, int]) -> list[str]:
    if members := [member for member in manifest.members if member.held_out]:
        return [f"whole, of {member.teacher.name}: {beside[member.held_out]:,} bytes" for member in members]
    if held_out is None:
        return ["none: a student trained from this cache cannot be compared with the teacher"]
    return [
        f"{held_out.n_rows:,} rows, {held_out.n_positions:,} positions, whole: {beside[manifests.HELD_OUT]:,} bytes"
    ]


def _teacher(manifest: Manifest, *, loss_nats: float) -> list[str]:
    teacher, temperature = manifest.asked.teacher, manifest.asked.temperature
    is_heated = temperature != 1.0 and manifest.asked.codec in _HEATED
    heated = f", both at temperature {temperature:g}" if is_heated else ""
    if is_given(manifest):
        return [
            f"{teacher.name}, behind an endpoint: no weights are known",
            f"its own loss {loss_nats:.4f} nats a token, perplexity {_perplexity(loss_nats):,.2f}{heated}",
        ]
    return [
        f"{teacher.name}: {teacher.parameters:,} parameters, {teacher.dtype}, {teacher.attention} attention, weights "
        f"{teacher.saved_weights[:12]}",
        f"its own loss {loss_nats:.4f} nats a token, perplexity {_perplexity(loss_nats):,.2f}{heated}",
    ]


def _average(manifest: Manifest) -> list[str]:
    return [
        f"{member.weight:.3g} of {member.teacher.name}, weights {member.teacher.saved_weights[:12]}"
        for member in manifest.members
    ]


def _made_for(manifest: Manifest) -> str:
    asked = manifest.asked
    return f"tokenizer {asked.tokenizer[:12]}, chat template {asked.template[:12] or 'none'}"


def _error(error: CacheError | None, *, why_none: str) -> list[str]:
    if error is None:
        return [why_none]
    kl = f"; KL(teacher || stored) {error.kl_nats:.2e} nats" if error.kl_nats is not None else ""
    return [
        f"of the gradient, a share of the full one: {error.per_position:.4f} a position, {error.batch:.4f} of the mean "
        f"over {error.n:,} positions",
        f"kept mass {error.kept_mass:.4f}{kl}; measured now on the rows kept in full",
    ]
