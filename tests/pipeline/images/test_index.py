import os
import pickle
import struct
from hashlib import sha256

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.build import build_index
from pipeline.images.index import ShardIndex
from pipeline.images.index_file import Columns, IndexHeader, hash_keys, join_keys
from pipeline.images.source import IndexFileError, ShardError, StaleIndexError, Stamp
from pipeline.storage import MissingFileError


def made_up(keys, data="/data"):
    """An index over images that are nowhere."""
    key_bytes, key_ends = join_keys(keys)
    hashes, order = hash_keys(keys)
    count = len(keys)
    digest = np.frombuffer(b"".join(sha256(key.encode()).digest() for key in keys), np.uint8).reshape(-1, 32).copy()
    shard, suffix = np.zeros(count, np.int32), np.zeros(count, np.uint16)
    offset, size = np.arange(count) * 1024 + 512, np.full(count, 500)
    columns = Columns(
        key_bytes, key_ends, shard, suffix, offset, size, np.arange(count, dtype=np.int32), digest, hashes, order
    )
    stamps = (Stamp(10_000, 1.5),)
    return ShardIndex(columns, IndexHeader(data, "tars", data, ("a.tar",), stamps, (".jpg",)))


KEYS = st.lists(st.text(max_size=12).filter(lambda key: key.isprintable()), unique=True, min_size=1, max_size=40)


@pytest.fixture
def index(shards):
    return build_index(str(shards))


@given(KEYS)
def test_every_key_is_found_where_it_is_and_no_other(keys):
    index = made_up(keys)
    assert index.keys() == keys
    assert [index.find(key) for key in keys] == list(range(len(keys)))
    assert index.keys(range(len(keys))) == keys
    assert index.locate([*keys, "no such key anywhere"]).tolist() == [*range(len(keys)), -1]


@given(KEYS, st.data())
def test_a_subset_is_an_index_of_its_samples(keys, draw):
    index = made_up(keys)
    rows = draw.draw(st.lists(st.integers(0, len(keys) - 1), unique=True))
    subset = index.subset(rows)
    assert len(subset) == len(rows)
    assert subset.keys() == index.keys(rows)
    assert subset.locate(index.keys(rows)).tolist() == list(range(len(rows)))
    assert [subset.digest(new) for new in range(len(rows))] == [index.digest(old) for old in rows]
    assert [subset.byte_range(new) for new in range(len(rows))] == [index.byte_range(old) for old in rows]


def test_a_large_subset_is_taken_in_parts(monkeypatch):
    monkeypatch.setattr("pipeline.images.index_file._ROWS_AT_ONCE", 7)
    index = made_up([f"key-{number:x}" for number in range(100)])
    rows = np.random.default_rng(0).permutation(100)[:60]
    assert index.subset(rows).keys() == index.keys(rows)


def test_keys_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("pipeline.images.index_file.key_hash", lambda _: 5)
    index = made_up(["a", "b", "c"])
    index.columns.hashes[:] = 5
    assert [index.find(key) for key in "abc"] == [0, 1, 2]
    assert index.columns.find("d") is None


def test_a_limit_is_the_first_samples(index):
    assert index.limit(5).keys() == index.keys()[:5]
    assert index.limit(12) is index
    assert index.limit(99) is index
    assert len(index.limit(0)) == 0


def test_subsets_refuse_repeats_and_strangers(index):
    for rows in ([0, 0], [12], [-1]):
        with pytest.raises(ValueError, match="0 to 11"):
            index.subset(rows)


def test_unknown_keys_and_numbers_say_so(index):
    with pytest.raises(ShardError, match="no sample 'nothing' among 12"):
        index.find("nothing")
    for sample in (12, -1):
        with pytest.raises(IndexError, match="of 12"):
            index.key(sample)
        with pytest.raises(IndexError, match="of 12"):
            index.digest(sample)


def data_key(samples):
    """The data key by its definition, sample by sample."""
    keys = [key.encode() for key, _ in samples]
    ends = np.cumsum([len(key) for key in keys])
    text = b"sak data key 1\0" + struct.pack("<Q", len(samples)) + b"".join(struct.pack("<q", end) for end in ends)
    return sha256(text + b"".join(keys) + b"".join(digest for _, digest in samples)).hexdigest()


def test_the_data_key_follows_its_definition_and_is_pinned(index):
    assert index.data_key() == data_key([(index.key(row), index.digest(row)) for row in range(12)])
    assert made_up(["a", "bc"]).data_key() == "ac61fb67e74a9dd65aca1f7f5a0c05c6a8441deaea25614f712c95ac1079a67c"


def test_the_data_key_sees_keys_images_order_and_where_a_key_ends():
    base = made_up(["a", "bc", "d"])
    keys = {base.data_key(), made_up(["ab", "c", "d"]).data_key(), made_up(["a", "bc", "e"]).data_key()}
    keys |= {base.subset([0, 2, 1]).data_key(), base.limit(2).data_key(), base.limit(0).data_key()}
    base.columns.digest[1, 7] ^= 1
    keys.add(ShardIndex(base.columns, IndexHeader("", "tars", base.root.url, (), (), ())).data_key())
    assert len(keys) == 7


