"""Settings: one way in and one wording, whoever reads them."""

from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.ablate.study import load_study
from pipeline.cache.spec import load_spec
from pipeline.data.datasets import FolderSpec
from pipeline.demo.teachers.recipe import DemoTeachersRecipe
from pipeline.distill.stage import DistillRecipe, distill_config
from pipeline.finetune.stage import finetune_config
from pipeline.settings import (
    Frozen,
    dump_yaml,
    load_settings,
    overridden,
    parse_settings,
    parse_yaml,
    read_yaml,
    recipe_and_rest,
)
from sak.errors import UsageError

TWICE = "training:\n  optimiser: {rate: 1e-3, rate: 2e-3}\n"
LINE = "training.optimiser={rate: 1e-3, rate: 2e-3}"

READERS = {
    "a recipe's file": lambda path: load_settings(DistillRecipe, path),
    "a recipe's --set": lambda path: load_settings(DistillRecipe, None, [LINE]),
    "distill --set": lambda path: distill_config(cache="c", overrides=[LINE], device="cpu"),
    "finetune --config": lambda path: finetune_config(init="i", dataset="nyud", data="d", config=path, device="cpu"),
    "a cache spec": lambda path: load_spec(path),
    "a cache spec's --set": lambda path: load_spec("cache_specs/demo.yaml", [LINE]),
    "a study": lambda path: load_study(path),
    "a study's --set": lambda path: load_study(Path("recipes/ablations/table7-demo.yaml"), [f"distill.recipe.{LINE}"]),
    "a described folder": lambda path: FolderSpec.load(path),
    "the demo's recipe": lambda path: load_settings(DemoTeachersRecipe, path),
    "the demo's --set": lambda path: load_settings(DemoTeachersRecipe, None, ["dino={steps: 1, steps: 2, rate: 3}"]),
}


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_repeated_key_is_refused_everywhere_in_the_same_words(reader, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    path = tmp_path / "twice.yaml"
    path.write_text(TWICE)
    key = "steps" if reader == "the demo's --set" else "rate"
    words = error_of(READERS[reader], path)
    place = "--set " if "--set" in reader else f"{path}: key 'rate' is given twice (line 2)"
    assert words.startswith(place)
    assert f": key '{key}' is given twice" in words


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: distill_config(cache="c", overrides=["trainin.seed=1"], device="cpu"),
         "recipe: unknown key trainin; did you mean 'training'?"),
        (lambda: load_spec("cache_specs/demo.yaml", ["codecs=none"]),
         "cache_specs/demo.yaml: unknown key codecs; did you mean 'codec'?"),
        (lambda: load_spec("cache_specs/demo.yaml", ["teachers.dino.encodng=int8"]),
         "unknown key teachers.dino.encodng; did you mean 'encoding'?"),
        (lambda: load_settings(DemoTeachersRecipe, None, ["clip.stpes=1"]),
         "recipe: unknown key clip.stpes; did you mean 'steps'?"),
        (lambda: parse_settings(FolderSpec, {"tasks": {"semseg": {"folder": "x", "sufix": ".png"}}}, "mine.yaml"),
         "unknown key tasks.semseg.sufix; did you mean 'suffix'?"),
        (lambda: distill_config(cache="c", val_cahce="d", device="cpu"),
         "distill: unknown key val_cahce; did you mean 'val_cache'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_that_could_stand_there(read, words, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert words in error_of(read)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".1e-2", "+1e-3", "0.001"])
def test_a_number_is_a_number_however_it_is_written(text, tmp_path):
    (tmp_path / "s.yaml").write_text(f"rate: {text}\n")
    assert read_yaml(tmp_path / "s.yaml") == overridden({}, [f"rate={text}"]) == {"rate": 0.001}


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "v1e3", "1.2.3"])
def test_what_only_looks_like_one_stays_text(text):
    assert parse_yaml(text, "s") == text


NUMBERS = st.from_regex(r"\A[-+]?[0-9]*[.]?\d+[eE][-+]?\d+\Z")


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.floats(allow_nan=False), NUMBERS)))
def test_what_is_written_is_read_back_the_same(document):
    assert parse_yaml(dump_yaml(document), "s") == document


