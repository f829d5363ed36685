"""The bytes of one shard."""

from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import pytest

from pipeline.cache.stores.base import ArrayLayout
from pipeline.cache.stores.zarr_shard import chunk_codec, decode_index, encode_index, index_bytes
from pipeline.cache.stores.zarr_store import ShardWriter
from pipeline.storage import open_location

SMALL = ArrayLayout("l3/scales", "float16", (7,), float("nan"))
LARGE = ArrayLayout("l3/values", "int8", (65, 64), 0)


def write(folder, array, rows, positions, block, codec="none"):
    with ThreadPoolExecutor(1) as helpers:
        writer = ShardWriter(open_location(folder), "shard", array, block, chunk_codec(codec, array), helpers)
        for position in positions:
            writer.append(np.array([position]), rows[position : position + 1])
        writer.seal()
        return writer.file.finish()


@pytest.mark.parametrize("array", [SMALL, LARGE])
def test_a_shard_is_chunks_with_checksums_then_the_index_with_its_own(tmp_path, array):
    rows = np.arange(4 * int(np.prod(array.shape))).astype(array.dtype).reshape(4, *array.shape)
    rows[2] = 0
    record = write(tmp_path, array, rows, [0, 2, 3], block=6)
    data = (tmp_path / "shard").read_bytes()
    assert record.bytes == len(data)
    index = np.frombuffer(data[-index_bytes(6) : -4], "<u8").reshape(6, 2)
    assert int.from_bytes(data[-4:], "little") == google_crc32c.value(data[-index_bytes(6) : -4])
    for position, (offset, length) in enumerate(index.tolist()):
        if position in (0, 2, 3):
            chunk = data[offset : offset + length]
            assert chunk[:-4] == rows[position].tobytes()
            assert int.from_bytes(chunk[-4:], "little") == google_crc32c.value(chunk[:-4])
        else:
            assert offset == length == 2**64 - 1
    large = array.nbytes >= 4096
    assert all(offset % 64 == 0 for offset in index[[0, 2, 3], 0].tolist()) or not large


@pytest.mark.parametrize("codec", ["zstd", "blosc", "pcodec"])
def test_encoded_chunks_decode_to_what_they_were(tmp_path, codec):
    rows = np.random.default_rng(0).normal(0, 3, (3, *SMALL.shape)).astype("float16")
    write(tmp_path, SMALL, rows, [0, 1, 2], block=3, codec=codec)
    data = np.frombuffer((tmp_path / "shard").read_bytes(), np.uint8)
    index = decode_index(data[-index_bytes(3) :], len(data), SMALL, plain=False)
    for row, (offset, length) in zip(rows, index.tolist(), strict=True):
        out = np.empty_like(row)
        chunk_codec(codec, SMALL).decode(data[offset : offset + length - 4].copy(), out)
        np.testing.assert_array_equal(out, row)


def tail_of(index):
    return np.frombuffer(encode_index(np.array(index, np.int64)), np.uint8)


@pytest.mark.parametrize(
    "index",
    [
        [[0, 18], [-1, 5]],
        [[0, 18], [5, -1]],
        [[-2, 18], [18, 18]],
        [[0, 18], [300, 18]],
        [[0, 17], [18, 18]],
        [[0, 18], [2**63 - 1, 18]],
        [[0, 2**63 - 1], [18, 18]],
    ],
)
def test_an_index_that_points_nowhere_is_refused_even_if_its_checksum_is_right(index):
    with pytest.raises(ValueError, match="cannot be"):
        decode_index(tail_of(index), 100, SMALL, plain=True)


def test_an_index_of_absent_and_present_chunks_is_accepted():
    index = decode_index(tail_of([[0, 18], [-1, -1]]), 100, SMALL, plain=True)
    assert index.tolist() == [[0, 18], [-1, -1]]
