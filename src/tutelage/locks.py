"""One process of this machine at a time makes a thing that several may want: a download, a store, a cache."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage import console, io
from tutelage.home import home

_ASK_AGAIN_S = 0.1


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Wait for the lock at `path`, say so once, and hold it for the body."""
    io.make_directory(path.parent)
    handle = io.take_lock(path)
    if handle is None:
        console.note("LOCKED", f"another process is at work on {what}; waiting for it")
    while handle is None:
        time.sleep(_ASK_AGAIN_S)
        handle = io.take_lock(path)
    try:
        yield
    finally:
        os.close(handle)


def lock_path(folder: Path, name: str) -> Path:
    """A lock of `folder` that lies in our own folder: a finished cache holds nothing but the cache."""
    locks = home() / "locks" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    io.make_directory(locks)
    return locks / f"{name}.lock"
