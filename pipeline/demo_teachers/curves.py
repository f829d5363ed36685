"""Curves of a demo model's training, drawn from its run's `metrics.jsonl`."""

from pathlib import Path

from pipeline.pictures.charts import axes_row, draw_legend, figure_png
from pipeline.training.run import RunDirectory

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
