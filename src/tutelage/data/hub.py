"""The files of a data set on the Hugging Face hub, in the hub's own cache: fetched once, read offline afterwards.

Which files a split has is said by `configs` in the card (README.md) of the data set, else by the files' names; no code
of the data set is run.  A revision is resolved once a process, so one run reads one commit.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # the card is YAML of anybody

import yaml

from tutelage import console
from tutelage.data.files import PARQUET_ENDINGS
from tutelage.errors import ConfigError, IntegrityError, RemoteError

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
ENDINGS = (*PARQUET_ENDINGS, *(f"{kind}{packed}" for kind in (".jsonl", ".json") for packed in _PACKED))
_CARD = "README.md"
_SPLITS = ("train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation")
_NUMBERED = re.compile(r"-\d{5}-of-(\d{5})\.")


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One commit of a data set: the names of its files; `folder` where only the cache is asked."""

    repository: str
    revision: str
    commit: str
    names: tuple[str, ...]
    folder: Path | None

    def fetch(self, name: str) -> Path:
        """A file on this machine."""
        import huggingface_hub

        if self.folder is not None:
            return self.folder / name
        with _in_our_words(self.repository, self.revision):  # by the branch's name, which the cache then knows too
            got = huggingface_hub.hf_hub_download(self.repository, name, repo_type="dataset", revision=self.revision)
        if self.commit not in Path(got).parts:
            what = f"hub {self.repository} changed while it was fetched"
            raise IntegrityError("DATA_READ", f"{what}; run the same command again")
        return Path(got)


@functools.cache
def files_of(repository: str, *, subset: str | None, split: str, revision: str | None) -> tuple[Path, ...]:
    """The files of one split, on this machine, in the order of their names.

    Raises ConfigError for a data set, subset or split that is not there, RemoteError[DOWNLOAD] when the hub cannot be
    reached and its cache has no copy.
    """
    snapshot = _snapshot(repository, revision or "main")
    card = _card(snapshot)
    names = _names_of_split(snapshot, card, subset=subset, split=split)
    unreadable = [name for name in names if not name.lower().endswith(ENDINGS)]
    if unreadable:
        raise ConfigError(
            "DATA_READ", f"hub {repository}: {unreadable[0]} is neither Parquet nor JSON lines; name other files "
            f"yourself, such as text: hf://datasets/{repository}/*.txt",
        )  # fmt: skip
    if snapshot.folder is not None:
        _require_all(snapshot, names)
        console.note("DOWNLOAD", f"hub {repository}: {len(names)} files of {snapshot.commit[:12]} from the hub's cache")
    return tuple(snapshot.fetch(name) for name in names)