def test_a_merged_mapping_may_be_overridden_wherever_it_is_merged_again():
    text = "l: [&b {<<: &a {x: 1}, x: 2}]\nc: {<<: *b, y: 3}\n"
    assert parse_yaml(text, "s") == yaml.safe_load(text) == {"l": [{"x": 2}], "c": {"x": 2, "y": 3}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a", "--set a: write it as name=value, such as a.b=1"),
        ("a..b=1", "--set a..b=1: write it as name=value"),
        ("a=[1", "--set a=[1: the value is not YAML, quote it: "),
        ("a=2001-13-01", "--set a=2001-13-01: the value is not YAML, quote it: month must be in 1..12"),
        ("x.y=1", "cannot set x.y: x is 3, not a mapping; set it whole"),
    ],
)
def test_a_line_that_sets_nothing_is_told(line, words):
    assert error_of(overridden, {"x": 3}, [line]).startswith(words)


def test_overriding_leaves_what_was_there_alone():
    before = {"a": {"b": [1], "off": None, "no": False}}
    assert overridden(before, ["a.b=[2]", "a.off.x=1", "a.no.x=1"]) == {
        "a": {"b": [2], "off": {"x": 1}, "no": {"x": 1}}
    }
    assert before == {"a": {"b": [1], "off": None, "no": False}}


def test_what_an_alias_shares_is_set_in_one_place_alone():
    document = parse_yaml("a: &a {x: {y: 1}}\nb: *a\nc: {<<: *a, z: 1}\n", "s")
    assert overridden(document, ["a.x.y=2"]) == {
        "a": {"x": {"y": 2}},
        "b": {"x": {"y": 1}},
        "c": {"x": {"y": 1}, "z": 1},
    }


class Inner(Frozen):
    kind: Literal["one", "two"] = "one"
    rate: float = Field(default=1, gt=0)


class Outer(Frozen):
    first: int
    second: int
    third: int
    inner: Inner | None = None
    named: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inner": {"kind": "tow"}}, "inner.kind must be one of one, two, got 'tow'"),
        ({"inner": {"rate": 0}}, "inner.rate: Input should be greater than 0, got 0"),
        ({"inner": {"rate": float("inf")}}, "inner.rate: Input should be a finite number, got inf"),
        ({"inner": {"knid": "one"}}, "unknown key inner.knid; did you mean 'kind'?"),
        ({"named": {"inner": {"rat": 1}}}, "unknown key named.inner.rat; did you mean 'rate'?"),
    ],
)
def test_what_is_wrong_is_worded_with_its_place_and_its_value(document, words):
    whole = {"first": 1, "second": 2, "third": 3}
    assert error_of(parse_settings, Outer, {**whole, **document}, "s.yaml") == f"s.yaml: {words}"


def test_an_unknown_key_is_told_before_all_that_is_missing_for_it():
    words = error_of(parse_settings, Outer, {"frist": 1}, "s.yaml")
    assert words == "s.yaml: first is missing; second is missing; unknown key frist; did you mean 'first'?; and 1 more"


def test_flags_go_over_set_and_what_was_not_given_stays():
    flags = {"overrides": ["training.steps=7", "training.seed=1", "data.workers=9"], "seed": 2, "precision": None}
    recipe, rest = recipe_and_rest(DistillRecipe, {**flags, "cache": Path("c"), "out": None})
    assert (recipe.training.steps, recipe.training.seed, recipe.training.precision) == (7, 2, "fp32")
    assert rest == {"cache": "c"}
    recipe, _ = recipe_and_rest(DistillRecipe, {**flags, "epochs": 0.5, "workers": 3}, {"workers": ("data.workers",)})
    assert (recipe.training.steps, recipe.training.epochs, recipe.data.workers) == (None, 0.5, 3)


def test_finetunings_flags_reach_the_recipe_and_the_configuration(tmp_path):
    asked = finetune_config(init="i", dataset="mine.yaml", data=tmp_path, workers=3, eval_boundary=True,
                            no_distill=True, device="cpu")  # fmt: skip
    assert (asked.distil, asked.data, asked.dataset) == (False, str(tmp_path), str(Path("mine.yaml").resolve()))
    assert (asked.recipe.data.workers, asked.recipe.evaluation.workers, asked.recipe.evaluation.boundary) == (
        3,
        3,
        True,
    )
    assert finetune_config(init="i", dataset="nyud", data="d", device="cpu").distil
