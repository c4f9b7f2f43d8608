"""Files of named arrays (.npz) that may come from anywhere: read within a limit of memory, and no pickles.

NumPy's own reader takes a file's word for how much it holds: some hundred bytes may ask for terabytes.
"""

import math
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from haksnet_jax.errors import UserError

MAX_BYTES = 256 << 20  # of all arrays that are read from one file
_MAX_ENTRIES = 100_000
_MAX_HEADER = 10_000
_HEADER = re.compile(  # the dtypes: truth values, numbers, text
    r"\{'descr': '(?P<dtype>[<>|](?:b1|[iu][1248]|f[248]|U[1-9]\d{0,5}))', "
    r"'fortran_order': (?P<by_columns>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,15}(?:, \d{1,15}){0,7},?)?)\), \}\s*"
)

_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile)


class DamagedError(UserError):
    """A file of arrays that is damaged or beyond a limit; the message says why, without the file's name."""


def read(
    path: str | os.PathLike[str], names: Sequence[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Reads arrays of a .npz file.

    Args:
      path: the file.
      names: of the arrays that are wanted; None reads all.
      max_bytes: the most that they may take in memory together.

    Returns:
      Dict from name to array. Each has passed its sum in the file.

    Raises:
      DamagedError: the file is no such archive, lacks an array, holds other than numbers and text, or too much.
    """
    try:
        with zipfile.ZipFile(pathlib.Path(path)) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if len(archive.infolist()) > _MAX_ENTRIES:
                raise ValueError(f"it holds {len(archive.infolist())} arrays, at most {_MAX_ENTRIES} are read")
            wanted = list(entries) if names is None else names
            missing = next((name for name in wanted if name not in entries), None)
            if missing is not None:
                raise ValueError(f"it lacks the array {missing}")
            size = sum(entries[name].file_size for name in wanted)
            if size > max_bytes:
                raise ValueError(f"its arrays take {size:,} bytes, at most {max_bytes:,} are read")
            return {name: _array(archive, entries[name]) for name in wanted}
    except (*_DAMAGE, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(reason[:100].encode("unicode_escape").decode()) from None


def _array(archive, entry):
    """The array of an entry, whose size the directory states. Raises: ValueError and what zipfile raises."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"an array is packed by method {entry.compress_type}")
    with archive.open(entry) as file:
        shape, by_columns, dtype = _header(file)
        stated, left = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if stated != left:
            raise ValueError(f"an array of {stated} bytes in {left}")
        data = bytearray(left)  # what is made of it can be written to
        view, place = memoryview(data), 0
        while place < left:
            count = file.readinto(view[place:])
            if not count:
                raise EOFError("an array is cut off")
            place += count
        if file.read(1):  # the end of the entry, where its sum is compared
            raise ValueError("an array is longer than stated")
    if not left:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _header(file):
    """(shape, whether columns come first, dtype), as NumPy writes them; nothing is evaluated."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("an array without NumPy's header")
    size = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"an array with a header of {size} bytes")
    match = _HEADER.fullmatch(file.read(size).decode("latin-1"))
    if match is None:
        raise ValueError("an array of other than numbers and text")
    shape = tuple(int(number) for number in match["shape"].replace(",", " ").split())
    return shape, match["by_columns"] == "True", np.dtype(match["dtype"])
