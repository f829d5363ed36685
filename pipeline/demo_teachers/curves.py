"""Curves of a demo model's training, drawn from its run's `metrics.jsonl`."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.training.run import RunDirectory

ASIDE = {"step", "epoch", "learning_rate", "images_per_second", "data_wait", "time", "evaluation"}


def draw_curves(run: RunDirectory) -> Path | None:
    """`curves.png`: the loss and its parts, then every measure on held-out scenes; None where nothing was recorded."""
    lines = run.metrics()
    training = [line for line in lines if not line.get("evaluation")]
    measured = [line for line in lines if line.get("evaluation")]
    if not training:
        return None
    panels = [("training", training, _names(training))]
    panels += [(f"{name}, held out", measured, [name]) for name in _names(measured)]
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            axes.plot([line["step"] for line in shown], [line[name] for line in shown], label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=8)
    target = run.figures / "curves.png"
    figure.savefig(target, dpi=120)
    return target


def _names(lines: list[dict[str, float]]) -> list[str]:
    return [name for name in (lines[0] if lines else {}) if name not in ASIDE]
