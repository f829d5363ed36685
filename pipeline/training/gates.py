"""What the routers choose: the mean gate over images by level, task and expert (the paper's Figure 4)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import fsum
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from sak.student.student import Student, StudentOutput
from sak.variants.amalgam import Amalgam, AmalgamOutput


@dataclass(frozen=True)
class MeanGates:
    """level -> task -> one weight an expert, summing to one; over `images`."""

    experts: tuple[str, ...]
    images: int
    weights: Mapping[int, Mapping[str, tuple[float, ...]]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; levels as text."""
        weights = {str(level): {task: list(row) for task, row in rows.items()} for level, rows in self.weights.items()}
        return {"experts": list(self.experts), "images": self.images, "weights": weights}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "MeanGates":
        """The inverse of `as_dict`."""
        weights = {
            int(level): {task: tuple(row) for task, row in rows.items()} for level, rows in value["weights"].items()
        }
        return cls(tuple(value["experts"]), value["images"], weights)


@dataclass
class GateRecorder:
    """Gates of the images that went through, by image; empty where the network has no routers."""

    experts: tuple[str, ...] = ()
    rows: list[Tensor] = field(default_factory=list)
    names: tuple[tuple[int, str], ...] = ()

    def add(self, gates: Mapping[int, Mapping[str, Tensor]]) -> None:
        """A batch's (B, experts) by level and task."""
        self.names = tuple((level, task) for level, tasks in gates.items() for task in tasks)
        if self.names:
            stacked = torch.stack([gates[level][task].double() for level, task in self.names], dim=1)
            self.rows.append(stacked.flatten(1))

    def means(self, accelerator: Accelerator) -> MeanGates | None:
        """The means over the images of all processes, the same on each; None without routers."""
        rows = torch.cat(self.rows).tolist() if self.rows else []
        named = [(self.experts, self.names)]
        if accelerator.num_processes > 1:
            rows, named = gather_object(rows), gather_object(named)
        if not rows:
            return None
        experts, names = next(pair for pair in named if pair[1])
        means = [fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        weights: dict[int, dict[str, tuple[float, ...]]] = {}
        for index, (level, task) in enumerate(names):
            weights.setdefault(level, {})[task] = tuple(means[index * len(experts) : (index + 1) * len(experts)])
        return MeanGates(experts, len(rows), weights)


@contextmanager
def recorded_gates(model: nn.Module | None) -> Iterator[GateRecorder]:
    """Record the gates of every forward in evaluation while the block runs; nothing of a network without routers."""
    if not isinstance(model, Student | Amalgam):
        yield GateRecorder()
        return
    recorder = GateRecorder(model.experts if isinstance(model, Amalgam) else model.config.experts)

    def record(module: nn.Module, inputs: Any, output: StudentOutput | AmalgamOutput) -> None:
        if not module.training:
            recorder.add(output.gates)

    handle = model.register_forward_hook(record)
    try:
        yield recorder
    finally:
        handle.remove()
