"""Image files as they lie on disk: what their headers say, whether they are whole, and their pixels window by window.

Decoders repair what they can: a truncated PNG or JPEG comes back from OpenCV as an image with an even lower part and no
error. So the end of a file is looked at here before anything is decoded.
"""

import contextlib
import os
import pathlib
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np

try:
    import rasterio
    import rasterio.errors
    import rasterio.windows
except ImportError:  # the extra `geo`: TIFF with other than 1, 3 or 4 channels, and TIFF read window by window
    rasterio = None
else:  # most images are not georeferenced, and GDAL's wrapper warns at each
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
EXTENSIONS_OF = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}


class ImageError(ValueError):
    """An image that cannot be used; `reason` is a short key, the message one sentence without the file's name."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # the default passes only the message, and worker processes send these back
        return type(self), (self.reason, str(self))


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
      format: "PNG", "JPEG", "BMP" or "TIFF", from the content and not from the name.
      width: columns, after turning.
      height: rows, after turning.
      channels: values a pixel, as decoded (a palette counts as 3).
      bits: bits a value.
      orientation: 1 to 8, how the stored pixels are turned to be the image, as EXIF and TIFF count; 1 is not at all.
    """

    format: str
    width: int
    height: int
    channels: int
    bits: int
    orientation: int = 1


def read_header(path):
    """Reads the header of an image file and checks that the file is whole, without decoding it.

    Args:
      path: the file; its extension does not matter.

    Returns:
      A Header.

    Raises:
      ImageError: reasons "empty_image", "not_an_image", "truncated_image".
      OSError: the file cannot be read.
    """
    size = os.path.getsize(path)
    if size == 0:
        raise ImageError("empty_image", "the file is empty")
    with open(path, "rb") as file:
        start = file.read(16)
        file.seek(0)
        try:
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _turned(_read_png(file, size))
            if start.startswith(b"\xff\xd8\xff"):
                return _turned(_read_jpeg(file, size))
            if start.startswith(b"BM"):
                return _read_bmp(file, size)
            if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _turned(_read_tiff(file, size))
        except struct.error:
            raise ImageError("truncated_image", f"the file ends inside its header, after {size} bytes") from None
    raise ImageError("not_an_image", f"expected a PNG, JPEG, BMP or TIFF file; this one begins with {start[:8]!r}")


def _truncated(size):
    return ImageError("truncated_image", f"the file is truncated: its {size} bytes end before the image does")


def _turned(header):
    swapped = header.orientation > 4
    return header._replace(width=header.height, height=header.width) if swapped else header


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


def _read_png(file, size):
    position, header, orientation = 8, None, 1
    while position + 12 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IHDR":
            width, height, bits, color = struct.unpack(">IIBB", file.read(10))
            header = Header("PNG", width, height, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(color, 0), max(bits, 8))
        if kind == b"eXIf":
            orientation = _exif_orientation(file.read(min(length, 65536)))
        position += 12 + length
        if kind == b"IEND":
            break
    else:
        raise _truncated(size)
    if header is None or position > size:
        raise _truncated(size)
    return header._replace(orientation=orientation)


def _read_jpeg(file, size):
    position, header, orientation = 2, None, 1
    while True:
        file.seek(position)
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == 0xFFFF:  # fill bytes before a marker
            position += 1
            continue
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            bits, height, width, channels = struct.unpack(">BHHB", file.read(6))
            header = Header("JPEG", width, height, channels, bits)
        if marker == 0xFFE1:
            data = file.read(length - 2)
            if data.startswith(b"Exif\0\0"):
                orientation = _exif_orientation(data[6:])
        if marker == 0xFFDA:
            break
        if marker < 0xFF00:
            raise ImageError("not_an_image", f"the JPEG file has no marker where one is expected, at byte {position}")
        position += 2 + length
    # Cameras and tools append a few bytes after the end marker, so it need not be the very last.
    tail = max(position, size - 65536)
    file.seek(tail)
    if header is None or b"\xff\xd9" not in file.read():
        raise _truncated(size)
    return header._replace(orientation=orientation)