def _snapshot(repository: str, revision: str) -> _Snapshot:
    """The commit that a revision is now; when the hub cannot be reached, the one in its cache."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _in_our_words(repository, revision):
            info = huggingface_hub.HfApi().dataset_info(repository, revision=revision)
        names = tuple(sibling.rfilename for sibling in info.siblings or ())
        return _Snapshot(repository, revision, str(info.sha), names, None)
    except RemoteError:
        try:
            place = huggingface_hub.snapshot_download(
                repository, repo_type="dataset", revision=revision, local_files_only=True
            )
        except (errors.LocalEntryNotFoundError, OSError):
            place = None
        if place is None:
            raise
    folder = Path(place)
    names = tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
    return _Snapshot(repository, revision, folder.name, names, folder)


@contextmanager
def _in_our_words(repository: str, revision: str) -> Iterator[None]:
    """The errors of the hub's library as ours."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision != "main" else ""
    try:
        yield
    except errors.GatedRepoError as error:
        fix = "accept its terms on its page, then type: hf auth login"
        raise RemoteError("DOWNLOAD", f"the data set {repository} is gated: {fix}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        fix = "check the spelling, or for a private one type: hf auth login"
        raise ConfigError("DATA_READ", f"no data set {repository}{at} on the hub; {fix}") from error
    except (HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError) as error:
        why = f"is not on this machine and the hub cannot be reached ({type(error).__name__})"
        raise RemoteError("DOWNLOAD", f"the data set {repository}{at} {why}; go online and rerun") from error


# --- which files ---
def _card(snapshot: _Snapshot) -> Mapping[str, Any]:
    """The YAML at the head of the card; empty where there is none."""
    if _CARD not in snapshot.names:
        return {}
    text = snapshot.fetch(_CARD).read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return {}
    try:
        head = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError as error:
        raise IntegrityError("DATA_READ", f"the card of hub {snapshot.repository} is no YAML ({error})") from error
    return head if isinstance(head, dict) else {}


def _names_of_split(snapshot: _Snapshot, card: Mapping[str, Any], *, subset: str | None, split: str) -> tuple[str, ...]:
    """The names of the split's files, sorted; ConfigError that lists what there is instead."""
    where = f"hub {snapshot.repository}"
    configs = [c for c in card.get("configs") or () if isinstance(c, dict) and c.get("config_name")]
    if not configs:
        if subset is not None:
            raise ConfigError("CONFIG", f"{where} has no subsets, got {subset!r}; leave subset out")
        return _by_name(snapshot, [n for n in snapshot.names if n.lower().endswith(ENDINGS)], split=split)
    chosen = _config(configs, subset, where=where)
    splits = _patterns(chosen)
    if not splits:  # it names a folder, or nothing
        folder = str(chosen.get("data_dir") or "").strip("/")
        below = f"{folder}/" if folder else ""
        inside = [n for n in snapshot.names if n.startswith(below) and n.lower().endswith(ENDINGS)]
        return _by_name(snapshot, inside, split=split)
    if split not in splits:
        raise ConfigError("CONFIG", f"{where} has no split {split!r}; it has: {', '.join(splits)}; set split")
    patterns = [_regex(pattern) for pattern in splits[split]]
    names = tuple(sorted(n for n in snapshot.names if any(p.fullmatch(n) for p in patterns)))
    if not names:
        raise ConfigError("DATA_READ", f"{where}: no file matches {splits[split][0]}, which its card names for {split}")
    return names


def _config(configs: Sequence[Mapping[str, Any]], subset: str | None, *, where: str) -> Mapping[str, Any]:
    known = [str(config["config_name"]) for config in configs]
    if subset is None:
        marked = [c for c in configs if c.get("default") is True or c["config_name"] == "default"]
        if marked or len(configs) == 1:
            return (marked or list(configs))[0]
    elif subset in known:
        return configs[known.index(subset)]
    found = "several subsets" if subset is None else f"no subset {subset!r}"
    raise ConfigError("CONFIG", f"{where} has {found}; set subset to one of {', '.join(known[:20])}")


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Split -> patterns of its files."""
    said = config.get("data_files")
    entries = said if isinstance(said, list) else [said] if said else []
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        splits.setdefault(str(split), []).extend(map(str, path if isinstance(path, list) else [path]))
    return splits


def _by_name(snapshot: _Snapshot, names: Sequence[str], *, split: str) -> tuple[str, ...]:
    """The files that name the split; where none names any split, all of them are `train`."""
    chosen = [name for name in names if _names(name, split)]
    if not chosen and split == "train" and not any(_names(name, other) for name in names for other in _SPLITS):
        chosen = list(names)
    if not chosen:
        shown = ", ".join(sorted(names)[:5]) or "no Parquet or JSON lines"
        raise ConfigError(
            "CONFIG", f"hub {snapshot.repository}: no file of split {split!r}; it has: {shown}; set split"
        )
    return tuple(sorted(chosen))


def _names(name: str, split: str) -> bool:
    """Whether a path has the split as a word of its own."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z_])", name) is not None


def _regex(pattern: str) -> re.Pattern[str]:
    """A pattern of a card: `*` stays in a folder, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))


def _require_all(snapshot: _Snapshot, names: Sequence[str]) -> None:
    """RemoteError when the cache holds only some of a split's numbered files."""
    for name in names:
        found = _NUMBERED.search(name)
        if found is None:
            continue
        alike = name[: found.start()]
        there = sum(other.startswith(alike) and _NUMBERED.search(other) is not None for other in names)
        if there != int(found[1]):
            what = f"{there} of {int(found[1])} files of {alike} are in the hub's cache"
            raise RemoteError("DOWNLOAD", f"hub {snapshot.repository}: {what}; go online and rerun")
