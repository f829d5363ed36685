"""Ground truths of boundary evaluation, by data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.mat import segmentations
from pipeline.data.nyud import Nyud
from pipeline.data.pascal_context import PascalContext
from pipeline.data.sample import DataError
from sak.metrics.boundary.score import from_segmentation

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
