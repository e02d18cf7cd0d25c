"""Drives the fault layer under `tutelage.io`: numbers the operations, lets number N die, fail or fall short."""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

from tutelage import io

DIED, BROKE = 77, 99  # exit codes of a child: at the planned operation, by an exception nobody planned
Hook = Callable[[io.Operation], int | None]


@contextlib.contextmanager
def hooked(hook: Hook | None) -> Iterator[None]:
    """Shows every operation of the body to `hook` first."""
    before, io.FAULTS = io.FAULTS, hook
    try:
        yield
    finally:
        io.FAULTS = before


def operations(action: Callable[[], object]) -> list[io.Operation]:
    """What `action` does to the disk, in order; their number is the N of the loops."""
    seen: list[io.Operation] = []
    with hooked(seen.append):
        action()
    return seen


def _at(n: int, strike: Callable[[io.Operation], int | None], only: tuple[str, ...] = ()) -> Hook:
    count = -1

    def hook(operation: io.Operation) -> int | None:
        nonlocal count
        if not only or operation.kind in only:
            count += 1
            if count == n:
                return strike(operation)
        return None

    return hook


def raise_at(n: int, number: int, *, only: tuple[str, ...] = ()) -> Hook:
    """OSError `number` at operation n (from 0), counting only the kinds in `only`; later ones work again."""

    def strike(operation: io.Operation) -> int | None:
        raise OSError(number, os.strerror(number), str(operation.path))

    return _at(n, strike, only)


def raise_from(n: int, number: int, *, only: tuple[str, ...]) -> Hook:
    """OSError `number` at operation n of the kinds in `only` and at every later one: a disk that stays full."""
    count = -1

    def hook(operation: io.Operation) -> int | None:
        nonlocal count
        count += operation.kind in only
        if operation.kind in only and count >= n:
            raise OSError(number, os.strerror(number), str(operation.path))
        return None

    return hook


def interrupt_at(n: int) -> Hook:
    """Ctrl-C at operation n."""

    def strike(_: io.Operation) -> int | None:
        raise KeyboardInterrupt

    return _at(n, strike)


def shorten_at(n: int, n_bytes: int) -> Hook:
    """The n-th write takes only `n_bytes`."""
    return _at(n, lambda _: n_bytes, ("write",))


def die_at(n: int) -> Hook:
    """The process ends before operation n, as by kill -9: nothing is flushed, nothing cleaned up."""
    return _at(n, lambda _: os._exit(DIED))


def die_inside(n: int) -> Hook:
    """As `die_at`, but a write has already put half of its bytes into the file."""
    hook_count, half_written = -1, False

    def hook(operation: io.Operation) -> int | None:
        nonlocal hook_count, half_written
        if half_written:
            os._exit(DIED)
        hook_count += 1
        if hook_count != n:
            return None
        if operation.kind != "write" or operation.data is None:
            os._exit(DIED)
        half_written = True
        return max(1, memoryview(operation.data).nbytes // 2)

    return hook


def in_child(action: Callable[[], object], hook: Hook | None = None) -> int:
    """Runs `action` under `hook` in a forked child and returns its exit code (0: done)."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python 3.12+ warns of threads that the child lacks; it only copies small tensors and writes files.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = BROKE
        try:
            with hooked(hook):
                action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
