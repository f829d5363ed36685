"""Label files of data sets: pictures, arrays, lists, MATLAB files; errors name the file and say what to do."""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.ndimage import correlate

from sak.errors import SakError
from sak.metrics.boundary_thinning import thin
from sak.tasks import IGNORE


class DataError(SakError):
    """A file of a data set is missing, damaged, or not what its path says."""


DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_png(path: Path) -> NDArray[np.uint8]:
    """Stored values of an 8-bit label PNG: (H, W) indices or grey, or (H, W, 3); palettes are not applied."""
    return _eight_bits(path, 1)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Like `read_png` for masks from 0 to 255: in a 1-bit PNG, which has no other way to say it, a set pixel is 255."""
    return _eight_bits(path, 255)


def _eight_bits(path: Path, set_pixel: int) -> NDArray[np.uint8]:
    values = read_values(path)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(set_pixel)
    if values.dtype != np.uint8:
        raise DataError(f"{path}: a label PNG holds 8-bit values, this one {values.dtype}; write it again in 8 bits")
    return values


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image as RGB (H, W, 3) uint8, converted as PIL does; EXIF rotation is ignored.

    DataError for 16-bit or floating-point pictures, which PIL would cut off at 255.
    """
    return read_values(path, as_rgb=True)


def read_values(path: Path, *, as_rgb: bool = False) -> NDArray[Any]:
    """The stored numbers of a picture of any depth, such as a 16-bit PNG of millimetres; `as_rgb` see `read_rgb`."""
    try:
        with Image.open(path) as image:
            if as_rgb and image.mode in DEEP_MODES:
                raise DataError(
                    f"{path} holds more than 8 bits a channel (mode {image.mode}); write it again in 8 bits"
                )
            return np.array(image.convert("RGB") if as_rgb else image)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; complete the tree, or leave its task out") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); copy it again") from error


def check_classes(stored: NDArray[np.uint8], allowed: int, path: Path) -> NDArray[np.uint8]:
    """The stored class numbers themselves; DataError where one is neither below `allowed` nor 255."""
    wrong = stored[(stored >= allowed) & (stored != IGNORE)]
    if wrong.size:
        raise DataError(
            f"{path} holds class {int(wrong[0])}; classes are 0 to {allowed - 1}, and 255 to ignore a pixel"
        )
    return stored


