"""Members of our tars: `<key>.<view>.<level>.<array>.npy`, headers made fast enough for every sample."""

import io
import tarfile
from urllib.parse import quote

import numpy as np

from pipeline.cache.layout import ArrayLayout

BLOCK = 512
END = bytes(2 * BLOCK)
_LONGEST_NAME = 100
_CHECKSUM = slice(148, 156)


def safe_key(key: str) -> str:
    """The key as members' names have it: what is not a letter, digit, `_`, `-` or inner `/` is %-escaped.

    So a name has no dot before the view's (webdataset ends the key at the first), and none leaves the folder it is
    unpacked in. `urllib.parse.unquote` gives the key back.
    """
    parts = key.split("/")
    separator = "/" if all(parts) else "%2F"
    return separator.join(quote(part, safe="").replace(".", "%2E").replace("~", "%7E") for part in parts)


def npy_header(array: ArrayLayout) -> bytes:
    """What stands before the values of one sample in a .npy file."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(array.dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, {**described, "shape": array.shape})
    return header.getvalue()


class MemberHeaders:
    """Tar and .npy headers of one array's members."""

    def __init__(self, array: ArrayLayout, view: int) -> None:
        self._suffix = f".{view}.{array.name.replace('/', '.')}.npy"
        self._npy = npy_header(array)
        self.bytes = len(self._npy) + array.nbytes
        self.padding = -self.bytes % BLOCK
        template = self._info("").tobuf(tarfile.GNU_FORMAT)
        self._rest = template[_LONGEST_NAME : _CHECKSUM.start], template[_CHECKSUM.stop :]
        # The checksum counts its own field as eight spaces.
        self._sum = sum(template) - sum(template[_CHECKSUM]) + 8 * ord(" ")

    def _info(self, name: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size, info.mode = self.bytes, 0o644
        return info

    def of(self, key: str) -> bytes:
        """All that stands before the values of the sample with a `safe_key`."""
        name = (key + self._suffix).encode()
        if len(name) > _LONGEST_NAME:
            return self._info(name.decode()).tobuf(tarfile.GNU_FORMAT) + self._npy
        checksum = b"%06o\0 " % (self._sum + sum(name))
        return name.ljust(_LONGEST_NAME, b"\0") + self._rest[0] + checksum + self._rest[1] + self._npy
