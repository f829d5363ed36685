"""How the compiled parts are compiled: without the GIL, kept on disk, and compiled anew when any of them changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.typing.templates import Signature

from pipeline.compiled_files import keep, stamp_of

Function = Callable[..., Any]
# What compiled code computes with, and what the compiler hands to an intrinsic.
Number = Any

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_BRIEF = {**_OPTIONS, "nogil": False}

_STAMP = stamp_of(Path(__file__).parent.glob("native_*.py"))

# Part of a `compiled` function: compiled only when that one is not on disk yet.
inner = njit(**_OPTIONS)


def compiled(signature: Signature, *, brief: bool = False) -> Callable[[Function], Function]:
    """A function to be called from Python or from compiled code; compiled, or taken from disk, at import.

    A `brief` one keeps the GIL: giving it up beside a busy thread means waiting five milliseconds for it.
    """

    def decorate(function: Function) -> Function:
        dispatcher = keep(njit(**(_BRIEF if brief else _OPTIONS))(function), _STAMP)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def callback(function: Function) -> int:
    """The address of `function`, of one 64-bit integer, as a C function that a thread may start with."""
    made = keep(CFunc(function, ((types.int64,), types.int64), locals={}, options={"error_model": "numpy"}), _STAMP)
    made.compile()
    return int(made.address)


__all__ = ["Function", "Number", "callback", "compiled", "inner"]