def _read_bmp(file, size):
    data = file.read(34)
    offset, header_size, width, height, _, bits = struct.unpack("<10xIIiiHH", data[:30])
    compression = struct.unpack("<I", data[30:34])[0]
    channels = {24: 3, 32: 4}.get(bits, 3)
    rows = abs(height)
    if header_size < 40 or width < 1 or rows < 1:
        raise ImageError("not_an_image", f"the BMP header gives an image of {width} x {rows} pixels")
    if compression == 0 and offset + (width * bits + 31) // 32 * 4 * rows > size:
        raise _truncated(size)
    return Header("BMP", width, rows, channels, 8)


_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # those of the tags that are read
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_TAGS = (256, 257, 258, 262, 273, 274, 277, 279, 324, 325)


def _read_tiff(file, size):
    magic = file.read(4)
    order = "<" if magic[:1] == b"I" else ">"
    big = magic[2:3] == b"+" or magic[3:4] == b"+"
    if big:
        (position,) = struct.unpack(order + "4xQ", file.read(12))
        count_format, entry_format, entry_size, inline = "Q", "HHQ", 20, 8
    else:
        (position,) = struct.unpack(order + "I", file.read(4))
        count_format, entry_format, entry_size, inline = "H", "HHI", 12, 4
    if position >= size:
        raise _truncated(size)
    file.seek(position)
    count_size = struct.calcsize(order + count_format)
    (count,) = struct.unpack(order + count_format, file.read(count_size))
    if file.tell() + count * entry_size + inline > size:  # `inline`: the pointer to the next image
        raise _truncated(size)
    entries = file.read(count * entry_size)
    tags = {}
    for index in range(count):
        entry = entries[index * entry_size : (index + 1) * entry_size]
        head = struct.calcsize(order + entry_format)
        tag, kind, number = struct.unpack(order + entry_format, entry[:head])
        length = _TIFF_SIZES.get(kind, 1) * number
        value = entry[head : head + inline]
        if length > inline:
            (where,) = struct.unpack(order + ("Q" if big else "I"), value)
            if where + length > size:
                raise _truncated(size)
            file.seek(where)
            value = file.read(length) if tag in _TIFF_TAGS else b""
        if tag not in _TIFF_TAGS or kind not in _TIFF_TYPES:
            continue
        tags[tag] = struct.unpack(order + f"{number}{_TIFF_TYPES[kind]}", value[:length])
    if 256 not in tags or 257 not in tags:
        raise ImageError("not_an_image", "the TIFF file holds no image")
    for offsets, lengths in ((273, 279), (324, 325)):
        ends = [a + b for a, b in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)]
        if ends and max(ends) > size:
            raise _truncated(size)
    palette = tags.get(262, (1,))[0] == 3
    channels = 3 if palette else tags.get(277, (1,))[0]
    orientation = tags.get(274, (1,))[0]
    return Header(
        "TIFF",
        tags[256][0],
        tags[257][0],
        channels,
        max(tags.get(258, (1,))[0], 8),
        orientation if 1 <= orientation <= 8 else 1,
    )


# Orientations whose image is the stored pixels transposed; then with its columns, its rows in the opposite order.
_TRANSPOSED, _FLIPPED_COLUMNS, _FLIPPED_ROWS = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


