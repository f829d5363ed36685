"""Small tars and images to plant faults in."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Members = Sequence[tuple[str, bytes]]
TarMaker = Callable[..., bytes]


def _image(number: int = 0, suffix: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


def _tar(members: Members, form: int = tarfile.USTAR_FORMAT, extra: Sequence[tarfile.TarInfo] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return file.getvalue()


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    """`image(number, format, (width, height))`: the bytes of a small image."""
    return _image


@pytest.fixture(scope="session")
def tar() -> TarMaker:
    """`tar([(name, bytes)], form, extra)`: the bytes of a tar."""
    return _tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four labelled samples in a folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        members = []
        for sample in range(4):
            number = 4 * shard + sample
            members += [(f"s{number:02d}.jpg", _image(number)), (f"s{number:02d}.cls", str(number % 5).encode())]
        (folder / f"train-{shard:03d}.tar").write_bytes(_tar(members))
    return folder
