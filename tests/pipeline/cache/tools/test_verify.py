"""`verify`: every kind of damage is found, and reading never gives wrong numbers."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.manifest import seal
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.tools.verify import verify
from sak.errors import SakError

KEYS = tuple(f"n{number:03d}" for number in range(6))


@pytest.fixture
def tiny(writer, stored_as, made):
    """Six samples of one projected int8 teacher in two blocks, one image bad."""
    maker = writer(spec=made.spec(format=stored_as, block=4), keys=KEYS, bad={"n004": "not an image"})
    maker.write("sam")
    return Path(maker.place)


def files(place, *parts):
    """Every file below a cache's folder, but for leases."""
    return sorted(path for path in place.rglob("*") if path.is_file() and "leases" not in path.parts)


def decoded(place):
    """Every sample's decoded maps and left-overs."""
    cache = FeatureCache.open(place)
    targets = cache.read(cache.samples).decode()["sam"]
    return [part.numpy() for target in targets for part in (target.map, target.leftover)]


def never_wrong(place, expected):
    """Reading raises one clear line, or gives what was written."""
    try:
        found = decoded(place)
    except SakError:
        return
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_sound_cache_has_no_problems(tiny):
    for deep in (False, True):
        found = verify(tiny, deep=deep)
        assert found.problems == ()
        assert (found.sound, found.columns, found.blocks, found.samples, found.missing) == (True, 1, 2, 5, 0)
    assert found.nbytes > 0
    assert found.as_dict()["sound"]


