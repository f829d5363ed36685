"""The task table says what the paper says."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.io

from sak.errors import UsageError
from sak.tasks import DATASETS, NYUD, PASCAL_CONTEXT, dataset, voc_palette


def test_the_table_needs_no_torch():
    code = "import sys, sak.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tasks_channels_and_weights_are_the_papers():
    assert PASCAL_CONTEXT.channels == {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1}
    assert NYUD.channels == {"semseg": 40, "depth": 1, "normals": 3, "edge": 1}
    assert PASCAL_CONTEXT.weights == {"semseg": 1, "human_parts": 2, "sal": 5, "normals": 10, "edge": 50}
    assert NYUD.weights == {"semseg": 1, "depth": 1, "normals": 10, "edge": 50}


def test_weights_are_those_the_reference_ran_with(golden):
    configs = json.loads((golden / "sak/04_task_losses.json").read_text())["configs"]
    for name, rows in (("pascalcontext", PASCAL_CONTEXT), ("nyud", NYUD)):
        assert rows.weights == {task: config["weight"] for task, config in configs[name].items()}


def test_heads_have_the_channels_of_the_reference_layouts(golden):
    layouts = json.loads((golden / "layouts.json").read_text())
    for name, rows in (("pascalcontext", PASCAL_CONTEXT), ("nyud", NYUD)):
        layout = layouts[f"BB_s2_{name}"]
        biases = {key.split(".")[1]: shape for key, shape in layout.items() if key.endswith("last_conv.bias")}
        assert {task: [channels] for task, channels in rows.channels.items()} == biases


def test_lower_is_better_for_normals_and_depth_alone():
    lower = {task.name for rows in DATASETS.values() for task in rows if task.lower_is_better}
    assert lower == {"normals", "depth"}


def test_demo_data_sets_have_the_rows_of_what_they_imitate():
    assert dataset("demo-pascal").tasks == PASCAL_CONTEXT.tasks
    assert dataset("demo-nyud").tasks == NYUD.tasks
    assert all(name == rows.name for name, rows in DATASETS.items())


def test_every_class_has_a_name_and_a_colour_of_its_own():
    for rows in DATASETS.values():
        for task in rows:
            assert len(task.classes) == len(task.palette) == len(set(task.classes)) == len(set(task.palette))
            assert len(task.classes) in (0, task.channels)


def test_nyud_names_are_those_of_the_forty_class_map(test_data):
    names = scipy.io.loadmat(test_data / "nyuv2/meta/classMapping40.mat")["className"].ravel()
    known = [str(name[0]).replace("refridgerator", "refrigerator") for name in names]
    assert list(NYUD["semseg"].classes) == known


def test_the_palette_is_pascal_vocs(test_data):
    colours = np.array(voc_palette(256))
    assert colours[[0, 1, 2, 15, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192])
    ]
    stored = np.load(test_data / "mtl-metadata/pascal_map.npy")[:, :3].astype(int)
    assert np.abs(colours - stored).max() <= 1  # the stored map holds 191 where VOC has 192
    with pytest.raises(ValueError, match="256 colours"):
        voc_palette(257)


def test_a_selection_keeps_the_tables_order():
    some = PASCAL_CONTEXT.select(["edge", "semseg"])
    assert some.names == ("semseg", "edge")
    assert len(some) == 2
    assert some.input_size == (512, 512)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no data set 'nyudv2'; did you mean 'nyud'"):
        dataset("nyudv2")
    with pytest.raises(UsageError, match="nyud has no task 'human_parts'; known: depth, edge, normals, semseg"):
        NYUD["human_parts"]
    with pytest.raises(UsageError, match="nyud has no task 'seg'; did you mean 'semseg'"):
        NYUD.select(["seg"])


def test_rows_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PASCAL_CONTEXT["semseg"].weight = 2.0
