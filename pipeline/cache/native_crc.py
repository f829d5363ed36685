"""CRC32C at the speed of memory, callable inside and outside of compiled code; neither holds the GIL.

The processor's own instruction takes eight bytes in three cycles but can start every cycle, so long buffers are
summed in three lanes, joined by multiplying with a power of x modulo the polynomial.
"""

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.cache.native_fold import STRIDE, VECTOR, available, fold
from pipeline.cache.native_jit import Number, compiled, inner

POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_LANES_FROM = 6144
_FOLDING = available()


@intrinsic
def load64(_typing: Number, _address: Number) -> Number:
    """The eight bytes at an address, of any alignment."""

    def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
        value = builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        value.align = 1
        return value

    return types.uint64(types.int64), generate


@intrinsic
def load8(_typing: Number, _address: Number) -> Number:
    """The byte at an address."""

    def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
        return builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))

    return types.uint8(types.int64), generate


def _instruction() -> str | None:
    """The LLVM name of this processor's CRC32C instruction on eight bytes."""
    features = binding.get_host_cpu_features()
    if platform.machine() in ("x86_64", "AMD64") and features.get("sse4.2"):
        return "llvm.x86.sse42.crc32.64.64"
    if platform.machine() in ("aarch64", "arm64") and features.get("crc"):
        return "llvm.aarch64.crc32cx"
    return None


def _tables() -> NDArray[np.uint32]:
    """Row k: the effect of a byte that k further bytes follow."""
    table = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table[0, byte] = value
    for row in range(1, 8):
        table[row] = table[row - 1] >> np.uint32(8) ^ table[0][table[row - 1] & np.uint32(255)]
    return table


_TABLES = _tables()


@inner
def step_by_tables(state: Number, word: Number) -> Number:
    """One step for processors without the instruction: eight bytes by table."""
    mixed = np.uint64(word ^ state)
    result = np.uint64(0)
    for byte in range(8):
        result ^= np.uint64(_TABLES[7 - byte, (mixed >> np.uint64(8 * byte)) & np.uint64(255)])
    return result


def _by_instruction(name: str) -> Number:
    wide, narrow = ir.IntType(64), ir.IntType(32)
    state_type = wide if "x86" in name else narrow

    @intrinsic
    def step(_typing: Number, _state: Number, _word: Number) -> Number:
        def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
            kind = ir.FunctionType(state_type, [state_type, wide])
            function = builder.module.declare_intrinsic(name, fnty=kind)
            state = args[0] if state_type is wide else builder.trunc(args[0], narrow)
            result = builder.call(function, [state, args[1]])
            return result if state_type is wide else builder.zext(result, wide)

        return types.uint64(types.uint64, types.uint64), generate

    return step


_step = _by_instruction(name) if (name := _instruction()) else step_by_tables


@compiled(types.uint64(types.uint64, types.uint64))
def multiply(a: Number, b: Number) -> Number:
    """The product of two reflected polynomials modulo the CRC's."""
    product = np.uint64(0)
    mask = np.uint64(1) << np.uint64(31)
    for _ in range(32):
        if a & mask:
            product ^= b
        mask >>= np.uint64(1)
        b = (b >> np.uint64(1)) ^ (np.uint64(POLYNOMIAL) if b & np.uint64(1) else np.uint64(0))
    return product


def _powers() -> NDArray[np.uint64]:
    """x^(8 * 2^k) for k from 0 to 62."""
    powers = np.empty(63, np.uint64)
    powers[0] = 1 << 23
    for k in range(1, 63):
        powers[k] = multiply(powers[k - 1], powers[k - 1])
    return powers


_POWERS = _powers()


@compiled(types.uint64(types.int64))
def shift(length: Number) -> Number:
    """x^(8 * length): multiplying a checksum by it makes room for `length` further bytes."""
    factor = np.uint64(1) << np.uint64(31)
    k = 0
    while length > 0:
        if length & 1:
            factor = multiply(_POWERS[k], factor)
        length >>= 1
        k += 1
    return factor


@inner
def _one_lane(state: Number, address: Number, length: Number) -> Number:
    words = length // 8
    for word in range(words):
        state = _step(state, load64(address + 8 * word))
    for byte in range(8 * words, length):
        state = (state >> np.uint64(8)) ^ np.uint64(_TABLES[0, (state ^ load8(address + byte)) & np.uint64(255)])
    return state


@inner
def _three_lanes(state: Number, address: Number, lane: Number) -> Number:
    second, third = np.uint64(0), np.uint64(0)
    for at in range(address, address + lane, 8):
        state = _step(state, load64(at))
        second = _step(second, load64(at + lane))
        third = _step(third, load64(at + 2 * lane))
    factor = shift(lane)
    return multiply(factor, multiply(factor, state) ^ second) ^ third


@inner
def _folded(state: Number, address: Number, length: Number) -> Number:
    """The state after `length` bytes, a multiple of STRIDE."""
    kept = np.empty(STRIDE // 8, np.uint64)
    for word in range(STRIDE // 8):
        kept[word] = load64(address + 8 * word)
    kept[0] ^= state
    for at in range(address + STRIDE, address + length, STRIDE):
        for part in range(0, STRIDE, VECTOR):
            fold(kept.ctypes.data + part, at + part)
    return _one_lane(np.uint64(0), kept.ctypes.data, STRIDE)


@compiled(types.uint64(types.uint64, types.int64, types.int64))
def extend(checksum: Number, address: Number, length: Number) -> Number:
    """The checksum of what `checksum` was of, followed by `length` bytes at `address`."""
    state = checksum ^ np.uint64(0xFFFFFFFF)
    if _FOLDING and length >= 2 * STRIDE:
        whole = length // STRIDE * STRIDE
        state = _folded(state, address, whole)
        address += whole
        length -= whole
    elif length >= _LANES_FROM:
        lane = length // 24 * 8
        state = _three_lanes(state, address, lane)
        address += 3 * lane
        length -= 3 * lane
    return _one_lane(state, address, length) ^ np.uint64(0xFFFFFFFF)


def crc32c(data: bytes | bytearray | memoryview | NDArray[Any], start: int = 0) -> int:
    """CRC32C of contiguous bytes, or of what `start` is the checksum of followed by them."""
    array = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data
    if not array.flags.c_contiguous:
        raise ValueError("a checksum needs contiguous bytes")
    return int(extend(np.uint64(start), array.ctypes.data, array.nbytes))
