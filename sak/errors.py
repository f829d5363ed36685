"""The errors this project raises for its users: one line that says what, where and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class SakError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(SakError):
    """A flag, a configuration or an argument is wrong; nothing was started (exit code 2)."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to `name`, or lists them all: `; did you mean 'clip'?`."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def module_named(module: str, wanted_by: str) -> Any:
    """A module of `pipeline`, which `sak` works without and imports none of.

    SakError, which begins with `wanted_by`, where its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, what it imports is not
        package = module.partition(".")[0]
        raise SakError(f"{wanted_by} comes with the package {package}, which is not installed beside sak") from error


def demo_weights(name: str) -> Any:
    """The file that ships the weights of the demo's model `name`, a `PublishedFile`."""
    return module_named("pipeline.demo.weights.shipped", f"demo/{name}").shipped_file(name)
