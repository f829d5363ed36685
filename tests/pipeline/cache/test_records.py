"""Block records."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.manifest import seal
from pipeline.cache.records import Absent, BlockRecord, from_ranges, parse_record_name, record_name, to_ranges
from pipeline.cache.stores.base import DamageError, FileRecord

RECORD = BlockRecord(
    view=1,
    block=2,
    present=((16, 20), (21, 24)),
    files=(FileRecord("l2/values/c.1.2", 123, "crc32c:00000000"),),
    views=FileRecord("views/v001-b000002.bin", 232, "sha256:00"),
    calibration="c" * 64,
    absent=(Absent(20, "n020", "zero bytes"),),
    fidelity={"2": {"samples": 7}},
    facts={"device": "cpu", "seconds": 1.5},
)


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_their_samples(samples):
    ranges = to_ranges(sorted(samples))
    assert from_ranges(ranges).tolist() == sorted(samples)
    assert all(after[0] > before[1] for before, after in pairwise(ranges))


def test_a_record_survives_its_file():
    assert BlockRecord.from_bytes(RECORD.to_bytes(), "here") == RECORD
    bare = replace(RECORD, present=(), files=(), views=None, absent=(), calibration=None)
    assert BlockRecord.from_bytes(bare.to_bytes(), "here") == bare


def test_present_absent_and_elsewhere_samples_are_covered_and_no_others():
    assert RECORD.covers(range(16, 24))
    assert RECORD.covers(range(18, 18))
    assert not replace(RECORD, absent=()).covers(range(16, 24))
    assert replace(RECORD, absent=(), elsewhere=((20, 21),)).covers(range(16, 24))
    assert not RECORD.covers(range(16, 25))
    assert RECORD.covers(range(16, 20))
    assert not RECORD.covers(range(15, 20))


@given(st.integers(0, 2000), st.integers(0, 2_000_000))
def test_a_name_says_its_view_and_block(view, block):
    assert parse_record_name(record_name(view, block)) == (view, block)


@pytest.mark.parametrize("name", ["", "v000", "v0-b0", "v000-b00000x", "x000-b000000", "v000-b000000-1", "v-b"])
def test_other_names_are_no_records(name):
    assert parse_record_name(name) is None


@pytest.mark.parametrize("lost", ["view", "present", "files", "absent", "fidelity", "calibration"])
def test_a_sealed_document_that_is_no_record_is_refused(lost):
    fields = {"view": 0, "block": 0, "present": [], "files": [], "views": None, "calibration": None, "absent": []}
    fields |= {"elsewhere": [], "fidelity": {}, "facts": {}}
    assert BlockRecord.from_bytes(seal(fields), "here").present == ()
    with pytest.raises(DamageError, match=r"^here: "):
        BlockRecord.from_bytes(seal({name: value for name, value in fields.items() if name != lost}), "here")
    with pytest.raises(DamageError, match=r"^here: "):
        BlockRecord.from_bytes(seal({**fields, "files": [{"path": "x"}]}), "here")


def test_bytes_are_those_of_all_files():
    assert RECORD.nbytes == 123 + 232
    assert np.array_equal(RECORD.samples, [16, 17, 18, 19, 21, 22, 23])
