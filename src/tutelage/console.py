"""What people read: notes, warnings, errors and progress on stderr, the result on stdout.

One message is one line, `note[CODE]: message`, whatever characters a file name brings along.  A reader that goes away
(`| head`) or a closed stream never stops a run.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tutelage.errors import CODES, ResourceError, TutelageError

_LINE_EVERY_S = 10.0
_quiet = False
_said: set[str] | None = None  # notes and warnings that are not to be repeated


@contextmanager
def each_once() -> Iterator[None]:
    """Inside, a note or a warning that has been shown is not shown again: many runs say the same of the same data."""
    global _said
    before, _said = _said, set() if _said is None else _said
    try:
        yield
    finally:
        _said = before


def _is_new(line: str) -> bool:
    if _said is None:
        return True
    seen = line in _said
    _said.add(line)
    return not seen


def set_quiet(quiet: bool) -> None:
    """With `quiet`, notes and progress are not shown; warnings and errors are."""
    global _quiet
    _quiet = quiet


def note(code: str, message: str) -> None:
    """`note[CODE]: message` on stderr: something the user may want to know; nothing is wrong."""
    assert code in CODES, f"unknown code {code}: add it to errors.CODES"
    if not _quiet and _is_new(line := f"note[{code}]: {message}"):
        say(line)


def warning(code: str, message: str) -> None:
    """`warning[CODE]: message` on stderr: the run goes on, the user should look."""
    assert code in CODES, f"unknown code {code}: add it to errors.CODES"
    if _is_new(line := f"warning[{code}]: {message}"):
        say(line)


def error(reason: TutelageError) -> None:
    """`error[CODE]: message` on stderr, the last line before a non-zero exit."""
    say(str(reason))


def say(text: str) -> None:
    """One line on stderr, control characters made visible; silent when nobody can read it."""
    try:
        print(_one_line(text), file=sys.stderr, flush=True)
    except ValueError:  # the stream itself is closed
        return
    except OSError:  # the other end of the pipe is
        _forget(sys.stderr)


def tell(text: str) -> None:
    """One line on stderr about what goes on, unless quiet."""
    if not _quiet:
        say(text)


def _one_line(text: str) -> str:
    spaced = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in spaced)


def print_result(text: str) -> None:
    """The result, on stdout; quiet when the reader has gone, ResourceError when it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget(sys.stdout)
    except OSError as reason:
        _forget(sys.stdout)
        raise ResourceError("IO", f"cannot write the result to stdout ({reason.strerror})") from reason


def _forget(stream: TextIO) -> None:
    """What could not be written goes nowhere: Python tries once more at exit, and would end with status 120."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Progress:
    """A bar on a terminal, else a plain line every `line_every` units (or every ten seconds); used with `with`."""

    def __init__(self, title: str, *, total: int, done: int = 0, line_every: int | None = None) -> None:
        self.title, self.total, self.done, self.text = title, total, done, ""
        self._line_every = line_every
        self._started_s = self._printed_s = time.monotonic()
        self._first = self._printed = done
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._rows: dict[str, str] = {}  # beside the text: of one thing each, such as a model
        self._row_tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Progress":
        if not _quiet and _is_terminal():
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
            # stdout stays what it is: it carries the result.
            self._bar = Bar(
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(file=sys.stderr),
                redirect_stdout=False,
                transient=True,
            )
            self._task = self._bar.add_task(_one_line(self.title), total=self.total, completed=self.done, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and self.done != self._printed:
            self._print()

    def update(self, done: int, text: str = "", *, rows: Mapping[str, str] | None = None) -> None:
        """`done` units of `total` are ready; `text` stands beside them (tokens/s).

        `rows` are a text by name (a model: its losses): a line each where there are several.
        """
        rows = rows or {}
        alone = "".join(rows.values()) if len(rows) == 1 else ""
        self.done, self.text = done, "  ".join(part for part in (alone, text) if part)
        self._rows = dict(rows) if len(rows) > 1 else {}
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=_one_line(self.text))
            for name, row in self._rows.items():
                if name not in self._row_tasks:
                    self._row_tasks[name] = self._bar.add_task(_one_line(f"  {name}"), total=self.total, text="")
                self._bar.update(self._row_tasks[name], completed=done, text=_one_line(row))
        elif self._is_due():
            self._print()

    def advance(self, n: int = 1, text: str = "") -> None:
        """`n` more units are ready."""
        self.update(self.done + n, text or self.text)

    def _is_due(self) -> bool:
        if self._line_every is not None:
            return self.done // self._line_every > self._printed // self._line_every
        return time.monotonic() - self._printed_s >= _LINE_EVERY_S

    def _print(self) -> None:
        self._printed, self._printed_s = self.done, time.monotonic()
        if _quiet:
            return
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        parts = [f"{self.title}: {self.done} of {self.total}{share}", self.text, self._time_left()]
        say(", ".join(part for part in parts if part))
        for name, row in self._rows.items():
            say(f"  {name}: {row}")

    def _time_left(self) -> str:
        n_done, n_left = self.done - self._first, self.total - self.done
        if n_done <= 0 or n_left <= 0:
            return ""
        seconds = round((time.monotonic() - self._started_s) / n_done * n_left)
        return f"{seconds // 60} min {seconds % 60:02d} s left" if seconds >= 60 else f"{seconds} s left"


def _is_terminal() -> bool:
    """Asked here, not of rich: FORCE_COLOR must not put control characters into a log file."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
