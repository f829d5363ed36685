"""Boundary evaluation of a folder of predictions."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.data.label_files import DataError
from pipeline.evaluate.boundary import BoundaryConfig, evaluate_boundaries, parse_protocol, write_report
from sak.errors import UsageError


@pytest.fixture(autouse=True)
def label_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAK_LABEL_CACHE", str(tmp_path / "labels"))


@pytest.fixture
def case(tmp_path):
    """Three images of BSDS's layout, predicted perfectly."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "predictions").mkdir()
    for number in range(3):
        segments = np.zeros((40, 50), np.uint16)
        segments[:, 20 + number :] = 1
        segments[20:, :] += 2
        annotator = np.zeros((1, 1), [("Segmentation", "O")])
        annotator["Segmentation"][0, 0] = segments
        cell = np.empty((1, 1), object)
        cell[0, 0] = annotator
        savemat(tmp_path / f"truth/{number}.mat", {"groundTruth": cell})
        edges = np.zeros((40, 50), np.uint8)
        edges[:, 19 + number] = edges[19, :] = 200
        Image.fromarray(edges).save(tmp_path / f"predictions/{number}.png")
    return BoundaryConfig(tmp_path / "predictions", tmp_path / "truth", "bsds", suppress=False, processes=1)


def test_a_perfect_prediction_scores_almost_one(case):
    report = evaluate_boundaries(case)
    assert report.score.ods > 0.97
    assert (report.images, report.left_out) == (3, 0)


@pytest.mark.slow
def test_processes_do_not_change_the_numbers_nor_what_an_error_says(case):
    two = BoundaryConfig(**{**vars(case), "processes": 2})
    assert evaluate_boundaries(case).as_dict() == evaluate_boundaries(two).as_dict()
    Image.fromarray(np.zeros((41, 50), np.uint8)).save(case.predictions / "2.png")
    with pytest.raises(DataError, match=r"2\.png is \(41, 50\)"):
        evaluate_boundaries(two)


def test_a_missing_prediction_is_named_and_partial_says_how_many(case):
    (case.predictions / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png is missing, one of 1 of 3 images"):
        evaluate_boundaries(case)
    report = evaluate_boundaries(BoundaryConfig(**{**vars(case), "partial": True}))
    assert (report.images, report.left_out) == (2, 1)
    assert "1 not predicted and left out" in report.to_text()


def test_a_prediction_of_another_size_is_named(case):
    Image.fromarray(np.zeros((41, 50), np.uint8)).save(case.predictions / "2.png")
    with pytest.raises(DataError, match=r"2\.png is \(41, 50\), the ground truth \(40, 50\)"):
        evaluate_boundaries(case)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.zeros((40, 50, 3), np.uint8), "one channel of grey"),
        (np.zeros((40, 50, 4), np.uint8), "one channel of grey"),
        (np.zeros((40, 50), np.uint16), "write it again in 8 bits"),
        (b"text", "cannot be read as an image"),
    ],
)
def test_a_prediction_that_is_no_grey_picture_is_named(case, stored, message):
    path = case.predictions / "1.png"
    path.write_bytes(stored) if isinstance(stored, bytes) else Image.fromarray(stored).save(path)
    with pytest.raises(DataError, match=message) as error:
        evaluate_boundaries(case)
    assert str(path) in str(error.value)


def test_a_one_bit_prediction_is_certain_where_it_is_set(case):
    grey = evaluate_boundaries(case)
    for path in case.predictions.iterdir():
        with Image.open(path) as image:
            picture = Image.fromarray(np.array(image) > 0)
        picture.save(path)
    bits = evaluate_boundaries(case)
    assert bits.score.ods == grey.score.ods
    assert bits.precision_recall.recall[98] == grey.precision_recall.recall[0]


def test_wrong_settings_are_named(case, tmp_path):
    for changed, message in (({"processes": 0}, "--processes"), ({"max_distance": -1.0}, "--max-dist")):
        with pytest.raises(UsageError, match=message):
            evaluate_boundaries(BoundaryConfig(**{**vars(case), **changed}))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file is in the way"):
        write_report(evaluate_boundaries(case), tmp_path / "file")


