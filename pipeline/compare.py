"""Set evaluated runs beside a reference: improvements, their mean and evenness, and the oracle (figure 1, table 2)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
                name: {**asdict(improved), "ratio": improved.ratio} for name, improved in self.improvements.items()
            },
            "oracle": asdict(self.oracle),
        }

    def to_text(self) -> str:
        """A row a run and one for the oracle: scores, mu, sigma and mu/sigma of the improvements in percent."""
        table: list[dict[str, object]] = [
            {"run": name, **{task: f"{scores[task]:.4g}" for task in self.rows.names}, **self._evenness(name)}
            for name, scores in self.scores.items()
        ]
        best = {task: f"{score:.4g} ({self.oracle.best[task]})" for task, score in self.oracle.scores.items()}
        table.append({"run": "oracle", **best, **self._evenness("oracle")})
        return text_table(table)

    def _evenness(self, name: str) -> dict[str, object]:
        improved = self.improvements.get(name)
        if improved is None:
            return {"mu": "", "sigma": "", "mu/sigma": ""}
        ratio = "" if improved.ratio is None else f"{improved.ratio:+.2f}"
        return {"mu": f"{improved.mean:+.2f} %", "sigma": f"{improved.deviation:.2f} %", "mu/sigma": ratio}


def compare_runs(reference: Path, runs: Sequence[Path]) -> Comparison:
    """Compare runs that `sak-cli evaluate` has evaluated; the oracle is over `runs`, without the reference.

    Tasks are those that all of them have. UsageError where one was not evaluated, or they are of several data sets.
    """
    if not runs:
        raise UsageError("give at least one run to compare with the reference")
    directories = (reference, *runs)
    stored = {_name(run, directories): _evaluation(run) for run in directories}
    first = _name(reference, directories)
    own = stored[first].of
    for name, other in ((name, evaluation.of) for name, evaluation in stored.items()):
        if (other.dataset, other.split, other.images) != (own.dataset, own.split, own.images):
            raise UsageError(
                f"{name} was evaluated on other images ({other.dataset} {other.split}) than {first} ({own.dataset} "
                f"{own.split}); evaluate both on the same"
            )
    scores = {name: evaluation.evaluation.metrics for name, evaluation in stored.items()}
    table = task_table(own.dataset)
    rows = table.select([task for task in table.names if all(task in metrics for metrics in scores.values())])
    chosen = oracle(rows, {name: scores[name] for name in scores if name != first})
    improvements = {name: improvement(rows, score, scores[first]) for name, score in scores.items() if name != first}
    improvements["oracle"] = improvement(rows, chosen.scores, scores[first])
    return Comparison(rows, first, scores, improvements, chosen)


def _name(run: Path, runs: Sequence[Path]) -> str:
    """The directory's name, with its parent's where two are called alike."""
    alike = any(other.name == run.name and other != run for other in runs)
    return f"{run.parent.name}/{run.name}" if alike else run.name


def _evaluation(run: Path) -> StoredEvaluation:
    """The newest stored evaluation of a run."""
    files = sorted(run.glob(STORED), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UsageError(f"{run} has no evaluation: run sak-cli evaluate {run} first")
    try:
        return StoredEvaluation.from_dict(json.loads(files[-1].read_text()))
    except ValueError as error:
        raise UsageError(f"{files[-1]} is no evaluation ({error}); evaluate the run again with --again") from error
