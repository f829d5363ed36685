"""Image bytes to RGB, one way only: PIL's full decode, no shortcut that would give other pixels."""

import struct
import zlib
from io import BytesIO

from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.images.errors import BadImage

MAX_PIXELS = 89_478_485
"""Images whose header claims more are refused before anything is decoded: 256 MiB as RGB, where Pillow warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What an image may be, by its content; its name is not asked. None of these runs another program."""

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
        if image.mode == "P":
            image.info.pop("transparency", None)  # a warning, and no other pixels
        return image if image.mode == "RGB" else image.convert("RGB")
    except _DAMAGE as error:
        raise BadImage(f"{image.format} of {width} x {height} does not decode: {_line(error)}") from error


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
