"""Columns as webdataset: other tools read the same numbers, and no key leaves its place."""

import gc
import io
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.stores.base import ArrayLayout, ColumnLayout
from pipeline.cache.stores.tar_store import MemberHeaders, TarStore, npy_header, safe_key
from pipeline.storage import open_location
from sak.errors import UsageError

ARRAYS = (
    ArrayLayout("l3/values", "int8", (6, 5), 0),
    ArrayLayout("l3/scales", "float16", (6,), float("nan")),
    ArrayLayout("l12/leftover", "float32", (), float("nan")),
)
LAYOUT = ColumnLayout(ARRAYS, samples=7, block=4)
KEYS = ["a", "n01/img.0.x", "../../etc/passwd", "/abs", "é ü", "k" * 150, "dir//x"]
ABSENT = 2


def make_column(folder, view=1):
    rng = np.random.default_rng(0)
    data = {array.name: rng.integers(-99, 99, (7, *array.shape)).astype(array.dtype) for array in ARRAYS}
    store = TarStore(open_location(folder), LAYOUT, KEYS.__getitem__)
    for block in range(LAYOUT.blocks):
        samples = np.array([sample for sample in LAYOUT.block_samples(block) if sample != ABSENT])
        with store.open_block(view, block) as writer:
            writer.append(samples % 4, {name: values[samples] for name, values in data.items()})
            writer.finish()
    return store, data


PRESENT = [sample for sample in range(7) if sample != ABSENT]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files to the collector
def test_webdataset_reads_samples_in_order_with_plain_decoding(tmp_path):
    _, data = make_column(tmp_path)
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [unquote(sample["__key__"]) for sample in samples] == [KEYS[i] for i in PRESENT]
    for number, sample in zip(PRESENT, samples, strict=True):
        for array in ARRAYS:
            value = sample[f"1.{array.name.replace('/', '.')}.npy"]
            np.testing.assert_array_equal(value, data[array.name][number])
            assert value.dtype == array.dtype
    gc.collect()


def test_tarfile_reads_every_member_and_numpy_every_array(tmp_path):
    _, data = make_column(tmp_path)
    found = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, rest = member.name.partition(".")
                assert member.isfile()
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
                values = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
                name = rest.removeprefix("1.").removesuffix(".npy").replace(".", "/")
                np.testing.assert_array_equal(values, data[name][KEYS.index(unquote(key))])
                found.append((unquote(key), name))
    assert found == [(KEYS[i], array.name) for i in PRESENT for array in ARRAYS]


def test_unpacking_leaves_nothing_outside_the_folder(tmp_path):
    make_column(tmp_path / "column")
    out = tmp_path / "deep" / "er" / "out"
    out.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    for path in (tmp_path / "column").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(out, filter="fully_trusted")
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    assert len([path for path in out.rglob("*") if path.is_file()]) == len(PRESENT) * len(ARRAYS)


@given(st.text(min_size=1))
def test_safe_keys_have_no_dots_stay_inside_and_give_the_key_back(key):
    safe = safe_key(key)
    assert unquote(safe) == key
    assert "." not in safe
    assert safe.isascii()
    assert not safe.startswith("/")
    assert "//" not in safe
    assert not safe.endswith("/")


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_keys_have_different_names(first, second):
    assert (safe_key(first) == safe_key(second)) == (first == second)


def test_folders_in_keys_stay_folders():
    assert safe_key("n01440764/n01440764_10026") == "n01440764/n01440764_10026"
    assert safe_key("../x") == "%2E%2E/x"
    assert safe_key("/x") == "%2Fx"


@given(st.text(st.characters(codec="ascii", categories=["Lu", "Ll", "Nd"]), min_size=1, max_size=120))
def test_fast_headers_are_those_of_tarfile(key):
    array = ARRAYS[0]
    info = tarfile.TarInfo(f"{key}.3.l3.values.npy")
    info.size, info.mode = len(npy_header(array)) + array.nbytes, 0o644
    assert MemberHeaders(array, 3).of(key) == info.tobuf(tarfile.GNU_FORMAT) + npy_header(array)


def test_reading_takes_no_keys_and_writing_does(tmp_path):
    _, data = make_column(tmp_path)
    store = TarStore(open_location(tmp_path), LAYOUT)
    np.testing.assert_array_equal(store.read(1, PRESENT, ["l3/values"])["l3/values"], data["l3/values"][PRESENT])
    with pytest.raises(ValueError, match="keys"):
        store.open_block(0, 0)


def test_codecs_are_refused_since_a_tar_holds_plain_arrays(tmp_path):
    with pytest.raises(UsageError, match="codec 'zstd' goes with format zarr"):
        TarStore(open_location(tmp_path), ColumnLayout(ARRAYS, 7, 4, "zstd"))
