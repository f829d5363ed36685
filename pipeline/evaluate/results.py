"""An evaluation in its run's directory, used again only where it is of the very same, and as tables for people."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.sample import TaskDataset
from pipeline.dense.evaluation import Evaluation, from_plain, to_plain
from pipeline.dense.gates import MeanGates
from pipeline.dense.sums import TaskEvaluation
from pipeline.dense.task_data import HOW
from pipeline.storage.local import replace_file
from pipeline.tables import text_table
from sak.metrics.delta_m import MultiTaskGain
from sak.metrics.normals import LIMITS
from sak.tasks import Dataset

FORMAT = "sak-evaluation-1"


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated: two that are equal have the same numbers.

    Attributes:
        dataset: its name, or the path of the YAML file that describes it.
        data: the folder it lay in.
        split: of the data set; `images` is the SHA-256 of the ids that counted.
        tasks: that were judged, in the table's order.
        checkpoint: `best` or `last`; `weights` is the SHA-256 of its tensors.
        size: (H, W) that was predicted at.
        files: the SHA-256 of the sizes and times of change of all images and labels; empty in evaluations of before.
    """

    dataset: str
    data: str
    split: str
    images: str
    tasks: tuple[str, ...]
    checkpoint: str
    weights: str
    size: tuple[int, int]
    files: str = ""


