"""How the compiled parts are compiled: without the GIL, kept on disk, and compiled anew when any of them changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.typing.templates import Signature

Function = Callable[..., Any]
# What compiled code computes with, and what the compiler hands to an intrinsic.
Number = Any

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_BRIEF = {**_OPTIONS, "nogil": False}

# numba asks only whether the file of the outermost function has changed; the functions it calls lie in several.
_STAMP = tuple(
    (path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(Path(__file__).parent.glob("native_*.py"))
)

# Part of a `compiled` function: compiled only when that one is not on disk yet.
inner = njit(**_OPTIONS)


def _kept(function: Any) -> Any:
    """`function` with its compiled code on disk, where numba finds a folder that may be written."""
    try:
        function.enable_caching()
    except RuntimeError:
        # Neither __pycache__ nor the user's cache folder can be written: each process compiles for itself.
        return function
    function._cache._cache_file._source_stamp = _STAMP
    return function


def compiled(signature: Signature, *, brief: bool = False) -> Callable[[Function], Function]:
    """A function to be called from Python or from compiled code; compiled, or taken from disk, at import.

    A `brief` one keeps the GIL: giving it up beside a busy thread means waiting five milliseconds for it.
    """

    def decorate(function: Function) -> Function:
        dispatcher = _kept(njit(**(_BRIEF if brief else _OPTIONS))(function))
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def callback(function: Function) -> int:
    """The address of `function`, of one 64-bit integer, as a C function that a thread may start with."""
    made = _kept(CFunc(function, ((types.int64,), types.int64), locals={}, options={"error_model": "numpy"}))
    made.compile()
    return int(made.address)


__all__ = ["Function", "Number", "callback", "compiled", "inner"]
