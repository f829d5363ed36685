"""Tar archives read by their headers alone: ustar, GNU long names and pax; nothing is ever extracted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.images.source import ShardError

BLOCK = 512

_REGULAR = b"\0" + b"07"
_FOLDER = b"5"
_LINKS = b"12"
_EXTENSIONS = b"LKxg"
_MOST_EXTENSION = 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True)
class Member:
    """A regular file of a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Header:
    name: bytes
    size: int
    kind: bytes
    link: bytes


def members(file: BinaryIO, shard: str, total: int) -> Iterator[Member]:
    """The regular files of a tar of `total` bytes, in order; folders are passed over.

    ShardError, one line naming shard and member: links, devices and sparse files, absolute names and names with `..`,
    damaged headers, members that reach beyond the end, an end without the end-of-archive marker, anything after it.
    """
    return _Walk(file, shard, total).members()


def printable(name: str) -> str:
    """A name as it may stand in a one-line message."""
    return name if name.isprintable() else ascii(name)


@dataclass
class _Walk:
    """The state between two members: where the next header lies and what extension headers said about it."""

    file: BinaryIO
    shard: str
    total: int
    position: int = 0
    last: str = ""
    extended: dict[str, bytes] = field(default_factory=dict)

    def members(self) -> Iterator[Member]:
        while (header := self._header()) is not None:
            data = self.position + BLOCK
            size = header.size if header.kind in _EXTENSIONS else self._size(header)
            if data + size > self.total:
                left = max(0, self.total - data)
                raise self._fault(f"promises {size} bytes, the shard ends after {left}: it is cut", header.name)
            self.position = data + -(-size // BLOCK) * BLOCK
            if header.kind in _EXTENSIONS:
                self._extend(header.kind, size)
                continue
            name = self._name(header)
            self.extended = {}
            if header.kind != _FOLDER and not name.endswith("/"):
                self.last = name
                yield Member(name, data, size)

    def _header(self) -> _Header | None:
        """The header at `position`; None at the end-of-archive marker, after which there may be only zeros."""
        self.file.seek(self.position)
        block = self.file.read(BLOCK)
        if len(block) < BLOCK:
            raise self._fault("ends without the end-of-archive marker: it is cut")
        if not any(block):
            while rest := self.file.read(1 << 20):
                if any(rest):
                    raise self._fault("has data after its end-of-archive marker; tars strung together are not read")
            return None
        return self._parse(block)

    def _parse(self, block: bytes) -> _Header:
        try:
            if sum(block) - sum(block[148:156]) + 8 * ord(" ") != _number(block[148:156]):
                raise ValueError
            size = _number(block[124:136])
        except ValueError as error:
            packed = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), None)
            if self.position == 0 and packed:
                raise self._fault(
                    f"is compressed ({packed}); unpack it to a plain tar, to be read at random"
                ) from error
            raise self._fault(f"has a damaged header at byte {self.position}, or is no tar") from error
        name = _text(block[:100])
        # GNU's own magic ("ustar  ") keeps times where ustar has the prefix.
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = prefix + b"/" + name
        return _Header(name, size, block[156:157], _text(block[157:257]))

    def _extend(self, kind: bytes, size: int) -> None:
        """Take in a GNU long name or a pax header that speaks of the next member (or, global, of all)."""
        if size > _MOST_EXTENSION:
            raise self._fault(f"has an extension header of {size} bytes: damaged")
        data = self.file.read(size)
        if kind == b"L":
            self.extended["path"] = _text(data)
        elif kind in b"xg":
            try:
                records = _pax(data)
            except ValueError as error:
                raise self._fault("has a damaged pax header") from error
            if kind == b"x":
                self.extended |= records
            elif records.keys() & {"path", "size"}:
                raise self._fault("has a global pax header that gives one name or size to all members")

    def _size(self, header: _Header) -> int:
        text = self.extended.get("size")
        if text is not None and not text.isdigit():
            raise self._fault("has a damaged pax header", header.name)
        return header.size if text is None else int(text)

    def _name(self, header: _Header) -> str:
        """The member's name, relative and plain; refuses what a careless extraction would follow out of the folder."""
        raw = self.extended.get("path", header.name)
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise self._fault("has a name that is not UTF-8", raw) from error
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        if header.kind in _LINKS:
            target = printable(header.link.decode(errors="replace"))
            raise self._fault(f"is a link to {target}; links are refused, pack the file itself", raw)
        if header.kind not in _REGULAR + _FOLDER or any(keyword.startswith("GNU.sparse") for keyword in self.extended):
            raise self._fault("is neither a file nor a folder (device, pipe, sparse file); refused", raw)
        if name.startswith("/") or ".." in name.split("/"):
            raise self._fault("has a name that leaves the folder (absolute, or with `..`); refused", raw)
        if not name.isprintable() or (not name and header.kind != _FOLDER):
            raise self._fault("has an empty name or one with control characters; refused", raw)
        return name

    def _fault(self, fault: str, member: bytes | None = None) -> ShardError:
        if member is not None:
            return ShardError(f"{self.shard}: {printable(member.decode(errors='replace'))}: {fault}")
        after = f"after member {printable(self.last)}: " if self.last else ""
        return ShardError(f"{self.shard}: {after}{fault}")


def _text(field_bytes: bytes) -> bytes:
    return field_bytes.partition(b"\0")[0]


def _number(field_bytes: bytes) -> int:
    """A number field: octal digits, or base 256 where the first bit is set; ValueError where it is neither."""
    if field_bytes[0] == 0x80:
        return int.from_bytes(field_bytes[1:], "big")
    text = _text(field_bytes).strip()
    if not text.isdigit():
        raise ValueError
    return int(text, 8)


def _pax(data: bytes) -> dict[str, bytes]:
    """The records `<length> <keyword>=<value>` of a pax header, a line each; ValueError where they are damaged."""
    records: dict[str, bytes] = {}
    while data.rstrip(b"\0"):
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length < 1 or data[length - 1 : length] != b"\n":
            raise ValueError
        records[keyword.decode()] = value
        data = data[length:]
    return records
