"""Detections as GeoJSON: in the coordinate system of a georeferenced image, and in WGS84."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.images import geotiff
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.results import tiles

PLACES = "georeference.json"  # beside tiles


class Georeference(NamedTuple):
    """Where an image lies on the ground.

    Attributes:
      transform: (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f; (0, 0) is the outer
        corner of the first pixel.
      crs: the coordinate system (rasterio.crs.CRS), or None where the file does not name one.
    """

    transform: tuple[float, ...]
    crs: Any


def read_georeference(path: str | os.PathLike[str]) -> tuple[Georeference | None, str]:
    """Reads where an image lies.

    Args:
      path: a file that rasterio opens.

    Returns:
      (Georeference or None, sentence that says why there is none or "").
    """
    try:
        import rasterio
    except ImportError:
        return None, "GeoJSON needs rasterio: pip install rasterio"
    try:
        if read_header(path).orientation != 1:
            return (
                None,
                "its orientation tag turns it, and where its pixels lie on the ground is told for the stored rows",
            )
        with geotiff.open_image(path) as dataset:
            if not np.isfinite(dataset.transform[:6]).all():
                return None, "its place on the ground is given in numbers that are not finite"
            if not dataset.transform.is_identity:
                return Georeference(tuple(dataset.transform)[:6], dataset.crs), ""
            scene = scene_of_tile(path)
            if scene is not None:
                return of_tile(path, scene, dataset.width), ""
            if dataset.gcps[0] or dataset.rpcs:
                return None, "it is placed by control points or a camera model; warp it to a map first (gdalwarp)"
    except (ImageError, OSError, rasterio.errors.RasterioError) as error:
        return None, f"its place cannot be read ({error})"
    return None, "it is not georeferenced"


def scene_of_tile(path: str | os.PathLike[str]) -> Georeference | None:
    """The Georeference of the scene that a tile of `haksnet split` was cut from, or None. Args: path of the tile."""
    path = pathlib.Path(path)
    if not tiles.is_tile_name(path.stem):
        return None
    return read_places(path.parent).get(tiles.parse_tile_name(path.stem).image)


def of_tile(path: str | os.PathLike[str], scene: Georeference, width: int) -> Georeference:
    """The Georeference of a tile.

    Args:
      path: of the tile, whose name says where in the scene it lies.
      scene: Georeference of the scene.
      width: of the tile in pixels, by which a resized tile is told from its window.
    """
    tile = tiles.parse_tile_name(pathlib.Path(path).stem)
    a, b, c, d, e, f = scene.transform
    scale = tile.scale / width
    transform = (a * scale, b * scale, a * tile.x + b * tile.y + c, d * scale, e * scale, d * tile.x + e * tile.y + f)
    return Georeference(transform, scene.crs)


def read_places(folder: str | os.PathLike[str]) -> dict[str, Georeference]:
    """Where the images lie that the tiles of a folder were cut from, as `haksnet split` notes it beside the tiles.

    Args:
      folder: of tiles.

    Returns:
      Dict from the name of an image, without its ending, to Georeference; {} where nothing is noted.

    Raises:
      UserError: the file is damaged, or rasterio is not installed.
    """
    path = pathlib.Path(folder) / PLACES
    return _read_places(path, path.stat().st_mtime_ns) if path.is_file() else {}


@functools.lru_cache(maxsize=4)  # the tiles of a folder ask for it one by one
def _read_places(path, _changed):
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, _Place])
        return {
            name: Georeference(place.transform, place.crs and geotiff.coordinate_system(place.crs))
            for name, place in content.items()
        }
    except ImageError as error:
        raise UserError(f"{path}: {error.sentence}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:120]}): cut the tiles again or remove it") from None


_Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class _Place(msgspec.Struct):
    transform: tuple[_Number, _Number, _Number, _Number, _Number, _Number]
    crs: str | None


def to_ground(corners: np.ndarray, georeference: Georeference) -> np.ndarray:
    """Corners in pixels as points on the ground.

    Args:
      corners: [n, 4, 2] pixels of the image, (0, 0) its outer corner.
      georeference: Georeference of the image.

    Returns:
      [n, 4, 2] float64 in the image's coordinate system.
    """
    a, b, c, d, e, f = georeference.transform
    columns, rows = np.moveaxis(corners, -1, 0)
    return np.stack([a * columns + b * rows + c, d * columns + e * rows + f], axis=-1)


def feature_collection(
    detections: Mapping[str, Any],
    class_names: Sequence[str],
    georeference: Georeference,
    *,
    wgs84: bool = False,
    image: str | None = None,
) -> dict[str, Any]:
    """Detections as a GeoJSON FeatureCollection.

    Args:
      detections: {"boxes": [n, 5] in pixels, "scores": [n], "labels": [n]}.
      class_names: the classes' names, by label.
      georeference: Georeference of the image.
      wgs84: longitude and latitude in degrees, as RFC 7946 wants, instead of the image's own coordinate system. That
        one is named in the member `crs`, which older readers and GDAL understand.
      image: the image's name, for the member `name`.

    Returns:
      dict. Each feature is a polygon, counter-clockwise, with the properties label, score and box (in pixels).

    Raises:
      ValueError: wgs84 is asked for and the coordinate system is not known, or a corner lies outside of what it covers.
    """
    boxes = np.asarray(detections["boxes"], np.float64).reshape(-1, 5)
    points = to_ground(boxes_to_corners(boxes), georeference)
    if not (np.isfinite(points).all() and np.isfinite(detections["scores"]).all()):
        raise ValueError("boxes or scores are not finite, or lie beyond all numbers on the ground")
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    if image is not None:
        collection["name"] = image
    digits = 3  # millimetres, or feet
    if wgs84:
        points = _to_wgs84(points, georeference.crs)
        digits = 9  # a tenth of a millimetre
    elif georeference.crs is not None:
        collection["crs"] = {"type": "name", "properties": {"name": crs_name(georeference.crs)}}
        if georeference.crs.is_geographic:
            digits = 9
    else:
        digits = 9  # unknown units
    following = np.roll(points, -1, axis=1)
    area = (points[..., 0] * following[..., 1] - following[..., 0] * points[..., 1]).sum(axis=1)
    points = np.where((area < 0)[:, None, None], points[:, ::-1], points)
    rings = np.concatenate([points, points[:, :1]], axis=1).round(digits).tolist()
    collection["features"] = [
        {
            "type": "Feature",
            "properties": {"label": class_names[label], "score": round(score, 6), "box": box},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        for ring, label, score, box in zip(
            rings,
            np.asarray(detections["labels"]).tolist(),
            np.asarray(detections["scores"], np.float64).tolist(),
            boxes.round(4).tolist(),
            strict=True,
        )
    ]
    return collection


def _to_wgs84(points, crs):
    """[n, 4, 2] points of a coordinate system as longitude and latitude, degrees."""
    if crs is None:
        raise UserError("the image's coordinate system is not known, so there is no way to WGS84")
    if not len(points):
        return points
    import rasterio.warp

    outside = ValueError(f"a detection lies outside of what the image's coordinate system ({crs}) covers")
    try:
        longitudes, latitudes = rasterio.warp.transform(crs, "EPSG:4326", *points.reshape(-1, 2).T)
    except Exception as error:  # the classes of GDAL's own errors are not public
        raise outside from error
    converted = np.stack([longitudes, latitudes], axis=-1).reshape(points.shape)
    if not np.isfinite(converted).all():
        raise outside
    # Around the antimeridian a ring stays in one piece, with longitudes beyond 180 degrees.
    wide = np.ptp(converted[..., 0], axis=1, keepdims=True) > 180
    converted[..., 0] += np.where(wide & (converted[..., 0] < 0), 360.0, 0.0)
    return converted


def crs_name(crs: Any) -> str:
    """The name that GDAL writes: a URN of the registry's code, else the definition as text."""
    authority = crs.to_authority()
    if authority == ("EPSG", "4326"):
        return "urn:ogc:def:crs:OGC:1.3:CRS84"  # this one says that longitude comes first
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else crs.to_wkt()


def write_geojson(path: str | os.PathLike[str], collection: Mapping[str, Any]) -> None:
    """Writes a FeatureCollection, one feature a line; the file appears whole or not at all."""
    head = json.dumps({name: value for name, value in collection.items() if name != "features"}, ensure_ascii=False)
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{head[:-1]}, "features": [')
        for number, feature in enumerate(collection["features"]):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(feature, ensure_ascii=False, allow_nan=False))
        file.write("\n]}\n")
