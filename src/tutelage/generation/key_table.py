"""Keys of requests with some numbers each, outside of the process's memory: as many as there are prompts.

A private table of SQLite without a name: it lies in memory up to `_CACHE_KIB`, the rest of it in a file of the system's
folder for temporary ones, which nobody else sees and which is gone with the process.  Nothing in it is a record: the
journal and the prompts say everything again.
"""

import sqlite3
import weakref
from collections.abc import Iterator

from tutelage.errors import ResourceError

_CACHE_KIB = 2048
_KEY_LENGTH = 64  # of a SHA-256 in hex; other keys (of a judge) are kept as text
Numbers = tuple[int, int, int]


class KeyTable:
    """A mapping of keys to three whole numbers of up to 63 bits, in no particular order."""

    def __init__(self) -> None:
        self._n = 0
        # No thread shares it with another one at the same time, but a loop may run in a thread of its own.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute("CREATE TABLE numbers (key PRIMARY KEY, a, b, c) WITHOUT ROWID")
        self._cursor = self._db.cursor()  # one for all: a connection remembers hundreds of those that are gone
        self._db.execute("BEGIN")  # never ended: what would be made durable here is of no use to anybody

    def put(self, key: str, a: int = 0, b: int = 0, c: int = 0) -> None:
        """Sets the numbers of a key."""
        if not self.add(key, a, b, c):
            self._do("UPDATE numbers SET a = ?, b = ?, c = ? WHERE key = ?", (a, b, c, _stored(key)))

    def add(self, key: str, a: int = 0, b: int = 0, c: int = 0) -> bool:
        """Whether the key is new; a known one keeps its numbers."""
        new = self._do("INSERT OR IGNORE INTO numbers VALUES (?, ?, ?, ?)", (_stored(key), a, b, c)).rowcount
        self._n += new
        return new == 1

    def get(self, key: str) -> Numbers | None:
        """The numbers of a key, None for an unknown one."""
        found: Numbers | None = self._do("SELECT a, b, c FROM numbers WHERE key = ?", (_stored(key),)).fetchone()
        return found

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[str]:
        for (key,) in self._db.execute("SELECT key FROM numbers"):  # a cursor of its own: others ask meanwhile
            yield key.hex() if isinstance(key, bytes) else key

    def _do(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._cursor.execute(statement, values)
        except sqlite3.OperationalError as error:
            found = f"no room for the keys of the requests in the folder for temporary files ({error})"
            advice = "make room there, or name another folder in TMPDIR, then rerun the same command"
            raise ResourceError("DISK_FULL", f"{found}; {advice}") from error


def _stored(key: str) -> bytes | str:
    """Half of the bytes where the key is a hash in small hexadecimal digits."""
    if len(key) == _KEY_LENGTH:
        try:
            data = bytes.fromhex(key)
        except ValueError:
            return key
        return data if data.hex() == key else key
    return key