def test_an_image_of_one_pixel_is_scored_or_refused_in_one_line(tmp_path):
    for folder in ("truth", "predictions"):
        (tmp_path / folder).mkdir()
    annotator = np.zeros((1, 1), [("Segmentation", "O")])
    annotator["Segmentation"][0, 0] = np.zeros((1, 1), np.uint16)
    cell = np.empty((1, 1), object)
    cell[0, 0] = annotator
    savemat(tmp_path / "truth/a.mat", {"groundTruth": cell})
    Image.fromarray(np.full((1, 1), 255, np.uint8)).save(tmp_path / "predictions/a.png")
    config = BoundaryConfig(tmp_path / "predictions", tmp_path / "truth", "bsds", suppress=False, processes=1)
    assert evaluate_boundaries(config).score.ods == 0
    with pytest.raises(DataError, match="--no-nms"):
        evaluate_boundaries(BoundaryConfig(**{**vars(config), "suppress": True}))


@pytest.mark.slow
def test_an_interrupt_stops_every_process_at_once(case):
    source = {folder: (case.truth.parent / folder / "0").with_suffix(suffix) for folder, suffix in FILES.items()}
    for number in range(3, 8000):
        for folder, suffix in FILES.items():
            (case.truth.parent / folder / f"{number}{suffix}").symlink_to(source[folder])
    code = "import sys; from cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "boundary", case.predictions, case.truth, "--dataset", "bsds"]
    running = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    workers = _workers_at_work(psutil.Process(running.pid))
    running.send_signal(signal.SIGINT)
    errors = running.communicate(timeout=30)[1]
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]


FILES = {"truth": ".mat", "predictions": ".png"}
ROOT = Path(__file__).resolve().parents[3]


def _workers_at_work(parent):
    """The worker processes, once both have computed for a while."""
    for _ in range(600):
        workers = parent.children(recursive=True)
        if sum(sum(worker.cpu_times()[:2]) > 3 for worker in workers) >= 2:
            return workers
        time.sleep(0.1)
    raise AssertionError("the workers did not start")


def test_empty_and_unknown_places_are_named(case, tmp_path):
    (tmp_path / "empty").mkdir()
    for changed, message in (
        ({"predictions": tmp_path / "empty"}, "holds no prediction"),
        ({"predictions": tmp_path / "nowhere"}, "is not a folder"),
        ({"truth": tmp_path / "empty"}, "holds no .mat files"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_boundaries(BoundaryConfig(**{**vars(case), **changed}))
    with pytest.raises(UsageError, match="did you mean 'bsds'"):
        evaluate_boundaries(BoundaryConfig(**{**vars(case), "dataset": "bsd"}))
    with pytest.raises(UsageError, match="seism"):
        parse_protocol("sesim")


def test_the_report_is_written_as_numbers_and_a_picture(case, tmp_path):
    numbers, picture = write_report(evaluate_boundaries(case), tmp_path / "out")
    assert json.loads(numbers.read_text())["ods"] > 0.97
    with Image.open(picture) as image:
        assert image.width > 400


@pytest.mark.parametrize(("dataset", "folder"), [("pascal-context", "PASCALContext"), ("nyud", "NYUDv2")])
def test_the_reference_trees_are_scored_by_their_own_ground_truth(golden, tmp_path, dataset, folder):
    shutil.copytree(golden / "sak/fake_datasets", tmp_path / "trees", copy_function=shutil.copyfile)
    tree = tmp_path / "trees" / folder
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    images = sorted(tree.glob("JPEGImages/*.jpg" if dataset == "pascal-context" else "images/*.png"))
    for path in images:
        with Image.open(path) as image:
            Image.fromarray(np.array(image.convert("L"))).save(predictions / f"{path.stem}.png")
    if dataset == "nyud":
        _write_edge_mats(tree)
    report = evaluate_boundaries(BoundaryConfig(predictions, tmp_path / "trees", dataset, processes=1))
    assert 0 < report.score.ods < 1
    assert report.images == len(images)


def _write_edge_mats(tree):
    (tree / "edge_mat").mkdir()
    for path in (tree / "edge").glob("*.png"):
        one = np.zeros((1, 1), [("Boundaries", "O")])
        with Image.open(path) as image:
            one["Boundaries"][0, 0] = (np.array(image) > 0).astype(np.uint8)
        cell = np.empty((1, 1), object)
        cell[0, 0] = one
        savemat(tree / "edge_mat" / f"{path.stem}.mat", {"groundTruth": cell})
