"""The paper's story in small, on the demo's own teachers.

Probes (Figure 1, Table 2), rep_sim (Table 3), and SAK against many-to-one distillation and the multi-task baseline.

    python benchmarks/demo_teachers.py --work ./demo/story         # hours on one core; run again, it goes on
    python benchmarks/demo_teachers.py --work ./demo/story --table # what there is so far, as Markdown

A row is one training and its evaluation. Rows are done one after another, the first seed of everything first, and each
is in `rows.json` once it is done.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_probe import probe
from report import machine, table, versions

from pipeline.cluster import ClusterConfig
from pipeline.data.datasets import task_table
from pipeline.data.demo import write_demo_data
from pipeline.distill import run_distill
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.extract import extract
from pipeline.extraction.config import ExtractConfig
from pipeline.finetune import run_finetune
from pipeline.storage.local import replace_durably
from sak.metrics.delta_m import delta_m

ROOT = Path(__file__).resolve().parents[1]
SPECS = {"cache": ROOT / "cache_specs/demo.yaml", "val-cache": ROOT / "cache_specs/demo_val.yaml"}
RECIPES = {
    "demo-pascal": ROOT / "recipes/finetune/demo_pascal.yaml",
    "demo-nyud": ROOT / "recipes/finetune/demo_nyud.yaml",
}
FOLDERS = {"demo-pascal": "PASCALContext", "demo-nyud": "NYUDv2"}
TEACHERS = ("dino", "clip", "sam")
STUDENTS = ("sak", "many-to-one", "multi-task")
ONE_WORKER = ClusterConfig(device="cpu", workers=1, threads=1)
SIZE = "data.size=[96,96]"


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    images: int = 768
    scenes: int = 256
    probe_steps: int = 400
    distill_epochs: float = 8
    finetune_steps: int = 300
    batch: int = 4
    seeds: int = 3


QUICK = Budget(images=16, scenes=8, probe_steps=2, distill_epochs=1, finetune_steps=2, seeds=1)


@dataclass(frozen=True)
class Row:
    """One thing to do: `kind/who/dataset/seed`; `make` returns its numbers."""

    name: str
    make: Callable[[], Mapping[str, float]]


class StoppedError(Exception):
    """A training was stopped by a signal; its checkpoint is there."""


class Story:
    """The rows, and what is known of them."""

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work, self.budget = work, budget
        self.file = work / "rows.json"
        self.known: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def rows(self) -> Iterator[Row]:
        """All, in order: one seed of everything, then the next."""
        for seed in range(self.budget.seeds):
            for dataset in FOLDERS:
                for teacher in TEACHERS:
                    for who in (teacher, f"{teacher}-random"):
                        yield self._row("probe", who, dataset, seed)
            if seed == 0:
                for who in STUDENTS[:2]:
                    yield Row(f"distill/{who}", lambda who=who: self.distil(who))
            for dataset in FOLDERS:
                for who in STUDENTS:
                    yield self._row("finetune", who, dataset, seed)

    def _row(self, kind: str, who: str, dataset: str, seed: int) -> Row:
        make = self.probe if kind == "probe" else self.finetune
        return Row(f"{kind}/{who}/{dataset}/{seed}", lambda: make(who, dataset, seed))

    def do(self, row: Row) -> None:
        """Do one row and write it down."""
        wall, cpu = time.monotonic(), time.process_time()
        found = dict(row.make())
        found |= {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        self.known[row.name] = found
        replace_durably(self.file, (json.dumps(self.known, indent=1) + "\n").encode())
        print(row.name, json.dumps(found), flush=True)

    def data(self) -> Path:
        """The demo data, seed 0, and the held-out images, seed 1."""
        for name, seed, scenes in (("data", 0, self.budget.scenes), ("held-out", 1, 2)):
            if not (self.work / name).is_dir():
                images = self.budget.images if seed == 0 else max(self.budget.images // 6, 4)
                write_demo_data(self.work / name, images=images, scenes=scenes, seed=seed, size=128, processes=1)
        return self.work / "data"

    def cache(self, name: str) -> Path:
        """A cache of the demo's teachers; extraction goes on by itself."""
        images = self.data() if name == "cache" else self.work / "held-out"
        place = self.work / name
        extract(ExtractConfig(str(SPECS[name]), str(images / "imagenet"), str(place), cluster=ONE_WORKER))
        return place

    def distil(self, who: str) -> Mapping[str, float]:
        """rep_sim of each teacher on held-out images, with adapter paths or linear aligners alone."""
        cache, held_out = self.cache("cache"), self.cache("val-cache")
        out = self.work / "runs" / f"distill-{who}"
        result = run_distill(
            str(cache),
            out,
            config=ROOT / "recipes/distill/demo.yaml",
            overrides=[f"student.adapters={str(who == 'sak').lower()}", "data.workers=0", "training.evaluate_every=0"],
            epochs=self.budget.distill_epochs,
            val_cache=str(held_out),
            device="cpu",
            resume=_begun(out),
        )
        if result.stopped:
            raise StoppedError
        return {name: value for name, value in result.metrics.items() if name.startswith("rep_sim")}

    def probe(self, who: str, dataset: str, seed: int) -> Mapping[str, float]:
        """A frozen teacher under small heads, see `demo_probe`."""
        return probe(who, dataset, self.data() / FOLDERS[dataset], seed, self.budget.probe_steps)

    def finetune(self, who: str, dataset: str, seed: int) -> Mapping[str, float]:
        """A student and its heads."""
        steps = self.budget.finetune_steps
        if who == "multi-task":
            return self._trained(who, dataset, seed, "imagenet", steps, baseline=who)
        return self._trained(who, dataset, seed, str(self.work / "runs" / f"distill-{who}"), steps)

    def _trained(
        self, name: str, dataset: str, seed: int, init: str, steps: int, baseline: str | None = None
    ) -> Mapping[str, float]:
        data, out = self.data() / FOLDERS[dataset], self.work / "runs" / f"{name}-{dataset}-{seed}"
        result = run_finetune(
            init,
            dataset,
            str(data),
            out,
            config=RECIPES[dataset],
            overrides=[SIZE, "training.evaluate_every=0", "evaluation.limit=8"],
            baseline=baseline,
            steps=steps,
            batch_size=self.budget.batch,
            device="cpu",
            workers=0,
            seed=seed,
            resume=_begun(out),
            overwrite=not _begun(out),
        )
        if result.stopped:
            raise StoppedError
        report = evaluate(EvaluateConfig(out, checkpoint="last", device="cpu", workers=0, pictures=0))
        return report.tables.evaluation.metrics


