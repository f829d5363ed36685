"""The demo's own numbers, from what its stages wrote: `python -m pipeline.demo.summary FOLDER`."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tables import text_table
from sak.errors import SakError


def summary(demo: Path) -> str:
    """Two tables (rep_sim by teacher, the tasks beside the multi-task baseline) and where to look; SakError if unmade.

    `demo` is the folder of `make demo`: `runs/distill`, `runs/sak` evaluated over `runs/multi-task`, `pictures`.
    """
    run = _read(demo / "runs/distill/run.json")
    evaluation = _read(demo / "runs/sak/evaluation-val.json")
    return "\n".join(
        (
            "How like its teachers the distilled student is, on images it has not seen (rep_sim, 1 is equal):",
            text_table(list(_similarities(demo / "runs/distill/metrics.jsonl", run))),
            "",
            "What it is worth on PASCAL-Context's tasks, demo images, beside the same ViT without teachers:",
            text_table(list(_tasks(evaluation))),
            f"delta_m {evaluation['baseline']['delta_m']:+.2f} % over the multi-task baseline (mean of the gains)",
            "",
            "Look at:",
            *(f"  {demo / path}  {what}" for path, what in _WORTH_A_LOOK.items() if (demo / path).exists()),
        )
    )


_WORTH_A_LOOK = {
    "report.html": "everything on one page",
    "runs/sak/figures/predictions.png": "held-out images, labels and predictions side by side",
    "runs/sak/figures/gates.png": "which teacher's path each task listens to",
    "pictures": "predictions for single images, every task",
    "runs/distill/figures": "loss, rep_sim and speed of the distillation",
    "runs/sak/evaluation-val.md": "every number, by class",
    "data/contact_sheet.png": "the data",
}


def _similarities(lines: Path, run: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    measured = [json.loads(line) for line in _text(lines).splitlines()]
    last = [line for line in measured if "rep_sim" in line][-1:]
    if not last:
        raise SakError(f"{lines}: rep_sim was not measured; run `make demo`")
    random = set(run["reads"]["random"])
    for name, value in last[0].items():
        prefix, _, teacher = name.partition("/")
        if prefix == "rep_sim" and "/" not in teacher:
            label = f"{teacher} RANDOM" if teacher in random else teacher
            yield {"teacher": label or "all, mean", "rep_sim": f"{value:.4f}"}


def _tasks(evaluation: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    baseline = evaluation["baseline"]
    for name, task in evaluation["evaluation"]["tasks"].items():
        yield {
            "task": name,
            "metric": task["metric"],
            "better": "lower" if task["lower_is_better"] else "higher",
            "SAK": f"{task['value']:.2f} {task['unit']}",
            "multi-task": f"{baseline['metrics'][name]:.2f} {task['unit']}",
            "gain": f"{baseline['gain_per_task'][name]:+.2f} %",
        }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_text(path))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SakError(f"{path}: cannot be read ({error.strerror}); run `make demo`") from error


if __name__ == "__main__":
    try:
        sys.stdout.write(summary(Path(sys.argv[1])) + "\n")
    except SakError as error:
        sys.exit(str(error))
