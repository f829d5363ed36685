"""What one run of a study found: its numbers from its directory, the columns it read, or why there are none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.ablation.estimate import run_speed
from pipeline.ablation.folders import State, StudyFolder, about
from pipeline.ablation.jobs import Run, TrainJob
from pipeline.ablation.plan import StudyPlan
from pipeline.finetune import FinetuneConfig
from pipeline.training.run import RunDirectory, random_teachers

REP_SIM = "rep_sim"
BYTES = "bytes_per_image"
SPEED = "images_per_second"
HOURS = "hours"


@dataclass(frozen=True)
class RunResult:
    """One row under one seed. `keys` are the columns it read, `failure` why it has no numbers, or `damaged` ones."""

    row: str
    seed: int
    values: Mapping[str, float]
    keys: tuple[str, ...]
    runs: Mapping[str, str]
    failure: str | None = None
    random: bool = False
    damaged: bool = False


def read_result(run: Run, plan: StudyPlan, folder: StudyFolder, failed: Mapping[str, str]) -> RunResult:
    """Read a run as it is now; `failed` says why jobs of this call did not end."""
    values: dict[str, float] = {}
    keys: dict[str, None] = {}
    failure, random, damaged = None, False, False
    for stage, name in run.jobs.items():
        told, job = about(folder.run(name)), plan.work.jobs[name]
        keys |= dict.fromkeys(_key(each) for each in (told.get("reads") or {}).get("columns", ()))
        random = random or bool(random_teachers(told))
        if not isinstance(job, TrainJob) or folder.state(job) is not State.DONE:
            failure = failure or failed.get(name) or f"{name} has not run to its end"
            continue
        place = folder.evaluation(job) if stage == "evaluate" else folder.run(name).root
        try:
            found = _evaluated(place) if stage == "evaluate" else _numbers(folder.run(name), told, tasks_of(job))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged = True
            failure = failure or f"{place} is damaged ({type(error).__name__}: {error}); remove it and call again"
            continue
        hours = values.get(HOURS, 0.0) + found.get(HOURS, 0.0)
        values |= found | ({HOURS: hours} if hours else {})
        if stage == "distill":
            values[BYTES] = _read_bytes(plan, name, tuple(keys))
    runs = {stage: str(folder.run(name).root) for stage, name in run.jobs.items()}
    return RunResult(run.row.name, run.seed, {} if failure else values, tuple(keys), runs, failure, random, damaged)


def _key(path: str) -> str:
    """`columns/<teacher>-<key>/<data>` by its name."""
    return path.split("/")[1] if path.count("/") else path


def _read_bytes(plan: StudyPlan, name: str, keys: Sequence[str]) -> float:
    """Bytes on disk of an image, of all views and columns that were read: none where all teachers ran live."""
    planned = plan.jobs[name]
    asked = planned.job.settings.flags.get("views") if isinstance(planned.job, TrainJob) else None
    columns = {each.name: each.bytes_per_image * (asked or each.views) for each in planned.columns if each.name}
    return sum(columns.get(key, 0.0) for key in keys)


def _numbers(directory: RunDirectory, told: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """rep_sim or the tasks' last measurements of a training, its speed, and the hours of its sessions.

    Hours of a row are those of all its trainings, also where other rows share them; speed is the last one's.
    """
    measured = [line for line in directory.metrics() if line.get("evaluation")]
    last = measured[-1] if measured else {}
    values = {name: last[name] for name in last if name.partition("/")[0] == REP_SIM and name.count("/") < 2}
    values |= {task: last[f"metric/{task}"] for task in tasks if f"metric/{task}" in last}
    speed, hours = run_speed(directory.root), _hours(told)
    return {**values, **({SPEED: speed} if speed else {}), **({HOURS: hours} if hours is not None else {})}


def tasks_of(job: TrainJob) -> tuple[str, ...]:
    """The tasks that a fine-tuning trains; none of another job."""
    settings = job.settings.checked
    return settings.rows.names if isinstance(settings, FinetuneConfig) else ()


def _evaluated(path: Path) -> dict[str, float]:
    """Task -> metric of a stored evaluation."""
    tasks = json.loads(path.read_text())["evaluation"]["tasks"]
    return {name: float(task["value"]) for name, task in tasks.items() if task["value"] is not None}


def _hours(told: Mapping[str, Any]) -> float | None:
    """Of all sessions that ended; None where the record does not say."""
    seconds = 0.0
    for session in told.get("sessions", ()):
        try:
            start, end = (datetime.strptime(session[name], "%Y-%m-%dT%H:%M:%S%z") for name in ("started", "ended"))
        except (KeyError, ValueError, TypeError):
            continue
        seconds += (end - start).total_seconds()
    return seconds / 3600 if seconds else None
