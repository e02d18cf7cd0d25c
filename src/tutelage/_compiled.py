"""What compiled loops share: single instructions that numba lacks, and the key of code that it keeps on disk.

With NUMBA_DISABLE_JIT=1 every loop of the package runs as plain Python, to be stepped through or to be changed without
compiling: slow, the same numbers but for the order of float32 sums.  bfloat16 is passed as int16 bits, since numba has
no such type.
"""

import zlib
from pathlib import Path
from typing import Any  # numba is untyped: its decorators and array types are Any to the checker

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic


def stamp_of(*files: str) -> int:
    """A number that changes with the text of source files.

    numba (0.66) keeps compiled code until the file of the outer function changes, whatever the others that it calls
    do; a number that the function closes over is part of its key.
    """
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))


def _wide_vectors(typing_context: Any) -> Any:
    """Let the loop vectoriser of the enclosing function use 512 bits where the CPU has them (1.3 times faster)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite accepts only a list of known attributes (llvmlite 0.50); LLVM prefers 256 bits without this one.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _bits_to_float(typing_context: Any, bits: Any) -> Any:
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


def _float_to_bits(typing_context: Any, value: Any) -> Any:
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


def _widen(typing_context: Any, stored: Any) -> Any:
    """The float32 of a stored element: bfloat16 bits (int16) or float32."""

    def from_bfloat16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(high, ir.FloatType())

    if stored == types.int16:
        return types.float32(types.int16), from_bfloat16
    return types.float32(types.float32), lambda context, builder, signature, args: args[0]


def _narrow(typing_context: Any, value: Any, like: Any) -> Any:
    """A float32 as a stored element of the type of `like`; bfloat16 rounds to nearest even."""

    def to_bfloat16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int32 = ir.IntType(32)
        bits = builder.bitcast(args[0], int32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(int32, 16)), ir.Constant(int32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(int32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(int32, 16)), ir.IntType(16))

    if like == types.int16:
        return types.int16(types.float32, types.int16), to_bfloat16
    return types.float32(types.float32, types.float32), lambda context, builder, signature, args: args[0]


def _plain_widen(stored: Any) -> Any:
    return (np.int32(stored) << np.int32(16)).view(np.float32) if stored.dtype == np.int16 else stored


def _plain_narrow(value: Any, like: Any) -> Any:
    if like.dtype != np.int16:
        return np.float32(value)
    bits = int(np.float32(value).view(np.uint32))
    return np.uint16((bits + (bits >> 16 & 1) + 0x7FFF) >> 16 & 0xFFFF).view(np.int16)


wide_vectors: Any = (lambda: None) if config.DISABLE_JIT else intrinsic(_wide_vectors)
bits_to_float: Any = (lambda bits: bits.view(np.float32)) if config.DISABLE_JIT else intrinsic(_bits_to_float)
float_to_bits: Any = (lambda value: value.view(np.int32)) if config.DISABLE_JIT else intrinsic(_float_to_bits)
widen: Any = _plain_widen if config.DISABLE_JIT else intrinsic(_widen)
narrow: Any = _plain_narrow if config.DISABLE_JIT else intrinsic(_narrow)