def plane(values: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """(H, W) values as a float32 label (H, W, 1)."""
    if values.ndim != 2:
        raise DataError(f"{path} is {values.shape}, a label is (H, W); it may have been saved as a colour picture")
    return values.astype(np.float32)[:, :, None]


def decode_normals(path: Path) -> NDArray[np.float32]:
    """2 * png / 255 - 1 in float32: (H, W, 3), not normalised."""
    values = read_png(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{path}: normals are an RGB PNG, this one is {values.shape}")
    return np.float32(2) * values.astype(np.float32) / np.float32(255) - np.float32(1)


def read_array(path: Path) -> NDArray[Any]:
    """The numbers of a .npy file; DataError for a missing, damaged or other one."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; complete the tree, or leave its task out") from error
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise DataError(f"{path} is not an array of numbers ({str(error).split('. ', 1)[0]}); copy it again") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise DataError(f"{path} is not one array of real numbers; a .npy file of depth is (H, W)")
    return values


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


PERSON = 15
PARSER_REVISION = 1
PART_NAMES: Mapping[int, tuple[str, ...]] = {
    1: ("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"),
    2: ("neck", "torso"),
    3: ("luarm", "ruarm"),
    4: ("llarm", "rlarm", "lhand", "rhand"),
    5: ("luleg", "ruleg"),
    6: ("llleg", "rlleg", "lfoot", "rfoot"),
}
PART_OF = {name: part for part, names in PART_NAMES.items() for name in names}

# scipy has no error of its own for a damaged file: these are what its reader and the fields of our own parsers raise
_UNREADABLE = (
    *(MatReadError, OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError, OverflowError),
    *(KeyError, IndexError, TypeError, AttributeError, NotImplementedError, MemoryError),
)

Parser = Callable[[dict[str, Any]], NDArray[Any]]


def label_cache_folder() -> Path:
    """SAK_LABEL_CACHE, else sak/labels in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sak" / "labels"
    return Path(os.environ.get("SAK_LABEL_CACHE", default))


def label_map(path: Path) -> NDArray[np.int32]:
    """`LabelMap` of a PASCAL-Context .mat: (H, W) class numbers."""
    return _parsed(path, "label_map", _label_map)


def training_boundaries(path: Path) -> NDArray[np.bool_]:
    """Where the Laplacian of a PASCAL-Context LabelMap is not 0, thinned: (H, W)."""
    return _parsed(path, "training_boundaries", lambda mat: label_boundaries(_label_map(mat)))


def label_boundaries(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where the Laplacian of (H, W) labels (cross kernel, border mirrored) is not 0, thinned to one pixel."""
    cross = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.int64)
    return thin(correlate(labels.astype(np.int64), cross, mode="mirror") != 0)


def human_parts(path: Path) -> NDArray[np.uint8]:
    """Parts of all persons of a PASCAL-Part .mat as (H, W), 0 background and 1-6; zeros where nobody has parts.

    The union over persons; where parts overlap, the later in the file wins.
    """
    return _parsed(path, "human_parts", _merge_parts)


def persons(path: Path) -> int:
    """How many persons a PASCAL-Part .mat lists, with or without parts."""
    return int(_parsed(path, "persons", _count_persons)[()])


def boundaries(path: Path) -> NDArray[np.uint8]:
    """`groundTruth{1}.Boundaries` of a NYUD-v2 or BSDS .mat: (H, W), 1 on boundaries."""
    return _parsed(path, "boundaries", _first_boundaries)


def segmentations(path: Path) -> NDArray[np.int32]:
    """`groundTruth{k}.Segmentation` of a BSDS .mat: (annotators, H, W) segment numbers."""
    return _parsed(path, "segmentations", _stack_segmentations)


def _label_map(mat: dict[str, Any]) -> NDArray[np.int32]:
    labels = np.asarray(mat["LabelMap"], np.int32)
    if labels.ndim != 2:
        raise ValueError(f"LabelMap is {labels.shape}, not (H, W)")
    return labels


def _stack_segmentations(mat: dict[str, Any]) -> NDArray[np.int32]:
    annotators = mat["groundTruth"][0]
    return np.stack([np.asarray(annotator["Segmentation"][0, 0], np.int32) for annotator in annotators])


def _merge_parts(mat: dict[str, Any]) -> NDArray[np.uint8]:
    objects = mat["anno"]["objects"][0, 0]
    merged: NDArray[np.uint8] | None = None
    for index in range(objects.shape[1]):
        instance = objects[0, index]
        if merged is None:
            merged = np.zeros(instance["mask"].shape, np.uint8)
        if int(instance["class_ind"].squeeze()) == PERSON and instance["parts"].size:
            _add_parts(merged, instance["parts"])
    if merged is None:
        raise KeyError("anno.objects is empty")
    return merged


def _count_persons(mat: dict[str, Any]) -> NDArray[np.int64]:
    objects = mat["anno"]["objects"][0, 0]
    classes = [int(objects[0, index]["class_ind"].squeeze()) for index in range(objects.shape[1])]
    return np.asarray(classes.count(PERSON), np.int64)


def _add_parts(merged: NDArray[np.uint8], parts: NDArray[Any]) -> None:
    for index in range(parts.shape[1]):
        name = str(parts[0, index]["part_name"][0])
        if name in PART_OF:
            merged[parts[0, index]["mask"] > 0] = PART_OF[name]


def _first_boundaries(mat: dict[str, Any]) -> NDArray[np.uint8]:
    return (np.asarray(mat["groundTruth"][0, 0]["Boundaries"][0, 0]) > 0).astype(np.uint8)


def _parsed(path: Path, kind: str, parse: Parser) -> NDArray[Any]:
    """What a MATLAB file says; kept per user by its content, as scipy takes tens of milliseconds a file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); complete the tree, or leave its task out"
        ) from error
    kept = label_cache_folder() / f"{kind}-{PARSER_REVISION}" / f"{hashlib.sha256(data).hexdigest()}.npz"
    values = _read_kept(kept)
    if values is not None:
        return values
    try:
        values = parse(loadmat(cast(Any, BytesIO(data))))
    except _UNREADABLE as error:
        what = kind.replace("_", " ")
        raise DataError(f"{path} is not a .mat file with {what} ({error}); copy it again") from error
    _keep(kept, values)
    return values


def _read_kept(path: Path) -> NDArray[Any] | None:
    """What was parsed before; None where there is nothing, or a file that cannot be read."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return file["values"]
    except (OSError, EOFError, BadZipFile, zlib.error, ValueError, KeyError):
        return None


def _keep(path: Path, values: NDArray[Any]) -> None:
    """Keep a parsed array; a cache that cannot be written costs time, never a run."""
    scratch = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.savez_compressed(file, values=values)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
