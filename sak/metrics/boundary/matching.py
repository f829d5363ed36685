"""How many boundary pixels of two thin maps can be paired within a distance: maximum-cardinality matching.

The published matcher solves a min-cost assignment with random outlier edges, which is maximum cardinality less a random
shortfall of 0.03-0.18 % on average. The maximum itself is unique and the same on every machine.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Matching:
    """Which pixels found a partner: two (H, W) bool maps with equally many set."""

    prediction: NDArray[np.bool_]
    truth: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """How many pairs."""
        return int(self.prediction.sum())


def offsets_within(radius: float) -> NDArray[np.int64]:
    """(N, 2) offsets (dy, dx) whose squared length is at most radius^2, nearest first."""
    reach = int(radius)
    dy, dx = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    squared = dy**2 + dx**2
    inside = np.flatnonzero(squared <= radius**2)
    order = inside[np.argsort(squared[inside], kind="stable")]
    return np.stack([dy[order], dx[order]], axis=1).astype(np.int64)


def match(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], radius: float) -> Matching:
    """Pair as many pixels of two (H, W) maps as can be, each at most once and at most `radius` pixels apart."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and ground truth {truth.shape} differ in size")
    ys, xs = np.nonzero(prediction)
    starts, edges, truth_ys, truth_xs = _candidates(ys, xs, truth, offsets_within(radius))
    partner = _hopcroft_karp(starts, edges, truth_ys.size)
    return Matching(_scatter(prediction.shape, ys, xs, partner), _scatter_truth(truth, truth_ys, truth_xs, partner))


def _scatter(shape: tuple[int, ...], ys: Any, xs: Any, partner: NDArray[np.int64]) -> NDArray[np.bool_]:
    matched = np.zeros(shape, bool)
    matched[ys[partner >= 0], xs[partner >= 0]] = True
    return matched


def _scatter_truth(truth: NDArray[np.bool_], ys: Any, xs: Any, partner: NDArray[np.int64]) -> NDArray[np.bool_]:
    matched = np.zeros(truth.shape, bool)
    chosen = partner[partner >= 0]
    matched[ys[chosen], xs[chosen]] = True
    return matched


@numba.njit(cache=True)
def _candidates(ys: Any, xs: Any, truth: Any, offsets: Any) -> Any:
    """CSR lists of the ground-truth pixels within reach of every predicted one, nearest first."""
    height, width = truth.shape
    index = np.full((height, width), -1, np.int64)
    truth_ys, truth_xs = np.nonzero(truth)
    for i in range(truth_ys.size):
        index[truth_ys[i], truth_xs[i]] = i
    starts = np.zeros(ys.size + 1, np.int64)
    edges = np.empty(max(ys.size * 8, 64), np.int64)
    count = 0
    for i in range(ys.size):
        if count + offsets.shape[0] > edges.size:
            edges = np.concatenate((edges, np.empty(edges.size + offsets.shape[0], np.int64)))
        for k in range(offsets.shape[0]):
            y, x = ys[i] + offsets[k, 0], xs[i] + offsets[k, 1]
            if 0 <= y < height and 0 <= x < width and index[y, x] >= 0:
                edges[count] = index[y, x]
                count += 1
        starts[i + 1] = count
    return starts, edges[:count], truth_ys, truth_xs


@numba.njit(cache=True)
def _greedy(starts: Any, edges: Any, partner: Any, owner: Any) -> None:
    for left in range(partner.size):
        for e in range(starts[left], starts[left + 1]):
            if owner[edges[e]] < 0:
                owner[edges[e]] = left
                partner[left] = edges[e]
                break


@numba.njit(cache=True)
def _layers(starts: Any, edges: Any, partner: Any, owner: Any, depth: Any, queue: Any) -> bool:
    """Breadth-first distances from free left vertices; True where some free right vertex can be reached."""
    head = tail = 0
    for left in range(partner.size):
        depth[left] = -1
        if partner[left] < 0 and starts[left + 1] > starts[left]:
            depth[left] = 0
            queue[tail] = left
            tail += 1
    reached = False
    while head < tail:
        left = queue[head]
        head += 1
        for e in range(starts[left], starts[left + 1]):
            follower = owner[edges[e]]
            if follower < 0:
                reached = True
            elif depth[follower] < 0:
                depth[follower] = depth[left] + 1
                queue[tail] = follower
                tail += 1
    return reached


@numba.njit(cache=True)
def _augment(root: int, starts: Any, edges: Any, partner: Any, owner: Any, depth: Any, cursor: Any, path: Any) -> bool:
    """Depth-first search for an augmenting path along the layers, without recursion."""
    path[0] = root
    length = 1
    while length > 0:
        left = path[length - 1]
        if cursor[left] == starts[left + 1]:
            depth[left] = -1  # a dead end for this phase
            length -= 1
            continue
        right = edges[cursor[left]]
        cursor[left] += 1
        follower = owner[right]
        if follower < 0:
            for step in range(length - 1, -1, -1):
                vertex = path[step]
                right, partner[vertex] = partner[vertex], edges[cursor[vertex] - 1]
                owner[partner[vertex]] = vertex
            return True
        if depth[follower] == depth[left] + 1:
            path[length] = follower
            length += 1
    return False


@numba.njit(cache=True)
def _hopcroft_karp(starts: Any, edges: Any, rights: int) -> Any:
    """The partner of every left vertex in a maximum matching, -1 where it has none."""
    lefts = starts.size - 1
    partner = np.full(lefts, -1, np.int64)
    owner = np.full(rights, -1, np.int64)
    _greedy(starts, edges, partner, owner)
    depth = np.empty(lefts, np.int64)
    queue = np.empty(lefts, np.int64)
    path = np.empty(lefts + 1, np.int64)
    while _layers(starts, edges, partner, owner, depth, queue):
        cursor = starts[:-1].copy()
        for left in range(lefts):
            if partner[left] < 0 and depth[left] == 0:
                _augment(left, starts, edges, partner, owner, depth, cursor, path)
    return partner
