"""Runs as a report reads them: what their directories say, nothing that must be trusted."""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from pipeline.training.gates import MeanGates
from pipeline.training.run import ABOUT, CONFIG, RunDirectory, random_teachers
from sak.errors import UsageError

EVALUATIONS = "evaluation-*.json"
RESULTS, RUNS = "results.csv", "runs.csv"
STAGES = ("distill", "finetune")
_BITS = 63


@dataclass(frozen=True)
class ReportedRun:
    """One run: its settings, what `run.json` says, its measurements, its evaluation (None: none is stored)."""

    name: str
    place: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def stage(self) -> str:
        """distill, finetune, or what else it says."""
        return str(self.about.get("stage", "unknown"))

    @property
    def kind(self) -> str:
        """sak, multi-task, single-task, probe; the stage where it has no kind."""
        return str(self.about.get("kind", self.stage))

    @property
    def training(self) -> list[Mapping[str, Any]]:
        """Measurements of steps."""
        return [line for line in self.lines if not line.get("evaluation")]

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """Measurements on held-out images."""
        return [line for line in self.lines if line.get("evaluation")]

    @property
    def images_per_second(self) -> float | None:
        """Mean over the recorded steps."""
        return self._mean("images_per_second")

    @property
    def data_wait(self) -> float | None:
        """Mean share of the time, 0 to 1, that it waited for data."""
        return self._mean("data_wait")

    def _mean(self, name: str) -> float | None:
        found = [line[name] for line in self.training if isinstance(line.get(name), float)]
        return fmean(found) if found else None

    @property
    def reads(self) -> Mapping[str, Any]:
        """What was read, of a cache or a data set."""
        found = self.about.get("reads")
        return found if isinstance(found, Mapping) else {}

    @property
    def random(self) -> tuple[str, ...]:
        """Teachers with random weights."""
        return random_teachers(self.about)

    @property
    def dataset(self) -> str | None:
        """Of a fine-tuned run."""
        found = self.about.get("dataset")
        return str(found) if found else None

    @property
    def metrics(self) -> dict[str, float]:
        """Task -> metric of the stored evaluation."""
        return self._values("evaluation")

    @property
    def trivial(self) -> dict[str, float]:
        """Task -> metric of predictions that look at no image; empty where none were judged."""
        return self._values("trivial")

    def _values(self, part: str) -> dict[str, float]:
        found = (self.evaluation or {}).get(part)
        tasks = found.get("tasks") if isinstance(found, Mapping) else None
        told = tasks.items() if isinstance(tasks, Mapping) else ()
        values = {str(name): task.get("value") for name, task in told if isinstance(task, Mapping)}
        return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}

    @property
    def gates(self) -> MeanGates | None:
        """The routers' mean gates; None where there are none or they cannot be read."""
        try:
            found = MeanGates.from_dict((self.evaluation or {})["gates"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return found if _is_whole(found) else None


def _is_whole(gates: MeanGates) -> bool:
    """Whether every task has a number an expert, as damaged or foreign files may not."""
    rows = [row for tasks in gates.weights.values() for row in tasks.values()]
    numbers = all(isinstance(value, int | float) for row in rows for value in (gates.images, *row))
    return bool(rows) and numbers and all(gates.weights.values()) and {len(row) for row in rows} == {len(gates.experts)}


def find_runs(places: tuple[Path, ...]) -> list[ReportedRun]:
    """The runs at `places`, each a run's directory or a folder that holds some (a study's `runs`).

    UsageError where a place is no folder or holds none. Names are the shortest ends of paths that tell them apart.
    """
    found: list[Path] = []
    labels: dict[Path, str] = {}
    for place in places:
        if not place.is_dir():
            raise UsageError(f"{place}: no such folder; give the directories of runs")
        named = _of_study(place)
        labels |= named
        inside = list(named) or _inside(place)
        if not inside:
            raise UsageError(f"{place} is no run and holds none ({ABOUT} is missing); give the directories of runs")
        found += [path for path in inside if path not in found]
    names = _names([path for path in found if path not in labels])
    named = _told_apart({path: labels.get(path) or names[path] for path in found})
    return [read_run(path, name) for path, name in named.items()]


def _told_apart(named: dict[Path, str]) -> dict[Path, str]:
    """A name that two runs have, as rows of two studies may, gets the study's folder in front, or the whole path."""
    for first in (lambda path: path.parent.parent.name, str):
        often = Counter(named.values())
        named = {path: name if often[name] == 1 else f"{first(path)}: {name}" for path, name in named.items()}
    return named


def _inside(place: Path) -> list[Path]:
    """The runs at or below a place; the networks of a single-task baseline are parts of one."""
    if (place / ABOUT).is_file():
        return [place]
    below = [path.parent for path in sorted(place.glob(f"**/{ABOUT}"))]
    return [path for path in below if not any(parent in below for parent in path.parents)]


def _of_study(place: Path) -> dict[Path, str]:
    """The runs of a study's table that are there, called by their rows and seeds; none where it is no study."""
    try:
        with (place / RUNS).open(newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    named: dict[Path, str] = {}
    for line in lines:
        for stage in STAGES:
            run = place / "runs" / Path(line.get(f"run {stage}") or "-").name
            if (run / ABOUT).is_file():
                named.setdefault(run, f"{line.get('row')}, seed {line.get('seed')}" + _of(stage))
    return named


def _of(stage: str) -> str:
    return "" if stage == "distill" else f", {stage}"


def find_studies(places: tuple[Path, ...]) -> list[Path]:
    """Those of the places that an ablation wrote its tables into."""
    return [place for place in places if (place / RESULTS).is_file()]


def _names(places: list[Path]) -> dict[Path, str]:
    parts = [path.resolve().parts for path in places]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(places, names, strict=True))
    return {path: str(path) for path in places}


def read_run(place: Path, name: str) -> ReportedRun:
    """One run; a file that is damaged is left out and said."""
    problems: list[str] = []
    config = _read(place / CONFIG, yaml.safe_load, problems)
    about = _read(place / ABOUT, _parsed, problems)
    try:
        lines = tuple(line for line in _checked(RunDirectory(place).metrics()) if isinstance(line, dict))
    except (OSError, ValueError, RecursionError) as error:
        lines = ()
        problems.append(f"metrics.jsonl cannot be read ({' '.join(str(error).split())})")
    stored = sorted(place.glob(EVALUATIONS), key=lambda path: (len(path.name), path.name))
    evaluation = _read(stored[0], _parsed, problems) if stored else None
    return ReportedRun(name, place, config, about, lines, evaluation or None, tuple(problems))


def _parsed(text: str) -> Any:
    return _checked(json.loads(text))


def _checked(found: Any) -> Any:
    """What was read, without whole numbers that no float holds; ValueError where there is one."""
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        _checked(value)
    if isinstance(found, int) and found.bit_length() > _BITS:
        raise ValueError(f"a number of more than {_BITS} bits")
    return found


def _read(path: Path, parse: Any, problems: list[str]) -> dict[str, Any]:
    try:
        found = parse(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})")
        return {}
    return found if isinstance(found, dict) else {}
