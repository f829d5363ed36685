"""How the tasks' losses are weighted, and what becomes of task gradients that disagree (PCGrad, CAGrad).

Losses: fixed weights (the paper), by uncertainty, by their pace (DWA), or at random (RLW); all but `fixed` replace the
table's weights. Each is a module: what it learns or remembers is in its state dict. Gradients: a weight per task from
the Gram matrix of their gradients alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor, nn

from sak.errors import UsageError
from sak.losses.tasks import Average, alone

Kind = Literal["fixed", "uncertainty", "dwa", "rlw"]
Combine = Callable[[Tensor, torch.Generator], Tensor]

_SMALLEST = 1e-30  # a squared gradient below it counts as this, so that nothing is divided by zero


class Weighting(nn.Module):
    """Task losses, scalars before weights -> the terms whose sum is minimised."""

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task -> weighted loss."""
        weights = self.weights(losses)
        return {task: weights[task] * loss for task, loss in losses.items()}

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task -> weight, as it is now."""
        raise NotImplementedError

    def logged(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights for the log, as they are before the losses are weighted."""
        return {f"weight/{task}": weight for task, weight in self.weights(losses).items()}


class Fixed(Weighting):
    """The table's weights (or the recipe's)."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self._weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting; plain numbers, which no device waits for."""
        return {task: self._weights[task] * loss for task, loss in losses.items()}

    def logged(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing: they do not change."""
        del losses
        return {}

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting."""
        return {task: loss.new_tensor(self._weights[task]) for task, loss in losses.items()}


class Uncertainty(Weighting):
    """exp(-s_t) L_t + s_t with learnt log-variances s_t, from 0 (Kendall, Gal and Cipolla, 2018).

    The form without halves, one for all losses, as is usual where losses are of several kinds.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting; the terms hold s_t too, and may be negative."""
        return {task: torch.exp(-self.log_variances[task]) * loss + self.log_variances[task]
                for task, loss in losses.items()}  # fmt: skip

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting."""
        return {task: torch.exp(-self.log_variances[task]) for task in losses}


class Pace(Weighting):
    """Dynamic weight averaging (Liu, Johns and Davison, 2019): slow tasks weigh more.

    w_t = T softmax(r_t / temperature), r_t = L_t(e - 1) / L_t(e - 2) from the mean losses of the last two epochs; all 1
    in the first two epochs. `average` makes the means those of all processes.
    """

    before_last: Tensor
    last: Tensor
    sums: Tensor
    count: Tensor
    epochs: Tensor

    def __init__(self, tasks: Sequence[str], steps: int, *, temperature: float = 2.0, average: Average = alone) -> None:
        super().__init__()
        self._tasks, self._steps, self._temperature, self._average = tuple(tasks), steps, temperature, average
        for name in ("before_last", "last", "sums"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=torch.float64))
        for name in ("count", "epochs"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting; counts a step of the epoch."""
        terms = super().forward(losses)
        self._remember(losses)
        return terms

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting."""
        if int(self.epochs) < 2:
            return {task: loss.new_ones(()) for task, loss in losses.items()}
        ratios = self.last / self.before_last.clamp(min=1e-12)
        shares = len(self._tasks) * (ratios / self._temperature).softmax(0)
        return {task: shares[self._tasks.index(task)].to(loss) for task, loss in losses.items()}

    @torch.no_grad()
    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        self.sums += torch.stack([losses[task].detach().double() for task in self._tasks])
        self.count += 1
        if int(self.count) < self._steps:
            return
        self.before_last.copy_(self.last)
        self.last.copy_(self._average(self.sums / self._steps))
        self.sums.zero_()
        self.count.zero_()
        self.epochs += 1


class Random(Weighting):
    """Random loss weighting (Lin et al., 2022): T softmax of standard normal numbers, drawn anew every step.

    T times the paper's weights, so that their mean is 1. Drawn from the seed and the step's number: alike in every
    process, and after a resume.
    """

    drawn: Tensor

    def __init__(self, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        self._tasks, self._seed = tuple(tasks), seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting; the next call draws anew."""
        terms = super().forward(losses)
        self.drawn += 1
        return terms

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Weighting."""
        draws = torch.Generator().manual_seed((self._seed << 32) + int(self.drawn))
        shares = len(self._tasks) * torch.randn(len(self._tasks), generator=draws, dtype=torch.float64).softmax(0)
        return {task: shares[self._tasks.index(task)].to(loss) for task, loss in losses.items()}


def make_weighting(
    kind: Kind,
    fixed: Mapping[str, float],
    *,
    steps: int,
    seed: int,
    temperature: float = 2.0,
    average: Average = alone,
) -> Weighting:
    """The weighting called `kind` for the tasks of `fixed`, whose weights `fixed` are; `steps` calls are an epoch."""
    tasks = tuple(fixed)
    makers: Mapping[str, Callable[[], Weighting]] = {
        "fixed": lambda: Fixed(fixed),
        "uncertainty": lambda: Uncertainty(tasks),
        "dwa": lambda: Pace(tasks, steps, temperature=temperature, average=average),
        "rlw": lambda: Random(tasks, seed),
    }
    if kind not in makers:
        raise UsageError(f"no loss weighting {kind!r}; known: {', '.join(makers)}")
    return makers[kind]()


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
    chosen = _minimiser(inner, mean, radius)
    length = float(np.sqrt(max(chosen @ inner @ chosen, 0.0)))
    weights = mean + (radius / length * chosen if length > _SMALLEST**0.5 else 0)
    return torch.from_numpy(count * weights)


def cagrad_objective(gram: np.ndarray, mean: np.ndarray, radius: float, weights: np.ndarray) -> float:
    """g_w . g_0 + sqrt(phi) |g_w| for weights on the simplex."""
    return float(weights @ gram @ mean + radius * np.sqrt(max(weights @ gram @ weights, 0.0)))


def _minimiser(gram: np.ndarray, mean: np.ndarray, radius: float) -> np.ndarray:
    scale = max(float(np.trace(gram)) / len(mean), _SMALLEST)  # so that the solver's tolerance means the same anywhere
    unit, reach = gram / scale, radius / scale**0.5
    solve: Any = minimize  # its stubs know none of SLSQP's options
    solution = solve(
        lambda weights: cagrad_objective(unit, mean, reach, weights),
        list(mean),
        bounds=[(0.0, 1.0)] * len(mean),
        constraints=LinearConstraint(np.ones((1, len(mean))), 1.0, 1.0),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    weights = np.clip(np.asarray(solution.x, dtype=np.float64), 0, None)
    total = weights.sum()
    return weights / total if np.isfinite(total) and total > 0 else mean


def combination(method: str, *, c: float = 0.4) -> Combine:
    """The named method as a function of the Gram matrix and a generator; UsageError for an unknown one."""
    known: Mapping[str, Combine] = {"pcgrad": pcgrad, "cagrad": lambda gram, generator: cagrad(gram, c)}
    if method not in known:
        raise UsageError(f"no gradient method {method!r}; known: sum, {', '.join(known)}")
    return known[method]
