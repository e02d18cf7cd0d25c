"""Calls a function of the user's in a process of its own: what it raises, how long it takes and whether it dies there
is a value here.  A process that took too long or died is replaced for the next call.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError

START_S = 60.0  # to import what the function needs
TIMEOUT_S = 10.0  # of a call, unless the recipe says another
_CHILD = Path(__file__).with_name("_function_child.py")
_MOST_STARTS = 3  # that may fail before no other is tried: each may take START_S
_MOST_BYTES = 1 << 16  # of a reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """What a call gave: true, false or a number; or None, and why."""

    value: bool | float | None = None
    why: str = ""
    about: str = ""


class _SilentError(Exception):
    """No line came: in time, or any more."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended


def _line_of(text: object) -> str:
    return " ".join(str(text).split())


class FunctionProcess:
    """The function `module:name` or `path.py:name`; ConfigError when it cannot be imported."""

    def __init__(self, spec: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._spec, self._timeout_s = spec, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._read, self._n_failed = b"", 0
        self.name = Path(spec).name
        self.sha256 = self._start()

    def __call__(self, **texts: str) -> Returned:
        """Calls it with these texts."""
        try:
            if self._process is None and self._n_failed >= _MOST_STARTS:
                return Returned(why="function could not be started again")
            if self._process is None:
                self._start()
            self._send(texts)
            said = self._line(time.monotonic() + self._timeout_s)
        except _SilentError as error:
            self.close()
            took = f"function took more than {self._timeout_s:g} s"
            return Returned(why="function ended its process" if error.ended else took)
        except ConfigError as error:
            self._n_failed += 1
            return Returned(why="function could not be started again", about=error.message)
        if "raised" in said:
            return Returned(why=f"function raised {said['raised']}", about=_line_of(said["message"]))
        if "type" in said:
            return Returned(why=f"function returned {said['type']}")
        return Returned(value=said["value"])

    def close(self) -> None:
        """Ends the process and what it has started."""
        process, self._process, self._read = self._process, None, b""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()

    def _start(self) -> str:
        """Starts the process; the SHA-256 of the file that holds the function."""
        arguments = json.dumps({"spec": self._spec, "path": sys.path, "watchdog_s": self._timeout_s + 5})
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for us: it must not look like an error of the function
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            said = self._line(time.monotonic() + START_S)
        except _SilentError as error:
            self.close()
            why = "its process ended" if error.ended else f"it is not imported after {START_S:g} s"
            raise self._refused(why) from None
        if "sha256" not in said:
            self.close()
            raise self._refused(_line_of(said["raised"]))
        return str(said["sha256"])

    def _refused(self, why: str) -> ConfigError:
        expected = "give module:name or path.py:name of a function (prompt, answer, reference)"
        return ConfigError("CONFIG", f"generate.select: function {self.name!r} cannot be used: {why}; {expected}")

    def _send(self, texts: dict[str, str]) -> None:
        process, left = self._process, json.dumps(texts).encode() + b"\n"
        assert process is not None and process.stdin is not None
        end = time.monotonic() + self._timeout_s
        while left:
            if not select.select([], [process.stdin], [], max(0.0, end - time.monotonic()))[1]:
                raise _SilentError(ended=False)
            try:
                left = left[os.write(process.stdin.fileno(), left) :]
            except OSError:
                raise _SilentError(ended=True) from None

    def _line(self, end: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        while b"\n" not in self._read:
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise _SilentError(ended=False)
            piece = os.read(process.stdout.fileno(), _MOST_BYTES)
            if not piece:
                raise _SilentError(ended=True)
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said
