"""The power-loss model: every state of the disk that a log of operations can leave behind when the power goes.

Rules, the strictest that POSIX allows: the bytes of a file are safe once that file was fsynced; a name (create, rename,
unlink, mkdir) is safe once its folder was fsynced.  Of what is not safe, any part may have reached the disk, in any
order: every subset of the names that are under way in a folder; of a file's bytes the last safe ones, all, or behind
the safe ones a prefix or the right length in zeros.  Only reachable or not matters; frequencies are not probabilities.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tutelage import io

State = dict[str, bytes | None]  # relative path -> bytes, None for a folder
MOST_PENDING = 12  # of names at once; a log that goes beyond it has lost its directory fsyncs


@dataclass
class _File:
    live: bytes = b""
    safe: bytes = b""
    under_way: list[bytes] = field(default_factory=list)  # contents since the last fsync


@dataclass
class _Folder:
    live: "dict[str, _Node]" = field(default_factory=dict)
    safe: "dict[str, _Node]" = field(default_factory=dict)
    under_way: "list[list[tuple[str, _Node | None]]]" = field(default_factory=list)  # one change: names set together


_Node = _File | _Folder


class Disk:
    """A hook for `io.FAULTS` that keeps the model up to date; `states()` lists what a power loss would leave now."""

    def __init__(self, root: Path, *, ignore: frozenset[str] = frozenset()) -> None:
        self.root, self.ignore = root.resolve(), ignore
        self.top = _Folder()
        self._seen: set[int] = set()

    def __call__(self, operation: io.Operation) -> int | None:
        """Applies one operation; kinds in `ignore` never reach the disk (the mutants M33 and M34)."""
        if operation.kind not in self.ignore:
            getattr(self, "_" + operation.kind)(operation)
        return None

    # --- the operations -------------------------------------------------------------------------------------------

    def _parts(self, path: Path) -> tuple[str, ...]:
        return (path.parent.resolve() / path.name).relative_to(self.root).parts

    def _folder(self, parts: tuple[str, ...]) -> _Folder:
        node: _Node = self.top
        for part in parts:
            assert isinstance(node, _Folder), parts
            node = node.live[part]
        assert isinstance(node, _Folder), parts
        return node

    def _node(self, path: Path) -> _Node:
        parts = self._parts(path)
        return self._folder(parts[:-1]).live[parts[-1]] if parts else self.top

    def _change(self, path: Path, *names: "tuple[str, _Node | None]") -> None:
        folder = self._folder(self._parts(path)[:-1])
        for name, node in names:
            if node is None:
                folder.live.pop(name)
            else:
                folder.live[name] = node
        folder.under_way.append(list(names))

    def _create(self, operation: io.Operation) -> None:
        self._change(operation.path, (operation.path.name, _File()))

    def _mkdir(self, operation: io.Operation) -> None:
        self._change(operation.path, (operation.path.name, _Folder()))

    def _unlink(self, operation: io.Operation) -> None:
        self._change(operation.path, (operation.path.name, None))

    _rmdir = _unlink

    def _rename(self, operation: io.Operation) -> None:
        assert operation.target is not None
        assert operation.path.parent == operation.target.parent, "a move between folders is two changes: model it first"
        node = self._node(operation.path)
        self._change(operation.path, (operation.path.name, None), (operation.target.name, node))

    def _write(self, operation: io.Operation) -> None:
        file = self._node(operation.path)
        assert isinstance(file, _File)
        if operation.data is None:  # another library wrote it just now
            file.live = operation.path.read_bytes()
        else:
            data, end = bytes(operation.data), operation.offset + memoryview(operation.data).nbytes
            file.live = file.live[: operation.offset].ljust(operation.offset, b"\0") + data + file.live[end:]
        file.under_way.append(file.live)

    def _truncate(self, operation: io.Operation) -> None:
        file = self._node(operation.path)
        assert isinstance(file, _File)
        file.live = file.live[: operation.offset]
        file.under_way.append(file.live)

    def _fsync(self, operation: io.Operation) -> None:
        file = self._node(operation.path)
        assert isinstance(file, _File)
        file.safe, file.under_way = file.live, []

    def _fsync_directory(self, operation: io.Operation) -> None:
        folder = self._node(operation.path)
        assert isinstance(folder, _Folder)
        folder.safe, folder.under_way = dict(folder.live), []

    # --- what a power loss leaves ---------------------------------------------------------------------------------

    def new_states(self) -> Iterator[State]:
        """The states that were not reachable before: call it after each operation to see each state once."""
        for state in self.states():
            key = hash(frozenset(state.items()))
            if key not in self._seen:
                self._seen.add(key)
                yield state

    def forget(self) -> None:
        """Lets `new_states` begin anew: what is allowed has changed (a save was acknowledged)."""
        self._seen = set()

    def states(self) -> Iterator[State]:
        """Every reachable state, those that lose least first."""
        yield from self._folder_states(self.top, "")

    def _folder_states(self, folder: _Folder, path: str) -> Iterator[State]:
        for names in self._name_sets(folder):
            branches = [self._node_states(node, f"{path}{name}") for name, node in sorted(names.items())]
            for parts in itertools.product(*branches):
                state: State = {}
                for part in parts:
                    state.update(part)
                yield state

    def _name_sets(self, folder: _Folder) -> "Iterator[dict[str, _Node]]":
        n = len(folder.under_way)
        assert n <= MOST_PENDING, f"{n} changes of names under way in one folder: its fsync is missing"
        for n_lost in range(n + 1):
            for lost in itertools.combinations(range(n), n_lost):
                names = dict(folder.safe)
                for change in (c for i, c in enumerate(folder.under_way) if i not in lost):
                    for name, node in change:
                        names.pop(name, None)
                        if node is not None:
                            names[name] = node
                yield names

    def _node_states(self, node: _Node, path: str) -> list[State]:
        if isinstance(node, _Folder):
            return [{path: None, **state} for state in self._folder_states(node, path + "/")]
        contents = [node.live, node.safe, *node.under_way]
        for whole in node.under_way:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(node.safe, whole, strict=False))
            n_safe = sum(1 for _ in same)  # what was appended to is not touched again
            contents.append(whole[: n_safe + (len(whole) - n_safe) // 2])
            contents.append(whole[:n_safe] + b"\0" * (len(whole) - n_safe))
        return [{path: content} for content in dict.fromkeys(contents)]


def materialise(state: State, root: Path) -> None:
    """Writes a state under `root`, an empty folder."""
    for name, content in sorted(state.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