@dataclass(frozen=True)
class StoredEvaluation:
    """A finished evaluation: the numbers, and the routers' mean gates where there are routers."""

    of: Evaluated
    evaluation: Evaluation
    gates: MeanGates | None = None
    trivial: Evaluation | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **to_plain(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "StoredEvaluation":
        """The inverse of `as_dict`; ValueError for anything else."""
        return from_plain(cls, value)


def images_digest(dataset: TaskDataset, count: int) -> str:
    """Of the ids of the first `count` images."""
    return hashlib.sha256("\0".join(dataset.name(index) for index in range(count)).encode()).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Of files' names, sizes and times of change: labels that were mended since are others."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def weights_digest(models: Sequence[nn.Module]) -> str:
    """Of every tensor of these networks, wherever they were loaded from."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def store_name(split: str, checkpoint: str, limit: int | None, tasks: Sequence[str] | None) -> str:
    """`evaluation-val` for the whole of it; a part has a name of its own, so that it never takes the place of that."""
    parts = ["evaluation", split]
    if checkpoint != "best":
        parts.append(checkpoint)
    if tasks is not None:
        parts.append("+".join(tasks))
    if limit is not None:
        parts.append(f"first{limit}")
    return "-".join(parts)


def read_stored(path: Path, of: Evaluated) -> StoredEvaluation | None:
    """What is stored, if it is of the very same; None where there is nothing, or something else."""
    try:
        stored = StoredEvaluation.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
    return stored if stored.of == of else None


def write_stored(path: Path, document: Mapping[str, Any]) -> None:
    """Write an evaluation's JSON, whole or not at all."""
    replace_file(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


Rows = list[dict[str, object]]
BESIDE = {
    "accuracy": "{:.2f} % of pixels right",
    "value_present": "{:.2f} % over the classes that occur",
    "iou": "IoU {:.2f} %",
    "median": "median {:.2f} degrees",
    "rmse": "root mean square {:.2f} degrees",
    "abs_rel": "relative error {:.4f}",
    "within_125": "{:.2f} % within a factor of 1.25",
    "ois": "OIS {:.2f} %",
    "ap": "AP {:.2f} %",
    "precision": "precision {:.2f} %",
    "recall": "recall {:.2f} %",
    "threshold": "at threshold {:.2f}",
}


@dataclass(frozen=True)
class EvaluationTables:
    """An evaluation as tables: every metric with its direction, what is trivial, the gain over a baseline, classes."""

    table: Dataset
    evaluation: Evaluation
    trivial: Evaluation | None = None
    baseline: Mapping[str, float] | None = None
    gain: MultiTaskGain | None = None

    def metrics(self) -> Rows:
        """One row a task."""
        return [self._row(name, task) for name, task in self.evaluation.tasks.items()]

    def _row(self, name: str, task: TaskEvaluation) -> dict[str, object]:
        unit, better = task.unit, "lower" if task.lower_is_better else "higher"
        row: dict[str, object] = {"task": name, "metric": task.metric, "value": number(task.value, unit)}
        row |= {"unit": unit, "better": better}
        if self.trivial is not None:
            trivial = self.trivial.tasks[name].value
            row |= {"trivial": number(trivial, unit), "margin": number(margin(task, trivial), unit, sign=True)}
        if self.baseline is not None and self.gain is not None:
            gain = number(self.gain.per_task[name], sign=True)
            row |= {"baseline": number(self.baseline[name], unit), "gain %": gain}
        return row

    def beside(self) -> list[str]:
        """The other numbers of each task, a line each."""
        return [f"{name}: {', '.join(_beside(task))}" for name, task in self.evaluation.tasks.items()]

    def classes(self) -> dict[str, Rows]:
        """Intersection over union of each class, of the tasks that have classes."""
        return {
            name: [
                {"class": label, "IoU %": number(value, absent="absent")}
                for label, value in zip(self.table[name].classes, task.numbers["per_class"], strict=True)
            ]
            for name, task in self.evaluation.tasks.items()
            if task.numbers.get("per_class") is not None
        }

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        images, (height, width) = self.evaluation.images, self.evaluation.size
        sizes = "1 image at its own size" if images == 1 else f"{images:,} images at their own sizes"
        lines = [f"{self.evaluation.dataset}: {sizes}, predicted at {height} x {width}"]
        for name, task in self.evaluation.tasks.items():
            if task.unlabelled:
                lines.append(f"{name}: {task.unlabelled:,} of {images:,} images have no valid label and count nowhere")
            absent = task.numbers.get("absent")
            if absent:
                named = ", ".join(self.table[name].classes[number] for number in absent)
                lines.append(f"{name}: {len(absent)} classes occur nowhere and count as 0: {named}")
        if self.trivial is not None:
            lines += [f"{name}: trivial is {HOW[task.metric]}" for name, task in self.evaluation.tasks.items()]
        return lines

    def headline(self) -> str:
        """delta_m, where there is a baseline."""
        if self.gain is None:
            return ""
        return f"delta_m {self.gain.value:+.2f} % over the baseline, mean of {len(self.gain.per_task)} tasks"

    def to_text(self) -> str:
        """For a terminal."""
        parts = [text_table(self.metrics()), self.headline(), "\n".join(self.notes()), "\n".join(self.beside())]
        parts += [f"{name} by class\n{text_table(_side_by_side(rows))}" for name, rows in self.classes().items()]
        return "\n\n".join(filter(None, parts))

    def to_markdown(self, title: str) -> str:
        """For a file."""
        headline = f"**{self.headline()}**" if self.gain is not None else ""
        lines = "\n".join(f"- {line}" for line in (*self.notes(), *self.beside()))
        parts = [f"# {title}", markdown_table(self.metrics()), headline, lines]
        parts += [f"## {name} by class\n\n{markdown_table(rows)}" for name, rows in self.classes().items()]
        return "\n\n".join(filter(None, parts)) + "\n"


def margin(task: TaskEvaluation, trivial: float) -> float:
    """How much better than the trivial predictor, in the metric's unit; positive is better."""
    return trivial - task.value if task.lower_is_better else task.value - trivial


def number(value: Any, unit: str = "%", *, sign: bool = False, absent: str = "-") -> str:
    """Two digits after the point, as the field's tables have them; four of metres."""
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return absent
    digits = 4 if unit == "metres" else 2
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _beside(task: TaskEvaluation) -> list[str]:
    numbers = task.numbers
    parts = [f"{task.images:,} images, {task.pixels:,} valid pixels"]
    parts += [text.format(numbers[key]) for key, text in BESIDE.items() if isinstance(numbers.get(key), float)]
    for limit, share in zip(LIMITS, numbers.get("under", ()), strict=False):
        parts.append(f"{share or 0:.2f} % under {limit:g} degrees")
    return parts


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as Markdown, the keys as headings."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[name]) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _side_by_side(rows: Rows, columns: int = 3) -> Rows:
    """A long table of two columns as a short one, read downwards."""
    height = -(-len(rows) // columns)
    empty = dict.fromkeys(rows[0], "")
    return [
        {
            f"{name}{' ' * column}": value
            for column, start in enumerate(range(0, len(rows), height))
            for name, value in (rows[start + line] if start + line < len(rows) else empty).items()
        }
        for line in range(height)
    ]
