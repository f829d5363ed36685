"""What comes with `pipeline` and is asked for by name: `sak` imports none of it, and works without it."""

from importlib import import_module
from typing import Any

from sak.errors import SakError


def module_named(module: str, wanted_by: str) -> Any:
    """The module of this name; SakError, which begins with `wanted_by`, where its package is not installed."""
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
