"""What the teachers see: the first three principal components of their maps as colours, scene by scene."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.demo.scenes.compose import render_scene
from pipeline.demo.teachers.pool import STREAM
from pipeline.demo.weights.shipped import DEMO_MODELS, shipped_file
from pipeline.pictures.charts import axes_row, draw_legend, figure_png
from pipeline.pictures.panel import Tile, as_png, panel
from pipeline.train.run import RunDirectory
from sak.errors import UsageError
from sak.teachers import Teacher, build_teacher

TEACHERS = ("dino", "clip", "sam")
VIEW = 128
SEED = 1
"""Of the scenes shown; those of the seed 0 may have been trained on."""


@torch.no_grad()
def show_teachers(
    target: Path,
    *,
    weights: Path | None = None,
    scenes: int = 4,
    level: int = 12,
    say: Callable[[str], object] = print,
) -> Path:
    """Draw `scenes` scenes that no training saw and each teacher's map of them at `level`; returns the picture's path.

    `weights` is a folder of trained files; what it lacks is taken from the package, and `say` says so. A folder with
    none of them is a UsageError. Colours are the principal components over all scenes of one teacher, each from its
    2nd to its 98th percentile.
    """
    trained = [name for name in TEACHERS if weights is not None and _trained(weights, name).is_file()]
    if weights is not None and not trained:
        names = ", ".join(_trained(weights, name).name for name in TEACHERS)
        raise UsageError(f"{weights} has none of {names}: leave --out away to show the shipped teachers")
    if trained and len(trained) < len(TEACHERS):
        say(f"{weights} has {', '.join(trained)}; the others are the shipped ones")
    shown = [render_scene(SEED, VIEW, stream=STREAM, index=index) for index in range(scenes)]
    images = torch.from_numpy(np.stack([scene.rgb for scene in shown])).permute(0, 3, 1, 2).float() / 255
    drawn = {name: components(_teacher(name, weights if name in trained else None)(images)[level]) for name in TEACHERS}
    tiles: list[Tile | None] = []
    for number, scene in enumerate(shown):
        tiles.append(Tile(scene.rgb, scene.kind, smooth=True))
        tiles += [Tile(drawn[name][number], f"demo/{name}, level {level}") for name in TEACHERS]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(as_png(panel(tiles, columns=1 + len(TEACHERS), side=256)))
    return target


def components(maps: Tensor) -> NDArray[np.uint8]:
    """(B, C, H, W) -> RGB (B, H, W, 3): the three largest principal components of channel-standardised features."""
    batch, channels, height, width = maps.shape
    flat = maps.permute(0, 2, 3, 1).reshape(-1, channels).double()
    flat = (flat - flat.mean(0)) / flat.std(0).clamp(min=1e-9)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    three = flat @ directions[:3].T
    low, high = three.quantile(0.02, dim=0), three.quantile(0.98, dim=0)
    scaled = ((three - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).reshape(batch, height, width, 3)
    larger = F.interpolate(scaled.permute(0, 3, 1, 2), scale_factor=8, mode="nearest").permute(0, 2, 3, 1)
    pixels: NDArray[np.uint8] = (larger * 255).round().to(torch.uint8).numpy()
    return pixels


def _teacher(name: str, weights: Path | None) -> Teacher:
    source = shipped_file(name).fetch(f"demo/{name}") if weights is None else _trained(weights, name)
    square = DEMO_MODELS[name].window is not None
    return build_teacher(
        f"demo/{name}", weights=source, image_size=VIEW, input_size=2 * VIEW if square else None, device="cpu"
    )


def _trained(weights: Path, name: str) -> Path:
    return weights / f"{name}.safetensors"


ASIDE = {"step", "epoch", "learning_rate", "images_per_second", "data_wait", "time", "evaluation"}


def draw_curves(run: RunDirectory) -> Path | None:
    """`curves.png`: the loss and its parts, then every measure on held-out scenes; None where nothing was recorded."""
    lines = run.metrics()
    training = [line for line in lines if not line.get("evaluation")]
    measured = [line for line in lines if line.get("evaluation")]
    if not training:
        return None
    shown = [("training", training, _names(training))]
    shown += [(f"{name}, held out", measured, [name]) for name in _names(measured)]
    figure, every = axes_row(len(shown), width=3.6, height=3.2)
    for axes, (title, part, names) in zip(every, shown, strict=True):
        for name in names:
            axes.plot([line["step"] for line in part], [line[name] for line in part], label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.2)
        draw_legend(axes)
    target = run.figures / "curves.png"
    target.write_bytes(figure_png(figure))
    return target


def _names(lines: list[dict[str, float]]) -> list[str]:
    return [name for name in (lines[0] if lines else {}) if name not in ASIDE]