@pytest.mark.slow
def test_every_flipped_byte_of_a_small_file_is_found(tiny, stored_as):
    expected = decoded(tiny)
    data_file = "c.0.1.0" if stored_as == "zarr" else "v000-b000001.tar.idx"
    for name in (data_file, "v000-b000001.bin"):
        path = next(path for path in files(tiny) if path.name == name)
        data = path.read_bytes()
        for place in range(0, len(data), 3 if path.suffix == ".idx" else 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
            assert _found(tiny), (path.name, place)
            never_wrong(tiny, expected)
        path.write_bytes(data)
    assert verify(tiny, deep=True).sound


@pytest.mark.slow
def test_flipped_bytes_spread_over_every_file_are_found(tiny):
    expected = decoded(tiny)
    for path in files(tiny):
        data = path.read_bytes()
        for place in {0, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            assert _found(tiny), (path.name, place)
            never_wrong(tiny, expected)
        path.write_bytes(data)


def _found(place):
    try:
        return bool(verify(place, deep=True).problems)
    except SakError:  # cache.json itself: nothing can be opened
        return True


def test_a_flipped_byte_in_values_scales_leftover_or_index_is_found_by_reading(tiny):
    """Whatever the file: the array that holds the changed byte is refused, with file and sample."""
    cache = FeatureCache.open(tiny)
    expected = cache.read(cache.samples).arrays["sam"]
    caught = []
    for path in files(tiny):
        if "data" not in path.relative_to(tiny).parts or path.suffix == ".json":
            continue
        data = path.read_bytes()
        for place in range(0, len(data), 5 if len(data) < 1000 else 97):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            cache.forget()
            try:
                found = cache.read(cache.samples).arrays["sam"]
            except SakError as error:
                caught.append(path.name.removesuffix(".idx") in str(error))
            else:
                assert all(np.array_equal(found[name], expected[name]) for name in expected), (path.name, place)
        path.write_bytes(data)
    assert len(caught) > 40
    assert all(caught), "every error names its file"


@pytest.mark.slow
def test_cutting_or_losing_any_file_is_found_and_never_read_as_zeros(tiny):
    expected = decoded(tiny)
    for path in files(tiny):
        data = path.read_bytes()
        for cut in {0, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:cut])
            assert _shallow(tiny), (path.name, cut)
            never_wrong(tiny, expected)
        path.unlink()
        assert _shallow(tiny), path.name
        never_wrong(tiny, expected)
        path.write_bytes(data)
    assert verify(tiny, deep=True).sound


def _shallow(place):
    try:
        return bool(verify(place).problems)
    except SakError:
        return True


def test_problems_name_file_block_and_sample(tiny, stored_as):
    column = next(iter((tiny / "columns").iterdir()))
    block = next(path for path in files(tiny) if path.name in ("c.0.0.0.0", "v000-b000000.tar"))
    data = bytearray(block.read_bytes())
    offset = 10 if stored_as == "zarr" else 650  # behind a tar header and a .npy header
    data[offset] ^= 1
    block.write_bytes(bytes(data))
    problems = verify(tiny, deep=True).problems
    assert any(each.sample == "n000" and (each.view, each.block) == (0, 0) for each in problems)
    assert all(each.file == str(block) and each.column == column.name for each in problems)
    damaged = verify(tiny, deep=True).damaged_blocks
    assert [(view, number) for _, view, number in damaged] == [(0, 0)]
    assert damaged[0][0].teacher == "sam"


def test_all_problems_are_listed_not_the_first(tiny):
    views = sorted(tiny.rglob("views/*.bin"))
    for path in views:
        path.unlink()
    problems = verify(tiny).problems
    assert [each.file for each in problems] == [str(path) for path in views]
    assert {each.what for each in problems} == {"gone"}


def test_a_block_whose_record_is_lost_is_reported(tiny):
    next(iter(tiny.rglob("records/v000-b000001.json"))).unlink()
    found = verify(tiny)
    assert "without a record" in found.problems[0].what
    assert (found.problems[0].view, found.problems[0].block) == (0, 1)
    assert found.missing == 1


def test_a_block_that_is_being_written_is_no_problem(writer):
    maker = writer(keys=KEYS)
    column = maker.open("dino")
    maker.write_block(column, 0, 0)
    column.withdraw(0, 0)
    assert not verify(maker.place).sound
    with column.lease(0, 0):
        assert verify(maker.place).sound


def test_a_partial_column_is_sound_and_says_what_is_missing(writer):
    maker = writer()
    maker.write("dino", limit=8)
    found = verify(maker.place, deep=True)
    assert found.sound
    assert found.missing == 2


def test_a_record_that_names_samples_of_another_block_is_found(writer):
    column = writer().write("dino").column
    record = column.record(0, 1)
    changed = type(record)(**{**vars(record), "present": ((0, 8),)})
    column.location.write_bytes("records/v000-b000001.json", changed.to_bytes())
    assert "names samples that are not of its block" in verify(writer().place).problems[0].what


def test_features_that_decode_to_no_number_are_found(writer, monkeypatch):
    maker = writer()
    monkeypatch.setattr("pipeline.cache.level_codec.LevelCodec._refuse_unfit", lambda *arguments: None)
    maker.write("clip")
    monkeypatch.undo()
    decode = ColumnCodec.decode

    def broken(self, arrays, levels):
        return decode(self, {name: array * float("nan") for name, array in arrays.items()}, levels)

    monkeypatch.setattr(ColumnCodec, "decode", broken)
    problems = verify(maker.place, deep=True).problems
    assert {each.sample for each in problems} == set(maker.keys)
    assert {each.what for each in problems} == {"decodes to numbers that are not finite"}


def test_progress_is_told(tiny):
    told = []
    verify(tiny, progress=lambda done, known: told.append((done, known)))
    assert told == [(1, 2), (2, 2)]


def test_a_damaged_memory_of_weights_is_found(tiny):
    known = seal({"model": "timm/made_up.sam", "weights_sha256": "0" * 64})
    file = tiny / "identities" / "0123.json"
    file.parent.mkdir()
    file.write_bytes(known)
    assert verify(tiny).sound
    for place in range(0, len(known), 9):
        file.write_bytes(known[:place] + bytes([known[place] ^ 1]) + known[place + 1 :])
        assert [Path(each.file).name for each in verify(tiny).problems] == ["0123.json"], place
    file.write_bytes(known[:-1])
    assert "damaged; the next extraction reads the weights again" in verify(tiny).problems[0].what


def test_a_problem_is_one_line_that_names_its_file_once(tiny):
    for file in files(tiny / "columns"):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        found = verify(tiny)
        for problem, line in zip(found.problems, found.to_text().splitlines(), strict=False):
            assert line.startswith(f"{problem.file}: ")
            assert line.count(f"{problem.file}: ") == 1, line
        file.write_bytes(whole)
