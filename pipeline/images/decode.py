"""Image bytes to RGB, one way only: PIL's full decode, no shortcut that would give other pixels."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pipeline.images.errors import BadImage

MAX_PIXELS = 89_478_485
"""Images whose header claims more are refused before anything is decoded: 256 MiB as RGB, where Pillow warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What an image may be, by its content; its name is not asked. None of these runs another program."""

MODES = {"F": "floating point", "I": "32 bits"}

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


def decode_rgb(data: bytes) -> Image.Image:
    """The first frame as an RGB image, converted as PIL does; BadImage says why there is none.

    Greyscale is repeated, palettes are looked up, CMYK is converted without a profile, 16-bit greyscale is clipped at
    255, transparency is dropped. EXIF rotation is ignored, as ImageNet's training code does.
    """
    image = _loaded(data)
    return image if image.mode == "RGB" else _converted(image)


def decode_photo(data: bytes) -> Image.Image:
    """The first frame as a person sees it, in RGB: turned as its EXIF says, 16-bit greyscale brought to 8 bits.

    All else as `decode_rgb`; BadImage for floating point and for whole numbers beyond 16 bits, whose white nothing
    tells.
    """
    image = _upright(_loaded(data))
    if not image.mode.startswith(("I", "F")):
        return image if image.mode == "RGB" else _converted(image)
    values = np.asarray(image)
    if image.mode == "F" or int(values.max()) > 0xFFFF or int(values.min()) < 0:
        raise BadImage(f"its pixels are {MODES.get(image.mode, image.mode)}; write it again in 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        return image


def _loaded(data: bytes) -> Image.Image:
    """Decoded pixels in the file's own mode; BadImage says why there are none."""
    if not data:
        raise BadImage("zero bytes")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: cut images would decode to grey areas unnoticed"
        )
    image = _open(data)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels, more than the {MAX_PIXELS} allowed")
    try:
        image.load()
    except _DAMAGE as error:
        raise _undecodable(image, error) from error
    if image.mode == "P":
        image.info.pop("transparency", None)  # a warning, and no other pixels
    return image


def _converted(image: Image.Image) -> Image.Image:
    try:
        return image.convert("RGB")
    except _DAMAGE as error:
        raise _undecodable(image, error) from error


def _undecodable(image: Image.Image, error: Exception) -> BadImage:
    width, height = image.size
    return BadImage(f"{image.format} of {width} x {height} does not decode: {_line(error)}")


def _open(data: bytes) -> Image.Image:
    """Read the header alone."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image ({len(data)} bytes, starting {data[:8]!r})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"its header claims more than the {MAX_PIXELS} pixels allowed") from error
    except _DAMAGE as error:
        raise BadImage(f"its header is damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    """An error's text on one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
