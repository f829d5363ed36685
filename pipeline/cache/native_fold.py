"""CRC32C by carry-less multiplication, four 128-bit products at once, where the processor has it.

A message is congruent, modulo the CRC's polynomial, to a shorter one: its first 512 bytes, multiplied by x^4096, added
to the next 512. What is left at the end is summed as any message is.
"""

from llvmlite import binding, ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from pipeline.cache.native_jit import Number

STRIDE = 512
VECTOR = 64
_POLYNOMIAL = 0x82F63B78


def available() -> bool:
    """Whether this processor multiplies 512-bit vectors so."""
    features = binding.get_host_cpu_features()
    return bool(features.get("vpclmulqdq") and features.get("avx512f"))


def _power(exponent: int) -> int:
    """x^exponent modulo the polynomial, reflected, in the high half of 64 bits as the multiplication takes it."""
    value = 1 << 31
    for _ in range(exponent):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value << 32


# Of a reflected 128-bit value the low half has the higher powers; a reflected product comes out multiplied by x.
_LOW, _HIGH = _power(8 * STRIDE + 64 - 1), _power(8 * STRIDE - 1)


@intrinsic
def fold(_typing: Number, _kept: Number, _data: Number) -> Number:
    """Multiply the 64 bytes at `_kept` by x^4096 and add the 64 at `_data` to them."""

    def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
        vector = ir.VectorType(ir.IntType(64), 8)
        kind = ir.FunctionType(vector, [vector, vector, ir.IntType(8)])
        multiply = builder.module.declare_intrinsic("llvm.x86.pclmulqdq.512", fnty=kind)
        factors = ir.Constant(vector, [_LOW, _HIGH] * 4)
        kept, data = (builder.inttoptr(arg, vector.as_pointer()) for arg in args)
        value = builder.load(kept, align=8)
        low = builder.call(multiply, [value, factors, ir.Constant(ir.IntType(8), 0x00)])
        high = builder.call(multiply, [value, factors, ir.Constant(ir.IntType(8), 0x11)])
        added = builder.xor(builder.xor(low, high), builder.load(data, align=1))
        builder.store(added, kept, align=8)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), generate


__all__ = ["STRIDE", "VECTOR", "available", "fold"]
