"""Recipes: the paper's numbers, overrides, and errors of one line."""

import pytest
import timm
import torch

from pipeline.distill.stage import DistillRecipe
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.settings import load_settings, overridden, read_yaml
from pipeline.train.distillation import StudentRecipe, TeacherLevels, student_config
from sak.errors import UsageError
from sak.student.build import make_student, parameter_counts
from sak.student.sizes import stem_size

STUDENTS = {"sak_b_from_b": "base", "sak_s_from_b": "small", "sak_b_from_l": "base", "sak_l_from_l": "large",
            "many_to_one": "base", "swin_s_from_b": "small", "swin_b_from_b": "base"}  # fmt: skip
B = {name: TeacherLevels(768, (3, 6, 9, 12), (3, 6, 9, 12)) for name in ("dinov2", "clip", "sam")}
L = {name: TeacherLevels(1024, (6, 12, 18, 24), (6, 12, 18, 24)) for name in ("dinov2", "clip", "sam")}


@pytest.fixture
def recipes(request):
    return request.config.rootpath / "recipes/distill"


@pytest.mark.parametrize("name", STUDENTS)
def test_the_recipes_have_the_hyperparameters_of_the_paper(recipes, name):
    recipe = load_settings(DistillRecipe, recipes / f"{name}.yaml")
    training, optimiser, schedule = recipe.training, recipe.training.optimiser, recipe.training.schedule
    assert (training.epochs, training.steps, training.batch_size, training.clip_norm) == (30, None, 128, None)
    assert (optimiser.rate, optimiser.weight_decay, optimiser.betas, optimiser.eps) == (1e-3, 0.01, (0.9, 0.999), 1e-8)
    assert (schedule.kind, schedule.warmup_epochs, schedule.warmup_rate) == ("cosine", 2, 1.25e-7)
    assert (schedule.final_rate, schedule.delay) == (1e-5, 1)
    loss = recipe.loss
    assert (loss.kind, loss.cosine, loss.cosine_weight, loss.l1_weight) == ("cos+l1", "map", 0.9, 0.1)
    swin = f"swin_{STUDENTS[name]}_patch4_window7_224.ms_in22k_ft_in1k"
    vit = f"vit_{STUDENTS[name]}_patch16_384.augreg_in21k_ft_in1k"
    assert recipe.student.stem == (swin if name.startswith("swin") else vit)
    assert recipe.student.adapters == (name != "many_to_one")


@pytest.mark.parametrize(
    "setting",
    ["training.seed=2147483648", "training.optimiser.betas=[1.5,0.9]", "training.schedule.warmup_epochs=.inf",
     "training.optimiser.rate=.inf", "training.epochs=.inf", "loss.weights={clip: .nan}", "loss.weights={clip: -1}",
     "loss.l1_weight=-0.1", "loss={cosine_weight: 0, l1_weight: 0}"],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_in_one_line(setting):
    with pytest.raises(UsageError) as refusal:
        load_settings(DistillRecipe, None, [setting])
    assert setting.partition("=")[0].partition(".")[0] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("data", "size"), [("pascal", (512, 512)), ("nyud", (448, 576))])
@pytest.mark.parametrize("name", ["b", "l", "swin_s", "swin_b"])
def test_the_recipes_of_fine_tuning_have_the_papers_hyperparameters_and_a_stem_that_takes_their_size(
    recipes, data, size, name
):
    recipe = load_settings(FinetuneRecipe, recipes.parent / f"finetune/{data}_{name}.yaml")
    training = recipe.training
    assert (training.steps, training.batch_size, training.clip_norm) == (40_000, 4, 10.0)
    assert (training.optimiser.rate, training.optimiser.weight_decay) == (2e-5, 1e-6)
    assert (training.schedule.kind, training.schedule.power, recipe.data.size) == ("poly", 0.9, size)
    assert (recipe.distillation.gamma, recipe.tasks.weighting, recipe.tasks.gradients) == (1.0, "fixed", "sum")
    assert all(side % stem_size(recipe.student.stem).multiple == 0 for side in size)


@pytest.mark.parametrize(("name", "width", "millions"), [("swin_s", 96, 48.84), ("swin_b", 128, 86.74)])
def test_a_swin_recipe_builds_timms_layout_with_a_path_a_teacher(recipes, name, width, millions):
    taught = {teacher: B[teacher] for teacher in ("dinov2", "clip")}
    recipe = load_settings(DistillRecipe, recipes / f"{name}_from_b.yaml")
    config = student_config(recipe.student, taught, (384, 384))
    assert config.level_widths == (width, 2 * width, 4 * width, 8 * width)
    assert (config.tapped, config.aligned, config.grid) == ((1, 2, 3, 4), True, (12, 12))
    with torch.device("meta"):
        student = make_student(config)
        theirs = timm.create_model(recipe.student.stem, num_classes=0, features_only=False)
    assert round(parameter_counts(student)["TAS"] / 1e6, 2) == millions
    own = {key.partition(".")[2].partition(".")[2]: tuple(value.shape)
           for key, value in student.state_dict().items() if key.startswith("stem.")}  # fmt: skip
    known = {key: tuple(value.shape) for key, value in theirs.state_dict().items() if not key.startswith("norm.")}
    assert own == known


