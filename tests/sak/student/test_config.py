import json
from dataclasses import replace

import pytest

from sak.errors import UsageError
from sak.student.build import many_to_one, multi_task_baseline, single_task_baseline
from sak.student.config import Lora, StudentConfig
from sak.student.sizes import StemSize


@pytest.mark.parametrize("change", [{}, {"lora": Lora(rank=3)}, {"levels": (2, 4)}, {"teachers": {}, "fusion": "none"}])
def test_a_configuration_survives_json_with_its_order(tiny, change):
    config = replace(tiny, **change)
    again = StudentConfig.from_json(json.loads(json.dumps(config.to_json(), sort_keys=True)))
    assert again == config
    assert list(again.teachers) == list(config.teachers)
    assert list(again.tasks) == list(config.tasks)


def test_what_follows_from_the_rest_is_spelled_out_on_request(tiny):
    resolved = tiny.resolved()
    assert (resolved.levels, resolved.aligners) == ((1, 2, 3, 4), True)
    assert dict(resolved.teachers) == {"dinov2": 32, "clip": 24, "sam": 16}
    assert resolved.resolved() == resolved


def test_aligners_are_one_switch_that_any_differing_teacher_turns_on(tiny):
    assert tiny.aligned
    assert not replace(tiny, teachers={"a": 24, "b": None}).aligned
    assert replace(tiny, teachers={"a": 24}, aligners=True).aligned
    assert not replace(tiny, teachers={}, fusion="none").aligned


def test_the_default_is_the_papers_base_student():
    config = StudentConfig(image_size=(384, 384), teachers={"dinov2": 768})
    assert (config.size, config.tapped, config.grid) == (StemSize(768, 12, 12), (3, 6, 9, 12), (24, 24))
    assert (config.gate_noise, config.fusion, config.down_ratio, config.weights) == ("image", "mor", 4, "pretrained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (48, 60)}, r"multiples of 16, got \(48, 60\)"),
        ({"image_size": (0, 16)}, "multiples of 16"),
        ({"image_size": 48}, "image_size must be a list of whole numbers, got 48"),
        ({"image_size": (48.0, 64.0)}, "image_size must be a list of whole numbers"),
        ({"levels": ("2", "4")}, r"levels must be a list of whole numbers, got \('2', '4'\)"),
        ({"levels": (1, 3)}, r"end with the last block, 4 .*got \(1, 3\)"),
        ({"levels": (2, 2, 4)}, r"increasing block numbers.*got \(2, 2, 4\)"),
        ({"levels": ()}, "increasing block numbers"),
        ({"down_ratio": 5}, "divide the stem's width 24, got 5"),
        ({"teachers": {"din.ov2": 24}}, "teacher name 'din.ov2' cannot be used"),
        ({"teachers": {"keys": 24}}, "teacher name 'keys' cannot be used"),
        ({"teachers": {"TAS": 24}}, "teacher name 'TAS' cannot be used.*TAS is the stem"),
        ({"tasks": {"depth": "1"}}, "task 'depth' needs a positive number of channels, got '1'"),
        ({"tasks": {"sem seg": 4}}, "task name 'sem seg' cannot be used"),
        ({"tasks": {"depth": 0}}, "task 'depth' needs a positive number of channels, got 0"),
        ({"fusion": "mean"}, "fusion must be one of mor, sum, none, got 'mean'"),
        ({"gate_noise": "patch"}, "gate_noise must be one of image, pixel, got 'patch'"),
        ({"freeze": "heads"}, "freeze must be one of none, stem, all-but-routers, got 'heads'"),
        ({"aligners": False}, r"teachers dinov2 \(32\), sam \(16\) differ from the student's width 24"),
        ({"teachers": {"a": 24}, "adapters": False, "aligners": False, "fusion": "none"}, "linear aligners alone"),
        ({"adapters": False}, "fusion 'mor' mixes adapter paths and this student has none"),
        ({"teachers": {}, "fusion": "sum"}, "fusion 'sum' mixes adapter paths"),
        ({"lora": Lora(), "freeze": "all-but-routers"}, "would freeze LoRA too"),
        ({"stem": StemSize(24, 5, 3)}, "5 blocks has no quarters: name the levels"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(tiny, change, message):
    with pytest.raises(UsageError, match=message):
        replace(tiny, **change)


def test_an_unknown_option_names_the_nearest_one(tiny):
    with pytest.raises(UsageError, match="no option 'gate_nose'; did you mean 'gate_noise'"):
        StudentConfig.from_json(tiny.to_json() | {"gate_nose": "image"})


def test_an_unknown_option_inside_the_stem_is_refused(tiny):
    with pytest.raises(UsageError, match=r"stem: no option 'widht'; did you mean 'width'"):
        StudentConfig.from_json(tiny.to_json() | {"stem": {"widht": 24, "depth": 4, "heads": 3}})


@pytest.mark.parametrize("value", [["a", "b"], [["a", 8, 9]], "a=8", 8])
def test_teachers_that_are_no_table_are_refused(tiny, value):
    with pytest.raises(UsageError, match="teachers must map names to channels"):
        StudentConfig.from_json(tiny.to_json() | {"teachers": value})


def test_lora_on_nothing_is_refused():
    with pytest.raises(UsageError, match=r"lora\.targets is empty"):
        Lora(targets=())


def test_an_option_that_must_be_given_is_named():
    with pytest.raises(UsageError, match="student: image_size is missing"):
        StudentConfig.from_json({"teachers": {"a": 8}})


def test_a_stem_needs_heads_that_divide_its_width():
    with pytest.raises(UsageError, match="multiple of its heads"):
        StemSize(width=24, depth=4, heads=5)


def test_a_stems_sizes_are_whole_numbers():
    with pytest.raises(UsageError, match=r"whole numbers from 1.*depth='4'"):
        StemSize(width=24, depth="4", heads=3)


def test_baselines_are_the_same_parts(tiny):
    assert many_to_one(tiny).teachers == tiny.teachers
    assert not many_to_one(tiny).adapters
    assert multi_task_baseline(tiny).tasks == tiny.tasks
    assert single_task_baseline(tiny, "depth").tasks == {"depth": 1}
    with pytest.raises(UsageError, match=r"no task 'dept'.*did you mean 'depth'"):
        single_task_baseline(tiny, "dept")
