"""Columns in plain zarr v3: other libraries read the same numbers."""

import json
import threading

import google_crc32c
import numpy as np
import pytest
import zarr

from pipeline.cache.stores.base import ArrayLayout, ColumnLayout, DamageError
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location
from sak.errors import UsageError

NAN = float("nan")
ARRAYS = (
    ArrayLayout("l3/values", "int8", (6, 5), 0),
    ArrayLayout("l3/scales", "float16", (6,), NAN),
    ArrayLayout("l12/values", "uint16", (70, 64), 0x7FC0),
    ArrayLayout("l12/nibbles", "uint8", (6, 3), 0),
    ArrayLayout("l12/leftover", "float32", (), NAN),
)
ABSENT = 4


def make_data(layout, views=2):
    rng = np.random.default_rng(0)
    return {
        array.name: rng.integers(0, 100, (views, layout.samples, *array.shape)).astype(array.dtype)
        for array in layout.arrays
    }


def make_column(folder, codec="none", views=2):
    layout = ColumnLayout(ARRAYS, samples=11, block=4, codec=codec)
    store, data = ZarrStore(open_location(folder), layout), make_data(layout)
    data["l3/values"][0, 0] = 0
    store.prepare(views)
    for view in range(views):
        for block in range(layout.blocks):
            samples = np.array([sample for sample in layout.block_samples(block) if sample != ABSENT])
            with store.open_block(view, block) as writer:
                writer.append(samples % layout.block, {name: values[view, samples] for name, values in data.items()})
                writer.finish()
    return store, data


def fill_of(array):
    return np.full(array.shape, array.fill, array.dtype)


CODECS = [
    "none",
    "zstd",
    "blosc",
    pytest.param("pcodec", marks=pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")),
]


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_python_opens_the_column_and_reads_the_same(tmp_path, codec):
    store, data = make_column(tmp_path, codec)
    group = zarr.open(str(tmp_path), mode="r")
    assert isinstance(group, zarr.Group)
    assert sorted(group.group_keys()) == ["l12", "l3"]
    for array in ARRAYS:
        expected = data[array.name].copy()
        expected[:, ABSENT] = fill_of(array)
        opened = group[array.name]
        assert opened.shape == (2, 11, *array.shape)
        assert opened.shards == (1, 4, *array.shape)
        assert opened.chunks == (1, 1, *array.shape)
        np.testing.assert_array_equal(opened[...], expected)
        ours = store.read(1, np.arange(11), [array.name])[array.name]
        np.testing.assert_array_equal(ours, expected[1])


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc"])
def test_tensorstore_reads_the_same(tmp_path, codec):
    tensorstore = pytest.importorskip("tensorstore")
    _, data = make_column(tmp_path, codec)
    for array in ARRAYS:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/{array.name}/"}}
        read = np.asarray(tensorstore.open(spec, open=True, read=True).result().read().result())
        expected = data[array.name].copy()
        expected[:, ABSENT] = fill_of(array)
        np.testing.assert_array_equal(read, expected)


def test_written_zeros_are_chunks_of_their_own(tmp_path):
    store, _ = make_column(tmp_path)
    assert store.present(0, 0)[0]
    assert not store.read(0, [0], ["l3/values"])["l3/values"].any()


@pytest.mark.parametrize("codec", ["zstd", "blosc", "pcodec"])
def test_a_flipped_byte_in_an_encoded_chunk_is_an_error(tmp_path, codec):
    store, data = make_column(tmp_path, codec)
    path = tmp_path / "l12/values/c.0.0.0.0"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(bytes(content))
    store.forget()
    with pytest.raises(DamageError, match="sample 0 of view 0"):
        store.read(0, [0, 1], ["l12/values"])
    np.testing.assert_array_equal(store.read(0, [1], ["l12/values"])["l12/values"], data["l12/values"][0, [1]])


def test_views_are_appended_and_never_taken_away(tmp_path):
    store, data = make_column(tmp_path, views=1)
    assert zarr.open(str(tmp_path), mode="r")["l3/values"].shape[0] == 1
    store.prepare(2)
    store.prepare(1)
    grown = zarr.open(str(tmp_path), mode="r")["l3/values"]
    assert grown.shape[0] == 2
    np.testing.assert_array_equal(grown[0, 1], data["l3/values"][0, 1])
    assert not grown[1].any()
    assert store.check_metadata(2) == ()


def test_preparing_again_writes_nothing(tmp_path):
    store, _ = make_column(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("zarr.json")}
    store.prepare(2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("zarr.json")} == before


def test_many_may_prepare_at_once(tmp_path):
    layout = ColumnLayout(ARRAYS, samples=11, block=4)
    threads = [threading.Thread(target=ZarrStore(open_location(tmp_path), layout).prepare, args=(2,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ZarrStore(open_location(tmp_path), layout).check_metadata(2) == ()


def test_every_changed_byte_of_the_metadata_is_found(tmp_path):
    store = ZarrStore(open_location(tmp_path), ColumnLayout(ARRAYS[1:2], samples=11, block=4))
    store.prepare(2)
    for name in ("zarr.json", "l3/scales/zarr.json"):
        content = (tmp_path / name).read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1
            (tmp_path / name).write_bytes(bytes(changed))
            assert [damage.path for damage in store.check_metadata(2)] == [name], position
        (tmp_path / name).write_bytes(content)


def test_lost_metadata_is_found_and_made_again(tmp_path):
    store, _ = make_column(tmp_path)
    (tmp_path / "l3/values/zarr.json").unlink()
    assert [damage.path for damage in store.check_metadata(2)] == ["l3/values/zarr.json"]
    store.prepare(2)
    assert store.check_metadata(2) == ()


def test_too_few_views_in_the_metadata_are_found(tmp_path):
    store, _ = make_column(tmp_path)
    assert store.check_metadata(3)


def test_a_column_of_other_arrays_is_not_written_into(tmp_path):
    make_column(tmp_path)
    other = ColumnLayout(ARRAYS, samples=12, block=4)
    with pytest.raises(DamageError, match=r"zarr\.json"):
        ZarrStore(open_location(tmp_path), other).prepare(1)
    changed = json.loads((tmp_path / "l3/values/zarr.json").read_text())
    changed["fill_value"] = 1
    (tmp_path / "l3/values/zarr.json").write_text(json.dumps(changed))
    with pytest.raises(DamageError, match=r"l3/values/zarr\.json"):
        ZarrStore(open_location(tmp_path), ColumnLayout(ARRAYS, samples=11, block=4)).prepare(2)


def test_one_folder_an_array_holds_all_its_shards(tmp_path):
    make_column(tmp_path)
    found = sorted(path.name for path in (tmp_path / "l3/scales").iterdir())
    assert found == [*(f"c.{view}.{block}.0" for view in range(2) for block in range(3)), "zarr.json"]


def test_an_unknown_codec_names_the_known_ones(tmp_path):
    layout = ColumnLayout(ARRAYS, samples=11, block=4, codec="zsdt")
    with pytest.raises(UsageError, match="did you mean 'zstd'"):
        ZarrStore(open_location(tmp_path), layout).prepare(1)


def rewrite(path, changes):
    """The document at `path` with `changes` (None removes), sealed as every version of ours seals."""
    document = {**json.loads(path.read_text()), **changes}
    plain = {name: value for name, value in document.items() if name != "attributes" and value is not None}
    seal = f"{google_crc32c.value(json.dumps(plain, sort_keys=True).encode()):08x}"
    path.write_text(json.dumps({**plain, "attributes": {"crc32c": seal}}, sort_keys=True, indent=1) + "\n")


BEFORE = {
    "l3/scales": {
        "shape": [2, 11, 6],
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4, 6]}},
        "fill_value": "NaN",
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "chunk_shape": [1, 1, 6],
    },
    "l12/values": {
        "shape": [2, 11, 70, 64],
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4, 70, 64]}},
        "fill_value": 0x7FC0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
            {"name": "crc32c"},
        ],
        "chunk_shape": [1, 1, 70, 64],
    },
    "l3/values": {
        "shape": [2, 11, 6, 5],
        "data_type": "int8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4, 6, 5]}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes"},
            {
                "name": "blosc",
                "configuration": {
                    "typesize": 1,
                    "cname": "zstd",
                    "clevel": 5,
                    "shuffle": "bitshuffle",
                    "blocksize": 0,
                },
            },
            {"name": "crc32c"},
        ],
        "chunk_shape": [1, 1, 6, 5],
    },
}


