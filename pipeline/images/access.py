"""The images of a shard set: their bytes read at random where they lie, nothing unpacked, and decoded to RGB.

Decoding is one way only: PIL's full decode, no shortcut that would give other pixels.
"""

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
from pipeline.storage.local import read_at
from pipeline.storage.location import explain

MAX_PIXELS = 89_478_485
"""Images whose header claims more are refused before anything is decoded: 256 MiB as RGB, where Pillow warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What an image may be, by its content; its name is not asked. None of these runs another program."""

_MODE_NAMES = {"F": "floating point", "I": "32 bits"}

# What Pillow's decoders raise for damaged files, each where it happens to stumble.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)

# Of a remote shard: bytes between two images that are read along rather than asked for apart, and bytes of a request.
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
        span, root = self.index.byte_range(sample), self.index.root
        if self.index.kind != "tars":
            data = root.read_bytes(span.file)
        elif root.is_remote:
            data = root.read_range(span.file, span.offset, span.size) if span.size else b""
        else:
            data = self._read_local(span)
        return self._proved(sample, span, data)

    def read_many(self, samples: Iterable[int]) -> list[bytes]:
        """Several images, in the order asked for; neighbours in a remote shard come in one request."""
        wanted = list(map(int, samples))
        if self.index.kind != "tars" or not self.index.root.is_remote:
            return [self.read(sample) for sample in wanted]
        by_shard: dict[str, list[int]] = {}
        for sample in dict.fromkeys(wanted):
            by_shard.setdefault(self.index.byte_range(sample).file, []).append(sample)
        images: dict[int, bytes] = {}
        for shard, group in by_shard.items():
            images |= self._read_near(shard, group)
        return [images[sample] for sample in wanted]

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        self._opened = _Opened()

    def _read_near(self, shard: str, samples: list[int]) -> dict[int, bytes]:
        """Samples of one remote shard, in as few ranges as leave little between them."""
        groups: list[list[tuple[int, ByteRange]]] = []
        for sample in sorted(samples, key=lambda sample: self.index.byte_range(sample).offset):
            span = self.index.byte_range(sample)
            if groups:
                first, last = groups[-1][0][1], groups[-1][-1][1]
                if span.offset - last.end <= _NEAR and span.end - first.offset <= _LONGEST:
                    groups[-1].append((sample, span))
                    continue
            groups.append([(sample, span)])
        starts = [group[0][1].offset for group in groups]
        ends = [group[-1][1].end for group in groups]
        ranges = [(start, max(1, end - start)) for start, end in zip(starts, ends, strict=True)]
        parts = self.index.root.read_ranges(shard, ranges)
        return {
            sample: self._proved(sample, span, part[span.offset - start : span.end - start])
            for group, start, part in zip(groups, starts, parts, strict=True)
            for sample, span in group
        }

    def _read_local(self, span: ByteRange) -> bytes:
        file = self._file(span.file)
        try:
            return read_at(file.descriptor, span.offset, span.size)
        except OSError as error:
            raise explain(error, self.index.root.at(span.file)) from error

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

    def _proved(self, sample: int, span: ByteRange, data: bytes) -> bytes:
        if len(data) != span.size:
            fault = f"{len(data)} of {span.size} bytes are there"
        elif self.verify and sha256(data).digest() != self.index.digest(sample):
            fault = "its SHA-256 is not the one indexed"
        else:
            return data
        file = self.index.root.at(span.file)
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


def decode_rgb(data: bytes) -> Image.Image:
    """The first frame as an RGB image, converted as PIL does; BadImage says why there is none.

    Greyscale is repeated, palettes are looked up, CMYK is converted without a profile, 16-bit greyscale is clipped at
    255, transparency is dropped. EXIF rotation is ignored, as ImageNet's training code does.
    """
    return _converted(_loaded(data))


def decode_photo(data: bytes) -> Image.Image:
    """The first frame as a person sees it, in RGB: turned as its EXIF says, 16-bit greyscale brought to 8 bits.

    All else as `decode_rgb`; BadImage for floating point and for whole numbers beyond 16 bits, whose white nothing
    tells.
    """
    image = _upright(_loaded(data))
    if not image.mode.startswith(("I", "F")):
        return _converted(image)
    values = np.asarray(image)
    if image.mode == "F" or int(values.max()) > 0xFFFF or int(values.min()) < 0:
        raise BadImage(f"its pixels are {_MODE_NAMES.get(image.mode, image.mode)}; write it again in 8 or 16 bits")
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
        return image if image.mode == "RGB" else image.convert("RGB")
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
