"""Boundary pixels of two thin maps are matched within a distance: maximum-cardinality matching (Hopcroft and Karp).

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


@dataclass(frozen=True)
class Reach:
    """For every pixel of an image, the ground-truth pixels within a distance, nearest first; made once per image.

    The numbers `edges[starts[p]:starts[p + 1]]` are those that pixel p (row by row) reaches, into `ys`, `xs`.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    edges: NDArray[np.int64]
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[np.bool_], radius: float) -> "Reach":
        """The pixels within `radius` of those set in a (H, W) map."""
        ys, xs = np.nonzero(truth)
        starts, edges = _reach(ys, xs, truth.shape[0], truth.shape[1], offsets_within(radius))
        return cls((truth.shape[0], truth.shape[1]), starts, edges, ys, xs)


def match(prediction: NDArray[np.bool_], reach: Reach) -> Matching:
    """Pair as many set pixels of a (H, W) map with ground truth in reach as can be, each at most once."""
    if prediction.shape != reach.shape:
        raise ValueError(f"prediction {prediction.shape} and ground truth {reach.shape} differ in size")
    pixels = np.flatnonzero(prediction)
    partner = _hopcroft_karp(reach.starts[pixels], reach.starts[pixels + 1], reach.edges, reach.ys.size)
    matched = np.zeros(prediction.size, bool)
    matched[pixels[partner >= 0]] = True
    truth = np.zeros(reach.shape, bool)
    chosen = partner[partner >= 0]
    truth[reach.ys[chosen], reach.xs[chosen]] = True
    return Matching(matched.reshape(reach.shape), truth)


@numba.njit(cache=True)
def _reach(ys: Any, xs: Any, height: int, width: int, offsets: Any) -> Any:
    """CSR lists by pixel; going through the offsets nearest first leaves every list nearest first."""
    starts = np.zeros(height * width + 1, np.int64)
    for i in range(ys.size):
        for k in range(offsets.shape[0]):
            y, x = ys[i] + offsets[k, 0], xs[i] + offsets[k, 1]
            if 0 <= y < height and 0 <= x < width:
                starts[y * width + x + 1] += 1
    starts = np.cumsum(starts)
    filled = starts[:-1].copy()
    edges = np.empty(starts[-1], np.int64)
    for k in range(offsets.shape[0]):
        for i in range(ys.size):
            y, x = ys[i] + offsets[k, 0], xs[i] + offsets[k, 1]
            if 0 <= y < height and 0 <= x < width:
                pixel = y * width + x
                edges[filled[pixel]] = i
                filled[pixel] += 1
    return starts, edges


@numba.njit(cache=True)
def _greedy(starts: Any, ends: Any, edges: Any, partner: Any, owner: Any) -> None:
    for left in range(partner.size):
        for e in range(starts[left], ends[left]):
            if owner[edges[e]] < 0:
                owner[edges[e]] = left
                partner[left] = edges[e]
                break


@numba.njit(cache=True)
def _layers(starts: Any, ends: Any, edges: Any, partner: Any, owner: Any, depth: Any, queue: Any) -> bool:
    """Breadth-first distances from free left vertices; True where some free right vertex can be reached."""
    head = tail = 0
    for left in range(partner.size):
        depth[left] = -1
        if partner[left] < 0 and ends[left] > starts[left]:
            depth[left] = 0
            queue[tail] = left
            tail += 1
    reached = False
    while head < tail:
        left = queue[head]
        head += 1
        for e in range(starts[left], ends[left]):
            follower = owner[edges[e]]
            if follower < 0:
                reached = True
            elif depth[follower] < 0:
                depth[follower] = depth[left] + 1
                queue[tail] = follower
                tail += 1
    return reached


@numba.njit(cache=True)
def _augment(root: int, ends: Any, edges: Any, partner: Any, owner: Any, depth: Any, cursor: Any, path: Any) -> bool:
    """Depth-first search for an augmenting path along the layers, without recursion."""
    path[0] = root
    length = 1
    while length > 0:
        left = path[length - 1]
        if cursor[left] == ends[left]:
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
def _hopcroft_karp(starts: Any, ends: Any, edges: Any, rights: int) -> Any:
    """The partner of every left vertex in a maximum matching, -1 where it has none."""
    lefts = starts.size
    partner = np.full(lefts, -1, np.int64)
    owner = np.full(rights, -1, np.int64)
    _greedy(starts, ends, edges, partner, owner)
    depth = np.empty(lefts, np.int64)
    queue = np.empty(lefts, np.int64)
    path = np.empty(lefts + 1, np.int64)
    while _layers(starts, ends, edges, partner, owner, depth, queue):
        cursor = starts.copy()
        for left in range(lefts):
            if partner[left] < 0 and depth[left] == 0:
                _augment(left, ends, edges, partner, owner, depth, cursor, path)
    return partner
