"""A scene as the ray caster reads it: arrays over its shapes, and a tree of boxes that spares a ray most of them."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.demo.render.rays import Geometry
from pipeline.demo.render.textures import PATTERNS
from pipeline.demo.scenes.scene import Placed
from pipeline.demo.things.classes import CLASS_ID
from pipeline.demo.things.shapes import PLANE, Array, Shape, reaches, turn

Indices = NDArray[np.int64]

LEAF = 3
"""Shapes a leaf holds at most."""

FAR = 1e30


@njit(cache=True, error_model="numpy")
def _fill_box(nodes: Array, node: int, run: Indices, boxes: Array) -> None:
    for axis in range(3):
        nodes[node, axis], nodes[node, axis + 3] = FAR, -FAR
        for shape in run:
            nodes[node, axis] = min(nodes[node, axis], boxes[0, shape, axis])
            nodes[node, axis + 3] = max(nodes[node, axis + 3], boxes[1, shape, axis])


@njit(cache=True, error_model="numpy")
def _sort_run(run: Indices, along: Array) -> None:
    """Insertion sort, stable: equal centres keep their order, so that the tree depends on the scene alone."""
    for index in range(1, len(run)):
        moved, hole = run[index], index
        while hole > 0 and along[run[hole - 1]] > along[moved]:
            run[hole] = run[hole - 1]
            hole -= 1
        run[hole] = moved


@njit(cache=True, error_model="numpy")
def _area(corners: Array) -> float:
    x, y, z = corners[3] - corners[0], corners[4] - corners[1], corners[5] - corners[2]
    return x * y + y * z + z * x


@njit(cache=True, error_model="numpy")
def _split(run: Indices, boxes: Array) -> int:
    """How many shapes of the sorted run go left: where boxes' areas times their counts are least.

    An eighth at least on either side, which bounds the tree's depth and with it the stack of a traversal.
    """
    count = len(run)
    least = max(count // 8, 1)
    corners, cost = np.empty((1, 8)), np.full(count, FAR)
    for first in range(least, count - least + 1):
        _fill_box(corners, 0, run[first:], boxes)
        cost[first] = _area(corners[0]) * (count - first)
        _fill_box(corners, 0, run[:first], boxes)
        cost[first] += _area(corners[0]) * first
    return int(np.argmin(cost))


@njit(cache=True, error_model="numpy")
def grow_tree(tree: Geometry, boxes: Array) -> None:
    """Arrange `order` and fill `nodes` in place; `boxes` is (2, n, 3), low and high corners."""
    nodes = tree.nodes
    runs = np.zeros((len(nodes), 2), np.int64)
    runs[0, 1] = len(tree.order)
    used, node = 1, 0
    while node < used:
        start, count = runs[node]
        run = tree.order[start : start + count]
        _fill_box(nodes, node, run, boxes)
        if count <= LEAF:
            nodes[node, 6], nodes[node, 7] = -(start + 1), count
        else:
            axis = np.argmax(nodes[node, 3:6] - nodes[node, :3])
            _sort_run(run, boxes[0, :, axis] + boxes[1, :, axis])
            left = _split(run, boxes)
            nodes[node, 6], nodes[node, 7] = used, used + 1
            runs[used, 0], runs[used, 1] = start, left
            runs[used + 1, 0], runs[used + 1, 1] = start + left, count - left
            used += 2
        node += 1


@dataclass(frozen=True)
class Packed:
    """A scene as arrays over its n shapes: geometry, and what each shape is and looks like."""

    geometry: Geometry
    kind: NDArray[np.int64]
    size: Array
    instance: NDArray[np.int64]
    semantic: NDArray[np.int64]
    part: NDArray[np.int64]
    pattern: NDArray[np.int64]
    first: Array
    second: Array
    look: Array
    """(n, 4): scale, gloss, glow, key of the material."""


def pack(placed: tuple[Placed, ...]) -> Packed:
    """Lay out the shapes of all things for the ray caster."""
    shapes = [shape for item in placed for shape in item.thing.shapes]
    counts = [len(item.thing.shapes) for item in placed]
    owner = np.repeat(np.arange(len(placed)), counts)
    turns = np.array([turn(yaw=item.yaw) for item in placed])[owner]
    positions = np.array([item.position for item in placed])[owner]
    centre = np.einsum("nij,nj->ni", turns, np.array([shape.centre for shape in shapes])) + positions
    rotation = np.einsum("nij,njk->nik", turns, np.array([shape.rotation for shape in shapes]))
    size = np.array([shape.size for shape in shapes])
    semantic = np.array([CLASS_ID[item.thing.name] for item in placed])[owner]
    pattern_number = {name: number for number, name in enumerate(PATTERNS)}
    materials = [shape.material for shape in shapes]
    kind = np.array([shape.kind for shape in shapes])
    return Packed(
        _geometry(shapes, kind, centre, rotation, size),
        kind,
        size,
        owner + 1,
        semantic,
        np.array([shape.part for shape in shapes]),
        np.array([pattern_number[material.pattern] for material in materials]),
        np.array([material.first for material in materials]),
        np.array([material.second for material in materials]),
        np.array([(material.scale, material.gloss, material.glow, material.key) for material in materials]),
    )


def _geometry(shapes: list[Shape], kind: NDArray[np.int64], centre: Array, rotation: Array, size: Array) -> Geometry:
    bounded = np.flatnonzero(kind != PLANE)
    inverse = rotation.transpose(0, 2, 1) / size[:, :, None]
    others = [(*shape.parameters, float(shape.kind), float(shape.casts)) for shape in shapes]
    table = np.concatenate([inverse.reshape(-1, 9), centre, np.array(others)], axis=1)
    geometry = Geometry(table, np.flatnonzero(kind == PLANE), bounded, np.zeros((2 * max(len(bounded), 1), 8)))
    reach = np.einsum("nij,nj->ni", np.abs(rotation), reaches(shapes)) + 1e-9
    grow_tree(geometry, np.stack([centre - reach, centre + reach]))
    return geometry
