"""Pictures of every task for images of any size and kind."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.cluster import resolve_device
from pipeline.data.fitted import Fitted, fit, read_at_own_size
from pipeline.dense.task_model import Checkpoint, TaskModels, check_options
from pipeline.images.access import decode_photo
from pipeline.images.source import IMAGE_EXTENSIONS, BadImage
from pipeline.pictures.colour import Stored, colour, prediction_file, stored, write_prediction
from pipeline.pictures.panel import as_png, prediction_panel
from pipeline.processes import work_pool
from pipeline.progress import Update
from pipeline.storage.local import replace_file
from sak.errors import UsageError
from sak.tasks import Dataset

PANELS = "panels"
LEAST_SIDE = 16
"""Pixels; a patch has as many."""


def panel_file(out: Path, name: str) -> Path:
    """Where image `name`'s panel lies."""
    return out / PANELS / f"{name}.png"


@dataclass(frozen=True)
class Wanted:
    """An image's file and the name of its pictures."""

    path: Path
    name: str


@dataclass(frozen=True)
class Photo:
    """A decoded image, (h, w, 3) uint8, and as the network takes it."""

    wanted: Wanted
    pixels: NDArray[np.uint8]
    fitted: Fitted


@dataclass(frozen=True)
class PhotoFailure:
    """A file that is no usable image, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PhotoWork:
    """What the processes beside this one do: decode images, write pictures."""

    size: tuple[int, int]
    table: Dataset
    out: Path

    def read(self, wanted: Wanted) -> Photo | PhotoFailure:
        """The image, or why there is none."""
        try:
            pixels = np.asarray(decode_photo(wanted.path.read_bytes()))
        except BadImage as error:
            return PhotoFailure(wanted.path, str(error))
        except OSError as error:
            return PhotoFailure(wanted.path, error.strerror or str(error))
        height, width = pixels.shape[:2]
        if min(height, width) < LEAST_SIDE:
            return PhotoFailure(
                wanted.path, f"{width} x {height} pixels; a prediction needs at least {LEAST_SIDE} a side"
            )
        return Photo(wanted, pixels, fit(pixels.astype(np.float32), self.size))

    def write(self, photo: Photo, predictions: Mapping[str, Stored]) -> None:
        """A picture for each task and the panel of all."""
        name = photo.wanted.name
        for task in self.table:
            path = write_prediction(self.out, task, name, predictions[task.name])
            if task.colouring == "colormap":
                coloured = Image.fromarray(colour(task, predictions[task.name]))
                replace_file(path.with_name(f"{path.name.removesuffix('.npy')}.png"), as_png(coloured))
        sheet = prediction_panel(name, photo.pixels, self.table, predictions)
        replace_file(panel_file(self.out, name), as_png(sheet))


FEW = 8
"""Images for which starting processes takes longer than what they would do."""


@dataclass(frozen=True)
class PredictConfig:
    """What to predict.

    Attributes:
        run: a fine-tuned run, or the folder of a checkpoint.
        images: files, and folders that are walked.
        out: gets `<task>/<name>.png` (depth: `.npy` in metres too) and `panels/<name>.png`.
        tasks: some of them; None: all.
        checkpoint: `best` or `last`.
        dataset: its name or YAML file; None: the run's own.
        size: (H, W) to predict at, other than the trained one.
        batch_size: images in a forward.
        device: cuda, cpu or auto.
        workers: processes that decode and write.
        overwrite: replace pictures that are there.
    """

    run: Path
    images: tuple[Path, ...]
    out: Path
    tasks: tuple[str, ...] | None = None
    checkpoint: Checkpoint = "best"
    dataset: str | None = None
    size: tuple[int, int] | None = None
    batch_size: int = 4
    device: str = "cuda"
    workers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        check_options(self.checkpoint, ("--batch-size", self.batch_size, 1), ("--workers", self.workers, 0))


@dataclass(frozen=True)
class PredictReport:
    """How many images were predicted, where the pictures are, and the images that could not be read, with reasons."""

    predicted: int
    out: Path
    bad: tuple[tuple[Path, str], ...]

    def to_text(self) -> str:
        """Lines for a person."""
        lines = [f"{path}: {reason}" for path, reason in self.bad]
        count = f"{self.predicted:,} image{'' if self.predicted == 1 else 's'}"
        failed = f"; {len(self.bad):,} could not be predicted" if self.bad else ""
        return "\n".join([*lines, f"{count} predicted into {self.out}{failed}"])


def predict(config: PredictConfig, *, progress: Update | None = None) -> PredictReport:
    """Predict every image; those that cannot be read are listed in the report, and the others go on.

    Images smaller than the network's input are padded, larger ones shrunk; depth is as if the camera were the training
    set's, whatever the image's size.
    """
    device = torch.device(resolve_device(config.device))
    networks = TaskModels.load(config.run, checkpoint=config.checkpoint, dataset=config.dataset, image_size=config.size)
    table = networks.table(config.tasks)
    wanted = find(config.images, ours=[config.out / folder for folder in (PANELS, *table.names)])
    if not config.overwrite:
        _refuse_existing(config.out, table, wanted)
    networks.to(device)
    workers = config.workers if len(wanted) >= FEW else 0
    batches = [wanted[start : start + config.batch_size] for start in range(0, len(wanted), config.batch_size)]
    bad: list[tuple[Path, str]] = []
    done = 0
    with work_pool(workers, "--workers", PhotoWork(networks.size, table, config.out)) as pool:
        for batch in pool.map_batches(PhotoWork.read, batches):
            bad += [(failure.path, failure.reason) for failure in batch if isinstance(failure, PhotoFailure)]
            photos = [photo for photo in batch if isinstance(photo, Photo)]
            for photo, predictions in _predicted(networks, table, photos, device):
                pool.submit(PhotoWork.write, photo, predictions)
            list(pool.finished())
            done += len(batch)
            if progress is not None:
                progress(done, len(wanted))
        list(pool.finished(waiting=0))
    return PredictReport(len(wanted) - len(bad), config.out, tuple(bad))


def find(paths: Sequence[Path], *, ours: Sequence[Path] = ()) -> list[Wanted]:
    """The images of files and folders, each with a name of its own; UsageError where there are none.

    The folders `ours` hold pictures that were predicted before: they are left out where a folder around them is walked.
    """
    files = list(dict.fromkeys(pair for path in paths for pair in _listed(path, ours)))
    times = Counter(name.with_suffix("") for _, name in files)
    first: dict[str, Path] = {}
    for path, full_name in files:
        name = str(full_name if times[full_name.with_suffix("")] > 1 else full_name.with_suffix(""))
        if first.setdefault(name, path) != path:
            raise UsageError(f"{first[name]} and {path} would have the same pictures; predict them into two folders")
    return [Wanted(path, name) for name, path in first.items()]


def _listed(path: Path, ours: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """(file, its path inside the folder that was named) of a file or of all images in a folder."""
    if path.is_file():
        yield path, Path(path.name)
        return
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder; give images, or folders of images")
    root = path.resolve()
    inner = [folder for folder in (our.resolve() for our in ours) if folder != root and folder.is_relative_to(root)]
    names = [
        file.relative_to(path)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and file.is_file() and not file.name.startswith(".")
    ]
    names = [name for name in names if not any((root / name).is_relative_to(folder) for folder in inner)]
    if not names:
        raise UsageError(f"{path} holds no images ({', '.join(IMAGE_EXTENSIONS)}); name another folder, or the files")
    yield from ((path / name, name) for name in names)


def _refuse_existing(out: Path, table: Dataset, wanted: Sequence[Wanted]) -> None:
    if out.is_file():
        raise UsageError(f"{out} is a file; --out is the folder for the pictures")
    for image in wanted:
        for path in (panel_file(out, image.name), *(prediction_file(out, task, image.name) for task in table)):
            if path.exists():
                raise UsageError(f"{path} exists; choose another --out, or replace it with --overwrite")


def _predicted(
    networks: TaskModels, table: Dataset, photos: Sequence[Photo], device: torch.device
) -> Iterator[tuple[Photo, dict[str, Stored]]]:
    if not photos:
        return
    inputs = torch.from_numpy(np.stack([photo.fitted.image for photo in photos]))
    outputs = networks.predict(inputs.to(device))
    for row, photo in enumerate(photos):
        predictions = {
            task.name: stored(task, read_at_own_size(task, outputs[task.name][row : row + 1], photo.fitted))
            for task in table
        }
        yield photo, predictions
