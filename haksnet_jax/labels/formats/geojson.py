"""GeoJSON over a GeoTIFF: polygons on the ground, brought to pixels by the image's place. Needs the extra `geo`.

The class is a property: `class`, `label`, `name`, `category` or `class_name`. Coordinates are in the system that the
member `crs` names, else, as RFC 7946 says, longitude and latitude in degrees; or in the image's own system where they
cannot be that.
"""

import os
from typing import Any

import msgspec
import numpy as np

from haksnet_jax.images import geotiff
from haksnet_jax.images.headers import ImageError
from haksnet_jax.labels.formats.items import Item, bounded
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.problems import Reason, shortened

_MAX_PLACE = 1e9  # in any coordinate system of the earth
_CLASS_KEYS = ("class", "label", "name", "category", "class_name")


class _Geometry(msgspec.Struct):
    type: str
    coordinates: Any = None


class _Feature(msgspec.Struct):
    geometry: _Geometry | None = None
    properties: dict[str, Any] | None = None


class _Content(msgspec.Struct):
    type: str
    features: list[msgspec.Raw]
    crs: dict[str, Any] | None = None


def read_file(path: str | os.PathLike[str], image: str | os.PathLike[str] | None) -> list[Item | FormatError]:
    """Objects of one image.

    Args:
      path: the GeoJSON file.
      image: the GeoTIFF; None leaves the coordinates as they are (to list the classes alone).

    Returns:
      List of Item and FormatError.

    Raises:
      FormatError: the file is no such JSON, or the image has no place on the ground.
      OSError: a file cannot be read.
    """
    content = decode_json(read_bytes(path), _Content)
    if content.type != "FeatureCollection":
        raise FormatError(Reason.OTHER_FORMAT, f"expected a FeatureCollection, found '{shortened(content.type)}'")
    items = [part for index, raw in enumerate(content.features) for part in _described(raw, f"$.features[{index}]")]
    if image is None:
        return items
    to_pixels = _to_pixels(image, content.crs)
    return [item if isinstance(item, FormatError) else _placed(item, to_pixels) for item in items]


def _placed(item, to_pixels):
    """The Item in pixels, or a FormatError where its coordinate system does not reach to it."""
    try:
        return item._replace(points=to_pixels(item.points))
    except _TransformError as error:
        detail = f"{item.where} lies where its coordinate system does not reach: {shortened(str(error), 160)}"
        return FormatError(Reason.BAD_NUMBER, detail)


class _TransformError(ValueError):
    """What rasterio says of points that cannot be transformed."""


def _described(raw, where):
    """The Items of one feature; a MultiPolygon has several."""
    try:
        feature = decode_json(raw, _Feature, where)
        properties = feature.properties or {}
        name = next((properties[key] for key in _CLASS_KEYS if isinstance(properties.get(key), (str, int))), None)
        if name is None:
            raise FormatError(Reason.MISSING_TAG, f"{where} has no property {', '.join(_CLASS_KEYS[:-1])}")
        kind = feature.geometry.type if feature.geometry else "nothing"
        forms = {"Polygon": list[list[list[float]]], "MultiPolygon": list[list[list[list[float]]]]}
        if kind not in forms:
            raise FormatError(Reason.NO_OUTLINE, f"{where} is a {shortened(kind)}: polygons are read")
        try:
            rings = msgspec.convert(feature.geometry.coordinates, forms[kind])
        except msgspec.ValidationError as error:
            detail = f"{shortened(str(error), 120)}, in $.geometry.coordinates of {where}"
            raise FormatError(Reason.BAD_OBJECT, detail) from None
        parts = [polygon[0] for polygon in (rings if kind == "MultiPolygon" else [rings]) if polygon]
        if any(len(point) < 2 for part in parts for point in part):
            raise FormatError(Reason.BAD_NUMBER, f"{where}: a point has fewer than two numbers")
        points = [bounded([point[:2] for point in part], where, most=_MAX_PLACE).reshape(-1, 2) for part in parts]
    except FormatError as error:
        return [error]
    return [Item(str(name), part, properties.get("difficult"), 0, where) for part in points]


def _to_pixels(image, crs):
    """Function from [P, 2] places on the ground to pixels of a GeoTIFF."""
    try:
        import rasterio
        import rasterio.errors
        import rasterio.warp
    except ImportError:
        raise FormatError(Reason.UNREADABLE_LABELS, "GeoJSON labels need rasterio: pip install rasterio") from None
    try:
        with geotiff.open_image(image) as dataset:
            place, own = dataset.transform, dataset.crs
            if place.is_identity or place.is_degenerate or not np.isfinite(place[:6]).all():
                raise FormatError(
                    Reason.UNREADABLE_LABELS, f"{image} is not georeferenced, and its labels are places on the ground"
                )
            inverse = ~place
        named = (crs or {}).get("properties")
        name = named.get("name") if isinstance(named, dict) else None
        given = geotiff.coordinate_system(str(name)) if name else None
    except ImageError as error:
        known = error.reason != "unknown_crs"
        raise FormatError(Reason.UNREADABLE_LABELS if known else Reason.BAD_JSON, str(error)) from None

    def convert(points):
        system = given
        if system is None and own is not None and np.all(np.abs(points) <= [180, 90]):
            system = rasterio.crs.CRS.from_epsg(4326)
        xs, ys = points.T
        if system is not None and own is not None and system != own:
            try:
                xs, ys = rasterio.warp.transform(system, own, xs, ys)
            except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
                raise _TransformError(str(error)) from None
        a, b, c, d, e, f = inverse[:6]
        xs, ys = np.asarray(xs), np.asarray(ys)
        return np.stack([a * xs + b * ys + c, d * xs + e * ys + f], axis=-1)

    return convert
