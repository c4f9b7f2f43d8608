"""What the headers of image files say, and whether the files are whole: looked at before any decoder sees them.

Decoders repair what they can: a truncated PNG or JPEG comes back from OpenCV as an image with an even lower part and no
error. They also trust what they read: a few bytes can ask for gigabytes or minutes. So every number that sizes or
counts something is checked here against the file's own length, in time that does not grow with what the numbers claim.
"""

import io
import os
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError

EXTENSIONS_OF = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}
MAX_BANDS = 1024  # of a file; imaging spectrometers have some hundreds
MAX_PIXELS = 2**30  # of an image that is decoded as a whole: OpenCV's limit
MAX_SIDE = 2**20  # OpenCV's limit too
_MAX_BLOCK = 2**30  # bytes of one compressed strip or tile of a TIFF, which is decoded as a whole
_MAX_TABLE = 2**26  # bytes of a TIFF's table of strips or tiles
_MANY_CHUNKS = 1000  # of a PNG, beyond which they hold 2048 bytes on average (writers make them of 8192 and more)
_MAX_SEGMENTS = 5000  # of a JPEG; a colour profile takes at most 255, other data some hundreds
_MAX_PAGES = 1000  # that are counted


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
      reason: short key, as in problems of labels.
      sentence: what is wrong, without the file's name.
      path: of the file, or None where the caller knows it; the message begins with it.
    """

    def __init__(self, reason: str, sentence: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(f"{path}: {sentence}" if path is not None else sentence)
        self.reason, self.sentence, self.path = reason, sentence, path

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # the default passes only the message, and worker processes send these back
        return type(self), (self.reason, self.sentence, self.path)


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
      format: "PNG", "JPEG", "BMP" or "TIFF", from the content and not from the name.
      width: columns, after turning.
      height: rows, after turning.
      channels: values a pixel, as decoded (a palette counts as 3).
      bits: bits a value.
      orientation: 1 to 8, how the stored pixels are turned to be the image, as EXIF and TIFF count; 1 is not at all.
      kind: "unsigned", "signed" or "float" values.
      pages: images in the file; the first is read.
      min_is_white: whether the smallest value of a grey TIFF is shown white.
      plain: whether any TIFF decoder reads the same pixels: grey or RGB, no palette, alpha, nodata or odd bits.
    """

    format: str
    width: int
    height: int
    channels: int
    bits: int
    orientation: int = 1
    kind: str = "unsigned"
    pages: int = 1
    min_is_white: bool = False
    plain: bool = True


