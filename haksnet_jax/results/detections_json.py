"""`detections.json`: what was found in many images, with the classes; written image by image, checked when read."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from haksnet_jax import files, json_files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels.objects import MAX_COORDINATE
from haksnet_jax.results import overlaps
from haksnet_jax.results.dota import image_stem

MAX_BYTES = 2**31
_NUMBER = {
    "type": "number",
    "minimum": -MAX_COORDINATE,
    "maximum": MAX_COORDINATE,
    "description": f"a number between -{MAX_COORDINATE:g} and {MAX_COORDINATE:g}",
}
_LENGTH = {**_NUMBER, "minimum": 0, "description": f"a number from 0 to {MAX_COORDINATE:g}"}
_SIDE = {"type": "integer", "minimum": 1, "maximum": int(MAX_COORDINATE), "description": "a number of pixels from 1"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 1000, "description": "a name"}
_DETECTION = {
    "type": "object",
    "description": "an object with label, score and box",
    "required": ["label", "score", "box"],
    "properties": {
        "label": {**_NAME, "description": "the name of a class"},
        "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "a number from 0 to 1"},
        "box": {
            "type": "array",
            "minItems": 5,
            "maxItems": 5,
            "prefixItems": [_NUMBER, _NUMBER, _LENGTH, _LENGTH],
            "items": _NUMBER,
            "description": "a list of five numbers: cx, cy, w, h in pixels, angle in radians",
        },
    },
}
_DETECTIONS = {"type": "array", "items": _DETECTION, "description": "a list of detections"}
_IMAGE = {
    "type": "object",
    "description": "an object with image and detections",
    "required": ["image", "detections"],
    "properties": {"image": _NAME, "width": _SIDE, "height": _SIDE, "detections": {"type": "array"}},
}
_FILE = {
    "type": "object",
    "description": 'an object with "images", as `haksnet predict` writes it',
    "required": ["images"],
    "properties": {
        "classes": {"type": "array", "items": _NAME, "description": "a list of names of classes"},
        "images": {"type": "array", "description": "a list of images"},
    },
}


def lines(detections: overlaps.ArraysByName, class_names: Sequence[str]) -> Iterator[str]:
    """Yields the JSON text of each detection: label, score, box and polygon."""
    boxes = np.asarray(detections["boxes"], np.float64).reshape(-1, 5)
    polygons = boxes_to_corners(boxes).reshape(-1, 8).round(4).tolist()
    scores = np.asarray(detections["scores"], np.float64).round(7).tolist()
    boxes = np.concatenate([boxes[:, :4].round(4), boxes[:, 4:].round(7)], axis=1).tolist()
    names = [json.dumps(name, ensure_ascii=False) for name in class_names]
    labels = np.asarray(detections["labels"]).tolist()
    for label, score, box, polygon in zip(labels, scores, boxes, polygons, strict=True):
        yield f'{{"label": {names[label]}, "score": {score}, "box": {box}, "polygon": {polygon}}}'


def write(
    path: str | os.PathLike[str],
    entries: Iterable[tuple[str, int | None, int | None, overlaps.ArraysByName]],
    class_names: Sequence[str],
) -> int:
    """Writes the file; it appears whole or not at all.

    Args:
      path: where.
      entries: iterable of (image name, width, height, detections); one at a time is in memory.
      class_names: the classes, by label.

    Returns:
      Number of detections.

    Raises:
      ValueError: a box or a score is not finite.
    """
    count = 0
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{{"classes": {json.dumps(list(class_names), ensure_ascii=False)},\n"images": [')
        for number, (name, width, height, detections) in enumerate(entries):
            if not all(np.isfinite(detections[key]).all() for key in ("boxes", "scores")):
                raise ValueError(f"image {name!r} has boxes or scores that are not finite")
            head = json.dumps({"image": name, "width": width, "height": height}, ensure_ascii=False)
            file.write(f'{"," if number else ""}\n{head[:-1]}, "detections": [')
            for row, line in enumerate(lines(detections, class_names)):
                file.write(f"{',' if row else ''}\n  {line}")
                count += 1
            file.write("]}")
        file.write("\n]}\n")
    return count


def read(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...], bool]:
    """Reads the file.

    Args:
      path: the file.

    Returns:
      (dict from image name, without folder and extension, to {"boxes": [n, 5] float32, "scores": [n] float32, "labels":
      [n] int32, "size": (columns, rows) of the image or None}, names of the classes by label, whether the file itself
      lists them: else they are those that occur in it). Images without detections are in the dict.

    Raises:
      UserError: the file cannot be read, or has another form: the sentence names the path inside it.
    """
    content = json_files.load(path, max_bytes=MAX_BYTES)
    json_files.check(content, _FILE, where=str(path))
    listed = content.get("classes")
    label_of = {name: label for label, name in enumerate(dict.fromkeys(listed or ()))}
    if listed is not None and len(label_of) < len(listed):
        raise UserError(f"{path}: classes names a class twice")
    by_image = {}
    for number, entry in enumerate(content["images"]):
        json_files.check(entry, _IMAGE, where=f"{path}: images[{number}]")
        name = image_stem(entry["image"])
        if name in by_image:
            raise UserError(f"{path}: two images are called {json_files.quoted(name)}, which results go by")
        boxes, scores, names = _arrays(entry["detections"], f"{path}: images[{number}].detections")
        unknown = next((name for name in names if name not in label_of), None) if listed is not None else None
        if unknown is not None:
            raise UserError(
                f"{path}: images[{number}] has a detection of {json_files.quoted(unknown)}, which is not among its "
                "classes"
            )
        labels = [label_of.setdefault(name, len(label_of)) for name in names]
        by_image[name] = {
            "boxes": boxes,
            "scores": scores,
            "labels": np.array(labels, np.int32),
            "size": (entry["width"], entry["height"]) if {"width", "height"} <= entry.keys() else None,
        }
    return by_image, tuple(label_of), listed is not None


def _arrays(detections, where):
    """(boxes [n, 5], scores [n], names) of a list of detections; where one is wrong, the schema says which."""
    try:
        names = [one["label"] for one in detections]
        scores = np.array([one["score"] for one in detections])
        boxes = np.array([one["box"] for one in detections])
        kinds = scores.dtype.kind + boxes.dtype.kind  # (numbers in quotes would become numbers, if a type were named)
        boxes = boxes.reshape(-1, 5)
        plain = (
            set(kinds) <= {"f", "i"}
            and scores.shape == (len(detections),)
            and len(boxes) == len(detections)
            and all(type(name) is str and name for name in names)
            and all(type(one["score"]) in (float, int) for one in detections)
            and all(type(one["box"]) is list for one in detections)
            and bool((np.abs(boxes) <= MAX_COORDINATE).all() and (boxes[:, 2:4] >= 0).all())
            and bool(((scores >= 0) & (scores <= 1)).all())
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        plain = False
    if not plain:
        # The schema takes a hundred times as long, and says where.
        json_files.check(detections, _DETECTIONS, where=where)
        raise UserError(f"{where}: expected detections with label, score and box, as `haksnet predict` writes them")
    return boxes.astype(np.float32), scores.astype(np.float32), names
