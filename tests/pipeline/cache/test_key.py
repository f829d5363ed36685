import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.key import KEY_DIGITS, canonical_json, column_document, document_key, explain_difference
from pipeline.cache.spec import parse_spec
from sak.teachers.recipe import TeacherFacts

FACTS = {"dino": TeacherFacts(768, 12, (27, 27)), "sam": TeacherFacts(768, 12, (64, 64))}
DOCUMENT = {
    "views": {"kind": "random_resized_crop", "size": 384, "scale": [0.08, 1.0], "hflip": 0.5, "seed": 0},
    "teachers": {
        "dino": {"model": "timm/vit_base_patch14_dinov2.lvd142m"},
        "sam": {"model": "timm/samvit_base_patch16.sa1b"},
    },
}
MADE_FROM = {"weights_sha256": "0" * 64, "teacher_revision": "1"}


def changed(document, path, value):
    """A deep copy with one dotted place set."""
    copy = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    place = copy
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return copy


def key_of(document=DOCUMENT, name="sam", **made_from) -> str:
    spec = parse_spec(document, facts=FACTS)
    return document_key(column_document(spec.teachers[name], spec, **{**MADE_FROM, **made_from}))


def test_golden_keys_hold():
    """A change here orphans every cache that was ever written."""
    assert key_of(name="dino") == "70a49b1d67def43e"
    assert key_of(name="sam") == "dc368db1bfcfbf9a"
    assert key_of(changed(DOCUMENT, "teachers.sam.encoding", {"kind": "int4", "pca": 256})) == "fc602487bd123a6e"
    assert key_of(custom_source_sha256="1" * 64) == "b7b0762e22b378cf"
    assert len(key_of()) == KEY_DIGITS


DECIDING = {
    "views.seed": 1,
    "views.hflip": 0.0,
    "views.scale": [0.2, 1.0],
    "views.ratio": [0.5, 2.0],
    "views.size": 400,
    "teachers.sam.model": "segment_anything/vit_b",
    "teachers.sam.input_size": 512,
    "teachers.sam.normalization": "native",
    "teachers.sam.precision": "bf16",
    "teachers.sam.levels": [3, 6, 9],
    "teachers.sam.sam_padding": "crop",
    "teachers.sam.grid": "native",
    "teachers.sam.encoding": "int4",
    "teachers.sam.encoding.pca": 64,
    "teachers.sam.overrides": {"depth": 12},
    "student_grid": [12, 12],
    "calibration.samples": 100,
    "calibration.seed": 1,
}


def test_every_deciding_field_changes_the_key():
    made = {"weights_sha256": "1" * 64, "teacher_revision": "2", "custom_source_sha256": "3" * 64}
    keys = [key_of(), *(key_of(changed(DOCUMENT, *each)) for each in DECIDING.items())]
    keys += [key_of(**{name: value}) for name, value in made.items()]
    assert len(set(keys)) == len(keys)


@given(st.lists(st.sampled_from(sorted(DECIDING)), unique=True, max_size=5))
def test_specs_share_a_key_only_where_all_deciding_fields_agree(paths):
    document = DOCUMENT
    for path in sorted(paths, reverse=True):  # encoding.pca first, as encoding is then set whole
        document = changed(document, path, DECIDING[path])
    assert (key_of(document) == key_of()) is (not paths)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("codec", "zstd"),
        ("block", 64),
        ("format", "webdataset"),
        ("teachers.dino.encoding", "int4"),
        ("teachers.sam.weights", "/elsewhere/sam.safetensors"),
    ],
)
def test_what_decides_no_byte_of_the_column_leaves_the_key_alone(path, value):
    assert key_of(changed(DOCUMENT, path, value)) == key_of()


def test_the_students_grid_matters_only_to_what_is_reduced_to_it():
    document = changed(DOCUMENT, "student_grid", [12, 12])
    assert key_of(document, "dino") == key_of(name="dino")
    assert key_of(document, "sam") != key_of(name="sam")