def test_the_data_key_does_not_depend_on_where_or_how_the_images_lie(index, tmp_path, tar, image):
    (tmp_path / "other.tar").write_bytes(tar([(f"s{number:02d}.jpg", image(number)) for number in range(12)]))
    assert build_index(str(tmp_path / "other.tar")).data_key() == index.data_key()


def test_a_saved_index_opens_as_it_was(index, tmp_path):
    path = tmp_path / "new" / "images.index"
    index.save(path)
    opened = ShardIndex.open(path)
    assert (opened.data, opened.kind, opened.data_key()) == (index.data, index.kind, index.data_key())
    assert (opened.shards, opened.stamps, opened.root) == (index.shards, index.stamps, index.root)
    assert opened.suffixes == index.suffixes
    for name in vars(index.columns):
        assert np.array_equal(getattr(opened.columns, name), getattr(index.columns, name))
        assert getattr(opened.columns, name).dtype == getattr(index.columns, name).dtype
    assert [each.name for each in path.parent.iterdir()] == ["images.index"]


def test_an_index_is_kept_at_a_url_too(index):
    index.save("memory://indices/images.index")
    assert ShardIndex.open("memory://indices/images.index").data_key() == index.data_key()


def test_an_empty_subset_is_saved_too(index, tmp_path):
    index.limit(0).save(tmp_path / "empty")
    assert ShardIndex.open(tmp_path / "empty").data_key() == index.limit(0).data_key()


def test_any_flipped_byte_of_the_file_is_found(index, tmp_path):
    path = tmp_path / "images.index"
    index.limit(3).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(IndexFileError) as failure:
            ShardIndex.open(path)
        assert "\n" not in str(failure.value)


def test_a_file_cut_anywhere_is_found(index, tmp_path):
    path = tmp_path / "images.index"
    index.save(path)
    whole = path.read_bytes()
    for kept in [0, 1, 8, 31, 32, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(IndexFileError, match=r"damaged|not a shard index"):
            ShardIndex.open(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(IndexFileError, match="damaged"):
        ShardIndex.open(path)


def test_a_newer_file_asks_for_a_newer_version(index, tmp_path, monkeypatch):
    path = tmp_path / "images.index"
    monkeypatch.setattr("pipeline.images.index_file.SCHEMA", 2)
    index.save(path)
    monkeypatch.undo()
    with pytest.raises(IndexFileError, match="written with schema 2, this version reads up to 1; upgrade"):
        ShardIndex.open(path)


def test_other_files_and_none_say_so(tmp_path):
    (tmp_path / "x").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(IndexFileError, match="not a shard index; build it"):
        ShardIndex.open(tmp_path / "x")
    with pytest.raises(MissingFileError, match="not there"):
        ShardIndex.open(tmp_path / "absent")


def test_pickling_an_opened_index_sends_its_path_and_refuses_another_file(index, tmp_path):
    path = tmp_path / "images.index"
    index.save(path)
    sent = pickle.dumps(ShardIndex.open(path))
    assert len(sent) < 500
    assert pickle.loads(sent).data_key() == index.data_key()
    index.limit(4).save(path)
    with pytest.raises(StaleIndexError, match="another index took its place"):
        pickle.loads(sent)
    built = pickle.loads(pickle.dumps(index))
    assert built.data_key() == index.data_key()
    assert built.find("s07") == 7


def test_unchanged_shards_pass_and_reading_them_changes_nothing(index, shards):
    (shards / "train-001.tar").read_bytes()
    index.check_shards()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "train-001.tar had 20480 bytes .* and has 20481"),
        (lambda path: os.utime(path, (5, 5)), "train-001.tar was written since it was indexed"),
        (lambda path: path.unlink(), "train-001.tar is gone since"),
        (lambda path: path.with_name("train-003.tar").write_bytes(b""), "train-003.tar is new since"),
    ],
)
def test_a_changed_shard_is_noticed_in_one_line(index, shards, change, message):
    change(shards / "train-001.tar")
    with pytest.raises(StaleIndexError, match=message) as failure:
        index.check_shards()
    assert "\n" not in str(failure.value)
    assert "index" in str(failure.value)


def test_a_changed_image_in_a_folder_is_noticed(tmp_path, image):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.jpg").write_bytes(image(1))
    (tmp_path / "n01" / "b.jpg").write_bytes(image(2))
    index = build_index(str(tmp_path))
    index.check_shards()
    os.utime(tmp_path / "n01" / "a.jpg", (2**32, 2**32))
    with pytest.raises(StaleIndexError, match="n01 was written since"):
        index.check_shards()


def test_changed_remote_shards_are_noticed(shards):
    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe_file(f"/stale/{path.name}", path.read_bytes())
    index = build_index("memory://stale")
    index.check_shards()
    files.pipe_file("/stale/train-002.tar", b"short")
    with pytest.raises(StaleIndexError, match=r"train-002.tar had 20480 bytes"):
        index.check_shards()


def test_an_index_moves_to_a_copy_of_the_data_but_not_to_other_data(index, shards, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = index.relocated(str(copy))
    assert moved.data_key() == index.data_key()
    assert moved.root.url == str(copy)
    moved.check_shards()
    (copy / "train-000.tar").write_bytes(b"other")
    with pytest.raises(StaleIndexError, match=r"train-000.tar had 20480 bytes when it was indexed and has 5"):
        index.relocated(str(copy))
