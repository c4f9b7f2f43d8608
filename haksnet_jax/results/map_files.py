"""Maps of classes as files: index GeoTIFF or PNG with colour table, written row by row; polygons; areas in metres."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from haksnet_jax import files
from haksnet_jax.images.geotiff import EXTRA
from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results import dense_maps, geojson

_BLOCK = 256  # rows and columns of a tile of the TIFF


class MapWriter:
    """Takes rows of labels from the top downwards; the file appears when all are there.

    Args:
      path: of the file: `.tif` (needs rasterio) or `.png`, which is held in memory as a whole.
      height, width: of the map.
      colours: of the classes.
      georeference: geojson.Georeference, or None.
      preview_side: longest side of `preview` in pixels.

    Attributes:
      counts: [256] int64 pixels of each label, so far.
      preview: [h, w] uint8: every so many rows and columns of the map.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        colours: Sequence[Sequence[int]],
        georeference: geojson.Georeference | None = None,
        *,
        preview_side: int = 2048,
    ) -> None:
        self._height, self._width = height, width
        self._colours = colours
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(files.whole(path))
        self._step = max(1, -(-max(height, width) // preview_side))
        self.preview = np.full((-(-height // self._step), -(-width // self._step)), IGNORED, np.uint8)
        self.counts = np.zeros(256, np.int64)
        self._pending = np.zeros((0, width), np.uint8)
        self._row = 0
        self._whole: np.ndarray | None = None
        self._dataset: Any = None
        self._temporary = temporary
        if temporary.suffix == ".tif":
            self._dataset = self._stack.enter_context(self._create(temporary, georeference))
        else:
            self._whole = np.zeros((height, width), np.uint8)

    def _create(self, path, georeference):
        import rasterio  # here: an extra, which only maps as TIFF need
        import rasterio.errors

        warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
        place = {}
        if georeference is not None:
            place = {"transform": rasterio.Affine(*georeference.transform), "crs": georeference.crs}
        dataset = rasterio.open(
            path, "w", driver="GTiff", height=self._height, width=self._width, count=1, dtype="uint8", nodata=IGNORED,
            tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, compress="deflate", bigtiff="if_safer", **place,
        )  # fmt: skip
        table = dense_maps.colour_table(self._colours)
        dataset.write_colormap(1, {label: (*map(int, table[label]), 255) for label in range(256)})
        return dataset

    def __call__(self, first: int, rows: np.ndarray) -> None:
        """Takes the next rows. Args: first, their number; rows [n, width] uint8."""
        self.counts += np.bincount(rows.reshape(-1), minlength=256)
        seen = np.arange(-(-first // self._step) * self._step, first + len(rows), self._step)
        self.preview[seen // self._step] = rows[seen - first][:, :: self._step]
        if self._whole is not None:
            self._whole[first : first + len(rows)] = rows
            return
        # Whole blocks at a time: a block that is written twice leaves its first version in the file.
        self._pending = np.concatenate([self._pending, rows])
        ended = self._row + len(self._pending) == self._height
        ready = len(self._pending) if ended else len(self._pending) // _BLOCK * _BLOCK
        if ready:
            window = ((self._row, self._row + ready), (0, self._width))
            self._dataset.write(self._pending[:ready], 1, window=window)
            self._row, self._pending = self._row + ready, self._pending[ready:].copy()

    def close(self) -> None:
        """Ends the file, which then appears."""
        if self._whole is not None:
            image = Image.fromarray(self._whole)
            image.putpalette(dense_maps.colour_table(self._colours).reshape(-1).tolist())
            image.save(self._temporary)
        self._stack.close()

    def discard(self) -> None:
        """Leaves no file."""
        with contextlib.suppress(_Discarded), self._stack:
            raise _Discarded


class _Discarded(Exception):
    pass


class Ground(geojson.Georeference):
    """A georeference that knows the size of its pixels."""

    @property
    def square_metres(self) -> float | None:
        """Of a pixel, or None where the coordinate system is in degrees or not known."""
        if self.crs is None or not self.crs.is_projected:
            return None
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d) * self.crs.linear_units_factor[1] ** 2


def read_ground(path: str | os.PathLike[str]) -> tuple[Ground | None, str]:
    """(Ground or None, reason or ""): where an image lies. Args: path of an image file."""
    georeference, reason = geojson.read_georeference(path)
    return (None, reason) if georeference is None else (Ground(*georeference), reason)


def has_rasterio() -> bool:
    """Whether the extra that reads and writes GeoTIFF is installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


def areas(counts: np.ndarray, class_names: Sequence[str], square_metres: float | None = None) -> dict[str, Any]:
    """{"classes": {name: {"pixels", "share", "square_metres"}}, "without_data": pixels} of the counts of a map."""
    total = int(counts[: len(class_names)].sum())
    entries = {}
    for name, count in zip(class_names, counts.tolist(), strict=False):
        entries[name] = {"pixels": count, "share": round(count / total, 6) if total else None}
        if square_metres is not None:
            entries[name]["square_metres"] = round(count * square_metres, 3)
    return {"classes": entries, "without_data": int(counts[IGNORED])}


def write_polygons(
    path: str | os.PathLike[str],
    map_path: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    ground: Ground | None = None,
    labels: Iterable[int] | None = None,
    min_pixels: int = 1,
) -> tuple[int, int]:
    """Writes the outlines of a map's areas as GeoJSON.

    Neighbours are pixels that share a side. Coordinates are those of the map's coordinate system, or pixels where it
    has none.

    Args:
      path: of the file.
      map_path: the map, a TIFF or PNG of labels.
      class_names: the classes, by label.
      ground: Ground of the map, or None.
      labels: which classes; None for all.
      min_pixels: smaller areas are left out, and counted.

    Returns:
      (polygons written, polygons left out).

    Raises:
      ImportError: rasterio is not installed.
    """
    try:
        import rasterio
        import rasterio.features
    except ImportError as error:
        raise ImportError(f"polygons need rasterio: {EXTRA}") from error
    wanted = set(range(len(class_names)) if labels is None else labels)
    a, b, c, d, e, f = (1, 0, 0, 0, 1, 0) if ground is None else ground.transform
    pixel = None if ground is None else ground.square_metres
    head: dict[str, Any] = {"type": "FeatureCollection", "name": os.path.splitext(os.path.basename(path))[0]}
    digits = 3
    if ground is not None and ground.crs is not None:
        head["crs"] = {"type": "name", "properties": {"name": geojson.crs_name(ground.crs)}}
        digits = 9 if ground.crs.is_geographic else 3
    written = left_out = 0
    with (
        files.whole(path) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        rasterio.open(map_path) as dataset,
    ):
        file.write(f'{json.dumps(head, ensure_ascii=False)[:-1]}, "features": [')
        # GDAL reads the band a few rows at a time. Back to pixels, so that areas are exact counts; of a band of a file
        # the corners come in its coordinate system, whatever transform is asked for.
        ga, gb, gc, gd, ge, gf = tuple(~dataset.transform)[:6]
        for shape, value in rasterio.features.shapes(rasterio.band(dataset, 1), connectivity=4):
            if int(value) not in wanted:
                continue
            rings = [np.rint(np.array(ring) @ [[ga, gd], [gb, ge]] + [gc, gf]) for ring in shape["coordinates"]]
            signed = [_area(ring) for ring in rings]
            pixels = round(abs(signed[0]) - sum(map(abs, signed[1:])))
            if pixels < min_pixels:
                left_out += 1
                continue
            properties = {"class": class_names[int(value)], "pixels": pixels}
            if pixel is not None:
                properties["square_metres"] = round(pixels * pixel, 3)
            placed = [ring @ [[a, d], [b, e]] + [c, f] for ring in rings]
            # outer rings counter-clockwise, holes clockwise
            placed = [ring[::-1] if (_area(ring) < 0) == (i == 0) else ring for i, ring in enumerate(placed)]
            feature = {
                "type": "Feature",
                "properties": properties,
                "geometry": {"type": "Polygon", "coordinates": [ring.round(digits).tolist() for ring in placed]},
            }
            file.write((",\n" if written else "\n") + json.dumps(feature, ensure_ascii=False))
            written += 1
        file.write("\n]}\n")
    return written, left_out


def _area(ring):
    """Signed area of a closed ring [n, 2], positive if it runs counter-clockwise."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