def reordered(value, order):
    if not isinstance(value, dict):
        return value
    names = sorted(value, key=lambda name: order.random())
    return {name: reordered(value[name], order) for name in names}


@given(st.randoms(use_true_random=False))
def test_reordered_fields_give_the_same_key(order):
    document = changed(DOCUMENT, "teachers.sam.encoding", {"kind": "int8", "pca": 64})
    assert key_of(reordered(document, order)) == key_of(document)


def test_defaults_spelled_out_give_the_same_key():
    spec = parse_spec(DOCUMENT, facts=FACTS)
    again = parse_spec(spec.model_dump(mode="json"), facts=FACTS)
    assert [document_key(column_document(t, again, **MADE_FROM)) for t in again.teachers.values()] == [
        document_key(column_document(t, spec, **MADE_FROM)) for t in spec.teachers.values()
    ]


def test_a_document_survives_json_and_names_its_key():
    spec = parse_spec(DOCUMENT, facts=FACTS)
    document = column_document(spec.teachers["sam"], spec, **MADE_FROM)
    assert document == json.loads(json.dumps(document))
    assert document_key(json.loads(json.dumps(document))) == key_of()


def test_a_spec_without_its_defaults_has_no_key():
    from pipeline.cache.spec import CacheSpec

    spec = CacheSpec.model_validate(DOCUMENT)
    with pytest.raises(ValueError, match="load_spec"):
        column_document(spec.teachers["sam"], spec, **MADE_FROM)


def test_differences_are_told_side_by_side():
    spec = parse_spec(DOCUMENT, facts=FACTS)
    other = parse_spec(changed(changed(DOCUMENT, "views.seed", 4), "teachers.sam.levels", [3, 6]), facts=FACTS)
    a = column_document(spec.teachers["sam"], spec, **MADE_FROM)
    b = column_document(other.teachers["sam"], other, **MADE_FROM)
    assert explain_difference(a, b) == [("levels", [3, 6, 9, 12], [3, 6]), ("views.seed", 0, 4)]
    assert explain_difference(a, a) == []
    assert explain_difference({"a": {}}, {"a": {"b": 1}}) == [("a", {}, None), ("a.b", None, 1)]


def test_canonical_json_has_one_text_for_a_value():
    assert canonical_json({"b": (1, 2.5), "a": [True, None, "é"]}) == '{"a":[true,null,"\\u00e9"],"b":[1,2.5]}'
    assert canonical_json(-0.0) == canonical_json(0.0) == "0.0"
    assert canonical_json(1) != canonical_json(1.0)
    assert canonical_json(0.1 + 0.2) == "0.30000000000000004"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": object()}, {"a": [b"x"]}])
def test_what_has_no_canonical_json_is_refused(value):
    with pytest.raises(ValueError, match="key is made of"):
        canonical_json(value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(PLAIN, min_size=2, max_size=4))
def test_different_values_have_different_canonical_json(values):
    for a, b in itertools.combinations(values, 2):
        same = json.loads(canonical_json(a)) == json.loads(canonical_json(b)) and repr(a) == repr(b)
        if same:
            assert canonical_json(a) == canonical_json(b)
        if canonical_json(a) == canonical_json(b):
            assert a == b


def test_a_manifest_and_its_spec_describe_one_teacher():
    from pipeline.cache.manifest import Manifest
    from pipeline.cache.stores.base import ColumnLayout

    spec = parse_spec(DOCUMENT, facts=FACTS)
    made = {"weights_sha256": "ab" * 32, "teacher_revision": "1", "custom_source_sha256": "cd" * 32}
    for name, teacher in spec.teachers.items():
        document = column_document(teacher, spec, **made)
        layout = ColumnLayout((), 1, 1, "none")
        manifest = Manifest(name, "key", "data", document, 768, (27, 27), teacher.weights, layout, "zarr")
        revision = f"1/custom-{'cd' * 32}"
        assert manifest.recipe == replace(spec.recipe(name), weights_sha256="ab" * 32, revision=revision)
