"""Bytes of text files as text, where their encoding can be told."""

import codecs
import os

from haksnet_jax import files
from haksnet_jax.errors import UserError

_MAX_BYTES = 2**28  # of a list of names


class EncodingError(ValueError):
    """Text whose encoding cannot be told; `line` is the first that is no UTF-8, from 1."""

    def __init__(self, line: int, byte: int) -> None:
        super().__init__(f"expected text in UTF-8, found the byte 0x{byte:02x}: save the file as UTF-8")
        self.line = line


def is_wide(data: bytes) -> bool:
    """Whether bytes are UTF-16 or, with a byte order mark, UTF-32."""
    return _is_utf32(data) or is_utf16(data)


def is_utf16(data: bytes) -> bool:
    """Whether bytes are UTF-16: by their byte order mark, or by the zeros of their beginning."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return not _is_utf32(data)
    return _zeros(data) is not None


def _is_utf32(data):
    return data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))


def _zeros(data):
    """0 or 1: at which of two bytes nearly all zeros of UTF-16 without a mark stand; None where it is none."""
    start = data[:200]
    even, odd = start[0:-1:2].count(0), start[1::2].count(0)  # a few letters of a name may be beyond Latin
    pairs = len(start) // 2
    if pairs < 2 or max(even, odd) < 0.7 * pairs or min(even, odd) > 0.1 * pairs:
        return None
    return 0 if even > odd else 1


def decode(data: bytes) -> str:
    """The text of bytes in UTF-8 or UTF-16, with or without a byte order mark, or in UTF-32 with one.

    Raises:
      EncodingError: they are neither.
    """
    if _is_utf32(data):
        return data.decode("utf-32", errors="replace")
    if is_utf16(data):
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if marked else "utf-16-be" if _zeros(data) == 0 else "utf-16-le"
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EncodingError(data.count(b"\n", 0, error.start) + 1, data[error.start]) from None


def beginning(path: str | os.PathLike[str]) -> str:
    """The first letters of a text file, as far as they can be read at all, to recognise it by."""
    with files.open_regular(path) as file:
        data = file.read(65536)
    return decode(data) if is_wide(data) else data.decode("utf-8-sig", errors="replace")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a list that a user wrote (of classes, of images), stripped of blanks; empty ones are "".

    Raises:
      UserError: the file cannot be read, or its encoding cannot be told.
    """
    try:
        lines = decode(files.read_regular(path, _MAX_BYTES)).splitlines()
    except EncodingError as error:
        raise UserError(f"{path}:{error.line}: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return [line.strip() for line in lines]
