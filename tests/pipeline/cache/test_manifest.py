"""Manifests and sealed documents."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.manifest import SCHEMA, Manifest, NewerSchemaError, seal, unseal
from pipeline.cache.stores.base import DamageError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name not in ("schema", "seal")), JSON, max_size=4))
def test_what_was_sealed_comes_back(document):
    assert unseal(seal(document), "here") == document


def test_fields_in_another_order_are_the_same_bytes():
    assert seal({"a": 1, "b": 2}) == seal({"b": 2, "a": 1})


def test_every_changed_byte_of_a_sealed_document_is_found():
    data = seal({"teacher": "dino", "levels": [2, 4], "note": "a b"})
    for place in range(len(data)):
        for change in (1, 0x20, 0x80):
            changed = data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
            with pytest.raises((DamageError, NewerSchemaError)):
                unseal(changed, "here")
    for length in range(len(data)):
        with pytest.raises(DamageError):
            unseal(data[:length], "here")


def test_a_newer_schema_is_told_from_damage():
    newer = json.dumps({"schema": SCHEMA + 1, "seal": "", "new": 1}).encode()
    with pytest.raises(NewerSchemaError, match=f"schema {SCHEMA + 1}, this version reads up to {SCHEMA}; upgrade sak"):
        unseal(newer, "here")


@pytest.mark.parametrize("teacher", ["dino", "clip", "sam"])
def test_a_manifest_survives_its_file(made, teacher):
    index = made.index(["a", "b", "c"])
    manifest = made.manifest(teacher, made.spec(), index)
    again = Manifest.from_bytes(manifest.to_bytes(), "here")
    assert repr(again) == repr(manifest), "fills are NaN, which equals nothing"
    assert again.name == f"{teacher}-{manifest.spec_key}"
    assert again.random == (teacher == "clip")


def test_a_sealed_document_that_is_no_manifest_is_refused(made):
    manifest = made.manifest("dino", made.spec(), made.index(["a"]))
    fields = unseal(manifest.to_bytes(), "here")
    for name in fields:
        lacking = {other: value for other, value in fields.items() if other != name}
        with pytest.raises(DamageError, match=r"^here: "):
            Manifest.from_bytes(seal(lacking), "here")
    with pytest.raises(DamageError, match="not a manifest"):
        Manifest.from_bytes(seal({**fields, "grid": [1]}), "here")


def test_how_it_lies_on_disk_is_not_what_it_is(made):
    index = made.index(["a", "b", "c"])
    one, other = made.spec(), made.spec(format="webdataset", block=2)
    keys = {made.manifest("dino", spec, index).spec_key for spec in (one, other)}
    assert len(keys) == 1
    assert made.manifest("dino", one, index) != replace(made.manifest("dino", other, index), facts={"x": 1})
