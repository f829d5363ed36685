"""delta_m: how much better, over all tasks, than one network a task; its spread over tasks, and the best by task."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, pstdev

from sak.errors import UsageError
from sak.tasks import Dataset


@dataclass(frozen=True)
class MultiTaskGain:
    """delta_m in percent, and each task's share before the mean; positive is better, also for errors."""

    value: float
    per_task: dict[str, float]


def gain(score: float, baseline: float, *, lower_is_better: bool) -> float:
    """(score - baseline) / baseline in percent, its sign turned where lower is better."""
    return (-100 if lower_is_better else 100) * (score - baseline) / baseline


def delta_m(dataset: Dataset, scores: Mapping[str, float], baseline: Mapping[str, float]) -> MultiTaskGain:
    """The mean over the data set's tasks of their gains over single-task scores (paper, section 4.1).

    Both map every task to its metric in the table's unit. UsageError where a task is missing, a score is not a number,
    or a baseline is zero: select the tasks first (`Dataset.select`) for a gain over some of them.
    """
    per_task = {}
    for task in dataset:
        for side, values in (("score", scores), ("baseline", baseline)):
            if not isfinite(values.get(task.name, float("nan"))):
                raise UsageError(f"delta_m on {dataset.name}: no {side} for {task.name}; evaluate that task first")
        if baseline[task.name] == 0:
            raise UsageError(f"delta_m on {dataset.name}: the baseline of {task.name} is 0, so no gain over it exists")
        per_task[task.name] = gain(scores[task.name], baseline[task.name], lower_is_better=task.lower_is_better)
    if not per_task:
        raise UsageError(f"delta_m on {dataset.name}: no tasks to take the mean over")
    return MultiTaskGain(sum(per_task.values()) / len(per_task), per_task)


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