def read_header(source: str | os.PathLike[str] | bytes) -> Header:
    """Reads the header of an image file and checks that the file is whole, without decoding it.

    Args:
      source: path of the file, whose extension does not matter, or its bytes.

    Returns:
      A Header.

    Raises:
      ImageError: reasons "empty_image", "not_an_image", "truncated_image", "damaged_header", "too_many_pixels",
        "unusable_samples"; the message does not name the file.
      OSError: the file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_header(io.BytesIO(source), len(source))
    with files.open_regular(source) as file:
        return _read_header(file, os.fstat(file.fileno()).st_size)


def _told(start):
    """What a file that is no image is, by its first 16 bytes, and what to do."""
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive: unpack it"
    if start[4:8] == b"ftyp":
        is_still = start[8:12] in (b"heic", b"heix", b"mif1", b"avif")
        return (
            "is a HEIC or AVIF image: save it as PNG or JPEG" if is_still else "is a video: save its frames as images"
        )
    if start[:4] == b"RIFF":
        return "is a WebP image: save it as PNG" if start[8:12] == b"WEBP" else "is a video: save its frames as images"
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "is a video: save its frames as images"
    if start.startswith(b"version https://"):
        return "is a pointer of Git LFS: fetch the file itself by `git lfs pull`"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "is a web page: the download went wrong"
    return f"begins with {start[:8]!r}"


def _read_header(file, size):
    if size == 0:
        raise ImageError("empty_image", "the file is empty")
    start = file.read(16)
    file.seek(0)
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            header = _read_png(file, size)
        elif start.startswith(b"\xff\xd8\xff"):
            header = _read_jpeg(file, size)
        elif start.startswith(b"BM"):
            header = _read_bmp(file, size)
        elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            header = _read_tiff(file, size)
        else:
            raise ImageError("not_an_image", f"expected a PNG, JPEG, BMP or TIFF file; this one {_told(start)}")
    except struct.error:
        raise ImageError("truncated_image", f"the file ends inside its header, after {size} bytes") from None
    if header.width < 1 or header.height < 1:
        raise _damaged(f"it gives an image of {header.width} x {header.height} pixels")
    too_large = header.width * header.height > MAX_PIXELS or max(header.width, header.height) > MAX_SIDE
    if header.format != "TIFF" and too_large:
        raise ImageError(
            "too_many_pixels",
            f"a {header.format} of {header.width} x {header.height} pixels is more than can be decoded at once "
            f"({MAX_PIXELS / 1e6:.0f} megapixels, {MAX_SIDE} a side): make it a tiled TIFF, which is read by windows "
            "(gdal_translate -co TILED=YES)",
        )
    swapped = header.orientation > 4
    return header._replace(width=header.height, height=header.width) if swapped else header


def _truncated(size):
    return ImageError("truncated_image", f"the file is truncated: its {size} bytes end before the image does")


def _damaged(what):
    return ImageError("damaged_header", f"the header is damaged: {what}")


def _exif_orientation(data):
    """The orientation that EXIF data (a small TIFF structure) names, else 1."""
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (position,) = struct.unpack(order + "I", data[4:8])
        (count,) = struct.unpack(order + "H", data[position : position + 2])
        for start in range(position + 2, position + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack(order + "HHIH", data[start : start + 10])
            if tag == 274:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def _read_png(file, size):
    length, kind = struct.unpack(">8xI4s", file.read(16))
    if kind != b"IHDR" or length != 13:
        raise _damaged("the PNG does not begin with its IHDR chunk")
    width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
    if bits not in _PNG_BITS.get(colour, ()):
        raise _damaged(f"a PNG has no colour type {colour} with {bits} bits")
    position, orientation, num_data, num_chunks = 33, 1, 0, 0
    while position + 12 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"eXIf":
            orientation = _exif_orientation(file.read(min(length, 65536)))
        if kind == b"IHDR":  # decoders differ in which of two they go by
            raise _damaged("the PNG has two IHDR chunks")
        if kind == b"IDAT":
            num_data += length
        position += 12 + length
        num_chunks += 1
        if kind == b"IEND":
            break
        if num_chunks > _MANY_CHUNKS + size // 2048:
            raise _damaged(f"the PNG has more than {num_chunks - 1} chunks in {size} bytes")
    else:
        raise _truncated(size)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # Deflate makes at most 1032 bytes of one (258 of 2 bits): fewer than that cannot hold the image.
    if position > size or (num_data + 16) * 1032 < (width * samples * bits + 7) // 8 * height:
        raise _truncated(size)
    return Header("PNG", width, height, _PNG_CHANNELS[colour], max(bits, 8), orientation)


def _read_jpeg(file, size):
    position, header, orientation, num_segments, huffman = 2, None, 1, 0, False
    while True:
        file.seek(position)
        first, marker = struct.unpack(">BB", file.read(2))
        if first != 0xFF:
            raise ImageError("not_an_image", f"the JPEG file has no marker where one is expected, at byte {position}")
        if marker == 0xFF:  # fill bytes before a marker: skipped as many at a time as are read at once
            position = _after_fill_bytes(file, position)
            continue
        if marker in (0x01, *range(0xD0, 0xD9)):  # markers that stand alone
            position += 2
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", file.read(6))
            if header is not None:
                raise _damaged("the JPEG has two frames")
            if channels not in (1, 3, 4) or bits not in (8, 12):
                raise _damaged(f"the JPEG has {channels} channels of {bits} bits")
            header = Header("JPEG", width, height, min(channels, 3), bits)
            huffman = marker in (0xC0, 0xC1, 0xC2)
        if marker == 0xE1 and orientation == 1:
            data = file.read(max(length - 2, 0))
            if data.startswith(b"Exif\0\0"):
                orientation = _exif_orientation(data[6:])
        if marker == 0xDA:
            break
        num_segments += 1
        if length < 2 or num_segments > _MAX_SEGMENTS:
            raise _damaged("a JPEG segment has no length" if length < 2 else f"more than {_MAX_SEGMENTS} JPEG segments")
        position += 2 + length
    if header is None:
        raise _damaged("the JPEG has no frame before its first scan")
    # A block of 8 x 8 pixels takes at least one bit, in every kind of Huffman coding.
    if not _holds(file, position, size, b"\xff\xd9") or (huffman and size * 512 < header.width * header.height):
        raise _truncated(size)
    return header._replace(orientation=orientation)


def _after_fill_bytes(file, position):
    """Position of the last 0xFF byte of a row of them."""
    file.seek(position)
    while piece := file.read(65536):
        match = re.match(rb"\xff*", piece)
        if match.end() < len(piece):
            return position + match.end() - 1
        position += len(piece)
    raise struct.error


def _holds(file, begin, end, pattern):
    """Whether the file has the two bytes of `pattern` between two positions; looked for from the end, where they lie.

    Cameras and tools append things behind a JPEG's end marker: a few bytes, or a whole film.
    """
    while end > begin:
        start = max(begin, end - 65536)
        file.seek(start)
        if pattern in file.read(end - start + 1):  # one byte more: the pattern may lie across two pieces
            return True
        end = start
    return False


def _read_bmp(file, size):
    data = file.read(34)
    offset, header_size, width, height, _, bits = struct.unpack("<10xIIiiHH", data[:30])
    compression = struct.unpack("<I", data[30:34])[0]
    channels = {24: 3, 32: 4}.get(bits, 3)
    rows = abs(height)
    if header_size < 40 or width < 1 or rows < 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise _damaged(f"the BMP gives an image of {width} x {rows} pixels of {bits} bits")
    # Run-length coding makes at most 255 pixels of two bytes.
    least = (width * bits + 31) // 32 * 4 * rows if compression in (0, 3) else width * rows // 128
    if offset + least > size:
        raise _truncated(size)
    return Header("BMP", width, rows, channels, 8)


_TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # those of the tags that are read
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _ORIENTATION = 256, 257, 258, 259, 262, 273, 274
_SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANES = 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_SUBFILE, _NODATA = 254, 42113
_TABLES = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES)
_NUMBERS: tuple[int, ...] = (
    _SUBFILE,
    _WIDTH,
    _HEIGHT,
    _BITS,
    _COMPRESSION,
    _PHOTOMETRIC,
    _ORIENTATION,
    _SAMPLES,
    _ROWS_PER_STRIP,
)
_NUMBERS += (_PLANES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _SAMPLE_FORMAT)


class _Tiff:
    """The structure of a TIFF file: byte order, classic or big, and its directories."""

    def __init__(self, file, size):
        self.file, self.size = file, size
        magic = file.read(4)
        self.order = "<" if magic[:1] == b"I" else ">"
        self.big = b"+" in magic[2:]
        self.first = self._pointer(8 if self.big else 4)

    def _pointer(self, position):
        self.file.seek(position)
        return struct.unpack(self.order + ("Q" if self.big else "I"), self.file.read(8 if self.big else 4))[0]

    def _entries(self, position):
        """([(tag, type, count, bytes of the value or pointer)], position of the pointer to the next directory)."""
        if not 8 <= position < self.size:
            raise _truncated(self.size)
        self.file.seek(position)
        count_format, entry_size = ("Q", 20) if self.big else ("H", 12)
        count_size = struct.calcsize(self.order + count_format)
        (count,) = struct.unpack(self.order + count_format, self.file.read(count_size))
        end = position + count_size + count * entry_size
        if end + entry_size - 12 + 4 > self.size:
            raise _truncated(self.size)
        if count > 65535:
            raise _damaged(f"a TIFF directory of {count} entries")
        data = self.file.read(count * entry_size)
        return struct.iter_unpack(self.order + ("HHQ8s" if self.big else "HHI4s"), data), end

    def tags(self):
        """Dict of the tags that are read in the first directory, as numpy arrays; and the position of the second."""
        entries, end = self._entries(self.first)
        tags = {}
        for tag, kind, count, value in entries:
            length = _TIFF_SIZES.get(kind, 1) * count
            if length > len(value):
                (where,) = struct.unpack(self.order + ("Q" if self.big else "I"), value)
                if where + length > self.size:
                    raise _truncated(self.size)
            if tag == _NODATA:
                tags[tag] = True
            if tag not in _NUMBERS and tag not in _TABLES:
                continue
            if tag in tags:
                raise _damaged(f"the TIFF tag {tag} occurs more than once")
            if kind not in _TIFF_TYPES or count == 0 or length > (_MAX_TABLE if tag in _TABLES else 2 * MAX_BANDS):
                if tag == _ORIENTATION and count == 0:
                    continue  # says nothing, so the image is as it is stored; GDAL reads it so
                raise _damaged(f"the TIFF tag {tag} has {count} values of type {kind}")
            if length > len(value):
                self.file.seek(where)
                value = self.file.read(length)
            tags[tag] = np.frombuffer(value[:length], self.order + _TIFF_TYPES[kind]).astype(np.uint64)
        return tags, self._pointer(end)

    def count_pages(self, position):
        """Images beside the first, smaller versions and masks of others left out."""
        pages, seen = 0, {self.first}
        while position and position not in seen and len(seen) < _MAX_PAGES:
            seen.add(position)
            try:
                entries, end = self._entries(position)
                subfile = next((value for tag, _, _, value in entries if tag == _SUBFILE), None)
                kind = 0 if subfile is None else struct.unpack(self.order + "I", subfile[:4])[0]
                position = self._pointer(end)
            except (ImageError, struct.error):  # the first image is whole, and it is the one that is read
                break
            pages += not kind & 5
        return pages


def _read_tiff(file, size):
    tiff = _Tiff(file, size)
    tags, following = tiff.tags()
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise ImageError("not_an_image", "the TIFF file holds no image")

    def number(tag, default):
        return int(tags[tag][0]) if tag in tags else default

    width, height, samples = number(_WIDTH, 0), number(_HEIGHT, 0), number(_SAMPLES, 1)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise _damaged(f"it gives an image of {width} x {height} pixels")
    if not 0 < samples <= MAX_BANDS:
        raise _damaged(f"it gives {samples} bands; at most {MAX_BANDS} are read")
    bits = number(_BITS, 1)
    if (tags.get(_BITS, np.ones(1)) != bits).any() or not 0 < bits <= 64:
        raise _damaged(f"bands of {', '.join(map(str, tags[_BITS][:4].tolist()))} bits")
    _check_blocks(tags, number, width, height, samples, bits, size)
    photometric = number(_PHOTOMETRIC, 1)
    kinds = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
    sample_format = number(_SAMPLE_FORMAT, 1)
    if sample_format not in kinds or (tags.get(_SAMPLE_FORMAT, np.ones(1)) != sample_format).any():
        raise ImageError("unusable_samples", "its samples are complex numbers; convert them to real ones")
    orientation = number(_ORIENTATION, 1)
    plain = (samples, photometric) in ((1, 1), (3, 2)) and bits in (8, 16) and kinds[sample_format] == "unsigned"
    plain = plain and number(_PLANES, 1) == 1 and number(_COMPRESSION, 1) in (1, 5, 8, 32773, 32946)
    return Header(
        "TIFF",
        width,
        height,
        3 if photometric == 3 else samples,
        max(bits, 8),
        orientation if 1 <= orientation <= 8 else 1,
        kinds[sample_format],
        1 + tiff.count_pages(following),
        photometric == 0,
        plain and _NODATA not in tags and _EXTRA not in tags,
    )


def _check_blocks(tags, number, width, height, samples, bits, size):
    """Checks that all strips or tiles that the image needs lie in the file, and that each can be decoded in memory."""
    tiled = _TILES in tags
    offsets, lengths = (tags.get(tag) for tag in ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)))
    if offsets is None:
        raise _damaged("the TIFF says nothing of where its pixels are")
    if tiled:
        columns, rows = number(_TILE_WIDTH, 0), number(_TILE_HEIGHT, 0)
        if not 0 < columns <= 2**20 or not 0 < rows <= 2**20:
            raise _damaged(f"tiles of {columns} x {rows} pixels")
    else:
        columns, rows = width, min(number(_ROWS_PER_STRIP, height) or height, height)
    separate = number(_PLANES, 1) == 2
    num_blocks = -(-width // columns) * -(-height // rows) * (samples if separate else 1)
    if len(offsets) < num_blocks or (lengths is not None and len(lengths) < num_blocks):
        raise _damaged(f"the image takes {num_blocks} strips or tiles, the TIFF names {len(offsets)}")
    compression = number(_COMPRESSION, 1)
    block_bytes = (columns * (1 if separate else samples) * bits + 7) // 8 * rows
    if lengths is None:
        if compression != 1 or int(offsets[0]) + block_bytes * num_blocks > size:
            raise _truncated(size)
        return
    offsets, lengths = offsets[:num_blocks], lengths[:num_blocks]
    # (a block that is not in the file, 0 and 0, is one without data: GDAL writes such files)
    if (offsets > size).any() or (lengths > size).any() or (offsets + lengths > size).any():
        raise _truncated(size)
    if compression != 1 and block_bytes > _MAX_BLOCK:
        raise ImageError(
            "too_many_pixels",
            f"a compressed strip or tile of {columns} x {rows} pixels is more than is decoded at once: write it anew "
            "in tiles (gdal_translate -co TILED=YES)",
        )
    # The last strip may end early; all others hold their whole content where it is not compressed.
    if compression == 1 and not tiled and num_blocks == 1 and 0 < lengths[0] < block_bytes:
        raise _truncated(size)
