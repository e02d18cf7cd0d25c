"""How a verb ends: every failure is one line on stderr and an exit code of `errors.py`."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from tutelage.errors import ConfigError, ResourceError, Stopped, TutelageError, is_out_of_memory


def check_platform(system: str) -> None:
    """ConfigError[PLATFORM] where tutelage cannot run: the locks and the durable files need POSIX."""
    if system == "Windows":
        raise ConfigError(
            "PLATFORM", "Windows itself is not supported; install WSL (wsl --install) and run tutelage in it"
        )


def guarded(action: Callable[[], object], *, debug: bool, help_command: str = "tutelage --help") -> int:
    """Runs a verb; its exit code.  Whatever goes wrong is one line on stderr."""
    try:
        with _stopped_by_sigterm():
            code = action()
        if code == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
    except TutelageError as error:
        return _failed(error, debug=debug)
    except typer.TyperException as error:
        usage = error.format_message().rstrip(".")
        return _failed(ConfigError("CONFIG", f"{usage}; see {help_command}"), debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        return _failed(Stopped("interrupted; rerun the same command to continue", signal_number=2), debug=debug)
    except SystemExit as error:
        # Without standalone mode typer exits by itself in two places: 0 after completion, 1 when the reader is gone.
        return 0 if error.code in (0, 1, None) else 2
    except Exception as error:  # the last line of defence: nobody sees a bare traceback
        return _failed(_unforeseen(error), debug=debug)
    return code if isinstance(code, int) else 0


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM outside the training loop, which saves first: the stack unwinds and locks are let go."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped("terminated; rerun the same command to continue", signal_number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(error: TutelageError, *, debug: bool) -> int:
    from tutelage import console

    if debug:
        import traceback

        traceback.print_exc()
    console.error(error)
    return error.exit_code


def _unforeseen(error: Exception) -> TutelageError:
    """Out of memory wherever it happened, else a bug."""
    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return ResourceError(
            "MEMORY",
            "out of memory; lower training.micro_batch or training.chunk, set training.gradient_checkpointing=true, "
            "or use training.precision=bfloat16, then rerun the same command",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError("DISK_FULL", f"no space left ({text[:200]}); make room and rerun the same command")
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return TutelageError("BUG", f"{text[:300]}{where}; rerun with --debug and report it")
