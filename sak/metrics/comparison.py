"""Several networks against one: how far and how evenly they improve on it, and the best of them by task."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev

from sak.errors import UsageError
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset


@dataclass(frozen=True)
class Improvement:
    """Improvements over a reference in percent, by task; positive is better (paper, figure 1).

    `mean` is over the tasks, `deviation` the standard deviation over them (of the population: the paper does not say
    which), `ratio` their quotient: higher is better and more even; None where all improve alike.
    """

    per_task: dict[str, float]
    mean: float
    deviation: float

    @property
    def ratio(self) -> float | None:
        """Mu / sigma."""
        return self.mean / self.deviation if self.deviation > 0 else None


def improvement(dataset: Dataset, scores: Mapping[str, float], reference: Mapping[str, float]) -> Improvement:
    """See `Improvement`; scores by task, in the table's units. UsageError where one is missing."""
    per_task = delta_m(dataset, scores, reference).per_task
    return Improvement(per_task, fmean(per_task.values()), pstdev(per_task.values()))


@dataclass(frozen=True)
class Oracle:
    """The best score of each task, and whose it is (paper, table 2)."""

    scores: dict[str, float]
    best: dict[str, str]


def oracle(dataset: Dataset, scores: Mapping[str, Mapping[str, float]]) -> Oracle:
    """The best of several networks by task: name -> task -> score. UsageError where there are none."""
    if not scores:
        raise UsageError("an oracle chooses among networks: give at least one")
    best = {}
    for task in dataset:
        sign = -1 if task.lower_is_better else 1
        best[task.name] = max(scores, key=lambda name, task=task, sign=sign: sign * scores[name][task.name])  # type: ignore[misc]
    return Oracle({task: scores[name][task] for task, name in best.items()}, best)
