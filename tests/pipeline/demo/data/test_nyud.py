"""The NYUDv2 tree, decoded as its layout is documented, without the code that wrote it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from pipeline.demo.data.write import demo_scene
from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.things.classes import CLASSES


@pytest.fixture
def tree(demo: Path) -> Path:
    """The tree."""
    return demo / "NYUDv2"


@pytest.fixture
def truth(small: dict[str, int]) -> dict[str, RenderedScene]:
    """What was rendered, by image id."""
    return {
        f"{index + 1:04d}": demo_scene("nyud", small["seed"], small["size"], index) for index in range(small["scenes"])
    }


def test_the_splits_share_nothing_and_leave_out_nothing(tree: Path) -> None:
    train, val = ((tree / "gt_sets" / f"{split}.txt").read_text().split() for split in ("train", "val"))
    assert train
    assert val
    assert sorted(train + val) == sorted(path.stem for path in (tree / "images").glob("*.png"))


def test_segmentation_less_one_is_the_class_of_forty(tree: Path, truth: dict[str, RenderedScene]) -> None:
    nyu40 = np.array([row.nyu40 for row in CLASSES])
    for name, scene in truth.items():
        stored = np.array(Image.open(tree / "segmentation" / f"{name}.png")).astype(int)
        decoded = np.where(stored - 1 == -1, 255, stored - 1)
        counted = decoded != 255
        assert counted.mean() > 0.9
        assert decoded[counted].max() < 40
        np.testing.assert_array_equal(decoded[counted], nyu40[scene.semantic][counted] - 1)


def test_depth_is_in_metres_everywhere(tree: Path, truth: dict[str, RenderedScene]) -> None:
    for name, scene in truth.items():
        depth = np.load(tree / "depth" / f"{name}.npy", allow_pickle=False)
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(depth, scene.depth)
        assert depth.min() > 0
        assert depth.max() < 10


def test_normals_decode_to_what_was_rendered(tree: Path, truth: dict[str, RenderedScene]) -> None:
    for name, scene in truth.items():
        png = np.array(Image.open(tree / "normals" / f"{name}.png"))
        assert np.abs(2.0 * png / 255.0 - 1 - scene.normals).max() <= 1 / 255 + 1e-6


def test_images_are_exact(tree: Path, truth: dict[str, RenderedScene], small: dict[str, int]) -> None:
    for name, scene in truth.items():
        with Image.open(tree / "images" / f"{name}.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (small["size"], round(small["size"] * 3 / 4)))
            np.testing.assert_array_equal(np.array(picture), scene.rgb)


def test_edges_are_the_boundaries_in_both_formats(tree: Path, truth: dict[str, RenderedScene]) -> None:
    for name, scene in truth.items():
        edge = np.array(Image.open(tree / "edge" / f"{name}.png")) / 255.0
        np.testing.assert_array_equal(edge, scene.boundaries.astype(float))
        truth_cell = loadmat(tree / "edge_mat" / f"{name}.mat")["groundTruth"]
        assert truth_cell.shape == (1, 1)
        np.testing.assert_array_equal(truth_cell[0, 0]["Boundaries"][0, 0], scene.boundaries)


def test_boundary_files_look_like_the_real_ones(tree: Path, test_data: Path) -> None:
    real = loadmat(test_data / "bsds500/groundTruth/107072.mat")["groundTruth"]
    for path in (tree / "edge_mat").glob("*.mat"):
        ours = loadmat(path)["groundTruth"]
        assert ours.dtype == real.dtype
        assert (ours[0, 0].shape, ours[0, 0].dtype) == (real[0, 0].shape, real[0, 0].dtype)
        for field in ("Segmentation", "Boundaries"):
            assert ours[0, 0][field][0, 0].dtype == real[0, 0][field][0, 0].dtype


def test_the_tree_has_the_files_of_the_reference_tree_and_boundaries(tree: Path, golden: Path) -> None:
    reference = golden / "sak/fake_datasets/NYUDv2"

    def kinds(root: Path) -> set[str]:
        files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {f"{file.parent}/*{file.suffix}" for file in files}

    assert kinds(tree) == kinds(reference) | {"edge_mat/*.mat"}
