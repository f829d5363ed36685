"""How fast `sak-cli evaluate` and `predict` are, and where the time goes.

Run it: python benchmarks/evaluate.py [--images 500] [--size 128] [--workers 2] [--data DEMO] [--quick]

A small student with random weights on demo scenes (random boundaries are matched as slowly as any). Wall-clock and CPU
seconds of everything, odsF included, of everything but odsF, and of the forward alone; then predict, panels included.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from report import machine, table, versions

from pipeline.data.datasets import open_dataset, task_table
from pipeline.demo.data.write import write_demo_data
from pipeline.dense.evaluation import evaluate_tasks
from pipeline.dense.task_model import TaskModel, describe, save_task_model
from pipeline.predict import PredictConfig, predict
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return {"wall s": time.perf_counter() - wall, "CPU s": cpu_seconds() - cpu}


def small_student(dataset: str, size: int) -> TaskModel:
    """Twelve blocks of width 48, three teachers, every task of the data set."""
    teachers = dict.fromkeys(("dinov2", "clip", "sam"), 48)
    stem = StemSize(48, 12, 3)
    config = StudentConfig((size, size), stem, "random:0", teachers=teachers, tasks=task_table(dataset).channels)
    return describe(new_student(config, seed=0), dataset=dataset)


def evaluations(model: TaskModel, data: Path, images: int, workers: int) -> list[dict[str, object]]:
    """Rows: all metrics, all but boundaries, the forward alone."""
    dataset = open_dataset(model.dataset or "", data, "train")
    accelerator = Accelerator(cpu=True)

    def run(boundary: bool) -> object:
        return evaluate_tasks(
            model.predict,
            dataset,
            task_table(model.dataset or "").select(model.tasks),
            size=model.image_size,
            accelerator=accelerator,
            workers=workers,
            boundary=boundary,
            limit=images,
        )

    batch = torch.randn(8, 3, *model.image_size)
    steps = -(-images // 8)
    works: dict[str, Callable[[], object]] = {
        "all metrics, odsF included": lambda: run(True),
        "all but odsF": lambda: run(False),
        "forward alone": lambda: [model.predict(batch) for _ in range(steps)],
    }
    return [_row(f"{model.dataset}: {name}", images, timed(work)) for name, work in works.items()]


def predictions(model: TaskModel, data: Path, images: int, workers: int, scratch: Path) -> list[dict[str, object]]:
    """A row: pictures and panels of images on disk."""
    save_task_model(model, scratch / "model")
    files = sorted(path for path in data.rglob("*.jpg") if "JPEGImages" in path.parts)[:images]
    config = PredictConfig(
        scratch / "model", tuple(files), scratch / "out", dataset=model.dataset, device="cpu", workers=workers
    )
    return [_row(f"{model.dataset}: predict, panels included", len(files), timed(lambda: predict(config)))]


def _row(what: str, images: int, seconds: dict[str, float]) -> dict[str, object]:
    return {"what": what, "images": images, **seconds, "images/s": images / seconds["wall s"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="demo data with enough scenes; made where none is named")
    parser.add_argument("--datasets", nargs="*", default=["demo-pascal", "demo-nyud"])
    parser.add_argument("--quick", action="store_true", help="twelve images")
    asked = parser.parse_args()
    asked.images = 12 if asked.quick else asked.images
    print(machine())
    print(versions("sak", "torch", "numba"))
    with tempfile.TemporaryDirectory() as scratch:
        data = asked.data or Path(scratch) / "demo"
        if asked.data is None:
            write_demo_data(data, images=2, scenes=4 * asked.images // 3 + 8, size=asked.size)
        rows = []
        for name in asked.datasets:
            rows += evaluations(small_student(name, asked.size), data, asked.images, asked.workers)
        rows += predictions(
            small_student("demo-pascal", asked.size), data, min(64, asked.images), asked.workers, Path(scratch)
        )
        print(table(rows))


if __name__ == "__main__":
    main()