def _begun(out: Path) -> bool:
    return (out / "checkpoints" / "last").is_dir()


def tables(known: Mapping[str, Mapping[str, float]]) -> str:
    """Everything known so far: mean and spread (standard deviation over seeds) of each task's metric."""
    parts = []
    for dataset in FOLDERS:
        probes = [(f"{who}{suffix}", "probe") for who in TEACHERS for suffix in ("", "-random")]
        parts.append(_compared(known, dataset, probes, f"Frozen teachers under the same heads, {dataset}"))
    for who in STUDENTS[:2]:
        found = known.get(f"distill/{who}")
        if found:
            shown = {name: value for name, value in found.items() if name.count("/") <= 1}
            parts.append(table([{"rep_sim after distillation": who, **{k: f"{v:.4f}" for k, v in shown.items()}}]))
    for dataset in FOLDERS:
        students = [(who, "finetune") for who in STUDENTS]
        parts.append(_compared(known, dataset, students, f"Students after fine-tuning, {dataset}", over="multi-task"))
    return "\n\n".join(part for part in parts if part)


def _compared(
    known: Mapping[str, Mapping[str, float]],
    dataset: str,
    entries: Sequence[tuple[str, str]],
    title: str,
    over: str | None = None,
) -> str:
    """A row an entry; `over` names the entry that delta_m is taken over, seed by seed."""
    rows, tasks = [], task_table(dataset)
    for who, kind in entries:
        runs = {seed: known[name] for seed in range(99) if (name := f"{kind}/{who}/{dataset}/{seed}") in known}
        if not runs:
            continue
        row: dict[str, object] = {title: who, "seeds": len(runs)}
        for task in tasks:
            mark = "lower" if task.lower_is_better else "higher"
            row[f"{task.name} {task.metric} ({mark})"] = _spread([run[task.name] for run in runs.values()])
        base = {seed: known.get(f"{kind}/{over}/{dataset}/{seed}") for seed in runs}
        if over is not None and all(base.values()):
            row["delta_m, %"] = _spread([delta_m(tasks, run, base[seed] or {}).value for seed, run in runs.items()])
        rows.append(row)
    return table(rows) if rows else ""


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    """Do the rows that are not done, or print what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("demo/story"))
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work = asked.work / "quick" if asked.quick else asked.work
    work.mkdir(parents=True, exist_ok=True)
    story = Story(work, QUICK if asked.quick else Budget())
    if not asked.table:
        for row in story.rows():
            if row.name not in story.known and asked.only in row.name:
                try:
                    story.do(row)
                except StoppedError:
                    sys.exit(130)
    print(f"{machine()}; {versions('torch', 'timm')}\n\n{tables(story.known)}")


if __name__ == "__main__":
    main()
