"""Boundary evaluation of a folder of predictions made anywhere: ODS, OIS, AP and the precision-recall curve."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.label_files import DataError, read_mask, segmentations
from pipeline.data.pascal_nyud import Nyud, PascalContext
from pipeline.data.sample import ListedDataset
from pipeline.pictures.charts import COLOURS, axes_row, figure_png
from pipeline.processes import WAITING, usable_cores, work_pool
from pipeline.progress import Update
from pipeline.storage.local import write_durably
from sak.errors import UsageError, nearest
from sak.metrics.boundary import (
    MAX_DISTANCE,
    THRESHOLDS,
    BoundaryCounts,
    BoundaryScore,
    Curve,
    Protocol,
    count,
    curve,
    from_segmentation,
    score,
)
from sak.metrics.boundary_thinning import non_maximum_suppression

Truths = tuple[NDArray[np.bool_], ...]


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
        scores = {name: value for name, value in asdict(self.score).items() if name != "images"}
        facts = {name: getattr(self, name) for name in ("dataset", "protocol", "max_distance", "images", "left_out")}
        curve = {name: getattr(self.precision_recall, name).tolist() for name in ("precision", "recall")}
        return {**facts, **scores, "thresholds": THRESHOLDS.tolist(), **curve}

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
    measured, best = report.precision_recall, report.score
    axes.plot(measured.recall, measured.precision, color=COLOURS[0], linewidth=2)
    label = f"ODS {best.ods:.3f} at {best.ods_threshold:.2f}\nOIS {best.ois:.3f}\nAP {best.ap:.3f}"
    axes.plot(best.ods_recall, best.ods_precision, "o", color=COLOURS[1], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    axes.set_title(f"{report.dataset}, {report.images} images ({report.protocol})", fontsize=10)
    axes.legend(loc="lower left", frameon=False)
    return figure_png(figure, dpi=130)


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


@dataclass(frozen=True)
class SplitTruth:
    """One ground truth an image, of a split of PASCAL-Context or NYUD-v2."""

    dataset: ListedDataset

    @property
    def names(self) -> tuple[str, ...]:
        """The split's list."""
        return self.dataset.names

    def __call__(self, name: str) -> Truths:
        """The thin boundary map."""
        return (self.dataset.boundary_truth(self.dataset.names.index(name)),)


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


def parse_protocol(name: str) -> Protocol:
    """`seism` or `bsds`; UsageError for anything else."""
    if name not in ("seism", "bsds"):
        raise UsageError(f"no boundary protocol {name!r}{nearest(name, ('seism', 'bsds'))}")
    return "seism" if name == "seism" else "bsds"


def evaluate_boundaries(config: BoundaryConfig, *, progress: Update | None = None) -> BoundaryReport:
    """Score a folder of predictions; images are shared out over processes, memory stays flat.

    Raises UsageError for an unknown data set, DataError naming a prediction that is missing or of a wrong size.
    """
    _check(config)
    if config.dataset not in GROUND_TRUTHS:
        raise UsageError(f"no boundary ground truth for {config.dataset!r}{nearest(config.dataset, GROUND_TRUTHS)}")
    truth = GROUND_TRUTHS[config.dataset](config.truth, config.split)
    names = _predicted(config, truth.names)
    distance = config.max_distance if config.max_distance is not None else MAX_DISTANCE[config.dataset]
    job = _Job(config.predictions, truth, distance, config.suppress)
    counts: list[BoundaryCounts] = []
    workers = min(config.processes or usable_cores(), len(names))
    processes = workers if workers > 1 else 0  # one alone is this one
    with work_pool(processes, "--processes", job) as pool:
        for done, image_counts in enumerate(pool.map(_Job.match, names, WAITING * processes or 1), start=1):
            counts.append(image_counts)
            if progress is not None:
                progress(done, len(names))
    return BoundaryReport(
        score(counts, protocol=config.protocol),
        curve(sum(counts[1:], start=counts[0]), protocol=config.protocol),
        config.dataset,
        config.protocol,
        distance,
        len(names),
        len(truth.names) - len(names),
    )


def _check(config: BoundaryConfig) -> None:
    if config.processes is not None and config.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {config.processes}")
    if config.max_distance is not None and not 0 <= config.max_distance <= 1:
        raise UsageError(f"--max-dist is a share of the image's diagonal, 0 to 1, got {config.max_distance}")


def _predicted(config: BoundaryConfig, names: Sequence[str]) -> tuple[str, ...]:
    if not config.predictions.is_dir():
        raise DataError(f"{config.predictions} is not a folder; give the folder of <id>.png predictions")
    predicted = tuple(name for name in names if (config.predictions / f"{name}.png").is_file())
    if not predicted:
        wanted = f"{config.dataset} {config.split}, such as {names[0]}.png"
        raise DataError(f"{config.predictions} holds no prediction of {wanted}")
    if len(predicted) < len(names) and not config.partial:
        first = next(name for name in names if name not in set(predicted))
        raise DataError(
            f"{config.predictions / first}.png is missing, one of {len(names) - len(predicted)} of {len(names)} "
            "images; predict them all, or score what is there with --partial"
        )
    return predicted


@dataclass(frozen=True)
class _Job:
    """What a worker process is given, once for all images."""

    predictions: Path
    truth: BsdsTruth | SplitTruth
    max_distance: float
    suppress: bool

    def match(self, name: str) -> BoundaryCounts:
        """Image `name`'s prediction against its ground truths."""
        path = self.predictions / f"{name}.png"
        prediction = read_mask(path)
        if prediction.ndim != 2:
            raise DataError(
                f"{path} is {prediction.shape}; a prediction is one channel of grey, 255 a certain boundary"
            )
        truths = self.truth(name)
        if prediction.shape != truths[0].shape:
            sizes = f"is {prediction.shape}, the ground truth {truths[0].shape}"
            raise DataError(f"{path} {sizes}; cut it to its image's own size first")
        if self.suppress and min(prediction.shape) < 2:
            raise DataError(
                f"{path} is {prediction.shape}; suppression needs two pixels a side, switch it off (--no-nms)"
            )
        ridges = non_maximum_suppression(prediction) if self.suppress else prediction
        return count(ridges, truths, max_distance=self.max_distance)
