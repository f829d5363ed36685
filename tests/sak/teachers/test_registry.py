import json
import subprocess
import sys
from dataclasses import replace

import pytest

from sak.errors import UsageError
from sak.teachers import TEACHERS, build_teacher, list_teachers, teacher_facts, teacher_recipe, weights_available
from sak.teachers.build import _blueprint
from sak.teachers.registry import HubFiles, find_teacher, published_file

ROWS = list_teachers()
PUBLISHERS = ("openai", "laion2b", "datacompxl")  # MIT by their publishers, apache-2.0 in timm's table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_entry_builds_on_the_meta_device_with_the_sizes_listed(row):
    teacher = build_teacher(row.name, weights="random:0", device="meta")
    assert (teacher.name, teacher.model, teacher.licence) == (row.name, row.model, row.licence)
    assert (teacher.width, teacher.depth, teacher.tower.patch) == (row.width, row.depth, row.patch)
    assert (teacher.grid(), teacher.levels, len(teacher.levels)) == (row.grid, row.levels, 4)
    assert teacher.parameter_count == row.parameters
    assert teacher.layer_norm_eps == row.layer_norm_eps
    assert teacher.input_size == row.input_size
    assert teacher_facts(row.name) == row
    assert all(parameter.is_meta for parameter in teacher.parameters())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_places_and_licences_are_those_of_the_libraries(row):
    blueprint = _blueprint(teacher_recipe(row.model), (384, 384))
    assert published_file(row) == blueprint.published()
    library_says = blueprint.licence
    if row.model.split(".")[-1] in PUBLISHERS:
        assert (library_says, row.licence) == ("apache-2.0", "mit")
    elif library_says != "unknown":
        assert library_says == row.licence


def test_listing_imports_neither_torch_nor_a_library():
    code = (
        "import sys; from sak.teachers import list_teachers; rows = [row.as_dict() for row in list_teachers()];"
        "print([name for name in ('torch', 'timm', 'open_clip', 'segment_anything', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rows_survive_json():
    rows = [row.as_dict() for row in ROWS]
    assert json.loads(json.dumps(rows)) == rows
    assert rows[1] == {
        "name": "dinov2-b",
        "library": "timm",
        "model": "timm/vit_base_patch14_dinov2.lvd142m",
        "licence": "apache-2.0",
        "size": "B",
        "width": 768,
        "depth": 12,
        "patch": 14,
        "levels": [3, 6, 9, 12],
        "input_size": 384,
        "grid": [27, 27],
        "parameters": 86_086_656,
        "layer_norm_eps": 1e-6,
    }


def test_names_and_models_are_unique():
    assert len({row.name for row in ROWS}) == len({row.model for row in ROWS}) == len(ROWS) == len(TEACHERS)


def test_a_row_is_found_by_name_and_by_model():
    assert find_teacher("sam-b") is find_teacher("timm/samvit_base_patch16.sa1b") is TEACHERS["sam-b"]
    assert find_teacher("timm/vit_tiny_patch16_224.augreg_in21k") is None


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"no teacher is named 'dinov2-bb'; did you mean 'dinov2-b'\?"):
        find_teacher("dinov2-bb")


def test_weights_are_available_exactly_where_a_cached_file_is(offline_hub):
    row = TEACHERS["dinov2-b"]
    assert not weights_available(row)
    repository = offline_hub / "models--timm--vit_base_patch14_dinov2.lvd142m"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert not weights_available(row)
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert weights_available(row)
    assert not weights_available(replace(row, model="timm/vit_base_patch14_reg4_dinov2.lvd142m"))


def test_sam_checkpoints_are_looked_for_where_torch_hub_keeps_them(offline_hub, tmp_path):
    row = TEACHERS["segment-anything-b"]
    assert not weights_available(row)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"")
    assert weights_available(row)


def test_quickgelu_teachers_share_the_repository_of_the_plain_ones():
    assert published_file(TEACHERS["clip-openai-b"]) == HubFiles(
        "timm/vit_base_patch16_clip_224.openai", ("model.safetensors", "pytorch_model.bin")
    )