@pytest.mark.parametrize(
    ("name", "teachers", "levels", "aligned"),
    [
        ("sak_b_from_b", B, (3, 6, 9, 12), False),
        ("sak_s_from_b", B, (3, 6, 9, 12), True),
        ("sak_b_from_l", L, (3, 6, 9, 12), True),
        ("sak_l_from_l", L, (6, 12, 18, 24), False),
        ("many_to_one", B, (3, 6, 9, 12), True),
    ],
)
def test_a_student_takes_levels_from_its_own_depth_and_aligners_where_widths_differ(
    recipes, name, teachers, levels, aligned
):
    config = student_config(load_settings(DistillRecipe, recipes / f"{name}.yaml").student, teachers, (384, 384))
    assert (config.tapped, config.aligned) == (levels, aligned)


def test_the_default_recipe_is_the_papers_and_takes_its_length_where_none_is_named():
    assert DistillRecipe().training.epochs == 30
    assert load_settings(DistillRecipe, None, ["training.seed=3"]).training.epochs == 30
    assert load_settings(DistillRecipe, None, ["training.steps=3"]).training.epochs is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("training.optimizer.rate=1", r"unknown key training.optimizer; did you mean 'optimiser'\?"),
        ("training.optimiser.rtae=1", r"unknown key training.optimiser.rtae; did you mean 'rate'\?"),
        ("studnet.stem=x", r"unknown key studnet; did you mean 'student'\?"),
        ("training.batch_size=0", r"training.batch_size: .*greater than or equal to 1"),
        ("training.precision=fp8", r"training.precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ("training.steps", r"write it as name=value"),
        ("training.seed=[", r"the value is not YAML"),
        ("loss.kind.x=1", r"loss.kind.x|loss.kind"),
    ],
)
def test_wrong_keys_and_values_are_one_clear_line(line, told):
    with pytest.raises(UsageError, match=told) as error:
        load_settings(DistillRecipe, None, [line])
    assert "\n" not in str(error.value)


def test_a_key_given_twice_is_refused_and_merged_mappings_are_not(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("a: &one {x: 1}\nb: {<<: *one, x: 2}\n")
    assert read_yaml(recipe) == {"a": {"x": 1}, "b": {"x": 2}}
    recipe.write_text("rows:\n  a: {x: 1}\n  a: {x: 2}\n")
    with pytest.raises(UsageError, match="key 'a' is given twice"):
        read_yaml(recipe)


def test_an_unreadable_recipe_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as a recipe"):
        load_settings(DistillRecipe, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="is not a recipe: it holds list"):
        load_settings(DistillRecipe, tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    with pytest.raises(UsageError, match=r"broken\.yaml") as error:
        load_settings(DistillRecipe, tmp_path / "broken.yaml")
    assert "\n" not in str(error.value)


def test_epochs_and_steps_exclude_each_other_and_parts_must_divide_the_batch():
    with pytest.raises(UsageError, match="give epochs or steps, one of them"):
        load_settings(DistillRecipe, None, ["training.steps=3", "training.epochs=1"])
    assert overridden({"training": {"epochs": 2}}, ["training.steps=3"]) == {"training": {"steps": 3}}
    with pytest.raises(UsageError, match="batch_size 10 does not divide into 4 accumulated parts"):
        load_settings(DistillRecipe, None, ["training.batch_size=10", "training.accumulate=4"])


def test_teachers_with_other_levels_are_refused():
    teachers = {"a": TeacherLevels(8, (1, 2, 3, 4), (2, 4)), "b": TeacherLevels(8, (1, 2, 3, 4), (1, 4))}
    with pytest.raises(UsageError, match=r"b is wanted at levels \(1, 4\).*paired by position, name --levels"):
        student_config(StudentRecipe(stem={"width": 8, "depth": 4, "heads": 2}), teachers, (32, 32))


@pytest.mark.parametrize(
    ("asked", "width", "aligned"),
    [({}, 8, False), ({}, 6, True), ({"aligners": True}, 8, True), ({"adapters": False}, 8, True)],
)
def test_aligners_stand_where_widths_differ_and_where_they_are_asked_for(asked, width, aligned):
    recipe = StudentRecipe(stem={"width": 8, "depth": 4, "heads": 2}, **asked)
    taught = {"a": TeacherLevels(width, (1, 2, 3, 4), (1, 2, 3, 4))}
    assert student_config(recipe, taught, (32, 32)).aligned is aligned


def test_a_student_without_adapters_and_aligners_is_refused():
    recipe = StudentRecipe(stem={"width": 8, "depth": 4, "heads": 2}, adapters=False, aligners=False)
    with pytest.raises(UsageError, match="a student without adapters has linear aligners alone"):
        student_config(recipe, {"a": TeacherLevels(8, (1, 2, 3, 4), (1, 2, 3, 4))}, (32, 32))
