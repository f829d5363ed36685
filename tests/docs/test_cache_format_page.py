"""docs/cache-format.md: the reader it prints, with numpy, json and zarr alone, reads what our code wrote."""

import ast

import numpy as np
import pytest
import torch

from pipeline.cache.column import Column
from sak.features import FeatureMaps
from tests.docs.pages import block_with, page
from tests.pipeline.cache.conftest import Writer, make_spec

SOURCE = block_with(page("cache-format.md"), "def read_map")
ENCODINGS = ["float16", "bfloat16", "int8", "int4", {"kind": "int8", "pca": 3}, {"kind": "int4", "pca": 4}]


@pytest.fixture(scope="module")
def reader():
    names = {}
    exec(compile(SOURCE, "docs/cache-format.md", "exec"), names)
    return names


def test_the_reader_imports_nothing_of_ours():
    tree = ast.parse(SOURCE)
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {
        *("hashlib", "io", "json", "math", "struct", "tarfile", "pathlib", "urllib", "numpy", "zarr")
    }


def spec_of(encoding, **layout):
    def teacher(model, **more):
        return {"model": model, "levels": [2, 4], "encoding": encoding, **more}

    teachers = {"dino": teacher("timm/made_up.dino"), "sam": teacher("timm/samvit_made_up.sa1b", grid="projection")}
    return make_spec(teachers=teachers, **layout)


@pytest.mark.parametrize("layout", [{}, {"codec": "zstd"}, {"format": "webdataset"}], ids=["plain", "zstd", "tars"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_the_printed_reader_gives_our_values(reader, tmp_path, encoding, layout):
    writer = Writer(
        tmp_path / "cache", spec_of(encoding, **layout), tuple(f"a/n.{i}" for i in range(10)), {"a/n.3": "cut"}
    )
    for name in ("dino", "sam"):
        column = Column.open(*_place(writer.write(name, views=2)))
        folder = tmp_path / "cache" / column.id.path
        assert reader["read_map"](folder, 3, 4) is None
        for sample, view, level in ((0, 0, 2), (9, 1, 4)):
            ours = _ours(column, sample, view, level)
            theirs = reader["read_map"](folder, sample, level, view)
            assert theirs.shape == ours.shape
            np.testing.assert_allclose(theirs, ours, rtol=2e-6, atol=2e-6 * float(np.abs(ours).max()))


@pytest.mark.parametrize("width", [48, 50, 96, 384, 768, 1024, 1280])
def test_the_printed_rotation_is_ours_at_every_width(reader, width):
    from pipeline.cache.quantizers import Rotation

    values = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    ours = Rotation(width).inverse(values).numpy()
    np.testing.assert_allclose(reader["unrotate"](values.numpy()), ours, atol=1e-5)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A column of one teacher where the page's examples look for it, in both formats."""
    from pipeline.cache.tools.copy import copy_cache

    teachers = {"dino": {"model": "timm/made_up.dino", "levels": [2, 4]}}
    Writer(tmp_path / "demo/cache", make_spec(teachers=teachers)).write("dino")
    copy_cache(tmp_path / "demo/cache", tmp_path / "demo/tars", to_format="webdataset")
    monkeypatch.chdir(tmp_path)


def run_example(name, words):
    """What a page's example leaves behind; the made-up column has levels 2 and 4."""
    names = {}
    exec(compile(block_with(page(name), words).replace("l9/", "l2/"), name, "exec"), names)
    return names


def test_the_example_with_zarr_hands_out_what_our_reader_reads(opened):
    names = run_example("cache-format.md", "cache.columns")
    expected = names["column"].store.read(0, [5], ["l2/values"])["l2/values"][0]
    np.testing.assert_array_equal(names["values"], expected)
    group = run_example("api.md", "zarr_group")["group"]
    assert group.read_only
    assert group["l2/scales"].shape[1] == 20


def test_the_example_with_webdataset_gives_every_sample(opened, capsys):
    shape = run_example("cache-format.md", ".webdataset(")["sample"]["l2/values"].shape
    assert sorted(capsys.readouterr().out.splitlines()) == [f"n{number:03d} {shape}" for number in range(20)]


def _place(writable):
    column = writable.column
    return column.folder, column.id


def _ours(column, sample, view, level):
    arrays = column.store.read(view, [sample], [each.name for each in column.manifest.layout.arrays])
    found = column.codec().decode({name: torch.from_numpy(each) for name, each in arrays.items()}, [level])
    target = found.maps[0]
    return (target if isinstance(found, FeatureMaps) else target.map)[0].numpy()
