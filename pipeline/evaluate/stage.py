"""Every metric of a data set for a fine-tuned run, beside trivial predictors and over a baseline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cluster import resolve_device
from pipeline.data.datasets import open_dataset
from pipeline.dense.gates import draw_gates
from pipeline.evaluate.evaluator import Bar, EvaluateConfig, Evaluator, OpenedRun
from pipeline.evaluate.results import EvaluationTables, StoredEvaluation, write_stored
from pipeline.pictures.panel import draw_predictions, spread
from pipeline.progress import Say
from pipeline.storage.local import replace_file
from pipeline.train.config import TrainingConfig
from pipeline.train.devices import make_accelerator
from sak.errors import UsageError
from sak.metrics.delta_m import MultiTaskGain, delta_m

__all__ = ["EvaluateConfig", "EvaluateReport", "evaluate"]


@dataclass(frozen=True)
class EvaluateReport:
    """What was found, and the files that say it; one of several processes prints it."""

    tables: EvaluationTables
    document: Mapping[str, Any]
    files: tuple[Path, ...]
    is_main: bool

    def to_json(self) -> str:
        """All of it, as the run's directory has it."""
        return json.dumps(self.document, indent=1, allow_nan=False)

    def to_text(self) -> str:
        """For a terminal."""
        return f"{self.tables.to_text()}\n\nWrote {', '.join(str(path) for path in self.files)}"


def evaluate(config: EvaluateConfig, *, bar: Bar | None = None, say: Say | None = None) -> EvaluateReport:
    """Evaluate a run, and what it is compared with; running it on several processes is torchrun's."""
    accelerator = make_accelerator(TrainingConfig(steps=1), device=resolve_device(config.device))
    is_main = accelerator.is_main_process
    say = say if is_main and say is not None else lambda line: None
    evaluator = Evaluator(config, accelerator, bar if is_main else None, say)
    own = evaluator.open(config.run)
    baseline = _baseline(evaluator, own)
    stored = evaluator.evaluated(own)
    trivial = evaluator.trivial(own, stored)
    gain = delta_m(own.table, stored.evaluation.metrics, baseline) if baseline is not None else None
    tables = EvaluationTables(own.table, stored.evaluation, trivial, baseline, gain)
    stored = replace(stored, trivial=trivial or stored.trivial)
    document = {**stored.as_dict(), "baseline": _compared(config, baseline, gain)}
    files = (*_write(own, tables, document), *_draw(evaluator, own, stored)) if is_main else ()
    accelerator.wait_for_everyone()
    return EvaluateReport(tables, document, files, is_main)


def _baseline(evaluator: Evaluator, own: OpenedRun) -> Mapping[str, float] | None:
    """The metrics of the baseline's run on the very same images."""
    run = evaluator.config.baseline_run
    if run is None:
        return None
    other = evaluator.open(run, like=own)
    missing = [name for name in own.table.names if name not in other.table.names]
    if missing:
        raise UsageError(
            f"{run} does not predict {', '.join(missing)}, so delta_m has no baseline for it; give a baseline of all "
            "tasks, or leave these out with --tasks"
        )
    return evaluator.evaluated(other).evaluation.metrics


def _compared(
    config: EvaluateConfig, baseline: Mapping[str, float] | None, gain: MultiTaskGain | None
) -> dict[str, Any] | None:
    if baseline is None or gain is None:
        return None
    run, metrics = str(config.baseline_run), dict(baseline)
    return {"run": run, "metrics": metrics, "delta_m": gain.value, "gain_per_task": gain.per_task}


def _write(own: OpenedRun, tables: EvaluationTables, document: Mapping[str, Any]) -> tuple[Path, Path]:
    """The numbers as JSON and as Markdown, in the run's directory."""
    text = own.path.with_suffix(".md")
    title = f"{own.directory.name}: {own.of.dataset}, {own.of.split}"
    write_stored(own.path, document)
    replace_file(text, tables.to_markdown(title).encode())
    return own.path, text


def _draw(evaluator: Evaluator, own: OpenedRun, stored: StoredEvaluation) -> list[Path]:
    """`figures/gates.png`, where there are routers, and `figures/predictions.png`; of a part by a name of its own."""
    if not evaluator.config.pictures:
        return []
    part = own.path.stem.removeprefix("evaluation")
    part = "" if part == "-val" else part
    gates, predictions = (own.directory / "figures" / f"{name}{part}.png" for name in ("gates", "predictions"))
    drawn = [] if stored.gates is None else [draw_gates(stored.gates, own.table, gates)]
    own.networks.to(evaluator.accelerator.device)
    labelled = open_dataset(own.of.dataset, own.of.data, own.of.split, own.table.names)
    images = spread(stored.evaluation.images, evaluator.config.pictures)
    drawn.append(
        draw_predictions(
            own.networks.predict,
            labelled,
            own.table,
            predictions,
            size=own.networks.size,
            device=evaluator.accelerator.device,
            images=images,
        )
    )
    return drawn
