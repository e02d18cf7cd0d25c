"""What is read back from files: a JSON value, a checksum, sizes.  `io.py` is what writes them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tutelage import io
from tutelage.errors import IntegrityError


def sha256_file(path: Path) -> str:
    """The SHA-256 of the bytes of `path`, in hex."""
    with io.mapped(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of_folder(path: Path) -> int:
    """Bytes of all files in and below `path`; 0 where there is no such folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def read_json(path: Path) -> Any:  # JSON from outside: the caller checks what it gets
    """The value in `path`; IntegrityError[DATA_READ] when it is absent or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError("DATA_READ", f"{path} cannot be read as JSON ({error})") from error
