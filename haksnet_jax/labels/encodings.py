"""Bytes of text files as text, where their encoding can be told."""

import codecs


class EncodingError(ValueError):
    """Text whose encoding cannot be told; `line` is the first that is no UTF-8, from 1."""

    def __init__(self, line, byte):
        super().__init__(f"expected text in UTF-8, found the byte 0x{byte:02x}: save the file as UTF-8")
        self.line = line


def is_utf16(data: bytes) -> bool:
    """Whether bytes are UTF-16: by their byte order mark, or since every second byte of their beginning is zero."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    start = data[:200]
    return len(start) >= 4 and b"\0" in start and 0 in (sum(start[0:-1:2]), sum(start[1::2]))


def decode(data: bytes) -> str:
    """The text of bytes in UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
      EncodingError: they are neither.
    """
    if is_utf16(data):
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if marked else "utf-16-be" if data[0] == 0 else "utf-16-le"
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EncodingError(data.count(b"\n", 0, error.start) + 1, data[error.start]) from None
