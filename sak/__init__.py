"""SAK: the student that distils several vision foundation models, as tensors in and tensors out."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: a public name is loaded at its first use; `homes` is module -> its names."""

    def load(name: str) -> Any:
        for module, names in homes.items():
            if name in names.split():
                return getattr(import_module(module), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
