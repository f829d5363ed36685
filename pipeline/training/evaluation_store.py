"""An evaluation in its run's directory: what it was of, so that it is used again only where it fits."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.sample import TaskDataset
from pipeline.pictures.files import write_whole
from pipeline.training.evaluation import Evaluation
from pipeline.training.gates import MeanGates

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
        return {
            "format": FORMAT,
            "of": {**asdict(self.of), "tasks": list(self.of.tasks), "size": list(self.of.size)},
            "evaluation": self.evaluation.as_dict(),
            "gates": self.gates.as_dict() if self.gates is not None else None,
            "trivial": self.trivial.as_dict() if self.trivial is not None else None,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "StoredEvaluation":
        """The inverse of `as_dict`; KeyError or TypeError for anything else."""
        told = value["of"]
        of = Evaluated(**{**told, "tasks": tuple(told["tasks"]), "size": tuple(told["size"])})
        gates, trivial = value["gates"], value["trivial"]
        return cls(
            of,
            Evaluation.from_dict(value["evaluation"]),
            MeanGates.from_dict(gates) if gates else None,
            Evaluation.from_dict(trivial) if trivial else None,
        )


def images_digest(dataset: TaskDataset, count: int) -> str:
    """Of the ids of the first `count` images."""
    return hashlib.sha256("\0".join(dataset.name(index) for index in range(count)).encode()).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Of files' names, sizes and times of change: labels that were mended since are others."""
    digest = hashlib.sha256()
    for path in files:
        found = path.stat()
        digest.update(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return stored if stored.of == of else None


def write_stored(path: Path, document: Mapping[str, Any]) -> None:
    """Write an evaluation's JSON, whole or not at all."""
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
