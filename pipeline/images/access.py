"""Random access to image bytes where they lie: positioned reads inside tars, nothing unpacked."""

import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pipeline.images.index import ByteRange, ShardIndex
from pipeline.images.source import BadImage, ShardError
from pipeline.storage.location import explain

_NEAR = 64 << 10
_LONGEST = 32 << 20


class ImageAccess:
    """Reads the images of an index, from any thread; safe to pickle and to fork, as no descriptor crosses either.

    At most `open_files` local shards are open at a time, besides those being read. `verify` compares the SHA-256 of
    every image read with the index.
    """

    def __init__(self, index: ShardIndex, *, verify: bool = False, open_files: int = 128) -> None:
        self.index, self.verify, self.open_files = index, verify, max(1, open_files)
        self._opened = _Opened()

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opened=_Opened())

    def read(self, sample: int) -> bytes:
        """The image file's bytes.

        ShardError where the shard no longer holds them (with `verify`, where any bit differs), StorageError where it
        cannot be read.
        """
        place, root = self.index.place(sample), self.index.root
        if self.index.kind != "tars":
            data = root.read_bytes(place.file)
        elif root.is_remote:
            data = root.read_range(place.file, place.offset, place.size) if place.size else b""
        else:
            data = self._pread(place)
        return self._proved(sample, place, data)

    def read_many(self, samples: Iterable[int]) -> list[bytes]:
        """Several images, in the order asked for; neighbours in a remote shard come in one request."""
        wanted = [int(sample) for sample in samples]
        if self.index.kind != "tars" or not self.index.root.is_remote:
            return [self.read(sample) for sample in wanted]
        by_shard: dict[str, list[int]] = {}
        for sample in dict.fromkeys(wanted):
            by_shard.setdefault(self.index.place(sample).file, []).append(sample)
        found: dict[int, bytes] = {}
        for shard, group in by_shard.items():
            found |= self._read_near(shard, group)
        return [found[sample] for sample in wanted]

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        self._opened = _Opened()

    def _read_near(self, shard: str, samples: list[int]) -> dict[int, bytes]:
        """Samples of one remote shard, in as few ranges as leave little between them."""
        places = sorted(((self.index.place(sample), sample) for sample in samples), key=lambda each: each[0].offset)
        spans: list[list[int]] = []
        for place, _ in places:
            end = place.offset + place.size
            if spans and place.offset - spans[-1][1] <= _NEAR and end - spans[-1][0] <= _LONGEST:
                spans[-1][1] = end
            else:
                spans.append([place.offset, end])
        parts = self.index.root.read_ranges(shard, [(start, max(1, end - start)) for start, end in spans])
        found: dict[int, bytes] = {}
        for place, sample in places:
            number = next(n for n, (_, end) in enumerate(spans) if end >= place.offset + place.size)
            start = place.offset - spans[number][0]
            found[sample] = self._proved(sample, place, parts[number][start : start + place.size])
        return found

    def _pread(self, place: ByteRange) -> bytes:
        file = self._file(place.file)
        try:
            data = os.pread(file.descriptor, place.size, place.offset)
            while len(data) < place.size:
                more = os.pread(file.descriptor, place.size - len(data), place.offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise explain(error, self.index.root.at(place.file)) from error
        return data

    def _file(self, shard: str) -> "_File":
        opened = self._opened
        # A forked child must not touch its parent's lock, which a thread that is not there any more may hold.
        if opened.process != os.getpid():
            self._opened = opened = _Opened()
        with opened.lock:
            file = opened.files.get(shard)
            if file is None:
                file = opened.files[shard] = _File(self.index.root.at(shard))
            opened.files.move_to_end(shard)
            while len(opened.files) > self.open_files:
                opened.files.popitem(last=False)
        return file

    def _proved(self, sample: int, place: ByteRange, data: bytes) -> bytes:
        if len(data) != place.size:
            fault = f"{len(data)} of {place.size} bytes are there"
        elif self.verify and sha256(data).digest() != self.index.digest(sample):
            fault = "its SHA-256 is not the one indexed"
        else:
            return data
        file = self.index.root.at(place.file)
        raise ShardError(f"{file}: {self.index.key(sample)}: {fault}; the data changed, index it again")


class _File:
    """A descriptor that is closed with its last user: one that is dropped while another thread reads stays open."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise explain(error, path) from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _Opened:
    """The open shards of one process, the last used at the end."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.files: OrderedDict[str, _File] = OrderedDict()


# Image bytes to RGB, one way only: PIL's full decode, no shortcut that would give other pixels.

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
