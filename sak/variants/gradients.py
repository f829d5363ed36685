"""What becomes of tasks' gradients that disagree: PCGrad and CAGrad, from their Gram matrix alone.

Both make a weighted sum of the tasks' gradients, and their weights follow from the inner products g_i . g_j, a matrix
of tasks x tasks; the gradients themselves, which may be large and lie on any device, are summed by the caller.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from sak.errors import UsageError

_SMALLEST = 1e-30


def pcgrad(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Weights (T,) of the sum of gradients, each projected onto the normal planes of those it conflicts with.

    Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, algorithm 1: the others come in an order drawn anew for
    each gradient. Without conflicts all weights are 1.
    """
    return pcgrad_projections(gram, generator).sum(0)


def pcgrad_projections(gram: Tensor, generator: torch.Generator) -> Tensor:
    """(T, T): row i says what projected gradient i is made of."""
    gram = gram.double()
    count = len(gram)
    rows = torch.eye(count, dtype=torch.float64)
    for i in range(count):
        for j in torch.randperm(count, generator=generator).tolist():
            agreement = rows[i] @ gram[:, j]
            if j != i and agreement < 0:
                rows[i, j] -= agreement / gram[j, j].clamp(min=_SMALLEST)
    return rows


def cagrad(gram: Tensor, c: float) -> Tensor:
    """Weights (T,) of conflict-averse gradient descent, times T: a sum, as plain training has, not a mean.

    Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021: d = g_0 + sqrt(phi) / |g_w| g_w with
    g_0 the mean gradient, phi = c^2 |g_0|^2, and w on the simplex minimising g_w . g_0 + sqrt(phi) |g_w|. c = 0 is the
    plain sum.
    """
    count = len(gram)
    inner = gram.double().numpy()
    mean = np.full(count, 1 / count)
    radius = c * float(np.sqrt(max(mean @ inner @ mean, 0.0)))
    found = _minimiser(inner, mean, radius)
    length = float(np.sqrt(max(found @ inner @ found, 0.0)))
    weights = mean + (radius / length * found if length > _SMALLEST**0.5 else 0)
    return torch.from_numpy(count * weights)


def cagrad_objective(gram: np.ndarray, mean: np.ndarray, radius: float, weights: np.ndarray) -> float:
    """g_w . g_0 + sqrt(phi) |g_w| for weights on the simplex."""
    return float(weights @ gram @ mean + radius * np.sqrt(max(weights @ gram @ weights, 0.0)))


def _minimiser(gram: np.ndarray, mean: np.ndarray, radius: float) -> np.ndarray:
    scale = max(float(np.trace(gram)) / len(mean), _SMALLEST)  # so that the solver's tolerance means the same anywhere
    unit, reach = gram / scale, radius / scale**0.5
    solve: Any = minimize  # its stubs know none of SLSQP's options
    found = solve(
        lambda weights: cagrad_objective(unit, mean, reach, weights),
        list(mean),
        bounds=[(0.0, 1.0)] * len(mean),
        constraints=LinearConstraint(np.ones((1, len(mean))), 1.0, 1.0),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    weights = np.clip(np.asarray(found.x, dtype=np.float64), 0, None)
    total = weights.sum()
    return weights / total if np.isfinite(total) and total > 0 else mean


Combine = Callable[[Tensor, torch.Generator], Tensor]


def combination(method: str, *, c: float = 0.4) -> Combine:
    """The named method as a function of the Gram matrix and a generator; UsageError for an unknown one."""
    known: Mapping[str, Combine] = {"pcgrad": pcgrad, "cagrad": lambda gram, generator: cagrad(gram, c)}
    if method not in known:
        raise UsageError(f"no gradient method {method!r}; known: sum, {', '.join(known)}")
    return known[method]
