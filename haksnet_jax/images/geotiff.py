"""TIFF files through GDAL (the extra `geo`): bands by their declared meaning, palettes, nodata, window by window."""

import contextlib
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax.images.headers import Header, ImageError, read_header

EXTRA = "pip install rasterio"


def import_rasterio(what: str) -> Any:
    """rasterio, imported when it is needed: it takes a third of a second, and most images need none.

    Raises:
      ImageError: reason "needs_rasterio"; the message says `what` needs it and names the extra.
    """
    try:
        import rasterio
        import rasterio.crs
        import rasterio.errors
        import rasterio.windows
    except ImportError:
        raise ImageError("needs_rasterio", f"{what} needs rasterio: {EXTRA}") from None
    # most images are not georeferenced, and GDAL's wrapper warns at each
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def open_image(path: str | os.PathLike[str]) -> Any:
    """A dataset of rasterio, opened as the format that the content is of.

    GDAL's other drivers follow names and addresses in a file, whatever the file is called.

    Args:
      path: of a PNG, JPEG, BMP or TIFF.

    Raises:
      ImageError: it is none of these, or damaged; or rasterio is not installed.
      OSError: the file cannot be read.
    """
    rasterio = import_rasterio("where an image lies")
    image_format = read_header(path).format
    try:  # an absolute path, since one like `zip:a` would be taken for an address
        return rasterio.open(os.path.abspath(path), driver="GTiff" if image_format == "TIFF" else image_format)
    except rasterio.errors.RasterioError as error:
        raise ImageError("undecodable_image", f"GDAL cannot read it: {str(error)[:160]!r}", path) from None


_CRS_NAMES = (  # how files name a coordinate system: an authority and its code
    r"(?P<authority>[A-Za-z]{2,9}):(?P<code>[A-Za-z0-9]{1,20})",
    r"urn:(?:ogc|x-ogc):def:crs:(?P<authority>[A-Za-z]{2,9}):[0-9.]{0,9}:(?P<code>[A-Za-z0-9]{1,20})",
    r"https?://www\.opengis\.net/def/crs/(?P<authority>[A-Za-z]{2,9})/[0-9.]{1,9}/(?P<code>[A-Za-z0-9]{1,20})",
    r"https?://www\.opengis\.net/gml/srs/(?P<authority>epsg)\.xml#(?P<code>[0-9]{1,9})",
)
_MAX_WKT = 100_000  # letters
_WKT = re.compile(r"\s*[A-Z][A-Za-z_]{2,30}\s*\[")


def coordinate_system(text: str) -> Any:
    """The coordinate system that a file names.

    GDAL's own reading of a name opens what it takes for a file or an address, so only codes and WKT get through to it.

    Args:
      text: `EPSG:32632`, `urn:ogc:def:crs:OGC:1.3:CRS84`, an opengis.net address, or WKT.

    Returns:
      rasterio.crs.CRS.

    Raises:
      ImageError: it is none of these, or the code is not known; also where rasterio is not installed.
    """
    rasterio = import_rasterio("a coordinate system")
    match = next(filter(None, (re.fullmatch(pattern, text.strip(), re.IGNORECASE) for pattern in _CRS_NAMES)), None)
    try:
        with rasterio.Env():  # in which GDAL's own lines do not reach the terminal
            if match:
                return rasterio.crs.CRS.from_string(f"{match['authority'].upper()}:{match['code'].upper()}")
            if len(text) <= _MAX_WKT and _WKT.match(text):
                return rasterio.crs.CRS.from_wkt(text)
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise ImageError("unknown_crs", f"the coordinate system is not known: {str(error)[:160]!r}") from None
    expected = "expected a code such as EPSG:32632, or WKT"
    raise ImageError("unknown_crs", f"the coordinate system {text[:40]!r} cannot be used: {expected}")


