"""labelme's JSON, a file an image, and X-AnyLabeling's, which adds turned rectangles and `difficult`."""

import os

import msgspec
import numpy as np

from haksnet_jax.labels.formats.items import Item, bounded, upright
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.problems import Reason, shortened


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = "polygon"
    difficult: bool | int | None = None
    flags: dict[str, bool] | None = None


class _Content(msgspec.Struct):
    shapes: list[msgspec.Raw]


def read_file(path: str | os.PathLike[str]) -> list[Item | FormatError]:
    """Objects of one image.

    Args:
      path: the file.

    Returns:
      List of Item and FormatError.

    Raises:
      FormatError: the file is no such JSON.
      OSError: the file cannot be read.
    """
    return [_described(raw, index) for index, raw in enumerate(decode_json(read_bytes(path), _Content).shapes)]


def _described(raw, index):
    where = f"$.shapes[{index}]"
    try:
        shape = decode_json(raw, _Shape, where)
        points = bounded(shape.points, where).reshape(-1, 2)
        if shape.shape_type == "rectangle" and len(points) == 2:
            points = upright(*points.ravel())
        elif shape.shape_type == "circle" and len(points) == 2:
            middle, radius = points[0], np.hypot(*(points[1] - points[0]))
            points = upright(*(middle - radius), *(middle + radius))
        elif shape.shape_type not in ("polygon", "rotation", "rectangle", None):
            detail = f"{where} is a {shortened(shape.shape_type)}: outlines and rectangles are read"
            raise FormatError(Reason.NO_OUTLINE, detail)
    except FormatError as error:
        return error
    difficult = shape.difficult if shape.difficult is not None else (shape.flags or {}).get("difficult")
    return Item(shape.label, points, difficult, 0, where)
