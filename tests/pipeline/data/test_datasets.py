"""Readers of the downstream sets: equal to the reference on its miniature trees, clear on broken ones."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scipy.io import loadmat, savemat

from pipeline.data import label_files as mat
from pipeline.data.augment import for_evaluation, for_training
from pipeline.data.datasets import check_tree, fraction_of, open_dataset, task_table
from pipeline.data.label_files import DataError
from pipeline.demo.data.write import write_demo_data
from sak.errors import UsageError


@pytest.fixture(autouse=True)
def label_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAK_LABEL_CACHE", str(tmp_path / "labels"))
    return tmp_path / "labels"


@pytest.fixture(scope="module")
def arrays(golden):
    return load_file(golden / "sak/08b_datasets.safetensors")


@pytest.fixture
def trees(golden, tmp_path):
    """A copy of the miniature trees that a test may break."""
    shutil.copytree(golden / "sak/fake_datasets", tmp_path / "trees")
    for path in (tmp_path / "trees").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "trees"


def save(values, path):
    Image.fromarray(values.astype(np.uint8)).save(path)


SETS = {"pascal": ("pascal-context", 3), "nyud": ("nyud", 2)}


@pytest.mark.parametrize("short", SETS)
def test_labels_are_the_reference_ones_byte_for_byte(golden, arrays, short):
    name, count = SETS[short]
    dataset = open_dataset(name, golden / "sak/fake_datasets", "val")
    assert len(dataset) == count
    for index in range(count):
        found = dataset[index]
        prefix = f"{short}.loaded.{index}."
        expected = {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
        assert set(expected) == {"image", *dataset.tasks}
        for task, value in expected.items():
            ours = found.image if task == "image" else found.labels[task]
            np.testing.assert_array_equal(ours, value, err_msg=f"{index} {task}")


@pytest.mark.parametrize(("short", "size"), [("pascal", (56, 56)), ("nyud", (48, 64))])
def test_evaluation_samples_are_the_reference_ones(golden, arrays, short, size):
    dataset = open_dataset(SETS[short][0], golden / "sak/fake_datasets", "val")
    for index in range(len(dataset)):
        found = for_evaluation(dataset[index], size)
        prefix = f"{short}.val{size[0] if size[0] == size[1] else 'x'.join(map(str, size))}.{index}."
        expected = {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
        assert "image" in expected
        for task, value in expected.items():
            ours = found.image if task == "image" else found.labels[task]
            np.testing.assert_allclose(ours.numpy(), value, atol=1e-6, rtol=0, err_msg=f"{index} {task}")


def test_people_and_normal_classes_are_the_reference_ones(golden):
    meta = json.loads((golden / "sak/08b_datasets.json").read_text())
    dataset = open_dataset("pascal-context", golden / "sak/fake_datasets", "val")
    assert [int(dataset.has_person(index)) for index in range(3)] == meta["pascal.has_human_parts"]
    assert list(dataset.normal_classes) == meta["pascal.normals_valid_classes"]
    assert meta["pascal.HUMAN_PART"] == mat.PART_OF


@pytest.mark.parametrize("number", range(4))
def test_training_boundaries_are_the_reference_ones(arrays, number):
    found = mat.label_boundaries(arrays[f"edge.{number}.labelmap"])
    np.testing.assert_array_equal(found, arrays[f"edge.{number}.thin"] > 0)


def test_real_part_files_read_like_their_masks(test_data):
    people = 0
    for path in sorted((test_data / "pascal-part/annotations").glob("*.mat")):
        parts = mat.human_parts(path)
        objects = loadmat(path)["anno"]["objects"][0, 0]
        bodies = [o["mask"] > 0 for o in objects[0] if o["class_ind"].item() == mat.PERSON and o["parts"].size]
        people += bool(bodies)
        assert parts.any() == bool(bodies)
        if bodies:
            outside = (parts > 0) & ~np.any(bodies, axis=0)
            assert outside.sum() <= 0.02 * (parts > 0).sum()
    assert people >= 8


def test_a_parsed_label_is_kept_and_a_changed_file_is_parsed_anew(trees, label_cache, monkeypatch):
    path = trees / "PASCALContext/pascal-context/trainval/2008_000001.mat"
    first = mat.label_map(path)
    monkeypatch.setattr(mat, "loadmat", lambda _: pytest.fail("parsed again"))
    np.testing.assert_array_equal(mat.label_map(path), first)
    monkeypatch.undo()
    monkeypatch.setenv("SAK_LABEL_CACHE", str(label_cache))
    savemat(path, {"LabelMap": first + 1})
    np.testing.assert_array_equal(mat.label_map(path), first + 1)


def test_a_damaged_kept_label_is_parsed_again(trees, label_cache):
    path = trees / "PASCALContext/pascal-context/trainval/2008_000001.mat"
    first = mat.label_map(path)
    for kept in label_cache.rglob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:40])
    np.testing.assert_array_equal(mat.label_map(path), first)


def test_a_label_cache_that_cannot_be_written_costs_nothing_but_time(trees, monkeypatch):
    monkeypatch.setenv("SAK_LABEL_CACHE", "/proc/nowhere")
    assert mat.label_map(trees / "PASCALContext/pascal-context/trainval/2008_000001.mat").any()


def test_a_tree_check_lists_every_missing_file(trees):
    whole = check_tree("pascal-context", trees, "val")
    assert not whole.missing
    gone = [trees / "PASCALContext" / name for name in ("sal_distill/2008_000002.png", "human_parts/2008_000003.mat")]
    for path in gone:
        path.unlink()
    check = check_tree("pascal-context", trees, "val")
    assert set(check.missing) == set(gone)
    with pytest.raises(DataError, match=r"2 of \d+ files are missing"):
        check.raise_if_incomplete()
    assert not check_tree("pascal-context", trees, "val", ["semseg", "edge"]).missing


def test_a_tree_check_for_evaluation_looks_for_boundary_ground_truth_too(trees):
    assert not check_tree("nyud", trees, "val").missing
    missing = check_tree("nyud", trees, "val", boundaries=True).missing
    assert {path.parent.name for path in missing} == {"edge_mat"}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda tree: (tree / "JPEGImages/2008_000001.jpg").write_bytes(b"text"), "cannot be read as an image"),
        (lambda tree: (tree / "human_parts/2008_000001.mat").write_bytes(b"text"), "is not a .mat file"),
        (lambda tree: (tree / "sal_distill/2008_000001.png").unlink(), "is missing"),
        (lambda tree: (tree / "json/nyu_classes.json").write_text("{"), "maps class names"),
        (lambda tree: save(np.zeros((5, 6)), tree / "sal_distill/2008_000001.png"), "belongs to another image"),
        (lambda tree: save(np.full((40, 52), 77), tree / "semseg/VOC12/2008_000001.png"), "holds class 77"),
        (lambda tree: save(np.zeros((40, 52, 3)), tree / "sal_distill/2008_000001.png"), "colour picture"),
        (lambda tree: save(np.zeros((40, 52, 4)), tree / "normals_distill/2008_000001.png"), "an RGB PNG"),
        (lambda tree: _deep(tree / "sal_distill/2008_000001.png"), "again in 8 bits"),
        (lambda tree: _cut(tree / "human_parts/2008_000001.mat", 300), "is not a .mat file"),
        (lambda tree: _cut(tree / "JPEGImages/2008_000001.jpg", 700), "truncated"),
        (lambda tree: _flip(tree / "pascal-context/trainval/2008_000001.mat"), "is not a .mat file"),
        (lambda tree: savemat(tree / "human_parts/2008_000001.mat", {"anno": 1}), "is not a .mat file"),
        (
            lambda tree: savemat(tree / "pascal-context/trainval/2008_000001.mat", {"LabelMap": np.ones((40, 52, 2))}),
            r"not \(H, W\)",
        ),
        (lambda tree: (tree / "json/context_classes.json").write_text('{"wall": null}'), "not a whole number"),
        (lambda tree: (tree / "ImageSets/Context/val.txt").write_text("\n\n"), "lists no images"),
        (lambda tree: (tree / "ImageSets/Context/val.txt").write_text("a\nb\na\n"), "lists a more than once"),
    ],
)
def test_a_broken_file_is_named_in_one_line(trees, break_it, message):
    break_it(trees / "PASCALContext")
    with pytest.raises(DataError, match=message) as error:
        open_dataset("pascal-context", trees, "val")[0]
    assert "\n" not in str(error.value)
    assert str(trees) in str(error.value)


def _cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def _deep(path):
    Image.fromarray(np.zeros((40, 52), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.full((42, 56), np.nan, np.float32), "not finite"),
        (np.full((42, 56), 1500, np.uint16), "metres in floating point"),
        (np.full((42, 56), "a"), "real numbers"),
        (np.ones(5, np.float32), r"a label is \(H, W\)"),
        (b"", "not an array of numbers"),
        (b"text", "not an array of numbers"),
        (None, "is missing"),
    ],
)
def test_broken_depth_is_named(trees, stored, message):
    path = trees / "NYUDv2/depth/0001.npy"
    path.unlink()
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    elif stored is not None:
        np.save(path, stored)
    with pytest.raises(DataError, match=message) as error:
        open_dataset("nyud", trees, "val")[0]
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_from_windows_read_like_any(trees):
    whole = open_dataset("pascal-context", trees, "val").names
    path = trees / "PASCALContext/ImageSets/Context/val.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(whole).encode() + b"\r\n")
    assert open_dataset("pascal-context", trees, "val").names == whole


def test_a_one_bit_mask_means_what_it_shows(trees):
    path = trees / "PASCALContext/sal_distill/2008_000001.png"
    Image.fromarray(np.arange(52)[None].repeat(40, 0) > 20).save(path)
    assert open_dataset("pascal-context", trees, "val")[0].labels["sal"].sum() == 40 * 31


def test_an_image_of_16_bits_is_refused_not_cut_off(trees):
    _deep(trees / "NYUDv2/images/0001.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_dataset("nyud", trees, "val")[0]


def test_a_mask_of_zeros_and_ones_is_refused_in_a_users_own_folder(folder):
    own = folder.parent / "own"
    for value, name in ((1, "ones"), (255, "whole")):
        (own / name).mkdir()
        save(np.full((20, 30), value), own / name / "a.png")
        folder.write_text(f"images: images\nsplits: {{train: train.txt}}\ntasks:\n  sal: {{folder: {name}}}\n")
        dataset = open_dataset(str(folder), own, "train")
        if value == 255:
            assert dataset[0].labels["sal"].all()
            continue
        with pytest.raises(DataError, match="a mask holds 0 and 255"):
            dataset[0]


def test_unknown_names_say_what_is_known(trees):
    with pytest.raises(UsageError, match="pascal-context"):
        open_dataset("pascal", trees, "val")
    with pytest.raises(UsageError, match="train, val"):
        open_dataset("nyud", trees, "test")
    with pytest.raises(DataError, match="its tasks are semseg"):
        open_dataset("nyud", trees, "val", ["sal"])


def test_augmentation_depends_on_seed_epoch_and_name_alone(trees):
    dataset = open_dataset("nyud", trees, "train")
    draw = {
        key: for_training(dataset[0], (32, 32), seed=key[0], epoch=key[1]).image for key in ((0, 0), (0, 1), (1, 0))
    }
    again = for_training(dataset[0], (32, 32), seed=0, epoch=0).image
    assert again.equal(draw[0, 0])
    assert not again.equal(draw[0, 1])
    assert not again.equal(draw[1, 0])


def test_training_samples_have_the_size_asked_for(trees):
    dataset = open_dataset("pascal-context", trees, "train")
    for index in range(3):
        found = for_training(dataset[index], (48, 40), seed=3, epoch=index)
        assert found.image.shape == (3, 48, 40)
        assert {label.shape[1:] for label in found.labels.values()} == {(48, 40)}


def test_a_fraction_is_fixed_by_its_seed_and_nested(trees):
    class Names:
        def __len__(self):
            return 200

        def name(self, index):
            return f"{index:06d}"

    quarter, half = (set(fraction_of(Names(), share, seed=1)) for share in (0.25, 0.5))
    assert len(quarter) == 50
    assert quarter < half
    assert quarter != set(fraction_of(Names(), 0.25, seed=2))
    with pytest.raises(UsageError, match="fraction"):
        fraction_of(Names(), 0.0, seed=1)


@pytest.fixture
def folder(tmp_path):
    """A user's own folder with two tasks, and its description."""
    for name in ("images", "labels", "depth"):
        (tmp_path / "own" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / f"own/images/{name}.jpg")
        Image.fromarray(rng.integers(0, 3, (20, 30), np.uint8)).save(tmp_path / f"own/labels/{name}.png")
        Image.fromarray(rng.integers(500, 5000, (20, 30)).astype(np.uint16)).save(tmp_path / f"own/depth/{name}.png")
    (tmp_path / "own/train.txt").write_text("a\nb\n")
    spec = tmp_path / "own.yaml"
    spec.write_text(
        "images: images\nsplits: {train: train.txt}\ntasks:\n"
        "  semseg: {folder: labels, classes: [road, car, tree]}\n  depth: {folder: depth, scale: 0.001}\n"
    )
    return spec


