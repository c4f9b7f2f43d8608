"""From an image file to pixels: the one decoder of training, evaluation, splitting, validation, building, prediction.

    with ImageFile("scene.tif", ImageSettings(bands=("nir", "red", "green"))) as image:
        image.read(0, 0, image.width, image.height)  # [H, W, 3] uint8

The order is: samples as stored -> the bands that are chosen -> turned as the file says -> scaled to 8 bits, with 0
where there is no data. Transparency changes no colour: an alpha band is left out unless it is chosen.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.images import geotiff
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.settings import DEFAULT, ImageSettings

_WHOLE_UP_TO = 2**26  # bytes of a TIFF's samples that are decoded at once; larger files are read window by window
_PIECE = 2**24  # samples of an image that are looked at in one piece, where all of them are
_NAMES = {1: ("grey",), 2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}

# Orientations whose image is the stored pixels transposed; then with its columns, its rows in the opposite order.
_TRANSPOSED, _FLIPPED_COLUMNS, _FLIPPED_ROWS = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def read(path: str | os.PathLike[str], settings: ImageSettings = DEFAULT) -> np.ndarray:
    """[H, W, C] uint8 pixels of a whole image file, C as `settings.num_channels`; RGB by default.

    Raises:
      ImageError: the message begins with the path.
      OSError: the file cannot be read.
    """
    with ImageFile(path, settings) as image:
        return image.read(0, 0, image.width, image.height)


def decode(data: bytes, name: str, settings: ImageSettings = DEFAULT) -> np.ndarray:
    """As `read`, of the bytes of a file, called `name` in messages."""
    image = ImageFile(name, settings, data=data)
    return image.read(0, 0, image.width, image.height)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored, [H, W, ...], turned as a file says. Args: pixels; orientation, 1 to 8 as in `Header`."""
    if orientation == 1:
        return pixels
    if orientation in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in _FLIPPED_ROWS else 1)
    columns = slice(None, None, -1 if orientation in _FLIPPED_COLUMNS else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def picture(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] to be drawn on, of pixels [H, W, C]: the first three bands, or the first one as grey."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


class ImageFile:
    """An image file, read as a whole or window by window.

    PNG, JPEG and BMP are decoded at once, and so are TIFF files of few pixels; larger ones are read by windows, so that
    memory does not grow with them. Use it as a context.

    Args:
      path: of the file.
      settings: ImageSettings. Where limits are None and samples have more than 8 bits, they are those of this image:
        see `scaling.for_images` for a choice that holds for several.
      data: the file's bytes; None reads them from the path.
      whole_up_to: bytes of samples up to which a TIFF is decoded at once.

    Attributes:
      path: pathlib.Path.
      header: the file's Header.
      width, height: in pixels, after turning.
      band_names: names of the file's bands, as declared; "" for a band without.
      chosen: indexes from 0 of the bands that `read` gives.
      dtype: of the samples.

    Raises:
      ImageError: it cannot be used; the message begins with the path.
      OSError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: ImageSettings = DEFAULT,
        *,
        data: bytes | None = None,
        whole_up_to: int = _WHOLE_UP_TO,
    ) -> None:
        self.path, self.settings = pathlib.Path(path), settings
        self._bands = self._samples = self._empty = None
        try:
            self._open(data, whole_up_to)
            self.chosen = self._choose(settings.bands)
            self._require_scalable()
        except ImageError as error:
            self.close()
            raise ImageError(error.reason, error.sentence, path) from error
        self._limits = settings.limits

    def _open(self, data, whole_up_to):
        if data is None:
            with files.open_regular(self.path) as file:
                start = os.pread(file.fileno(), 2, 0)  # (so that the rest is read at once, and not put together)
                data = self.path if start in (b"II", b"MM") else file.read()
        self.header = header = read_header(data)
        self.width, self.height = header.width, header.height
        if header.format != "TIFF":
            self._keep(_decode(data, header), _NAMES[header.channels])
            return
        try:
            self._bands = geotiff.Bands(self.path, header, None if data is self.path else data)
        except ImageError as error:
            if error.reason != "needs_rasterio":
                raise
            if not header.plain:
                sentence = "a TIFF of other than 8 or 16 bits, grey or RGB and nothing else, needs rasterio"
                raise ImageError(error.reason, f"{sentence}: {geotiff.EXTRA}") from None
            pixels = _decode(self.path.read_bytes() if data is self.path else data, header)
            self._keep(pixels, _NAMES[header.channels], turned=True)  # OpenCV turns TIFF files whatever it is asked for
            return
        self.band_names, self.dtype, self.nodata = self._bands.names, self._bands.dtype, self._bands.nodata
        if self.settings.nodata is not None:
            self.nodata = (self.settings.nodata,) * len(self.band_names)
        if header.width * header.height * len(self.band_names) * self.dtype.itemsize <= whole_up_to:
            everything = range(len(self.band_names))
            self._samples, self._empty = self._stored(everything, None)
            self._bands.close()
            self._bands, self._descriptions = None, self._bands.descriptions

    def _keep(self, pixels, names, turned=False):
        self._samples = pixels if turned else self._turned(pixels)
        self.band_names, self.dtype = names, pixels.dtype
        self.nodata = (self.settings.nodata,) * len(names)
        self._descriptions = ("",) * len(names)

    @property
    def descriptions(self) -> Sequence[str]:
        """Other names of the bands, as the file calls them; "" for a band without."""
        return self._descriptions if self._bands is None else self._bands.descriptions

    def _choose(self, wanted):
        """Indexes of the bands of these numbers and names, see `ImageSettings`; None for those of a picture."""
        names, descriptions = self.band_names, self.descriptions
        if wanted is None:
            if {"red", "green", "blue"} <= set(names):
                return tuple(names.index(colour) for colour in ("red", "green", "blue"))
            bands = [index for index, name in enumerate(names) if name != "alpha"] or [0]
            return tuple(bands[:3]) if len(bands) >= 3 else (bands[0],) * 3
        chosen = []
        for band in wanted:
            if isinstance(band, str):
                word = {"gray": "grey"}.get(band.lower(), band.lower())
                places = [index for index, name in enumerate(names) if name == word]
                places += [index for index, text in enumerate(descriptions) if text.lower() == band.lower()]
            else:
                places = [band - 1] if band <= len(names) else []
            if not places:
                known = ", ".join(
                    f"{index}" + (f" ({(text or name)[:40]})" if text or name else "")
                    for index, (name, text) in enumerate(zip(names[:16], descriptions, strict=False), start=1)
                )
                raise ImageError("lacks_a_band", f"the image lacks band {band!r}; its {len(names)} bands: {known}")
            chosen.append(places[0])
        return tuple(chosen)

    def _require_scalable(self):
        if self.dtype in (np.uint8, np.uint16) or (self.settings.limits is not None and self.dtype.kind in "iuf"):
            return
        kinds = {"i": "signed integers, which may be negative", "f": "floating-point numbers", "u": "integers"}
        kind = f"{8 * self.dtype.itemsize}-bit {kinds.get(self.dtype.kind, 'complex numbers')}"
        raise ImageError(
            "needs_limits",
            f"its samples are {kind}, and nothing says which values are black and white: state them by "
            "--limits=LOW,HIGH (data.limits in a config)",
        )

    def _stored(self, indexes, window):
        """Turned samples [h, w, n] and pixels without data, of a window of the stored rows and columns."""
        samples, empty = self._bands.read(tuple(indexes), window)
        return self._turned(samples), None if empty is None else self._turned(empty)

    def _turned(self, pixels):
        return turned(pixels, self.header.orientation)

    def samples(
        self, x1: int, y1: int, x2: int, y2: int, indexes: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples of a window inside the image, not scaled.

        Args:
          x1, y1, x2, y2: pixels, the ends exclusive.
          indexes: bands from 0; None: the chosen ones.

        Returns:
          ([y2 - y1, x2 - x1, n] samples, [y2 - y1, x2 - x1] bool of the pixels without data, or None for none).
        """
        indexes = self.chosen if indexes is None else tuple(indexes)
        if self._samples is not None:
            # (a view where the bands are as they lie, which is the most frequent case)
            samples = self._samples[y1:y2, x1:x2]
            if indexes != tuple(range(samples.shape[-1])):
                in_a_row = indexes == tuple(range(indexes[0], indexes[0] + len(indexes)))
                samples = samples[..., slice(indexes[0], indexes[-1] + 1) if in_a_row else indexes]
            empty = None if self._empty is None else self._empty[y1:y2, x1:x2]
        else:
            samples, empty = self._read_window(indexes, x1, y1, x2, y2)
        return samples, self._without_data(samples, empty, indexes)

    def _read_window(self, indexes, x1, y1, x2, y2):
        orientation = self.header.orientation
        if orientation in _FLIPPED_COLUMNS:
            x1, x2 = self.width - x2, self.width - x1
        if orientation in _FLIPPED_ROWS:
            y1, y2 = self.height - y2, self.height - y1
        if orientation in _TRANSPOSED:
            x1, y1, x2, y2 = y1, x1, y2, x2
        different = sorted(set(indexes))  # a grey band three times is read once
        try:
            samples, empty = self._stored(different, (x1, y1, x2, y2))
        except ImageError as error:
            raise ImageError(error.reason, error.sentence, self.path) from error
        if indexes != tuple(different):
            samples = samples[..., [different.index(index) for index in indexes]]
        return samples, empty

    def _without_data(self, samples, empty, indexes):
        """[h, w] bool where the file's mask says so, or all bands have their value of no data; None where nowhere."""
        values = [self.nodata[index] for index in indexes]
        if all(value is not None for value in values):
            same = np.ones(samples.shape[:2], bool)
            for channel, value in enumerate(values):
                same &= np.isnan(samples[..., channel]) if value != value else samples[..., channel] == value
            empty = same if empty is None else empty | same
        return empty if empty is not None and empty.any() else None

    def read(self, x1: int, y1: int, x2: int, y2: int, indexes: Sequence[int] | None = None) -> np.ndarray:
        """[y2 - y1, x2 - x1, C] uint8 pixels of a window inside the image, RGB unless other bands are chosen.

        Args:
          x1, y1, x2, y2: pixels, the ends exclusive.
          indexes: bands from 0; None: the chosen ones.
        """
        samples, empty = self.samples(x1, y1, x2, y2, indexes)
        limits = self._limits
        if samples.dtype == np.uint8:
            if limits is None or limits[1] > 255:
                return _blackened(samples, empty)
        elif limits is None:
            limits = self._limits = (0.0, float(2 ** self.bits() - 1))
        return _blackened(_scaled(samples, *limits), empty)

    def bits(self) -> int:
        """Bits that the largest value of the chosen bands needs, 8 to 16; pixels without data are not counted."""
        largest, indexes = 255, sorted(set(self.chosen))
        step = max(1, _PIECE // (self.width * len(indexes)))
        for y in range(0, self.height if self.dtype == np.uint16 else 0, step):
            samples, empty = self.samples(0, y, self.width, min(y + step, self.height), indexes)
            # A value of no data counts in no band, even where other bands have data.
            nodata = [self.nodata[index] for index in indexes]
            counted = np.ones(samples.shape, bool) if nodata.count(None) else samples != np.array(nodata)
            if empty is not None:
                counted &= ~empty[..., None]
            largest = max(largest, int(samples.max(initial=0, where=counted)))
        return largest.bit_length()

    def thumbnail(self, longest_side: int) -> tuple[np.ndarray, float]:
        """(image [h, w, 3], factor): the whole image as a picture, no side longer than `longest_side` pixels.

        Where the chosen bands are not three, those that are colours without a choice are shown.
        """
        indexes = self.chosen if len(self.chosen) == 3 else self._choose(None)
        factor = min(1.0, longest_side / max(self.width, self.height))
        if factor == 1.0:
            return self.read(0, 0, self.width, self.height, indexes), factor
        rows, columns = (max(1, int(side * factor + 0.5)) for side in (self.height, self.width))
        parts, step = [], max(1, _PIECE // self.width)
        for first in range(0, self.height, step):
            last = min(first + step, self.height)
            top, bottom = round(first * rows / self.height), round(last * rows / self.height)
            if bottom > top:
                band = self.read(0, first, self.width, last, indexes)
                parts.append(cv2.resize(band, (columns, bottom - top), interpolation=cv2.INTER_AREA))
        return np.concatenate(parts), factor

    def close(self) -> None:
        """Closes the file."""
        if self._bands is not None:
            self._bands.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _blackened(pixels, empty):
    """The pixels with 0 where there is no data."""
    if empty is None:
        return pixels
    pixels = pixels.copy()
    pixels[empty] = 0
    return pixels


def _scaled(samples, low, high):
    """Samples from low to high as uint8 from 0 to 255, rounded; NaN becomes 0."""
    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        # One look-up for each of the possible values is several times faster than arithmetic on each sample.
        values = np.arange(2 ** (8 * samples.dtype.itemsize), dtype=np.float64)
        table = np.clip(np.rint((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
        return table[samples]
    exact = np.float64 if samples.dtype.itemsize > 2 and samples.dtype != np.float32 else np.float32
    scaled = (samples.astype(exact) - low) * (255 / (high - low))
    return np.clip(np.rint(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)), 0, 255).astype(np.uint8)


def _decode(data, header):
    """[H, W, C] samples of a file's bytes, as stored; colours in the order R, G, B, then alpha."""
    colour = header.format == "JPEG" and header.channels == 3
    # Straight to R, G, B where nothing else can be meant: the turn of colours would be a pass over all pixels.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("undecodable_image", f"OpenCV cannot decode the file: {error.err[:200]!r}") from error
    if pixels is None:
        raise ImageError("undecodable_image", "OpenCV cannot decode the file")
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if colour:
        return pixels
    stored = pixels.shape[-1]
    if header.channels <= 2:  # OpenCV repeats grey beside alpha
        return pixels[..., :1] if header.channels == 1 or stored < 4 else pixels[..., [0, 3]]
    if stored == 1:  # a palette of greys
        return np.repeat(pixels, header.channels, axis=-1)
    if stored < header.channels:
        raise ImageError("undecodable_image", f"OpenCV finds {stored} channels where the header says {header.channels}")
    code = cv2.COLOR_BGRA2RGBA if header.channels == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels if stored == header.channels else np.ascontiguousarray(pixels[..., :3]), code)
