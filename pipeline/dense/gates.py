"""What the routers choose: gates recorded over images, their mean, and a picture of it (the paper's Figure 4)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from matplotlib.figure import Figure
from torch import Tensor, nn

from pipeline.pictures.charts import figure_png
from pipeline.pictures.panel import title
from pipeline.storage.local import replace_file
from sak.student.student import Student, StudentOutput
from sak.tasks import Dataset
from sak.variants.frozen import Amalgam, AmalgamOutput


@dataclass(frozen=True)
class MeanGates:
    """What the routers choose, over `images`: level -> task -> one weight an expert, summing to one."""

    experts: tuple[str, ...]
    images: int
    weights: Mapping[int, Mapping[str, tuple[float, ...]]]


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
        """The means over the images of all ranks, the same on each; None without routers."""
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


def draw_gates(gates: MeanGates, table: Dataset, path: Path) -> Path:
    """The paper's Figure 4: one heat map a level, tasks down, experts across, every weight written out."""
    levels = list(gates.weights)
    tasks = [task for task in table if task.name in gates.weights[levels[0]]]
    highest = max(max(row) for rows in gates.weights.values() for row in rows.values())
    figure = Figure(
        figsize=(1.9 + 0.72 * len(gates.experts) * len(levels), 1.5 + 0.46 * len(tasks)), layout="constrained"
    )
    panels = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for axes, level in zip(panels, levels, strict=True):
        weights = np.array([gates.weights[level][task.name] for task in tasks])
        picture = axes.imshow(weights, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
        for (row, column), weight in np.ndenumerate(weights):
            ink = "white" if weight > 0.6 * highest else "#1e293b"
            axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=8.5, color=ink)
        axes.set_title(f"level {level}", fontsize=10)
        axes.set_xticks(range(len(gates.experts)), gates.experts, fontsize=8.5, rotation=30, ha="right")
        axes.set_yticks(range(len(tasks)), [title(task) for task in tasks], fontsize=9)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(gates.experts)) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(tasks)) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=list(panels), fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
    figure.suptitle(
        f"Mean gate of the routers over {gates.images:,} images, by level (block), task and expert", fontsize=10.5
    )
    replace_file(path, figure_png(figure, dpi=130))
    return path
