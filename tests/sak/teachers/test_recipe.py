"""The one description of a teacher: as runs keep it, as caches know it, and what is refused."""

import json

import pytest

from sak.errors import SakError, UsageError
from sak.teachers import TeacherRecipe, build_teacher, teacher_recipe
from sak.teachers.recipe import OtherTeacherError

RECORD = json.loads(
    '{"name": "clip", "model": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "weights": "random:2", '
    '"input_size": null, "levels": [1, 2, 3, 4], "normalization": "imagenet", "precision": "fp32", '
    '"sam_padding": null, "overrides": {"embed_dim": 16, "depth": 4, "num_heads": 2}, '
    '"weights_sha256": null, "revision": "1"}'
)
"""A teacher in the `run.json` of the first version."""


def test_a_record_of_the_first_version_is_read_and_written_as_it_was():
    recipe = TeacherRecipe.from_json(RECORD)
    assert json.loads(json.dumps(recipe.to_json())) == RECORD
    assert list(recipe.to_json()) == list(RECORD)
    assert build_teacher(recipe, image_size=32).levels == (1, 2, 3, 4)


def test_a_built_teachers_own_recipe_builds_it_again_and_refuses_other_weights():
    built = build_teacher(TeacherRecipe.from_json(RECORD), image_size=32)
    assert build_teacher(built.recipe, image_size=(32, 48)).weights_sha256 == built.weights_sha256
    with pytest.raises(OtherTeacherError, match=r"teacher clip .*random:3.*its weights is \w+, wanted \w+;.*--spec"):
        build_teacher(built.recipe, image_size=32, weights="random:3")
    with pytest.raises(OtherTeacherError, match="its code revision is 1, wanted 0;"):
        build_teacher(built.recipe, image_size=32, revision="0")
    assert build_teacher(built.recipe, image_size=32, weights="random:3", device="meta").width == 16


def test_another_source_of_a_custom_builder_is_refused():
    recipe = TeacherRecipe("mine", "custom:a:b", revision="1/custom-aaaa")
    assert (recipe.code_revision, recipe.source_sha256) == ("1", "aaaa")
    recipe.check("ffff", recipe)
    with pytest.raises(SakError, match="its builder's source is bbbb, wanted aaaa"):
        recipe.check("ffff", TeacherRecipe("mine", "custom:a:b", revision="1/custom-bbbb"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"normalization": "imagnet"}, "dinov2-b: normalization must be one of imagenet, native, got 'imagnet'"),
        ({"precision": "fp8"}, "dinov2-b: precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"sam_padding": "cut"}, "dinov2-b: sam_padding must be one of keep, crop, got 'cut'"),
        ({"input_size": 0}, r"input_size must be one positive number of pixels or \(height, width\), got 0"),
    ],
)
def test_words_and_sizes_that_mean_nothing_are_refused_at_once(option, said):
    with pytest.raises(UsageError, match=said):
        teacher_recipe("dinov2-b", **option)


def test_a_caches_teacher_can_be_built_for_images_of_another_size(tmp_path):
    """A size that is merely that of the views is left out; SAM's square is its own, and files are found anywhere."""
    file = tmp_path / "clip.safetensors"
    file.touch()
    plain = TeacherRecipe.for_views("clip", (64, 96), model="timm/a.b", weights=str(file), input_size=[64, 96])
    assert (plain.input_size, plain.weights) == (None, str(file.resolve()))
    other = TeacherRecipe.for_views("clip", (64, 96), model="timm/a.b", weights="pretrained", input_size=[32, 32])
    assert (other.input_size, other.weights) == ((32, 32), "pretrained")
    sam = TeacherRecipe.for_views("sam", (64, 64), model="demo/sam", weights="pretrained", input_size=[64, 64])
    assert sam.input_size == (64, 64)
