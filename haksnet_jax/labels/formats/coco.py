"""COCO's JSON: one file for many images. Outlines as polygons, or boxes, which may be turned.

A `bbox` of five numbers is centre, width, height and an angle in degrees, counter-clockwise (Detectron2's); with four
it is x, y, width, height, turned about its centre by `attributes.rotation` degrees clockwise, as CVAT exports it.
Outlines are taken first. `iscrowd` (a group in one outline) and `difficult` make an object difficult.
"""

import math
import pathlib
from typing import Any

import msgspec
import numpy as np

from haksnet_jax.labels.formats.items import Item, rotated
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.problems import Reason

_Key = int | str


class _Category(msgspec.Struct):
    id: _Key
    name: str


class _Image(msgspec.Struct):
    id: _Key
    file_name: str


class _Annotation(msgspec.Struct):
    image_id: _Key
    category_id: _Key
    id: _Key | None = None
    segmentation: list[list[float]] | dict[str, Any] | None = None
    bbox: list[float] | None = None
    iscrowd: bool | int | None = None
    difficult: bool | int | None = None
    attributes: dict[str, Any] | None = None


class _Content(msgspec.Struct):
    images: list[_Image]
    annotations: list[msgspec.Raw]  # read one by one: a bad one does not spoil the others
    categories: list[_Category]


def read_file(path):
    """Objects of all images.

    Args:
      path: the file.

    Returns:
      (dict from image name without folder and ending to its list of Item and FormatError; tuple of the class names, in
      the order of their ids; list of FormatError of annotations that belong to no image).

    Raises:
      FormatError: the file is no COCO annotation file.
      OSError: the file cannot be read.
    """
    try:
        content = decode_json(read_bytes(path), _Content)
    except FormatError as error:
        raise FormatError(error.reason, f"the file is no COCO annotation file: {error}") from None
    names = {category.id: category.name for category in content.categories}
    stems, images, strays = {}, {}, []
    for image in content.images:
        stems[image.id] = pathlib.PurePosixPath(image.file_name.replace("\\", "/")).stem
        images.setdefault(stems[image.id], [])
    for index, raw in enumerate(content.annotations):
        where = f"$.annotations[{index}]"
        try:
            annotation = decode_json(raw, _Annotation, where)
        except FormatError as error:
            owner = _owner(raw, stems)
            (strays if owner is None else images[owner]).append(error)
            continue
        where = where if annotation.id is None else f"annotation {annotation.id}"
        stem = stems.get(annotation.image_id)
        if stem is None:
            detail = f"{where} belongs to image {annotation.image_id}, which is not listed"
            strays.append(FormatError(Reason.LABELS_WITHOUT_IMAGE, detail))
            continue
        name = names.get(annotation.category_id, f"category {annotation.category_id}")
        images[stem].append(_described(annotation, name, where))
    ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
    return images, tuple(dict.fromkeys(names[key] for key in ordered)), strays


class _OfImage(msgspec.Struct):
    image_id: _Key


def _owner(raw, stems):
    """The image that an annotation belongs to, though it cannot be read otherwise."""
    try:
        return stems.get(msgspec.json.decode(raw, type=_OfImage).image_id)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _described(annotation, name, where):
    try:
        points = _points(annotation, where)
    except FormatError as error:
        return error
    difficult = max(int(annotation.iscrowd or 0), int(annotation.difficult or 0))
    return Item(name, points, difficult, 0, where)


def _points(annotation, where):
    parts = annotation.segmentation
    if isinstance(parts, dict):
        raise FormatError(Reason.NO_OUTLINE, f"{where} has no outline as polygons")
    if parts:
        numbers = [number for part in parts for number in part]
        if len(numbers) % 2 or len(numbers) < 6:
            detail = f"the outline of {where} is not three or more pairs of numbers"
            raise FormatError(Reason.BAD_NUMBER, detail)
        return np.reshape(numbers, (-1, 2))
    box = annotation.bbox or []
    if len(box) == 5:
        cx, cy, w, h, degrees = box
        return rotated(cx, cy, w, h, -math.radians(degrees))
    if len(box) == 4:
        x, y, w, h = box
        degrees = (annotation.attributes or {}).get("rotation", 0)
        if not isinstance(degrees, (int, float)):
            raise FormatError(Reason.BAD_NUMBER, f"the rotation of {where} is no number")
        return rotated(x + w / 2, y + h / 2, w, h, math.radians(degrees))
    raise FormatError(Reason.NO_OUTLINE, f"{where} has no outline as polygons and no bbox of 4 or 5 numbers")
