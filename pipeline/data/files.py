"""Reading label files, with errors that name the file and say what to do."""

from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.sample import DataError

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_png(path: Path) -> NDArray[np.uint8]:
    """Stored values of an 8-bit label PNG: (H, W) indices or grey, or (H, W, 3); palettes are not applied."""
    values = _read(path, palette_as_rgb=False)
    return values.astype(np.uint8) if values.dtype == bool else _bytes(values, path)


def _bytes(values: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    if values.dtype != np.uint8:
        raise DataError(f"{path}: a label PNG holds 8-bit values, this one {values.dtype}; write it again in 8 bits")
    return values


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Like `read_png` for masks from 0 to 255: in a 1-bit PNG, which has no other way to say it, a set pixel is 255."""
    values = _read(path, palette_as_rgb=False)
    return values.astype(np.uint8) * np.uint8(255) if values.dtype == bool else _bytes(values, path)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image as RGB (H, W, 3) uint8, converted as PIL does; EXIF rotation is ignored.

    DataError for 16-bit or floating-point pictures, which PIL would cut off at 255.
    """
    return _read(path, palette_as_rgb=True)


def read_values(path: Path) -> NDArray[Any]:
    """The stored numbers of a picture of any depth, such as a 16-bit PNG of millimetres."""
    return _read(path, palette_as_rgb=False)


def _read(path: Path, *, palette_as_rgb: bool) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            if palette_as_rgb and image.mode in DEEP_MODES:
                raise DataError(
                    f"{path} holds more than 8 bits a channel (mode {image.mode}); write it again in 8 bits"
                )
            return np.array(image.convert("RGB") if palette_as_rgb else image)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; complete the tree, or leave its task out") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); copy it again") from error


def read_array(path: Path) -> NDArray[Any]:
    """The numbers of a .npy file; DataError for a missing, damaged or other one."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; complete the tree, or leave its task out") from error
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise DataError(f"{path} is not an array of numbers ({_first_sentence(error)}); copy it again") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise DataError(f"{path} is not one array of real numbers; a .npy file of depth is (H, W)")
    return values


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ", 1)[0]


def finite_depth(depth: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """Depth in float32; DataError where it is NaN or infinite."""
    if not np.isfinite(depth).all():
        raise DataError(f"{path} holds depths that are not finite; write 0 where depth is unknown")
    return depth.astype(np.float32)


def read_lines(path: Path) -> tuple[str, ...]:
    """The non-empty lines of a split's list; DataError where there are none, or one is there twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: it lists the images of a split, one id a line; give the folder of the data set itself"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it lists the images of a split, one id a line") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise DataError(f"{path} lists no images; it needs one id a line")
    twice = [line for line, times in Counter(lines).items() if times > 1]
    if twice:
        raise DataError(f"{path} lists {twice[0]} more than once; an image counts once in a split")
    return lines
