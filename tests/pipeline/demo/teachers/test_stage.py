import hashlib
import itertools
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.demo.teachers.pictures import components, show_teachers
from pipeline.demo.teachers.recipe import DemoTeachersRecipe
from pipeline.demo.teachers.stage import OBJECTIVES, run_demo_teachers
from pipeline.demo.weights.shipped import DIRECTORY, shipped_file
from pipeline.settings import load_settings
from pipeline.train.checkpoint import CheckpointError
from sak.errors import UsageError
from sak.teachers import build_teacher

SHORT = ("pool.scenes=128", "pool.size=64", "pool.held_out=32")


def settings(name, steps):
    changed = {"steps": steps, "batch_size": 4, "schedule.warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}
    return [*SHORT, *(f"{name}.{key}={value}" for key, value in changed.items())]


@pytest.fixture
def out(tmp_path, scenes):
    (tmp_path / "scenes").symlink_to(scenes)
    return tmp_path


def train(out, name, steps=3, **options):
    return run_demo_teachers(out, only=[name], overrides=settings(name, steps), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino", "clip", "sam", "stem"])
def test_a_run_leaves_weights_a_card_and_curves_and_the_same_seed_gives_the_same_bytes(name, out, tmp_path_factory):
    torch.set_num_threads(1)
    result = train(out, name)[name]
    assert (result.step, result.stopped) == (3, False)
    data = (out / f"{name}.safetensors").read_bytes()
    text = (out / f"{name}.md").read_text()
    assert hashlib.sha256(data).hexdigest() in text
    assert "cc0-1.0" in text
    assert re.search(r"\| cost \| \d+ CPU seconds, 1 session", text)
    assert (out / "runs" / name / "figures" / "curves.png").is_file()
    tensors = load_file(out / f"{name}.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    build_teacher(f"demo/{name}", weights=out / f"{name}.safetensors", image_size=64)
    again = tmp_path_factory.mktemp("again")
    (again / "scenes").symlink_to(out / "scenes")
    train(again, name)
    assert (again / f"{name}.safetensors").read_bytes() == data


@pytest.mark.slow
def test_a_run_that_breaks_off_goes_on_and_ends_with_the_same_weights(out, tmp_path_factory):
    torch.set_num_threads(1)

    def break_off(done, total, note=""):
        del note
        if total == 4 and done == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(out, "stem", 4, progress=break_off)
    with pytest.raises(UsageError, match=r"begun with other settings: training\.steps: was 4, now 5; put them back"):
        train(out, "stem", 5)
    weights = (out / "runs" / "stem" / "checkpoints" / "last").resolve() / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        train(out, "stem", 4)
    weights.write_bytes(whole)
    assert train(out, "stem", 4)["stem"].step == 4
    assert train(out, "stem", 4) == {}  # done: nothing left to do
    unbroken = tmp_path_factory.mktemp("unbroken")
    (unbroken / "scenes").symlink_to(out / "scenes")
    train(unbroken, "stem", 4)
    assert (out / "stem.safetensors").read_bytes() == (unbroken / "stem.safetensors").read_bytes()
    assert "2 session(s)" in (out / "stem.md").read_text()


def test_a_model_that_is_there_is_left_alone_and_said_to_be(tmp_path):
    (tmp_path / "stem.safetensors").write_bytes(b"mine")
    said = []
    assert run_demo_teachers(tmp_path, only=["stem"], say=said.append) == {}
    assert said == [f"demo/stem: {tmp_path}/stem.safetensors is there, nothing is trained"]
    assert (tmp_path / "stem.safetensors").read_bytes() == b"mine"


def test_a_folder_that_is_no_run_is_not_taken(out):
    mine = out / "runs" / "stem" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(UsageError, match=r"runs/stem is not a run's directory"):
        train(out, "stem")
    assert mine.read_text() == "keep"


def test_an_unknown_device_is_refused_before_anything_is_rendered(tmp_path):
    with pytest.raises(UsageError, match="device 'tpu'"):
        run_demo_teachers(tmp_path, device="tpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shipped_card_says_what_the_code_and_the_recipe_say(name):
    card, recipe, model = (DIRECTORY / f"{name}.md").read_text(), DemoTeachersRecipe(), OBJECTIVES[name]
    training, pool = recipe.training(name), recipe.scenes(name)
    assert f"| objective | {model.says} |" in card
    assert f"| {pool.scenes:,} procedural scenes of {pool.size} px, stream `training`, seed {pool.seed}, " in card
    assert f"| training | {training.steps:,} steps of {training.batch_size} scenes (" in card
    assert f"AdamW, rate {training.optimiser.rate:g}, seed {training.seed} |" in card


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_benchmarks_page_has_the_numbers_of_the_shipped_cards(name, request):
    page = (request.config.rootpath / "docs" / "benchmarks.md").read_text()
    first, *rest = re.split(rf"^\| demo/{name} \|", page, flags=re.M)[1].splitlines()
    row = [first, *itertools.takewhile(lambda line: line.startswith("| |"), rest)]
    told = [cell.strip() for line in row for cell in line.split("|")]
    card = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (DIRECTORY / f"{name}.md").read_text(), flags=re.M))
    assert card["cost"].split()[0] in told
    for when in ("measured on held-out scenes", "the same before training"):
        assert {value.split()[1] for value in card[when].split(", ")} <= set(told)


def test_an_unknown_model_names_the_nearest(out):
    with pytest.raises(UsageError, match=r"no demo model is called 'dina'; did you mean 'dino'\?"):
        train(out, "dina")


def test_the_recipe_file_is_the_default(request):
    path = request.config.rootpath / "recipes" / "demo_teachers" / "demo.yaml"
    assert DemoTeachersRecipe.model_validate(yaml.safe_load(path.read_text())) == DemoTeachersRecipe()


def test_a_model_may_have_a_part_of_the_scenes():
    settings = ("pool.scenes=256", "pool.held_out=64", "clip.scenes=128", "sam.scenes=512")
    recipe = load_settings(DemoTeachersRecipe, None, settings)
    assert [recipe.scenes(name).scenes for name in ("dino", "clip", "sam")] == [256, 128, 256]
    assert recipe.scenes("clip").spec().key == recipe.pool.spec().key


def test_what_is_not_overridden_stays_as_the_shipped_models_were_trained():
    shipped = DemoTeachersRecipe()
    recipe = load_settings(DemoTeachersRecipe, None, ("clip.batch_size=8", "sam.schedule.warmup_steps=2"))
    assert recipe.clip == shipped.clip.model_copy(update={"batch_size": 8})
    assert recipe.sam.schedule == shipped.sam.schedule.model_copy(update={"warmup_steps": 2})
    assert (recipe.dino, recipe.stem) == (shipped.dino, shipped.stem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("pool.scenes=384",), "dino has 384 scenes, 384 held out: none is left to train on"),
        (("clip.scenes=128",), "clip has 128 scenes, 384 held out"),
        (("pool.scenes=1000",), "a pool holds a multiple of 64 scenes, got 1000"),
        (("stem.accumulate=2",), "leave epochs, accumulate and ema out"),
        (("stem.ema=0.9",), "leave epochs, accumulate and ema out"),
        (("stem.steps=null", "stem.epochs=2"), "leave epochs, accumulate and ema out"),
        (("stem=3",), "stem: "),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_is_rendered(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_demo_teachers(tmp_path, overrides=settings)
    assert list(tmp_path.iterdir()) == []


def test_components_show_what_differs_between_places():
    maps = torch.zeros(2, 8, 4, 4)
    maps[:, :, :, 2:] = torch.arange(8.0).view(8, 1, 1)
    maps += 1e-3 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    pixels = components(maps)
    assert pixels.shape == (2, 32, 32, 3)
    left, right = pixels[:, :, :16, 0].mean(), pixels[:, :, 16:, 0].mean()
    assert abs(float(left) - float(right)) > 150


def test_what_the_shipped_teachers_see_is_drawn(tmp_path):
    target = show_teachers(tmp_path / "seen.png", scenes=1)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_which_teachers_were_drawn_is_said(tmp_path):
    shutil.copy(shipped_file("sam").fetch("demo/sam"), tmp_path / "sam.safetensors")
    said = []
    show_teachers(tmp_path / "seen.png", weights=tmp_path, scenes=1, say=said.append)
    assert said == [f"{tmp_path} has sam; the others are the shipped ones"]
    with pytest.raises(UsageError, match=r"has none of dino.safetensors, clip.safetensors, sam.safetensors"):
        show_teachers(tmp_path / "seen.png", weights=tmp_path / "elsewhere")
