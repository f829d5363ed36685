"""Set evaluated runs beside a reference: improvements, their mean and evenness, and the oracle (figure 1, table 2)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datasets import task_table
from pipeline.evaluate.results import StoredEvaluation
from pipeline.tables import text_table
from sak.errors import UsageError
from sak.metrics.delta_m import Improvement, Oracle, improvement, oracle
from sak.tasks import Dataset

STORED = "evaluation*.json"


@dataclass(frozen=True)
class Comparison:
    """The tasks, the reference's scores, every run's, and what follows from them."""

    rows: Dataset
    reference: str
    scores: Mapping[str, Mapping[str, float]]
    improvements: Mapping[str, Improvement]
    oracle: Oracle

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "reference": self.reference,
            "scores": {name: dict(scores) for name, scores in self.scores.items()},
            "improvements": {
                name: {"per_task": each.per_task, "mean": each.mean, "deviation": each.deviation, "ratio": each.ratio}
                for name, each in self.improvements.items()
            },
            "oracle": {"scores": self.oracle.scores, "best": self.oracle.best},
        }

    def to_text(self) -> str:
        """A row a run and one for the oracle: scores, mu, sigma and mu/sigma of the improvements in percent."""
        table = [self._row(name, scores) for name, scores in self.scores.items()]
        best = {task: f"{score:.4g} ({self.oracle.best[task]})" for task, score in self.oracle.scores.items()}
        table.append({"run": "oracle", **best, **self._evenness("oracle")})
        return text_table(table)

    def _row(self, name: str, scores: Mapping[str, float]) -> dict[str, object]:
        own = {task: f"{scores[task]:.4g}" for task in self.rows.names}
        return {"run": name, **own, **self._evenness(name)}

    def _evenness(self, name: str) -> dict[str, object]:
        found = self.improvements.get(name)
        if found is None:
            return {"mu": "", "sigma": "", "mu/sigma": ""}
        ratio = "" if found.ratio is None else f"{found.ratio:+.2f}"
        return {"mu": f"{found.mean:+.2f} %", "sigma": f"{found.deviation:.2f} %", "mu/sigma": ratio}


def compare_runs(reference: Path, runs: Sequence[Path]) -> Comparison:
    """Compare runs that `sak-cli evaluate` has evaluated; the oracle is over `runs`, without the reference.

    Tasks are those that all of them have. UsageError where one was not evaluated, or they are of several data sets.
    """
    if not runs:
        raise UsageError("give at least one run to compare with the reference")
    read = {_name(place, (reference, *runs)): _evaluation(place) for place in (reference, *runs)}
    first = _name(reference, (reference, *runs))
    own = read[first].of
    for name, each in read.items():
        if (each.of.dataset, each.of.split, each.of.images) != (own.dataset, own.split, own.images):
            raise UsageError(
                f"{name} was evaluated on other images ({each.of.dataset} {each.of.split}) than {first} ({own.dataset} "
                f"{own.split}); evaluate both on the same"
            )
    scores = {name: each.evaluation.metrics for name, each in read.items()}
    table = task_table(own.dataset)
    rows = table.select([task for task in table.names if all(task in each for each in scores.values())])
    chosen = oracle(rows, {name: scores[name] for name in scores if name != first})
    improvements = {name: improvement(rows, score, scores[first]) for name, score in scores.items() if name != first}
    improvements["oracle"] = improvement(rows, chosen.scores, scores[first])
    return Comparison(rows, first, scores, improvements, chosen)


def _name(place: Path, places: Sequence[Path]) -> str:
    """The folder's name, with its parent's where two are called alike."""
    alike = [other for other in places if other.name == place.name and other != place]
    return f"{place.parent.name}/{place.name}" if alike else place.name


def _evaluation(place: Path) -> StoredEvaluation:
    """The newest stored evaluation of a run."""
    found = sorted(place.glob(STORED), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"{place} has no evaluation: run sak-cli evaluate {place} first")
    try:
        return StoredEvaluation.from_dict(json.loads(found[-1].read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{found[-1]} is no evaluation ({error}); evaluate the run again with --again") from error
