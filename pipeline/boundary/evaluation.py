"""Scoring a folder of predictions, images shared out over processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.boundary.report import BoundaryReport
from pipeline.boundary.truth import GROUND_TRUTHS, BsdsTruth, SplitTruth
from pipeline.data.files import read_mask
from pipeline.data.sample import DataError
from pipeline.processes import run
from sak.errors import UsageError, nearest
from sak.metrics.boundary.score import MAX_DISTANCE, BoundaryCounts, Protocol, count, curve, score
from sak.metrics.boundary.thin import non_maximum_suppression

Progress = Callable[[int, int], None]


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


def evaluate_boundaries(config: BoundaryConfig, *, progress: Progress | None = None) -> BoundaryReport:
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
    counts = []
    for done, image in enumerate(run(job, names, config.processes), start=1):
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


def _check(config: BoundaryConfig) -> None:
    if config.processes is not None and config.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {config.processes}")
    if config.max_distance is not None and not 0 <= config.max_distance <= 1:
        raise UsageError(f"--max-dist is a share of the image's diagonal, 0 to 1, got {config.max_distance}")


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
