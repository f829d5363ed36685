"""The system calls and pointers that compiled code uses: by name from the C library, so that compiled code can be kept.

Linux alone: `errno`, `preadv` and `sync_file_range` are called as its C libraries have them.
"""

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import carray, types
from numba.extending import intrinsic

from pipeline.cache.native_jit import Number, inner

_int, _long = types.int32, types.int64

open_file = types.ExternalFunction("open", _int(_long, _int))
seek_file = types.ExternalFunction("lseek", _long(_int, _long, _int))
advise_file = types.ExternalFunction("posix_fadvise", _int(_int, _long, _long, _int))
read_at = types.ExternalFunction("pread", _long(_int, _long, _long, _long))
read_vectors_at_hand = types.ExternalFunction("preadv2", _long(_int, _long, _int, _long, _int))
read_vectors = types.ExternalFunction("preadv", _long(_int, _long, _int, _long))
write_vectors = types.ExternalFunction("pwritev", _long(_int, _long, _int, _long))
write_at = types.ExternalFunction("pwrite", _long(_int, _long, _long, _long))
start_flush = types.ExternalFunction("sync_file_range", _int(_int, _long, _long, _int))
start_thread = types.ExternalFunction("pthread_create", _int(_long, _long, _long, _long))
join_thread = types.ExternalFunction("pthread_join", _int(_long, _long))
_errno_address = types.ExternalFunction("__errno_location", _long())

EINTR = 4
# Statuses of one read, write or open; from FAILED on 16 + errno.
ABSENT, DONE, CUT, WRONG_SUM, FAILED = -1, 0, 1, 2, 16


@intrinsic
def longs(_typing: Number, _address: Number) -> Number:
    """A pointer to 64-bit integers at an address."""

    def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic
def take_next(_typing: Number, _address: Number) -> Number:
    """The counter at an address before it is raised by one, atomically."""

    def generate(_context: Number, builder: Number, _signature: Number, args: Number) -> Number:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "seq_cst")

    return types.int64(types.int64), generate


@inner
def last_error() -> Number:
    """This thread's errno."""
    return carray(longs(_errno_address()), 1)[0] & 0xFFFFFFFF
