"""The modules of version 0.1's first layout by the names that ours have, so that one worker reads with either."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_FIRST_LAYOUT = {
    "pipeline.cache.stores.base": ("pipeline.cache.layout", "pipeline.cache.store"),
    "pipeline.cache.stores.blocks": ("pipeline.cache.store",),
    "pipeline.cache.stores.tar_store": ("pipeline.cache.tar_store",),
    "pipeline.cache.stores.zarr_store": ("pipeline.cache.zarr_store",),
}


def stand_in() -> bool:
    """Whether the imported version has the first layout, whose names are then made."""
    if find_spec("pipeline.cache.layout") is None:
        return False
    for name, homes in _FIRST_LAYOUT.items():
        sys.modules[name] = ModuleType(name)
        for home in homes:
            vars(sys.modules[name]).update(vars(import_module(home)))
    storage = import_module("pipeline.storage")
    storage.open_location = storage.Location.parse
    return True
