"""Images that cannot be used are listed with their reasons, and never read; all others are kept, odd as they may be."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.folder import Cache
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.tools.verify import verify
from sak.errors import SakError


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _huge_png() -> bytes:
    """A header of 30,000 x 30,000 pixels with next to nothing behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def planted(tmp_path, write_shard, jpeg) -> str:
    """20 photos, of which 4 are unusable and 5 unusual."""
    picture = Image.open(io.BytesIO(jpeg(7)))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture.convert("P"), picture.rotate(90).convert("P")]
    files = {f"p{number:02d}.jpg": jpeg(number) for number in range(11)}
    files |= {
        "bad-cut.jpg": jpeg(50, size=(300, 300))[:2000],
        "bad-empty.jpg": b"",
        "bad-text.jpg": b"<html>not found</html>",
        "bad-huge.png": _huge_png(),
        "odd-16bit.png": _saved(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
        "odd-cmyk.jpg": jpeg(51, mode="CMYK"),
        "odd-animated.gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "odd-rotated.jpg": _saved(picture, "JPEG", exif=exif),
        "odd-grey.jpg": jpeg(52, mode="L"),
    }
    folder = tmp_path / "planted"
    folder.mkdir()
    write_shard(folder / "a.tar", dict(sorted(files.items())))
    return str(folder)


def test_unusable_images_are_listed_with_reasons_and_never_read(run, planted, tmp_path):
    report = run(planted, max_bad=0.25)
    assert report.status == "complete"
    reasons = {each.key: each.reason for each in report.bad}
    assert set(reasons) == {"bad-cut", "bad-empty", "bad-text", "bad-huge"}
    assert "does not decode" in reasons["bad-cut"]
    assert reasons["bad-empty"] == "zero bytes"
    assert "not an image" in reasons["bad-text"]
    assert "89478485" in reasons["bad-huge"]
    features = FeatureCache.open(str(tmp_path / "cache"))
    keys = features.sample_table.keys(features.samples)
    assert len(keys) == 16
    assert not any(key.startswith("bad") for key in keys)
    assert sum(key.startswith("odd") for key in keys) == 5
    assert features.read(features.samples).decode()
    assert not features.partial
    assert verify(str(tmp_path / "cache"), deep=True).sound
    assert run(planted, max_bad=0.25).status == "nothing to do"
    assert "bad-text: not an image" in report.to_text()


def test_a_run_with_too_many_unusable_images_stops_and_lists_them(run, planted, tmp_path):
    with pytest.raises(
        SakError, match=r"of 20 images cannot be used, more than --max-bad 0.001 allows.*bad-cut: "
    ) as e:
        run(planted)
    assert "\n" not in str(e.value)
    with pytest.raises(SakError, match="cannot be used"):
        run(planted)
    reports = list(Path(tmp_path, "cache", "reports").iterdir())
    assert len(reports) >= 1
    assert run(planted, max_bad=0.2).status in ("complete", "nothing to do")
    with pytest.raises(SakError, match="4 of 20 images cannot be used"):
        run(planted)
    with pytest.raises(SakError, match="2 of 2 images cannot be used"):
        run(planted, limit=2)


def test_bad_images_do_not_change_the_bytes_of_other_batches(run, tmp_path, write_shard, jpeg):
    files = {f"p{number:02d}.jpg": jpeg(number) for number in range(16)}
    caches = {}
    for name, cut in (("good", files["p01.jpg"]), ("bad", b"")):
        folder = tmp_path / name
        folder.mkdir()
        write_shard(folder / "a.tar", files | {"p01.jpg": cut})
        run(str(folder), cache=tmp_path / f"cache-{name}", max_bad=0.5, teachers=["dinov2"])
        features = FeatureCache.open(str(tmp_path / f"cache-{name}"))
        numbers = np.arange(8, 16)
        assert [each.name for each in Cache.open(tmp_path / f"cache-{name}").columns]
        caches[name] = features.read(numbers).arrays["dinov2"]
    for array, values in caches["good"].items():
        assert np.array_equal(values, caches["bad"][array])
