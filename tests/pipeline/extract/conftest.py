"""Small photos, a spec of small teachers with the real architectures, and a Dask cluster inside this process."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from distributed import LocalCluster
from PIL import Image

from pipeline.cluster import ClusterConfig
from pipeline.extract.columns import ExtractConfig
from pipeline.extract.stage import extract
from pipeline.progress import Messages

TEACHERS = {
    "dinov2": {
        "model": "timm/vit_small_patch14_dinov2.lvd142m",
        "weights": "random:1",
        "overrides": {"embed_dim": 48, "depth": 4, "num_heads": 3},
        "encoding": "float16",
    },
    "clip": {
        "model": "timm/vit_base_patch16_clip_quickgelu_224.openai",
        "weights": "random:2",
        "overrides": {"embed_dim": 32, "depth": 4, "num_heads": 2},
        "encoding": "int8",
    },
    "sam": {
        "model": "timm/samvit_base_patch16.sa1b",
        "weights": "random:3",
        "input_size": 128,
        "overrides": {"embed_dim": 32, "depth": 4, "num_heads": 2, "window_size": 3},
        "encoding": "int8",
    },
}
FOURTH = {
    "siglip": {
        "model": "timm/vit_base_patch16_siglip_224.webli",
        "weights": "random:4",
        "overrides": {"embed_dim": 32, "depth": 4, "num_heads": 2},
        "encoding": "int4",
    }
}


def write_spec(path: Path, teachers=TEACHERS, **changes) -> str:
    """A spec file with views of 56 x 56 pixels."""
    document = {
        "views": {"kind": "random_resized_crop", "size": 56, "seed": 3},
        "block": 16,
        "calibration": {"samples": 8},
        "teachers": teachers,
    }
    path.write_text(yaml.safe_dump(document | changes, sort_keys=False))
    return str(path)


def jpeg(seed: int, size=(80, 64), mode="RGB") -> bytes:
    """A blurred random picture."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """A tar of `<key>.<ext>` members."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_shards(folder: Path, count=40, shards=2) -> str:
    """`count` photos in a few tars."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        names = range(shard, count, shards)
        write_shard(folder / f"train-{shard:03d}.tar", {f"p{number:04d}.jpg": jpeg(number) for number in names})
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scheduler():
    """The address of a Dask scheduler whose one worker is this process."""
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """40 photos in two tars."""
    return write_shards(tmp_path_factory.mktemp("photos") / "shards")


@pytest.fixture
def run(scheduler, tmp_path):
    """Extract in this process: `run(data, spec=..., cache=..., **config)` returns the report, lines in `.said`."""

    def extract_here(data, spec=None, cache=None, **config):
        said = []
        config.setdefault("batch_size", 8)
        config = ExtractConfig(
            spec=spec or write_spec(tmp_path / "spec.yaml"),
            data=data,
            cache=str(cache or tmp_path / "cache"),
            cluster=ClusterConfig(scheduler=scheduler, device="cpu"),
            **config,
        )
        extract_here.said = said
        return extract(config, Messages(say=said.append))

    return extract_here


def bytes_of(cache: Path) -> dict[str, bytes]:
    """Every file of a cache's columns that an uninterrupted run writes the same way; records without their facts."""
    from pipeline.cache.records import BlockRecord

    found = {}
    for path in sorted(Path(cache, "columns").rglob("*")):
        if not path.is_file() or "leases" in path.parts:
            continue
        data = path.read_bytes()
        if path.parent.name == "records":
            record = BlockRecord.from_bytes(data, str(path))
            data = repr([getattr(record, name) for name in vars(record) if name != "facts"]).encode()
        found[os.path.relpath(path, cache)] = data
    return found


@pytest.fixture(name="bytes_of")
def _bytes_of():
    return bytes_of


@pytest.fixture(name="write_spec")
def _write_spec():
    return write_spec


@pytest.fixture(name="write_shard")
def _write_shard():
    return write_shard


@pytest.fixture(name="write_shards")
def _write_shards():
    return write_shards


@pytest.fixture(name="jpeg")
def _jpeg():
    return jpeg


@pytest.fixture(name="teachers")
def _teachers():
    return TEACHERS


@pytest.fixture(name="fourth")
def _fourth():
    return FOURTH
