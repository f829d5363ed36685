"""The numbers of a boundary evaluation: as text, as JSON, and as a precision-recall plot."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.pictures.charts import COLOURS, axes_row, figure_png
from pipeline.storage.local import write_durably
from sak.errors import UsageError
from sak.metrics.boundary.score import THRESHOLDS, BoundaryScore, Curve


@dataclass(frozen=True)
class BoundaryReport:
    """The numbers of a data set and the curve they lie on."""

    score: BoundaryScore
    precision_recall: Curve
    dataset: str
    protocol: str
    max_distance: float
    images: int
    left_out: int

    def as_dict(self) -> dict[str, object]:
        """JSON-ready: scores as fractions, the curve by threshold."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "max_distance": self.max_distance,
            "images": self.images,
            "left_out": self.left_out,
            **{name: value for name, value in asdict(self.score).items() if name != "images"},
            "thresholds": THRESHOLDS.tolist(),
            "precision": self.precision_recall.precision.tolist(),
            "recall": self.precision_recall.recall.tolist(),
        }

    def to_json(self) -> str:
        """`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def to_text(self) -> str:
        """The numbers as lines for a person."""
        best = self.score
        left_out = f", {self.left_out} not predicted and left out" if self.left_out else ""
        return "\n".join(
            [
                f"{self.dataset}: {self.images} images{left_out}; {self.protocol}, max_dist {self.max_distance}",
                f"ODS F {best.ods:.4f}  (precision {best.ods_precision:.4f}, recall {best.ods_recall:.4f}, "
                f"threshold {best.ods_threshold:.2f})",
                f"OIS F {best.ois:.4f}",
                f"AP    {best.ap:.4f}",
            ]
        )


def write_report(report: BoundaryReport, folder: Path) -> tuple[Path, Path]:
    """Write `boundary.json` and `precision_recall.png` into `folder`; returns their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} cannot be made a folder, a file is in the way; give --out another place") from error
    numbers, picture = folder / "boundary.json", folder / "precision_recall.png"
    write_durably(numbers, (report.to_json() + "\n").encode())
    write_durably(picture, precision_recall_png(report))
    return numbers, picture


def precision_recall_png(report: BoundaryReport) -> bytes:
    """The curve over lines of equal F, with the point of the best F, as the bytes of a PNG."""
    figure, (axes,) = axes_row(1, width=5.2, height=5)
    recall = np.linspace(0.01, 1, 200)
    for f in np.arange(0.1, 1.0, 0.1):
        with np.errstate(divide="ignore"):
            precision = f * recall / (2 * recall - f)
        shown = (precision > 0) & (precision <= 1)
        axes.plot(recall[shown], precision[shown], color="#cbd5e1", linewidth=0.8, zorder=1)
        axes.annotate(f"F {f:.1f}", (0.995, f / (2 - f)), fontsize=7, color="#64748b", ha="right", va="bottom")
    whole, best = report.precision_recall, report.score
    axes.plot(whole.recall, whole.precision, color=COLOURS[0], linewidth=2)
    label = f"ODS {best.ods:.3f} at {best.ods_threshold:.2f}\nOIS {best.ois:.3f}\nAP {best.ap:.3f}"
    axes.plot(best.ods_recall, best.ods_precision, "o", color=COLOURS[1], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    axes.set_title(f"{report.dataset}, {report.images} images ({report.protocol})", fontsize=10)
    axes.legend(loc="lower left", frameon=False)
    return figure_png(figure, dpi=130)
