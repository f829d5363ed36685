"""How long the missing work of a study takes: images over a rate, measured where there is anything to go by."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pipeline.ablation.columns import ColumnState
from pipeline.ablation.folders import StudyFolder
from pipeline.ablation.jobs import ExtractJob, TrainJob
from pipeline.ablation.stages import EvaluateSettings
from pipeline.ablation.study import Rates
from pipeline.cache.folder import split_overlay
from pipeline.data.datasets import open_dataset
from pipeline.finetune import FinetuneConfig
from pipeline.training.config import TrainingConfig
from sak.errors import SakError

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Rate:
    """Images a second, and where the number comes from."""

    images_per_second: float
    basis: str


def extraction_rate(job: ExtractJob, rates: Rates) -> Rate | None:
    """From the reports that earlier extractions left in that cache, else as the study says; None: nobody knows."""
    try:
        folder = Path(split_overlay(job.need.cache)[0]) / "reports"
        reports = sorted(folder.glob("*.json"))
    except OSError:
        reports = []
    for report in reversed(reports):
        found = _json(report)
        teachers = {name for block in found.get("blocks", ()) for name in block.get("teachers", ())}
        if found.get("images_per_second") and job.need.spec is not None and teachers == set(job.need.spec.teachers):
            return Rate(float(found["images_per_second"]), "the cache's last extraction")
    return None if rates.extract is None else Rate(rates.extract, rates.basis)


def training_rate(stage: str, folder: StudyFolder, rates: Rates) -> Rate | None:
    """The median over the study's own runs of that stage, else as the study says; None: nobody knows."""
    measured = [speed for run in sorted((folder.root / "runs").glob(f"{stage}-*")) if (speed := run_speed(run))]
    if measured:
        return Rate(median(measured), f"{len(measured)} of the study's own runs")
    said = getattr(rates, stage, None)
    return None if said is None else Rate(said, rates.basis)


def run_speed(run: Path) -> float | None:
    """Mean images a second of a run's last measurements; None where it has none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    values = [found for line in lines if (found := _value(line, "images_per_second"))]
    return fmean(values) if values else None


def training_images(job: TrainJob, states: Iterable[ColumnState]) -> int | None:
    """Images that a training goes through; None where its length in images is not known."""
    training: Any = getattr(job.settings.checked, "recipe", None)
    training = getattr(training, "training", None)
    if not isinstance(training, TrainingConfig):
        return None
    if training.steps is not None:
        return training.steps * training.batch_size
    samples = [state.wanted for state in states if state.wanted is not None]
    views = job.reads.views if job.reads is not None else 1
    return None if not samples or training.epochs is None else round(training.epochs * max(samples) / views)


def evaluation_images(asked: EvaluateSettings, trained: FinetuneConfig) -> int | None:
    """Images that an evaluation looks at; None where the data is not at hand."""
    try:
        count = len(open_dataset(trained.dataset, trained.data, asked.split, trained.rows.names))
    except (SakError, OSError):
        return None
    return count if asked.limit is None else min(asked.limit, count)


def seconds(images: int | None, rate: Rate | None) -> float | None:
    """How long; None where either is not known."""
    return None if images is None or rate is None else images / rate.images_per_second


def _value(line: str, name: str) -> float | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    value = found.get(name) if isinstance(found, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
