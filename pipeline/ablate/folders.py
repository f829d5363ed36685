"""Where a study keeps things, and what it finds there.

runs/<stage>-<digest>/   run directories, one for each thing to train
recipes/, specs/         what their stages were given
logs/                    what their stages said
results.*                the tables
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.ablate.jobs import StudyJob, TrainJob, job_name
from pipeline.ablate.stage_settings import spec_document
from pipeline.cache.spec import CacheSpec
from pipeline.settings import dump_yaml
from pipeline.storage.local import replace_durably
from pipeline.train.run import ABOUT, RunDirectory
from sak.errors import UsageError


class State(StrEnum):
    """How far a job is."""

    DONE = "done"
    STARTED = "to go on with"
    NEW = "to do"


@dataclass(frozen=True)
class StudyFolder:
    """The `--out` of an ablation."""

    root: Path

    def make(self) -> None:
        """All its folders; UsageError where a file is in the way."""
        try:
            for name in ("runs", "recipes", "specs", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{self.root} cannot be made a folder, a file is in the way; choose another --out"
            ) from error

    def run(self, job: str) -> RunDirectory:
        """A training's directory."""
        return RunDirectory(self.root / "runs" / job)

    def log(self, job: str) -> Path:
        """What a job said."""
        return self.root / "logs" / f"{job}.log"

    def recipe(self, job: TrainJob) -> Path:
        """The recipe that a training is given."""
        return self.root / "recipes" / f"{job.name}.yaml"

    def spec(self, spec: CacheSpec) -> Path:
        """The spec that a stage is given, named by its content."""
        named = {"spec": spec_document(spec), "order": list(spec.teachers)}
        return self.root / "specs" / f"{job_name('spec', named)}.yaml"

    def write_inputs(self, job: StudyJob) -> None:
        """The files that a job's command names."""
        if isinstance(job, TrainJob) and job.stage != "evaluate":
            _write(self.recipe(job), job.settings.recipe)
        for need in [job.reads, job.measured_on] if isinstance(job, TrainJob) else [job.need]:
            if need is not None and need.spec is not None:
                _write(self.spec(need.spec), spec_document(need.spec))

    def evaluation(self, job: TrainJob) -> Path:
        """The numbers that an evaluation leaves in its run's directory."""
        if job.start is None or job.stored is None:
            raise TypeError(f"{job.name} is no evaluation")
        return self.run(job.start).root / job.stored

    def state(self, job: TrainJob) -> State:
        """How far a training or an evaluation is, by its own records."""
        if job.stage == "evaluate":
            trained = run_state(self.run(job.start or "")) is State.DONE
            return State.DONE if trained and self.evaluation(job).is_file() else State.NEW
        return run_state(self.run(job.name))


def run_state(run: RunDirectory) -> State:
    """Done when its last session ended without being stopped; to go on with when it, or a part, has a checkpoint."""
    sessions = about(run).get("sessions") or [{}]
    if sessions[-1].get("stopped") is False:
        return State.DONE
    checkpoints = [run.root / "checkpoints" / "last", *run.root.glob("*/checkpoints/last")]
    return State.STARTED if any(path.exists() for path in checkpoints) else State.NEW


def about(run: RunDirectory) -> dict[str, Any]:
    """What `run.json` says; nothing where it is damaged or not there."""
    return read_json(run.root / ABOUT)


def read_json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where it is damaged, not there or no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def last_lines(path: Path, most_bytes: int, start: int = 0) -> list[str]:
    """The lines at the end of a file that may be long, none from before `start`; a progress bar's updates are lines."""
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read().decode(errors="replace").replace("\r", "\n").splitlines()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    text = dump_yaml(document).encode()
    if not path.is_file() or path.read_bytes() != text:
        replace_durably(path, text)
