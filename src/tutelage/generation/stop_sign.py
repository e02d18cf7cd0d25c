"""The first signal, for work that is not in an event loop: asked between two steps, it ends the run."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import Stopped

_LOOK_S = 0.1


class StopSign:
    """Whether a signal came; `heed` raises it."""

    def __init__(self, total: int) -> None:
        self._total, self._signal = total, 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        """While it works in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._signal = number

    def heed(self, n_safe: int) -> None:
        """Raises Stopped after a signal."""
        if self._signal:
            message = f"{n_safe} of {self._total} answers are safe; rerun the same command to continue"
            raise Stopped(message, signal_number=self._signal)

    def sleep(self, seconds: float, n_safe: int) -> None:
        """Sleeps, and wakes up for a signal."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.heed(n_safe)
            time.sleep(min(left, _LOOK_S))
        self.heed(n_safe)
