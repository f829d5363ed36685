import io
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.images.access import MAX_PIXELS, decode_rgb
from pipeline.images.source import BadImage

GREY = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)


def saved(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_format_decodes_to_what_pil_makes_of_it(suffix, image):
    data = image(1, suffix)
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_greyscale_is_repeated():
    pixels = np.asarray(decode_rgb(saved(Image.fromarray(GREY), "PNG")))
    assert np.array_equal(pixels, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_other_modes_become_rgb_as_pil_does_without_a_warning(mode):
    grey = Image.fromarray(GREY)
    image = Image.fromarray(GREY.astype(np.uint16) * 3) if mode == "I;16" else grey.convert(mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    data = saved(image, "PNG", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = decode_rgb(data)
    assert ours.mode == "RGB"
    assert np.array_equal(np.asarray(ours), theirs)


def test_sixteen_bits_are_clipped_not_scaled():
    pixels = np.asarray(decode_rgb(saved(Image.fromarray(np.array([[0, 7, 255, 256, 65535]], np.uint16)), "PNG")))
    assert pixels[0, :, 0].tolist() == [0, 7, 255, 255, 255]


def test_cmyk_becomes_rgb_as_pil_does():
    data = saved(Image.fromarray(GREY).convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_rotation_noted_in_exif_is_ignored(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.open(io.BytesIO(image(3)))
    assert decode_rgb(saved(plain, "JPEG", exif=exif)).size == plain.size


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(decode_rgb(data).get_flattened_data()) == {(255, 0, 0)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "zero bytes"), (b"\0" * 100, "not an image"), (b"<html>not found</html>", "not an image")],
)
def test_what_is_no_image_says_so(data, reason):
    with pytest.raises(BadImage, match=reason) as failure:
        decode_rgb(data)
    assert failure.value.reason == str(failure.value)


def test_a_name_of_another_format_does_not_matter_but_postscript_is_never_run():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(BadImage, match="not an image"):
        decode_rgb(script)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_an_image_cut_anywhere_is_refused_never_grey(suffix, image):
    data = image(5, suffix, (64, 48))
    whole = np.asarray(decode_rgb(data))
    for kept in (0.02, 0.3, 0.6, 0.9):
        with suppress(BadImage):
            assert np.array_equal(np.asarray(decode_rgb(data[: int(len(data) * kept)])), whole), kept


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "GIF"])
def test_absurd_dimensions_are_refused_before_decoding(suffix, monkeypatch):
    data = bytearray(saved(Image.new("L", (30, 30)), suffix))
    if suffix == "PNG":
        data[16:24] = (30_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif suffix == "BMP":
        data[18:26] = (30_000).to_bytes(4, "little") * 2
    else:
        data[6:10] = (30_000).to_bytes(2, "little") * 2
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoding began"))
    with pytest.raises(BadImage, match=str(MAX_PIXELS)):
        decode_rgb(bytes(data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_is_ours_whether_pillow_warns_or_not():
    data = bytearray(saved(Image.new("L", (30, 30)), "BMP"))
    data[18:26] = (10_000).to_bytes(4, "little") * 2
    with pytest.raises(BadImage, match="10000 x 10000"):
        decode_rgb(bytes(data))


def test_decoding_refuses_to_work_where_cut_images_would_pass(image, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode_rgb(image())


@given(st.sampled_from(["JPEG", "PNG", "BMP"]), st.data())
def test_damage_of_any_kind_is_a_bad_image_or_an_image(image, suffix, draw):
    data = bytearray(image(2, suffix))
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[place] = draw.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(BadImage):
            assert decode_rgb(bytes(data[: draw.draw(st.integers(0, len(data)))])).mode == "RGB"