class Bands:
    """The bands of one TIFF file, as samples that are not scaled yet and as the file stores them (not turned).

    Palettes come as the three bands red, green, blue; grey of fewer than 8 bits, or with the smallest value shown
    white, comes as grey of 8 bits with the largest value white.

    Args:
      path: the file.
      header: its Header, which has been checked.
      data: the file's bytes, or None where they lie in the file.

    Attributes:
      names: of the bands, by their declared colours ("red", "alpha", ...; "" where none is declared).
      descriptions: other names of the bands, as the file calls them, or "".
      dtype: of the samples.
      nodata: value of pixels without data of each band, None where the file names none.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, data: bytes | None = None) -> None:
        self._rasterio = import_rasterio("this TIFF")
        self._header = header
        with self._errors():
            # Without this GDAL lists the folder at each file, which takes longer than reading a tile among 100,000.
            # An absolute path, since one like `zip:a` would be taken for an address.
            with self._rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
                if data is None:
                    self._dataset = self._rasterio.open(os.path.abspath(path), driver="GTiff")
                else:
                    self._memory = self._rasterio.MemoryFile(data)
                    self._dataset = self._memory.open(driver="GTiff")
            names = [colour.name for colour in self._dataset.colorinterp]
            self._palette = None
            if names[0] == "palette":
                self._palette = np.zeros((1 << header.bits, 3), np.uint8)
                for index, colour in self._dataset.colormap(1).items():
                    if index < len(self._palette):
                        self._palette[index] = colour[:3]
            self.dtype = np.dtype(self._dataset.dtypes[0])
            self._flags = [flag.name for flag in self._dataset.mask_flag_enums[0]]
            self.nodata = self._dataset.nodatavals
            bits = self._dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * self.dtype.itemsize)
            self._steps = 2 ** int(bits) - 1
            descriptions = self._dataset.descriptions
        if header.min_is_white and self.dtype.kind == "u":
            self.nodata = tuple(None if value is None else self._steps - value for value in self.nodata)
        self.names = tuple({"gray": "grey", "undefined": "", "palette": ""}.get(name, name) for name in names)
        self.descriptions = tuple(text or "" for text in descriptions)
        if self._palette is not None:
            self.names, self.descriptions, self.nodata = ("red", "green", "blue"), ("",) * 3, (None,) * 3

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except self._rasterio.errors.RasterioError as error:
            cause = str(error.__cause__ or error).splitlines()[0][:200]
            raise ImageError("undecodable_image", f"GDAL cannot decode the file: {cause!r}") from error

    def read(
        self, indexes: Sequence[int], window: tuple[int, int, int, int] | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples of a window.

        Args:
          indexes: bands from 0.
          window: (x1, y1, x2, y2) of the stored rows and columns, or None for all.

        Returns:
          ([h, w, len(indexes)] samples, [h, w] bool of pixels without data by the file's own mask or palette, or None).
        """
        rasterio = self._rasterio
        if window is not None:
            x1, y1, x2, y2 = window
            window = rasterio.windows.Window(x1, y1, x2 - x1, y2 - y1)
        with self._errors():
            if self._palette is not None:
                stored = self._dataset.read(1, window=window)
                nodata = self._dataset.nodata
                return self._palette[stored][..., list(indexes)], None if nodata is None else stored == nodata
            samples = np.moveaxis(self._dataset.read([index + 1 for index in indexes], window=window), 0, -1)
            empty = None
            if self._flags == ["per_dataset"]:  # a mask beside the bands; alpha is a band and not this
                empty = self._dataset.read_masks(1, window=window) == 0
        if self._header.min_is_white and samples.dtype.kind == "u":
            samples = self._steps - samples
        if samples.dtype == np.uint8 and self._steps < 255:
            samples = (samples.astype(np.uint16) * 255 // self._steps).astype(np.uint8)
        return samples, empty

    def close(self) -> None:
        """Closes the file."""
        self._dataset.close()


def encode(
    samples: np.ndarray, names: Sequence[str], descriptions: Sequence[str] = (), nodata: float | None = None
) -> bytes:
    """The bytes of a TIFF file, for samples that neither PNG nor JPEG can hold.

    Args:
      samples: [H, W, C] of a type that TIFF knows.
      names: of the bands, as `Bands.names`.
      descriptions: as `Bands.descriptions`.
      nodata: value of pixels without data, or None.
    """
    rasterio = import_rasterio("writing a TIFF")
    colours = [{"grey": "gray", "": "undefined"}.get(name, name) for name in names]
    rows, columns, channels = samples.shape
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": channels, "dtype": samples.dtype}
    is_colour = colours[:3] == ["red", "green", "blue"]
    with rasterio.MemoryFile() as memory:
        with memory.open(
            **profile, compress="deflate", photometric="rgb" if is_colour else "minisblack", nodata=nodata
        ) as file:
            file.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
            for number, text in enumerate(descriptions, start=1):
                if text:
                    file.set_band_description(number, text)
            file.write(np.moveaxis(samples, -1, 0))
        return memory.read()
