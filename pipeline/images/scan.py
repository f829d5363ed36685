"""One shard, or one part of an image folder, read once from end to end: keys, labels, places and SHA-256."""

import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pipeline.images.source import IMAGE_EXTENSIONS, ShardError
from pipeline.images.tar import Member, members, printable
from pipeline.storage import Entry, Location
from pipeline.storage.location import StorageError, explain

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 8 << 20
_LONGEST_LABEL = 32

Advance = Callable[[int, int], bool]
"""Called with (samples, bytes) after each file; False asks to stop."""


def _integers() -> "array[int]":
    return array("q")


@dataclass
class Scanned:
    """What one scan found, a row per sample in order of first appearance, and what was wrong."""

    keys: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=_integers)
    sizes: "array[int]" = field(default_factory=_integers)
    labels: "array[int]" = field(default_factory=_integers)
    digests: bytearray = field(default_factory=bytearray)
    problems: list[str] = field(default_factory=list)

    def add(self, key: str, suffix: str, span: tuple[int, int], label: int, digest: bytes) -> None:
        """Append a sample; `span` is (offset, size)."""
        self.keys.append(key)
        self.suffixes.append(sys.intern(suffix))
        self.offsets.append(span[0])
        self.sizes.append(span[1])
        self.labels.append(label)
        self.digests += digest


@dataclass
class _Sample:
    first: str
    extensions: set[str] = field(default_factory=set)
    image: Member | None = None
    suffix: str = ""
    digest: bytes = b""
    label: int = -1


def split_key(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member as webdataset has it: the name up to the first dot of its last part, and the rest.

    None for hidden files and those without an extension, which belong to no sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (f"{folder}{slash}{stem}", extension) if stem and dot else None


def scan_tar(root: Location, shard: str, size: int, advance: Advance) -> Scanned:
    """Read a tar of `size` bytes; faults of single members are collected, a damaged tar ends its scan."""
    samples: dict[str, _Sample] = {}
    scanned = Scanned()
    done = 0
    try:
        with open_shard(root, shard, size) as file:
            for member in members(file, shard, size):
                new = _take(samples, scanned.problems, shard, member, file)
                end = member.offset + member.size
                if not advance(new, end - done):
                    return scanned
                done = end
    except ShardError as error:
        scanned.problems += error.problems
        return scanned
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, root.at(shard)) from error
    for key, sample in samples.items():
        if sample.image is None:
            wanted = f"one of .{', .'.join(IMAGE_EXTENSIONS)}"
            scanned.problems.append(f"{shard}: {sample.first}: sample without an image ({wanted})")
        else:
            scanned.add(key, sample.suffix, (sample.image.offset, sample.image.size), sample.label, sample.digest)
    return scanned


def _take(samples: dict[str, _Sample], problems: list[str], shard: str, member: Member, file: BinaryIO) -> int:
    """Enter one member; 1 where it was an image."""
    split = split_key(member.name)
    if split is None:
        return 0
    key, extension = split
    kind = extension.lower()
    sample = samples.setdefault(key, _Sample(member.name))
    if kind in sample.extensions:
        problems.append(f"{shard}: {member.name}: duplicate key {key!r}, this shard has its .{kind} already")
        return 0
    sample.extensions.add(kind)
    if kind in IMAGE_EXTENSIONS and sample.image is not None:
        other = sample.image.name
        problems.append(
            f"{shard}: {member.name}: second image for key {key!r} beside {other}; name it {key}.NAME.{kind}"
        )
    elif kind in IMAGE_EXTENSIONS:
        sample.image, sample.suffix = member, f".{extension}"
        sample.digest = _digest(file, shard, member)
        return 1
    elif kind == "cls":
        file.seek(member.offset)
        text = file.read(min(member.size, _LONGEST_LABEL + 1)).strip()
        if text.isdigit() and len(text) < 10:
            sample.label = int(text)
        else:
            problems.append(f"{shard}: {member.name}: label {text!r} is not a whole number from 0")
    return 0


def _digest(file: BinaryIO, shard: str, member: Member) -> bytes:
    file.seek(member.offset)
    digest, left = sha256(), member.size
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise ShardError(f"{shard}: {member.name}: the shard was cut while it was read")
        digest.update(piece)
        left -= len(piece)
    return digest.digest()


def scan_files(root: Location, files: tuple[Entry, ...], label: int, advance: Advance) -> Scanned:
    """Read images that lie in a folder; the key is the path below `root` without the last extension."""
    scanned = Scanned()
    for entry in files:
        key, _, extension = entry.path.rpartition(".")
        if not entry.path.isprintable():
            fault = "a name with control characters or not UTF-8; refused"
            scanned.problems.append(f"{root}: {printable(entry.path)}: {fault}")
            continue
        data = root.read_bytes(entry.path)
        if len(data) != entry.bytes:
            fault = f"changed from {entry.bytes} to {len(data)} bytes while it was read"
            scanned.problems.append(f"{root}: {entry.path}: {fault}")
        scanned.add(key, f".{extension}", (0, len(data)), label, sha256(data).digest())
        if not advance(1, len(data)):
            break
    return scanned


def open_shard(root: Location, shard: str, size: int) -> BinaryIO:
    """A shard for reading from front to back; remote ones come in pieces, each repeated where it fails in passing."""
    local = root.local_path(shard)
    if local is None:
        return cast(BinaryIO, BufferedReader(_Pieces(root, shard, size), _PIECE))
    try:
        return Path(local).open("rb", buffering=1 << 20)
    except OSError as error:
        raise explain(error, str(local)) from error


class _Pieces(RawIOBase):
    """A remote file as a stream of ranged reads."""

    def __init__(self, root: Location, path: str, size: int) -> None:
        self._root, self._path, self._size, self._position = root, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        length = max(0, min(len(target), self._size - self._position))
        if length:
            target[:length] = self._root.read_range(self._path, self._position, length)
            self._position += length
        return length