@pytest.mark.parametrize(("name", "codec"), [("l3/scales", "none"), ("l12/values", "zstd"), ("l3/values", "blosc")])
def test_documents_that_were_written_by_hand_before_are_sound_and_are_what_zarr_makes(tmp_path, name, codec):
    store, _ = make_column(tmp_path, codec)
    document = {**BEFORE[name], "zarr_format": 3, "node_type": "array", "storage_transformers": []}
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    inner = {"chunk_shape": document.pop("chunk_shape"), "codecs": document["codecs"]}
    inner |= {"index_codecs": index, "index_location": "end"}
    document["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
    document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "."}}
    path = tmp_path / name / "zarr.json"
    made = path.read_bytes()
    path.write_text("{}")
    rewrite(path, document)
    assert path.read_bytes() == made
    assert store.check_metadata(2) == ()


def test_documents_are_compared_by_what_zarr_understands(tmp_path):
    store, data = make_column(tmp_path)
    path = tmp_path / "l3/values/zarr.json"
    codecs = json.loads(path.read_text())["codecs"]
    codecs[0]["configuration"].pop("index_location")  # at the end, where nothing is said
    rewrite(path, {"storage_transformers": None, "codecs": codecs})
    assert store.check_metadata(2) == ()
    store.prepare(3)
    np.testing.assert_array_equal(zarr.open(str(tmp_path), mode="r")["l3/values"][1, 1], data["l3/values"][1, 1])
    rewrite(path, {"fill_value": 1})
    assert [(each.path, each.problem) for each in store.check_metadata(2)] == [
        ("l3/values/zarr.json", "not what was written for this column")
    ]


def test_a_lost_group_is_made_again(tmp_path):
    store, _ = make_column(tmp_path)
    (tmp_path / "l3/zarr.json").unlink()
    store.prepare(2)
    assert store.check_metadata(2) == ()