def test_a_folder_described_by_yaml_reads_like_any_set(folder):
    dataset = open_dataset(str(folder), folder.parent / "own", "train")
    found = dataset[0]
    assert found.labels["semseg"].shape == (20, 30, 1)
    assert 0.5 <= found.labels["depth"].min() <= found.labels["depth"].max() < 5
    assert task_table(str(folder)).channels == {"semseg": 3, "depth": 1}
    assert not check_tree(str(folder), folder.parent / "own", "train").missing


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("folder: labels", "foldr: labels", "did you mean 'folder'"),
        ("semseg:", "semsge:", "did you mean 'semseg'"),
        ("classes: [road, car, tree]", "classes: [road]", "at least two classes"),
        ("images: images", "image: images", "images"),
        ("semseg:", "semseg: {folder: labels, classes: [a, b, c]}\n  my-task:", "letters, digits and _, got 'my-task'"),
        ("depth, scale: 0.001", "depth, classes: [near, far]", "tasks.depth has classes or channels of its own"),
        ("  depth: {folder: depth, scale: 0.001}", "  lanes: {folder: labels}", "lanes: {folder: ..., classes: "),
    ],
)
def test_a_wrong_description_names_the_key(folder, old, new, message):
    folder.write_text(folder.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        open_dataset(str(folder), folder.parent / "own", "train")


def test_a_new_name_with_classes_is_a_task_of_its_own(folder):
    folder.write_text(f"{folder.read_text()}  lanes: {{folder: labels, classes: [none, left, right], weight: 2}}\n")
    row = task_table(str(folder))["lanes"]
    assert (row.channels, row.classes, row.weight, len(row.palette)) == (3, ("none", "left", "right"), 2.0, 3)
    assert (row.loss, row.metric, row.lower_is_better) == ("cross_entropy", "mIoU", False)
    labels = open_dataset(str(folder), folder.parent / "own", "train")[0].labels
    assert np.array_equal(labels["lanes"], labels["semseg"])


def test_a_label_beyond_the_classes_is_named(folder):
    folder.write_text(folder.read_text().replace("[road, car, tree]", "[road, car]"))
    with pytest.raises(DataError, match="holds class 2; classes are 0 to 1"):
        open_dataset(str(folder), folder.parent / "own", "train")[0]


def test_a_list_cannot_lead_outside_the_folder(folder):
    (folder.parent / "own/train.txt").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match="outside"):
        open_dataset(str(folder), folder.parent / "own", "train")[0]


