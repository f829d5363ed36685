"""Files as bytes: JPEG, PNG, NPY and MAT, the same bytes for the same arrays whenever and wherever they are made."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

MAT_HEADER = b"MATLAB 5.0 MAT-file, procedural demo data"
"""Stands where scipy writes the date; 116 bytes when padded."""


def jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """A JPEG of an (H, W, 3) picture at quality 92."""
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=92, subsampling="4:2:0")
    return buffer.getvalue()


def png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG of an (H, W) or (H, W, 3) array."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def npy(array: NDArray[np.generic]) -> bytes:
    """An array in numpy's own format."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def mat(variables: dict[str, Any]) -> bytes:
    """A compressed MATLAB 5 file; its header says what it is instead of when it was made."""
    buffer = BytesIO()
    savemat(buffer, variables, do_compression=True)  # type: ignore[arg-type] # takes open files, the stubs do not say so
    return MAT_HEADER.ljust(116) + buffer.getvalue()[116:]


def normals_png(normals: NDArray[np.float32]) -> bytes:
    """Unit normals (H, W, 3) as a PNG that 2 * png / 255 - 1 decodes."""
    return png(np.asarray(np.clip((normals + 1.0) * 127.5 + 0.5, 0, 255), dtype=np.uint8))


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a PNG of 0 and 255."""
    return png(np.where(mask, 255, 0).astype(np.uint8))
