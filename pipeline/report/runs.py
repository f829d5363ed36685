"""Runs as a report reads them: what their directories say, nothing that must be trusted."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.dense.evaluation import from_plain
from pipeline.dense.gates import MeanGates
from pipeline.settings import parse_yaml
from pipeline.train.run import ABOUT, CONFIG, RunDirectory, random_teachers
from sak.errors import UsageError

RESULTS, RUNS = "results.csv", "runs.csv"
BITS = 63


def mapping(value: Any) -> Mapping[str, Any]:
    """What a file says where it should be a mapping: empty where it is something else."""
    return value if isinstance(value, Mapping) else {}


def listing(value: Any) -> Sequence[Any]:
    """The same of a list."""
    return value if isinstance(value, list) else ()


@dataclass(frozen=True)
class ReportedRun:
    """One run: its settings, what `run.json` says, its measurements, its evaluation (empty: none is stored)."""

    name: str
    directory: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()

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

    def mean(self, name: str) -> float | None:
        """Of what was recorded at each step, such as `data_wait`."""
        values = [line[name] for line in self.training if isinstance(line.get(name), float)]
        return fmean(values) if values else None

    @property
    def speed(self) -> float | None:
        """Images a second."""
        return self.mean("images_per_second")

    @property
    def reads(self) -> Mapping[str, Any]:
        """What was read, of a cache or a data set."""
        return mapping(self.about.get("reads"))

    @property
    def live(self) -> Mapping[str, Any]:
        """Teachers that ran beside the training, by name."""
        return mapping(self.reads.get("live"))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that were read."""
        return [str(path).split("/")[1] for path in listing(self.reads.get("columns")) if "/" in str(path)]

    @property
    def random(self) -> tuple[str, ...]:
        """Teachers with random weights."""
        return random_teachers(self.about)

    def marked(self, teacher: str) -> str:
        """A teacher's name, and RANDOM where its weights are."""
        return f"{teacher} RANDOM" if teacher in self.random else teacher

    @property
    def dataset(self) -> str | None:
        """Of a fine-tuned run."""
        return str(self.about["dataset"]) if self.about.get("dataset") else None

    @property
    def sessions(self) -> list[Mapping[str, Any]]:
        """What each call of the stage left: when it started and ended, how, with which packages."""
        return [session for session in listing(self.about.get("sessions")) if isinstance(session, Mapping)]

    @property
    def metrics(self) -> dict[str, float]:
        """Task -> metric of the stored evaluation."""
        return self._values("evaluation")

    @property
    def trivial(self) -> dict[str, float]:
        """Task -> metric of predictions that look at no image; empty where none were judged."""
        return self._values("trivial")

    def _values(self, part: str) -> dict[str, float]:
        tasks = mapping(mapping(self.evaluation.get(part)).get("tasks"))
        values = {name: mapping(task).get("value") for name, task in tasks.items()}
        return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}

    @property
    def gates(self) -> MeanGates | None:
        """The routers' mean gates; None where there are none or they cannot be read."""
        try:
            gates = from_plain(MeanGates, self.evaluation["gates"])
        except (KeyError, TypeError, ValueError):
            return None
        return gates if _is_whole(gates) else None


def _is_whole(gates: MeanGates) -> bool:
    """Whether every task has a number an expert, as damaged or foreign files may not."""
    rows = [row for tasks in gates.weights.values() for row in tasks.values()]
    numbers = all(isinstance(value, int | float) for row in rows for value in (gates.images, *row))
    return bool(rows) and numbers and all(gates.weights.values()) and {len(row) for row in rows} == {len(gates.experts)}


def find_runs(directories: Sequence[Path]) -> list[ReportedRun]:
    """The runs in `directories`, each a run's own or a folder that holds some (a study's `runs`).

    UsageError where one is no folder or holds none. Names are the shortest ends of paths that tell them apart.
    """
    labels: dict[Path, str | None] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"{directory}: no such folder; give the directories of runs")
        inside = _of_study(directory) or dict.fromkeys(_inside(directory))
        if not inside:
            raise UsageError(f"{directory} is no run and holds none ({ABOUT} is missing); give the directories of runs")
        labels |= {path: label or labels.get(path) for path, label in inside.items()}
    names = _ends([path for path, label in labels.items() if label is None])
    named = {path: label or names[path] for path, label in labels.items()}
    # a name that two runs have, as rows of two studies may, gets the study's folder in front, then the whole path
    named = _prefixed(named, {path: path.parent.parent.name for path in named})
    named = _prefixed(named, {path: str(path) for path in named})
    return [read_run(path, name) for path, name in named.items()]


def _prefixed(names: dict[Path, str], prefixes: Mapping[Path, str]) -> dict[Path, str]:
    """Names that are there once as they are, others with a prefix."""
    count = Counter(names.values())
    return {path: name if count[name] == 1 else f"{prefixes[path]}: {name}" for path, name in names.items()}


def _inside(directory: Path) -> list[Path]:
    """The runs at or below a directory; the networks of a single-task baseline are parts of one."""
    if (directory / ABOUT).is_file():
        return [directory]
    below = [path.parent for path in sorted(directory.glob(f"**/{ABOUT}"))]
    return [path for path in below if not any(parent in below for parent in path.parents)]


def _of_study(directory: Path) -> dict[Path, str | None]:
    """The runs of a study's table that are there, called by their rows and seeds; none where it is no study."""
    try:
        with (directory / RUNS).open(newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    named: dict[Path, str | None] = {}
    for line in lines:
        for stage, suffix in (("distill", ""), ("finetune", ", finetune")):
            run = directory / "runs" / Path(line.get(f"run {stage}") or "-").name
            if (run / ABOUT).is_file():
                named.setdefault(run, f"{line.get('row')}, seed {line.get('seed')}{suffix}")
    return named


def _ends(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of paths that tell them apart."""
    parts = {path: path.resolve().parts for path in paths}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "/".join(parts[path][-length:]) for path in paths}
        if len(set(names.values())) == len(names):
            return names
    return {path: str(path) for path in paths}


def read_run(directory: Path, name: str) -> ReportedRun:
    """One run; a file that is damaged is left out and said."""
    problems: list[str] = []
    config = _read(directory / CONFIG, partial(parse_yaml, source="its text"), problems)
    about = _read(directory / ABOUT, _parsed, problems)
    try:
        lines = [line for line in _checked(RunDirectory(directory).metrics()) if isinstance(line, dict)]
    except (OSError, ValueError, RecursionError) as error:
        lines = []
        problems.append(f"metrics.jsonl cannot be read ({one_line(error)})")
    stored = sorted(directory.glob("evaluation-*.json"), key=lambda path: (len(path.name), path.name))
    evaluation = _read(stored[0], _parsed, problems) if stored else {}
    return ReportedRun(name, directory, config, about, lines, evaluation, problems)


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


def _parsed(text: str) -> Any:
    return _checked(json.loads(text))


def _checked(content: Any) -> Any:
    """What was read, without whole numbers that no float holds; ValueError where there is one."""
    for value in content.values() if isinstance(content, dict) else listing(content):
        _checked(value)
    if isinstance(content, int) and content.bit_length() > BITS:
        raise ValueError(f"a number of more than {BITS} bits")
    return content


def _read(path: Path, parse: Callable[[str], Any], problems: list[str]) -> Mapping[str, Any]:
    try:
        return mapping(parse(path.read_text()))
    except (OSError, ValueError, RecursionError, UsageError) as error:
        problems.append(f"{path.name} cannot be read ({one_line(error)[:200]})")
        return {}
