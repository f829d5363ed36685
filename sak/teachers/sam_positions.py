"""SAM's position embeddings, absolute and relative, which timm and segment_anything name alike."""

from typing import Any

from sak.teachers.positions import resample_map, resample_relative
from sak.teachers.tower import Tower
from sak.teachers.weights import State


def grid_tensors(tower: Tower) -> tuple[str, ...]:
    """Names of the tensors whose size follows the grid: not the relative embeddings of windows."""
    model: Any = tower.model
    whole = [index for index, block in enumerate(model.blocks) if block.window_size == 0]
    names = ["pos_embed", *(f"blocks.{index}.attn.rel_pos_{axis}" for index in whole for axis in "hw")]
    return tuple(name for name in names if name in tower.shapes())


def resample_sam(state: State, tower: Tower) -> State:
    """Absolute embedding bicubic without antialias, relative ones linear, to `tower`'s grid (published code)."""
    shapes = tower.shapes()
    changed = dict(state)
    for name in grid_tensors(tower):
        if name == "pos_embed":
            changed[name] = resample_map(state[name], (shapes[name][1], shapes[name][2]))
        else:
            changed[name] = resample_relative(state[name], shapes[name][0])
    return changed
