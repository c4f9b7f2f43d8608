"""Label Studio's JSON, as exported ("JSON" or "JSON-MIN"): one file for many images, places in percent of the image.

A rectangle's rotation is in degrees, clockwise on the screen, about its first corner.
"""

import math
import os
import pathlib
import re
import urllib.parse
from typing import Any

import msgspec
import numpy as np

from haksnet_jax.labels.formats.items import MAX_ANGLE, ImageNames, Item, bounded
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.problems import Reason


class _Value(msgspec.Struct):
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    rotation: float = 0.0
    points: list[tuple[float, float]] | None = None
    rectanglelabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    labels: list[str] | None = None


class _Result(msgspec.Struct):
    type: str = ""
    value: _Value | None = None
    original_width: float | None = None
    original_height: float | None = None


class _Annotation(msgspec.Struct):
    result: list[msgspec.Raw]
    was_cancelled: bool = False


class _Task(msgspec.Struct):
    annotations: list[_Annotation] | None = None
    data: dict[str, Any] | None = None


_OBJECT_TYPES = ("rectanglelabels", "polygonlabels", "rectangle", "polygon")


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, list[Item | FormatError]], list[FormatError]]:
    """Objects of all images.

    Args:
      path: the file.

    Returns:
      (dict from image name without folder and ending to its list of Item and FormatError, list of FormatError of tasks
      that cannot be read).

    Raises:
      FormatError: the file is no such JSON.
      OSError: the file cannot be read.
    """
    images: dict[str, list[Item | FormatError]] = {}
    known, problems = ImageNames(), []
    for index, raw in enumerate(decode_json(read_bytes(path), list[msgspec.Raw])):
        where = f"$[{index}]"
        try:
            task = decode_json(raw, _Task, where)
            if task.data is None:
                name, items = _short_form(raw, where, known)
            else:
                name, items = _image_name(task.data, where, known), []
                kept = [one for one in task.annotations or [] if not one.was_cancelled]
                for number, result in enumerate(kept[0].result if kept else []):
                    items += _objects(result, f"{where}.annotations[0].result[{number}]", only_objects=True)
        except FormatError as error:
            problems.append(error)
            continue
        images.setdefault(name, []).extend(items)
    return images, problems


def _short_form(raw, where, known):
    """(image name, items) of a task in the form "JSON-MIN"."""
    fields = decode_json(raw, dict[str, Any], where)
    items = []
    for key, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and {"x", "points"} & value[0].keys():
            for index, one in enumerate(value):
                size = {name: one.get(name) for name in ("original_width", "original_height")}
                items += _objects(msgspec.json.encode({"value": one, **size}), f"{where}.{key}[{index}]")
    return _image_name(fields, where, known), items


def _image_name(fields, where, known):
    """The name of a task's image, without the eight letters that an upload puts before it."""
    for key in ("image", "img", "file", *fields):
        value = fields.get(key)
        if not isinstance(value, str):
            continue
        local = re.search(r"[?&]d=([^&]+)", value)  # of "/data/local-files/?d=folder/a.png"
        name = urllib.parse.unquote(local[1] if local else value.split("?")[0])
        if re.search(r"\.(jpe?g|png|bmp|tiff?)$", name, re.IGNORECASE):
            stem = pathlib.PurePosixPath(name.replace("\\", "/")).stem
            return known.stem(value, re.sub(r"^[0-9a-f]{8}-", "", stem))
    raise FormatError(Reason.MISSING_TAG, f"{where} names no image")


def _objects(raw, where, only_objects=False):
    """The Items of one result: one for each of its labels, none for what is no object (choices, texts)."""
    try:
        if only_objects and decode_json(raw, _Type, where).type not in _OBJECT_TYPES:
            return []
        result = decode_json(raw, _Result, where)
        value = result.value or _Value()
        names = value.rectanglelabels or value.polygonlabels or value.labels
        if not names:
            raise FormatError(Reason.MISSING_TAG, f"{where} has no label")
        if not result.original_width or not result.original_height:
            raise FormatError(Reason.MISSING_TAG, f"{where} has no original_width and original_height")
        size = bounded([result.original_width, result.original_height], where)
        if size.min() < 1:
            raise FormatError(Reason.BAD_NUMBER, f"{where}: expected an image of one or more pixels")
        points = _points(value, size, where)
    except FormatError as error:
        return [error]
    return [Item(name, points, None, 0, where) for name in names]


class _Type(msgspec.Struct):
    type: str = ""


def _points(value, size, where):
    if value.points is not None:
        return bounded(value.points, where).reshape(-1, 2) * size / 100
    if None in (value.x, value.y, value.width, value.height):
        raise FormatError(Reason.MISSING_TAG, f"{where} has neither points nor x, y, width and height")
    corner = bounded([value.x, value.y], where) * size / 100
    w, h = bounded([value.width, value.height], where) * size / 100
    if w < 0 or h < 0:
        raise FormatError(Reason.BAD_NUMBER, f"{where}: expected a width and height of 0 or more")
    angle = math.radians(bounded(value.rotation, where, most=math.degrees(MAX_ANGLE)))
    along, across = w * np.array([math.cos(angle), math.sin(angle)]), h * np.array([-math.sin(angle), math.cos(angle)])
    return np.stack([corner, corner + along, corner + along + across, corner + across])
