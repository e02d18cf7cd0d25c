"""bz2 and xz files of several streams one behind the other, as `cat a.xz b.xz` makes them.

The readers of the standard library take what cannot be read behind the first stream for rubbish at the end of the file,
and go without it: a damaged second stream would be half of the documents, and no error.
"""

import bz2
import lzma
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from typing import BinaryIO, TypeAlias, cast

PIECE_BYTES = 1 << 16
_PADDING_UNIT = 4  # bytes; the format allows xz streams to be filled up with zeros to a multiple of it
_Member: TypeAlias = bz2.BZ2Decompressor | lzma.LZMADecompressor  # of one stream


def unpacked_bz2(raw: BinaryIO) -> BinaryIO:
    """The bytes of a bz2 file, of as many streams as it has."""
    return cast(BinaryIO, BufferedReader(_Members(raw, bz2.BZ2Decompressor), PIECE_BYTES))


def unpacked_xz(raw: BinaryIO) -> BinaryIO:
    """The bytes of an xz file, of as many streams as it has, with zeros between and behind them or without."""
    members = _Members(raw, lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ), is_padded=True)
    return cast(BinaryIO, BufferedReader(members, PIECE_BYTES))


class _Members(RawIOBase):
    """Unpacks stream after stream; whatever stands behind one must be another one."""

    def __init__(self, raw: BinaryIO, new: Callable[[], _Member], *, is_padded: bool = False) -> None:
        self._raw, self._new, self._is_padded = raw, new, is_padded
        self._member = new()

    def readable(self) -> bool:
        """As every reader says of itself."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of what a BufferedReader hands over
        """The next bytes, as many as fit, and at least one unless the file ends; EOFError where it ends in a stream."""
        data = b""
        while not data:
            packed = b""
            if self._member.eof:
                packed = self._behind_the_member()
                if not packed:
                    return 0
                self._member = self._new()
            elif self._member.needs_input:
                packed = self._raw.read(PIECE_BYTES)
                if not packed:
                    raise EOFError("the last stream has no end")
            data = self._member.decompress(packed, max_length=len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _behind_the_member(self) -> bytes:
        """What begins the next stream, the padding before it left out; empty at the end of the file."""
        packed = self._member.unused_data or self._raw.read(PIECE_BYTES)
        n_padding = 0
        while self._is_padded and packed.startswith(b"\0"):
            rest = packed.lstrip(b"\0")
            n_padding += len(packed) - len(rest)
            packed = rest or self._raw.read(PIECE_BYTES)
        if n_padding % _PADDING_UNIT:
            raise lzma.LZMAError(f"{n_padding} zero bytes behind a stream, expected a multiple of {_PADDING_UNIT}")
        return packed
