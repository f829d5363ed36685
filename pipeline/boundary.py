"""Boundary evaluation of predictions made anywhere: a folder of probability maps against a data set's ground truth."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.files import read_png
from pipeline.data.mat import segmentations
from pipeline.data.nyud import Nyud
from pipeline.data.pascal_context import PascalContext
from pipeline.data.sample import DataError
from sak.errors import UsageError, nearest
from sak.metrics.boundary.ground_truth import from_segmentation
from sak.metrics.boundary.score import (
    MAX_DISTANCE,
    THRESHOLDS,
    BoundaryCounts,
    BoundaryScore,
    Curve,
    Protocol,
    count,
    curve,
    score,
)
from sak.metrics.boundary.suppress import non_maximum_suppression

Progress = Callable[[int, int], None]
Truths = tuple[NDArray[np.bool_], ...]


class BsdsTruth:
    """The annotators' segmentations of BSDS: a folder of `<id>.mat`."""

    def __init__(self, root: Path) -> None:
        self.files = {path.stem: path for path in sorted(root.glob("*.mat"))}
        if not self.files:
            raise DataError(f"{root} holds no .mat files; give the folder of BSDS's ground truth")

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of all images."""
        return tuple(self.files)

    def __call__(self, name: str) -> Truths:
        """Thin boundaries of every annotator."""
        return tuple(from_segmentation(segments) for segments in segmentations(self.files[name]))


class SplitTruth:
    """One ground truth an image, of a split of PASCAL-Context or NYUD-v2."""

    def __init__(self, dataset: PascalContext | Nyud) -> None:
        self.dataset = dataset
        self._index = {name: index for index, name in enumerate(dataset.names)}

    @property
    def names(self) -> tuple[str, ...]:
        """The split's list."""
        return self.dataset.names

    def __call__(self, name: str) -> Truths:
        """The thin boundary map."""
        return (self.dataset.boundary_truth(self._index[name]),)


GROUND_TRUTHS: dict[str, Callable[[Path, str], BsdsTruth | SplitTruth]] = {
    "pascal-context": lambda root, split: SplitTruth(PascalContext(root, split, ("edge",))),
    "nyud": lambda root, split: SplitTruth(Nyud(root, split, ("edge",))),
    "bsds": lambda root, split: BsdsTruth(root),
}


@dataclass(frozen=True)
class BoundaryConfig:
    """What to evaluate.

    `predictions`: a folder of `<id>.png`, 8-bit grey, 255 a certain boundary. `truth`: the data set's folder (for
    bsds the folder of its .mat files). `suppress`: thin the maps by non-maximum suppression first, as for raw network
    outputs. `max_distance`: a share of the diagonal, None for the data set's own. `partial`: score the images that
    were predicted and say how many were not, instead of refusing.
    """

    predictions: Path
    truth: Path
    dataset: str
    split: str = "val"
    suppress: bool = True
    protocol: Protocol = "seism"
    max_distance: float | None = None
    processes: int | None = None
    partial: bool = False


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


def parse_protocol(name: str) -> Protocol:
    """`seism` or `bsds`; UsageError for anything else."""
    if name not in ("seism", "bsds"):
        raise UsageError(f"no boundary protocol {name!r}{nearest(name, ('seism', 'bsds'))}")
    return "seism" if name == "seism" else "bsds"


def evaluate_boundaries(config: BoundaryConfig, *, progress: Progress | None = None) -> BoundaryReport:
    """Score a folder of predictions; images are shared out over processes, memory stays flat.

    Raises UsageError for an unknown data set, DataError naming a prediction that is missing or of a wrong size.
    """
    if config.dataset not in GROUND_TRUTHS:
        raise UsageError(f"no boundary ground truth for {config.dataset!r}{nearest(config.dataset, GROUND_TRUTHS)}")
    truth = GROUND_TRUTHS[config.dataset](config.truth, config.split)
    names = _predicted(config, truth.names)
    distance = config.max_distance if config.max_distance is not None else MAX_DISTANCE[config.dataset]
    job = _Job(config.predictions, truth, distance, config.suppress)
    counts = []
    for done, image in enumerate(_run(job, names, config.processes), start=1):
        counts.append(image)
        if progress is not None:
            progress(done, len(names))
    total = sum(counts[1:], start=counts[0])
    return BoundaryReport(
        score(counts, protocol=config.protocol),
        curve(total, protocol=config.protocol),
        config.dataset,
        config.protocol,
        distance,
        len(names),
        len(truth.names) - len(names),
    )


def _predicted(config: BoundaryConfig, names: Sequence[str]) -> tuple[str, ...]:
    if not config.predictions.is_dir():
        raise DataError(f"{config.predictions} is not a folder; give the folder of <id>.png predictions")
    here = tuple(name for name in names if (config.predictions / f"{name}.png").is_file())
    if not here:
        wanted = f"{config.dataset} {config.split}, such as {names[0]}.png"
        raise DataError(f"{config.predictions} holds no prediction of {wanted}")
    if len(here) < len(names) and not config.partial:
        first = next(name for name in names if name not in set(here))
        raise DataError(
            f"{config.predictions / first}.png is missing, one of {len(names) - len(here)} of {len(names)} images; "
            "predict them all, or score what is there with --partial"
        )
    return here


@dataclass(frozen=True)
class _Job:
    """One image's work, as a worker process takes it."""

    predictions: Path
    truth: BsdsTruth | SplitTruth
    max_distance: float
    suppress: bool

    def __call__(self, name: str) -> BoundaryCounts:
        path = self.predictions / f"{name}.png"
        prediction = read_png(path)
        truths = self.truth(name)
        if prediction.shape != truths[0].shape:
            sizes = f"is {prediction.shape}, the ground truth {truths[0].shape}"
            raise DataError(f"{path} {sizes}; cut it to its image's own size first")
        ridges = non_maximum_suppression(prediction) if self.suppress else prediction
        return count(ridges, truths, max_distance=self.max_distance)


def _run(job: _Job, names: Sequence[str], processes: int | None) -> Iterator[BoundaryCounts]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processes or cores, len(names))
    if workers == 1:
        yield from map(job, names)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, names)


def write_report(report: BoundaryReport, folder: Path) -> tuple[Path, Path]:
    """Write `boundary.json` and `precision_recall.png` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture = folder / "boundary.json", folder / "precision_recall.png"
    numbers.write_text(report.to_json() + "\n")
    plot_precision_recall(report, picture)
    return numbers, picture


def plot_precision_recall(report: BoundaryReport, path: Path) -> None:
    """The curve over lines of equal F, with the point of the best F."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    recall = np.linspace(0.01, 1, 200)
    for f in np.arange(0.1, 1.0, 0.1):
        with np.errstate(divide="ignore"):
            precision = f * recall / (2 * recall - f)
        shown = (precision > 0) & (precision <= 1)
        axes.plot(recall[shown], precision[shown], color="#cbd5e1", linewidth=0.8, zorder=1)
        axes.annotate(f"F {f:.1f}", (0.995, f / (2 - f)), fontsize=7, color="#64748b", ha="right", va="bottom")
    whole, best = report.precision_recall, report.score
    axes.plot(whole.recall, whole.precision, color="#1d4ed8", linewidth=2)
    label = f"ODS {best.ods:.3f} at {best.ods_threshold:.2f}\nOIS {best.ois:.3f}\nAP {best.ap:.3f}"
    axes.plot(best.ods_recall, best.ods_precision, "o", color="#b91c1c", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    axes.set_title(f"{report.dataset}, {report.images} images ({report.protocol})", fontsize=10)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=130)
