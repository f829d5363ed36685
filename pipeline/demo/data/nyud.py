"""A tree in NYUDv2's layout (the multi-task release): pictures, labels of four tasks, boundaries and lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.demo.data import encode
from pipeline.demo.render.picture import RenderedScene, too_small
from pipeline.demo.things.classes import lookup

FOLDERS = ("images", "segmentation", "edge", "edge_mat", "normals", "depth", "gt_sets")


def name_of(index: int) -> str:
    """The image id of scene `index`."""
    return f"{index + 1:04d}"


def write_scene(root: Path, index: int, scene: RenderedScene) -> list[int]:
    """Write every file of one scene: segmentation 1..40 with 0 unlabelled, depth in metres; no objects are listed."""
    name = name_of(index)
    segmentation = lookup("nyu40")[scene.semantic].astype(np.uint8)
    segmentation[too_small(scene.instances)] = 0
    files = {
        f"images/{name}.png": encode.png(scene.rgb),
        f"segmentation/{name}.png": encode.png(segmentation),
        f"edge/{name}.png": encode.mask_png(scene.boundaries),
        f"edge_mat/{name}.mat": encode.mat({"groundTruth": _ground_truth(scene)}),
        f"normals/{name}.png": encode.normals_png(scene.normals),
        f"depth/{name}.npy": encode.npy(scene.depth),
    }
    for path, content in files.items():
        (root / path).write_bytes(content)
    return []


def _ground_truth(scene: RenderedScene) -> np.ndarray:
    """One annotator's cell: groundTruth{1}.Segmentation and .Boundaries."""
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = {"Segmentation": scene.instances + np.uint16(1), "Boundaries": scene.boundaries.astype(np.uint8)}
    return cell


def write_lists(root: Path, splits: Mapping[str, Sequence[int]], objects: Mapping[int, Sequence[int]]) -> None:
    """Write gt_sets; `splits` holds scene indices."""
    del objects
    for split, indices in splits.items():
        (root / "gt_sets" / f"{split}.txt").write_text("".join(f"{name_of(index)}\n" for index in indices))