class Reader:
    """Pixels of one image file, window by window.

    Files are decoded once, as a whole; only TIFF files larger than `whole_up_to` bytes of pixels are read window by
    window, so that memory does not grow with them. What a file says about its orientation is applied, as in training
    (`sources.decode_image`). Use it as a context.

    Attributes:
      header: the file's Header.
    """

    def __init__(self, path, whole_up_to=2**31):
        self.path = pathlib.Path(path)
        self.header = read_header(path)
        self._dataset = None
        self._pixels = None
        num_bytes = self.header.width * self.header.height * self.header.channels * self.header.bits // 8
        if self.header.format == "TIFF" and rasterio is not None:
            with _gdal_errors():
                self._dataset = rasterio.open(self.path)
            if num_bytes <= whole_up_to:
                self._pixels = self._oriented(self._read_dataset(None))
        elif self.header.format == "TIFF" and self.header.channels not in (1, 3, 4):
            raise ImageError(
                "needs_rasterio",
                f"a TIFF of {self.header.channels} channels needs rasterio: pip install 'haksnet_jax[geo]'",
            )
        else:
            pixels = _decode(self.path)
            # OpenCV turns TIFF files whatever it is asked for, and PNG and JPEG not when it leaves them as they are.
            self._pixels = pixels if self.header.format == "TIFF" else self._oriented(pixels)

    def _oriented(self, pixels):
        """Pixels as stored, [H, W, C], turned as the file's orientation says."""
        orientation = self.header.orientation
        if orientation == 1:
            return pixels
        if orientation in _TRANSPOSED:
            pixels = pixels.transpose(1, 0, 2)
        rows = slice(None, None, -1 if orientation in _FLIPPED_ROWS else 1)
        columns = slice(None, None, -1 if orientation in _FLIPPED_COLUMNS else 1)
        return np.ascontiguousarray(pixels[rows, columns])

    def _read_dataset(self, window):
        """[H, W, C] of a rasterio window; colour images as BGR(A), like OpenCV's."""
        with _gdal_errors():
            pixels = np.moveaxis(self._dataset.read(window=window), 0, -1)
            palette = self._dataset.colormap(1) if self._dataset.colorinterp[0].name == "palette" else None
        if palette is not None:
            table = np.zeros((1 << self.header.bits, 3), np.uint8)
            for index, color in palette.items():
                table[index] = color[2::-1]
            return table[pixels[..., 0]]
        if pixels.shape[-1] in (3, 4):
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
        return pixels

    def read(self, x1, y1, x2, y2):
        """[y2 - y1, x2 - x1, C] pixels of a window that lies inside the image; colours in the order B, G, R."""
        if self._pixels is not None:
            return self._pixels[y1:y2, x1:x2]
        orientation = self.header.orientation
        if orientation in _FLIPPED_COLUMNS:
            x1, x2 = self.header.width - x2, self.header.width - x1
        if orientation in _FLIPPED_ROWS:
            y1, y2 = self.header.height - y2, self.header.height - y1
        if orientation in _TRANSPOSED:
            x1, y1, x2, y2 = y1, x1, y2, x2
        return self._oriented(self._read_dataset(rasterio.windows.Window(x1, y1, x2 - x1, y2 - y1)))

    @property
    def shape(self):
        """(rows, columns)."""
        if self._pixels is not None:
            return self._pixels.shape[:2]
        return self.header.height, self.header.width

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._dataset is not None:
            self._dataset.close()


@contextlib.contextmanager
def _gdal_errors():
    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise ImageError("undecodable_image", f"GDAL cannot decode the file: {error}") from error


def _decode(path):
    """[H, W, C] as stored, colours in the order B, G, R."""
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError("undecodable_image", f"OpenCV cannot decode the file: {error.err}") from error
    if pixels is None:
        raise ImageError("undecodable_image", "OpenCV cannot decode the file")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def to_bgr8(pixels):
    """Three channels of eight bits for the network, by the same rules as `sources.decode_image`.

    One channel (or grey with alpha) is repeated; of four and more the first three are taken, as B, G, R. Sixteen bits
    are scaled by 255 / (2**bits - 1), where bits is as many as the image's largest value needs: sensors of 10 to 14
    bits leave most of the range empty.

    Args:
      pixels: [H, W, C] uint8 or uint16.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ImageError: other values than those of 8 or 16 bits.
    """
    pixels = np.ascontiguousarray(pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1))
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16:
        raise ImageError(
            "not_8_or_16_bits", f"expected values of 8 or 16 bits, found {pixels.dtype}; convert the image"
        )
    bits = max(8, int(pixels.max()).bit_length())
    return cv2.convertScaleAbs(pixels, alpha=255 / (2**bits - 1))
