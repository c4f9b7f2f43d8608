"""COCO's JSON: one file for many images. Outlines as polygons, or boxes, which may be turned.

A `bbox` of five numbers is centre, width, height and an angle in degrees, counter-clockwise (Detectron2's); with four
it is x, y, width, height, turned about its centre by `attributes.rotation` degrees clockwise, as CVAT exports it.
Outlines are taken first. `iscrowd` (a group in one outline) and `difficult` make an object difficult.
"""

import collections
import math
import os
from typing import Any

import msgspec
import numpy as np

from haksnet_jax.labels.formats.items import ImageNames, Item, rotated
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.objects import MAX_COORDINATE
from haksnet_jax.labels.problems import Reason, shortened
from haksnet_jax.wording import counted

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


class _Content(msgspec.Struct):  # what is in the lists is read one by one: a bad one does not spoil the others
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class _WithId(msgspec.Struct):
    id: _Key


def read_file(
    path: str | os.PathLike[str],
) -> tuple[dict[str, list[Item | FormatError]], tuple[str, ...], list[FormatError]]:
    """Objects of all images.

    Args:
      path: the file.

    Returns:
      (dict from image name without folder and ending to its list of Item and FormatError; tuple of the class names, in
      the order of their ids; list of FormatError of images, categories and annotations that belong to no image).

    Raises:
      FormatError: the file is no COCO annotation file.
      OSError: the file cannot be read.
    """
    try:
        content = decode_json(read_bytes(path), _Content)
    except FormatError as error:
        raise FormatError(error.reason, f"the file is no COCO annotation file: {error}") from None
    names, strays = _names(content.categories)
    stems, left_out = _stems(content.images)
    images: dict[str, list[Item | FormatError]] = {stem: [] for stem in stems.values()}
    lost: collections.Counter[Any] = collections.Counter()
    for index, raw in enumerate(content.annotations):
        where = f"$.annotations[{index}]"
        try:
            annotation = decode_json(raw, _Annotation, where)
        except FormatError as error:
            owner = _owner(raw, stems)
            (strays if owner is None else images[owner]).append(error)
            continue
        where = where if annotation.id is None else f"annotation {shortened(str(annotation.id))}"
        if annotation.image_id in left_out:
            lost[annotation.image_id] += 1
            continue
        stem = stems.get(annotation.image_id)
        if stem is None:
            detail = f"{where} belongs to image {shortened(str(annotation.image_id))}, which is not listed"
            strays.append(FormatError(Reason.LABELS_WITHOUT_IMAGE, detail))
            continue
        name = names.get(annotation.category_id, f"category {annotation.category_id}")
        images[stem].append(_described(annotation, name, where))
    for key, reason in left_out.items():
        more = f"; left out with it: {counted(lost[key], 'annotation')}" if lost[key] else ""
        strays.append(FormatError(reason.reason, f"{reason}{more}"))
    ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
    return images, tuple(dict.fromkeys(names[key] for key in ordered)), strays


def _names(raws):
    """({id: name} of the categories, list of FormatError of those that cannot be read or contradict each other)."""
    names, problems = {}, []
    for index, raw in enumerate(raws):
        try:
            category = decode_json(raw, _Category, f"$.categories[{index}]")
        except FormatError as error:
            problems.append(error)
            continue
        if not category.name.strip() or not category.name.isprintable():
            detail = f"the name '{shortened(category.name)}' is blank or cannot be printed, at $.categories[{index}]"
            problems.append(FormatError(Reason.BAD_OBJECT, detail))
            continue
        first = names.setdefault(category.id, category.name)
        if first != category.name:
            detail = f"category {shortened(str(category.id))} is both {shortened(first)} and {shortened(category.name)}"
            raise FormatError(Reason.BAD_JSON, f"{detail}, at $.categories[{index}]")
    return names, problems


def _stems(raws):
    """({id: name without folder and ending} of the images, {id: FormatError} of those that are left out)."""
    stems, left_out, known = {}, {}, ImageNames()
    for index, raw in enumerate(raws):
        where = f"$.images[{index}]"
        try:
            image = decode_json(raw, _Image, where)
        except FormatError as error:
            left_out[_id_of(raw, where)] = error
            continue
        try:
            stem = known.stem(image.file_name)
        except FormatError as error:
            left_out[image.id] = error
            continue
        if stems.setdefault(image.id, stem) != stem:
            detail = f"image {shortened(str(image.id))} is both {stems[image.id]} and {stem}, at {where}"
            left_out[image.id] = FormatError(Reason.BAD_OBJECT, shortened(detail, 200))
    return {key: stem for key, stem in stems.items() if key not in left_out}, left_out


def _id_of(raw, where):
    """The id of an image that cannot be read otherwise, or its place."""
    try:
        return msgspec.json.decode(raw, type=_WithId).id
    except (msgspec.MsgspecError, RecursionError):
        return where


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
        return rotated(cx, cy, w, h, -math.radians(degrees), where)
    if len(box) == 4:
        x, y, w, h = box
        degrees = (annotation.attributes or {}).get("rotation", 0)
        if isinstance(degrees, bool) or not isinstance(degrees, (int, float)) or not abs(degrees) <= MAX_COORDINATE:
            raise FormatError(Reason.BAD_NUMBER, f"the rotation of {where} is no number, or beyond {MAX_COORDINATE:g}")
        return rotated(x + w / 2, y + h / 2, w, h, math.radians(degrees), where)
    raise FormatError(Reason.NO_OUTLINE, f"{where} has no outline as polygons and no bbox of 4 or 5 numbers")
