"""The PASCAL-Context tree, decoded as its layout is documented, without the code that wrote it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from pipeline.demo.data.folder import DemoManifest
from pipeline.demo.data.write import demo_scene
from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.things.classes import CLASSES, CONTEXT_NUMBERS

GROUPS = {
    **dict.fromkeys(("hair", "head", "lear", "rear", "leye", "reye", "lebrow", "rebrow", "mouth", "nose"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}


@pytest.fixture
def tree(demo: Path) -> Path:
    """The tree."""
    return demo / "PASCALContext"


@pytest.fixture
def truth(small: dict[str, int]) -> dict[str, RenderedScene]:
    """What was rendered, by image id."""
    return {
        f"demo_{index + 1:06d}": demo_scene("pascal-context", small["seed"], small["size"], index)
        for index in range(small["scenes"])
    }


def ids(tree: Path, split: str) -> list[str]:
    return (tree / "ImageSets/Context" / f"{split}.txt").read_text().split()


def test_the_splits_share_nothing_and_leave_out_nothing(tree: Path, manifest: DemoManifest) -> None:
    train, val = ids(tree, "train"), ids(tree, "val")
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(path.stem for path in (tree / "JPEGImages").glob("*.jpg"))
    assert (len(train), len(val)) == tuple(manifest.splits["pascal-context"][s].images for s in ("train", "val"))


def test_every_image_has_every_label_at_its_own_size(tree: Path, truth: dict[str, RenderedScene]) -> None:
    for name, scene in truth.items():
        size = scene.depth.shape
        for file, mode in ((f"JPEGImages/{name}.jpg", "RGB"), (f"normals_distill/{name}.png", "RGB")):
            with Image.open(tree / file) as picture:
                assert (picture.size, picture.mode) == (size[::-1], mode)
        with Image.open(tree / f"sal_distill/{name}.png") as picture:
            assert (picture.size, picture.mode) == (size[::-1], "L")
        assert loadmat(tree / "pascal-context/trainval" / f"{name}.mat")["LabelMap"].shape == size


def test_landscape_and_upright_pictures_occur(truth: dict[str, RenderedScene], small: dict[str, int]) -> None:
    assert all(max(scene.depth.shape) == small["size"] for scene in truth.values())


def test_semantic_maps_lie_in_one_of_two_folders_and_hold_voc_classes(
    tree: Path, truth: dict[str, RenderedScene]
) -> None:
    voc = np.array([row.voc for row in CLASSES])
    fallbacks = 0
    for name, scene in truth.items():
        path = tree / "semseg/VOC12" / f"{name}.png"
        fallback = tree / "semseg/pascal-context" / f"{name}.png"
        assert path.exists() != fallback.exists()
        fallbacks += fallback.exists()
        found = np.array(Image.open(path if path.exists() else fallback))
        void = found == 255
        assert void.mean() < 0.05
        np.testing.assert_array_equal(found[~void], voc[scene.semantic][~void])
    assert 0 < fallbacks < len(truth)


def decoded_parts(path: Path) -> np.ndarray | None:
    """Human parts as METHOD describes them: union over persons, later parts overwrite; None without persons."""
    anno = loadmat(path)["anno"][0, 0]
    result = None
    for one in anno["objects"][0]:
        if int(one["class_ind"][0, 0]) != 15:
            continue
        result = np.zeros(one["mask"].shape, dtype=int) if result is None else result
        if one["parts"].size:
            for part in one["parts"][0]:
                result[part["mask"] > 0] = GROUPS[str(part["part_name"][0])]
    return result


def test_human_parts_decode_to_what_was_rendered(tree: Path, truth: dict[str, RenderedScene]) -> None:
    people = 0
    for name, scene in truth.items():
        parts = decoded_parts(tree / "human_parts" / f"{name}.mat")
        people += parts is not None
        np.testing.assert_array_equal(np.zeros_like(scene.parts) if parts is None else parts, scene.parts)
    assert people


def test_parts_lie_inside_their_person(tree: Path) -> None:
    for path in (tree / "human_parts").glob("*.mat"):
        for one in loadmat(path)["anno"][0, 0]["objects"][0]:
            assert set(np.unique(one["mask"])) == {0, 1}
            if one["parts"].size:
                union = np.zeros_like(one["mask"])
                for part in one["parts"][0]:
                    assert (one["mask"][part["mask"] > 0] == 1).all()
                    union |= part["mask"]
                np.testing.assert_array_equal(union, one["mask"])


def test_part_lists_name_the_classes_of_each_image(tree: Path) -> None:
    for split in ("train", "val"):
        listed = json.loads((tree / "ImageSets/Parts" / f"{split}.txt").read_text())
        assert list(listed) == ids(tree, split)
        for name, classes in listed.items():
            objects = loadmat(tree / "human_parts" / f"{name}.mat")["anno"][0, 0]["objects"]
            assert [int(one["class_ind"][0, 0]) for one in objects.ravel()] == classes


def test_mat_files_look_like_the_real_ones(tree: Path, test_data: Path) -> None:
    real = loadmat(test_data / "pascal-part/annotations/2008_003228.mat")["anno"]
    for path in (tree / "human_parts").glob("*.mat"):
        ours = loadmat(path)["anno"]
        assert (ours.shape, ours.dtype) == (real.shape, real.dtype)
        assert ours[0, 0]["imname"][0] == path.stem
        objects, like = ours[0, 0]["objects"], real[0, 0]["objects"]
        assert objects.dtype == like.dtype
        for one in objects.ravel():
            assert one["class_ind"].dtype == like[0, 0]["class_ind"].dtype
            assert one["mask"].dtype == like[0, 0]["mask"].dtype
            if one["parts"].size:
                assert one["parts"].dtype == like[0, 0]["parts"].dtype


def test_label_maps_hold_numbers_that_the_class_list_names(tree: Path, truth: dict[str, RenderedScene]) -> None:
    context = json.loads((tree / "json/context_classes.json").read_text())
    names = {number: name for name, number in context.items()}
    for name, scene in truth.items():
        labels = loadmat(tree / "pascal-context/trainval" / f"{name}.mat")["LabelMap"]
        assert labels.dtype == np.uint16
        assert {names[int(n)] for n in np.unique(labels)} == {CLASSES[i].context for i in np.unique(scene.semantic)}


def test_class_lists_agree_with_the_real_ones(tree: Path, test_data: Path) -> None:
    for name in ("nyu_classes", "context_classes"):
        ours = json.loads((tree / "json" / f"{name}.json").read_text())
        real = json.loads((test_data / "mtl-metadata" / f"{name}.json").read_text())
        assert ours.items() <= real.items()
    parts = json.loads((tree / "json/pascal_part.json").read_text())
    assert set(parts) == {str(number) for number in range(1, 21)}
    assert set(parts["15"]) <= set(GROUPS)


def test_normals_that_count_are_of_indoor_things_and_decode_to_what_was_rendered(
    tree: Path, truth: dict[str, RenderedScene]
) -> None:
    nyu = json.loads((tree / "json/nyu_classes.json").read_text())
    valid = [number for name, number in CONTEXT_NUMBERS.items() if name in nyu and name != "unknown"]
    valid.append(CONTEXT_NUMBERS["tvmonitor"])
    counted = 0
    for name, scene in truth.items():
        labels = loadmat(tree / "pascal-context/trainval" / f"{name}.mat")["LabelMap"]
        where = np.isin(labels, valid)
        counted += int(where.sum())
        png = np.array(Image.open(tree / "normals_distill" / f"{name}.png"))
        error = np.abs(2.0 * png[where] / 255.0 - 1 - scene.normals[where])
        assert error.size == 0 or error.max() <= 1 / 255 + 1e-6
        assert not where[scene.depth == 0].any()
    assert counted


def test_saliency_decodes_to_what_was_rendered(tree: Path, truth: dict[str, RenderedScene]) -> None:
    for name, scene in truth.items():
        png = np.array(Image.open(tree / "sal_distill" / f"{name}.png"))
        np.testing.assert_array_equal(png / 255.0 > 0.5, scene.saliency)


def test_the_tree_has_the_files_of_the_reference_tree(tree: Path, golden: Path) -> None:
    reference = golden / "sak/fake_datasets/PASCALContext"

    def kinds(root: Path) -> set[str]:
        files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {f"{file.parent}/*{file.suffix}" if file.parts[0] != "json" else str(file) for file in files}

    assert kinds(tree) == kinds(reference)
