"""SAK, the multi-task and the single-task baselines on the demo's two data sets, from images to delta_m.

Run it: python benchmarks/demo_tasks.py [--out demo/tasks] [--datasets demo-pascal] [--steps 800] [--only sak] [--quick]

Runs the commands that a user would, each printed as it starts: data, features, distillation, and for each data set the
three trainings and their evaluation beside trivial predictors and over the single-task baseline. Goes on where it was
stopped; other weights of the demo's teachers need another folder. Ends with the tables and what each command took.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import machine, table, versions

from pipeline.data.datasets import task_table
from pipeline.evaluate.results import number
from sak.metrics.delta_m import delta_m

RECIPES = {"demo-pascal": "recipes/finetune/demo_pascal.yaml", "demo-nyud": "recipes/finetune/demo_nyud.yaml"}
RUNS = ("single-task", "multi-task", "sak")


@dataclass(frozen=True)
class Stage:
    """A command of `sak-cli` by the name under which its seconds are noted."""

    name: str
    command: tuple[str, ...]


def stages(out: Path, datasets: list[str], device: str, steps: int, *, quick: bool) -> Iterator[Stage]:
    """Everything in order; a stage needs those before it alone."""
    data, cache, distilled = f"{out}/data", f"{out}/cache", f"{out}/distill"
    where = ("--device", device)
    images, scenes, size = ("64", "16", "64") if quick else ("768", "256", "128")
    yield Stage("demo-data", ("demo-data", data, "--images", images, "--scenes", scenes, "--size", size, "--overwrite"))
    yield Stage("extract", ("extract", "--spec", "cache_specs/demo.yaml", "--data", f"{data}/imagenet",
                            "--cache", cache, *where))  # fmt: skip
    brief = ("--epochs", "1", "--set", "training.schedule.warmup_epochs=0") if quick else ("--epochs", "12")
    yield Stage("distill", ("distill", "--cache", cache, "--out", distilled, "--config", "recipes/distill/demo.yaml",
                            *brief, *where, "--overwrite"))  # fmt: skip
    for name in datasets:
        how = ("--dataset", name, "--data", data, "--config", RECIPES[name], "--steps", "2" if quick else str(steps))
        how += (*where, "--workers", "0", "--set", "training.evaluate_every=0", "--overwrite")
        how += ("--batch-size", "4", "--set", "data.size=[64,64]") if quick else ()
        starts = {
            "single-task": ("--init", "imagenet", "--baseline", "single-task"),
            "multi-task": ("--init", "imagenet", "--baseline", "multi-task"),
            "sak": ("--init", distilled),
        }
        for run in RUNS:
            yield Stage(f"{name}/{run}", ("finetune", *starts[run], "--out", f"{out}/{name}/{run}", *how))
        for run in RUNS:
            over = () if run == "single-task" else ("--baseline-run", f"{out}/{name}/single-task")
            yield Stage(
                f"{name}/{run}/evaluate",
                ("evaluate", f"{out}/{name}/{run}", "--trivial", *over, *where, "--workers", "0"),
            )


def do(stage: Stage) -> dict[str, float]:
    """Run it; its wall-clock and CPU seconds."""
    command = [str(Path(sys.executable).with_name("sak-cli")), *stage.command]
    print("$", "sak-cli", *stage.command, flush=True)
    before, start = os.times(), time.perf_counter()
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall s": round(time.perf_counter() - start), "CPU s": round(spent)}


def scores(run: Path) -> Mapping[str, Any]:
    """The stored evaluation of a run."""
    document: dict[str, Any] = json.loads((run / "evaluation-val.json").read_text())
    return document


def results(out: Path, name: str) -> str:
    """A row for each run that is evaluated and one for what is trivial; delta_m over the single-task baseline."""
    rows = task_table(name)
    whole = {run: scores(out / name / run) for run in RUNS if (out / name / run / "evaluation-val.json").is_file()}
    if not whole:
        return f"{name}: nothing is evaluated yet"
    found = {run: {task: each["value"] for task, each in document["evaluation"]["tasks"].items()}
             for run, document in whole.items()}  # fmt: skip
    trivial = {task: each["value"] for task, each in next(iter(whole.values()))["trivial"]["tasks"].items()}
    lines = []
    for run, values in {"trivial": trivial, **found}.items():
        row: dict[str, object] = {name: run}
        for task in rows:
            better = "lower" if task.lower_is_better else "higher"
            row[f"{task.name} {task.metric} ({better})"] = number(values[task.name], task.unit)
        gain = run not in ("trivial", "single-task") and "single-task" in found
        row["delta_m, %"] = number(delta_m(rows, values, found["single-task"]).value, sign=True) if gain else ""
        lines.append(row)
    tables = [f"{name}, {run}'s losses\n\n{table(list(losses(out / name / run)))}" for run in ("sak", "multi-task")
            if run in whole]  # fmt: skip
    return "\n\n".join([table(lines), *tables])


def losses(run: Path) -> Iterator[dict[str, object]]:
    """The losses of a training: the mean of the first tenth of the log and of the last."""
    logged = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    part = max(1, len(logged) // 10)
    for key in logged[0]:
        if key.startswith("task/") or key in ("loss", "distillation"):
            first, last = (sum(line[key] for line in lines) / part for lines in (logged[:part], logged[-part:]))
            yield {"loss": key.removeprefix("task/"), "first tenth": first, "last tenth": last}


def main() -> None:
    """Do what is not done, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/tasks"))
    parser.add_argument("--datasets", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=800, help="of every fine-tuning")
    parser.add_argument("--only", default="", help="stages whose name holds this, such as demo-pascal/sak")
    parser.add_argument("--quick", action="store_true", help="tiny data and two steps, to see that it runs")
    asked = parser.parse_args()
    out = asked.out / "quick" if asked.quick else asked.out
    out.mkdir(parents=True, exist_ok=True)
    record = out / "seconds.json"
    spent: dict[str, dict[str, float]] = json.loads(record.read_text()) if record.is_file() else {}
    for stage in stages(out, asked.datasets, asked.device, asked.steps, quick=asked.quick):
        if stage.name not in spent and asked.only in stage.name:
            spent[stage.name] = do(stage)
            record.write_text(json.dumps(spent, indent=1))
    print(machine())
    print(versions("sak", "torch", "timm"))
    if spent:
        print(f"\n{table([{'stage': name, **seconds} for name, seconds in spent.items()])}")
    for name in asked.datasets:
        print(f"\n{results(out, name)}")


if __name__ == "__main__":
    main()