def test_the_real_nyud_frame_goes_through_the_reader(test_data, tmp_path):
    frame = test_data / "nyuv2/rgbd_1407"
    tree = tmp_path / "NYUDv2"
    for folder in ("images", "depth", "gt_sets"):
        (tree / folder).mkdir(parents=True)
    shutil.copyfile(frame / "images.png", tree / "images/1407.png")
    with Image.open(frame / "depth.png") as image:
        metres = np.array(image).astype(np.float32) / 1000
    np.save(tree / "depth/1407.npy", metres)
    (tree / "gt_sets/val.txt").write_text("1407\n")
    dataset = open_dataset("nyud", tmp_path, "val", ["depth"])
    found = dataset[0]
    assert found.image.shape == (425, 560, 3)
    np.testing.assert_array_equal(found.labels["depth"][:, :, 0], metres)
    assert 1 < metres.min() < metres.max() < 10
    prepared = for_evaluation(found, (448, 576))
    assert prepared.image.shape == (3, 448, 576)
    top, left, height, width = prepared.window
    inside = prepared.labels["depth"][0, top : top + height, left : left + width]
    np.testing.assert_array_equal(inside.numpy(), metres)


def test_the_real_part_images_go_through_the_reader(test_data, tmp_path):
    source, tree = test_data / "pascal-part", tmp_path / "PASCALContext"
    shutil.copytree(source / "images", tree / "JPEGImages", copy_function=shutil.copyfile)
    shutil.copytree(source / "annotations", tree / "human_parts", copy_function=shutil.copyfile)
    (tree / "ImageSets/Context").mkdir(parents=True)
    names = sorted(path.stem for path in (source / "images").glob("*.jpg"))
    (tree / "ImageSets/Context/val.txt").write_text("\n".join(names))
    dataset = open_dataset("pascal-context", tmp_path, "val", ["human_parts"])
    shown = [set(np.unique(dataset[index].labels["human_parts"]).astype(int)) for index in range(len(dataset))]
    assert sum(bool(parts - {0}) for parts in shown) == 8
    assert set().union(*shown) == {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("name", ["demo-pascal", "demo-nyud"])
def test_the_demo_trees_are_read_unchanged(name, tmp_path):
    write_demo_data(tmp_path / "demo", images=2, scenes=4, size=64, seed=3, processes=1)
    for split, count in (("train", 3), ("val", 1)):
        assert not check_tree(name, tmp_path / "demo", split, boundaries=True).missing
        dataset = open_dataset(name, tmp_path / "demo", split)
        assert len(dataset) == count
        found = dataset[0]
        assert set(found.labels) == set(task_table(name).names)
        truth = dataset.boundary_truth(0)
        assert truth.shape == found.size
        assert 0 < truth.sum() < truth.size / 4
