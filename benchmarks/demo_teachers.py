"""The demo's own teachers, frozen, under the same small heads, beside their own random weights (Figure 1 in small).

    python benchmarks/demo_teachers.py --work ./demo/probes         # 20 minutes on one core; run again, it goes on
    python benchmarks/demo_teachers.py --work ./demo/probes --table # what there is so far, as Markdown

A row is one probe and its evaluation. Rows are done one after another, the first seed of everything first, and each is
in `rows.json` once it is done. Two of these with another `--only` each may work in one folder, once its data is there;
other weights of the demo's teachers need another folder.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from demo_probe import probe
from report import machine, table, versions

from pipeline.data.datasets import task_table
from pipeline.demo.data.write import write_demo_data
from pipeline.storage.local import replace_durably

FOLDERS = {"demo-pascal": "PASCALContext", "demo-nyud": "NYUDv2"}
TEACHERS = ("dino", "clip", "sam")


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    scenes: int = 256
    steps: int = 400
    seeds: int = 3


QUICK = Budget(scenes=8, steps=2, seeds=1)


@dataclass(frozen=True)
class Row:
    """One thing to do: `who/dataset/seed`; `make` returns its numbers."""

    name: str
    make: Callable[[], Mapping[str, float]]


class Probes:
    """The rows, and what is known of them."""

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work, self.budget = work, budget
        self.file = work / "rows.json"

    def known(self) -> dict[str, dict[str, float]]:
        """What is done."""
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def rows(self) -> Iterator[Row]:
        """All, in order: one seed of everything, then the next."""
        for seed in range(self.budget.seeds):
            for dataset in FOLDERS:
                for teacher in TEACHERS:
                    for who in (teacher, f"{teacher}-random"):
                        yield Row(f"{who}/{dataset}/{seed}", partial(self.probe, who, dataset, seed))

    def do(self, row: Row) -> None:
        """Do one row and write it down."""
        wall, cpu = time.monotonic(), time.process_time()
        found = dict(row.make())
        found |= {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        replace_durably(self.file, (json.dumps(self.known() | {row.name: found}, indent=1) + "\n").encode())
        print(row.name, json.dumps(found), flush=True)

    def data(self) -> Path:
        """The demo's scenes, seed 0."""
        place = self.work / "data"
        if not place.is_dir():
            write_demo_data(place, images=4, scenes=self.budget.scenes, seed=0, size=128, processes=1)
        return place

    def probe(self, who: str, dataset: str, seed: int) -> Mapping[str, float]:
        """A frozen teacher under small heads, see `demo_probe`."""
        return probe(who, dataset, self.data() / FOLDERS[dataset], seed, self.budget.steps)


def tables(known: Mapping[str, Mapping[str, float]]) -> str:
    """Everything known so far: mean and spread (standard deviation over seeds) of each task's metric."""
    return "\n\n".join(found for dataset in FOLDERS if (found := _compared(known, dataset)))


def _compared(known: Mapping[str, Mapping[str, float]], dataset: str) -> str:
    rows = []
    for who in (f"{teacher}{suffix}" for teacher in TEACHERS for suffix in ("", "-random")):
        runs = [known[name] for seed in range(99) if (name := f"{who}/{dataset}/{seed}") in known]
        if not runs:
            continue
        row: dict[str, object] = {dataset: who, "seeds": len(runs)}
        for task in task_table(dataset):
            mark = "lower" if task.lower_is_better else "higher"
            row[f"{task.name} {task.metric} ({mark})"] = _spread([run[task.name] for run in runs])
        rows.append(row)
    return table(rows) if rows else ""


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    """Do the rows that are not done, or print what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("demo/probes"))
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work = asked.work / "quick" if asked.quick else asked.work
    work.mkdir(parents=True, exist_ok=True)
    probes = Probes(work, QUICK if asked.quick else Budget())
    if not asked.table:
        for row in probes.rows():
            if asked.only in row.name and row.name not in probes.known():
                probes.do(row)
    print(f"{machine()}; {versions('torch', 'timm')}\n\n{tables(probes.known())}")


if __name__ == "__main__":
    main()
