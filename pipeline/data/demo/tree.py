"""The tree of boxes around shapes that spares a ray most of them."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.data.demo.rays import Geometry

Array = NDArray[np.float64]
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
    for place in range(1, len(run)):
        moved, hole = run[place], place
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
