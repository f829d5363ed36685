"""Reading label files, with errors that name the file and say what to do."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.sample import DataError


def read_png(path: Path) -> NDArray[np.uint8]:
    """Stored values of an 8-bit label PNG: (H, W) indices or grey, or (H, W, 3); palettes are not applied."""
    values = _read(path, palette_as_rgb=False)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"{path}: a label PNG holds 8-bit values, this one {values.dtype}; write it again in 8 bits")
    return values


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image as RGB (H, W, 3) uint8, converted as PIL does; EXIF rotation is ignored."""
    return _read(path, palette_as_rgb=True)


def _read(path: Path, *, palette_as_rgb: bool) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB") if palette_as_rgb else image)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; check the tree with `sak-cli data check`") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); copy it again") from error


def read_lines(path: Path) -> tuple[str, ...]:
    """The non-empty lines of a split's list."""
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it lists the images of a split, one id a line") from error
