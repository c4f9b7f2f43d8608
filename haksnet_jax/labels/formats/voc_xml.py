"""XML annotation files of one image each: roLabelImg's, and those of the data sets that are like Pascal VOC.

roLabelImg writes `<robndbox>` with cx, cy, w, h and an angle in radians that grows clockwise on the screen; DIOR-R
writes corners there (`x_left_top`, ...), SSDD has `<rotated_bndbox>` with x1 to y4, and `<bndbox>` is axis-parallel.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from haksnet_jax.labels.formats.items import Item, rotated, upright
from haksnet_jax.labels.formats.structured import FormatError, Node, finite, read_tree
from haksnet_jax.labels.problems import Reason

_CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")


def read_file(
    path: str | os.PathLike[str],
    objects_at: str = "object",
    describe: Callable[[Node], tuple[str, Any, str | None]] | None = None,
) -> list[Item | FormatError]:
    """Objects of one file.

    Args:
      path: the file.
      objects_at: where the objects are below the root: "object" or "objects/object".
      describe: Node of an object -> (class name, [P, 2] points in pixels, difficulty); None: `describe_object`.

    Returns:
      List of Item and FormatError.

    Raises:
      FormatError: the file is no such XML.
      OSError: the file cannot be read.
    """
    items: list[Item | FormatError] = []
    for number, node in enumerate(read_tree(path).all(objects_at), start=1):
        try:
            name, points, difficulty = (describe or describe_object)(node)
        except FormatError as error:
            items.append(FormatError(error.reason, str(error), error.line or node.line))
            continue
        items.append(Item(name, np.asarray(points, np.float64), difficulty, node.line, f"object {number}"))
    return items


def difficulty(node: Node) -> str | None:
    """The text of <difficult>, or None."""
    found = node.all("difficult")
    return found[0].text if found else None


def describe_object(node: Node) -> tuple[str, Any, str | None]:
    """Class, corners and difficulty of an `<object>` of any of these kinds."""
    for tag in ("robndbox", "rotated_bndbox"):
        for box in node.all(tag):
            return node.one("name").text, _turned(box), difficulty(node)
    if node.all("bndbox"):
        box = node.one("bndbox")
        points = upright(*(box.number(tag) for tag in ("xmin", "ymin", "xmax", "ymax")))
        return node.one("name").text, points, difficulty(node)
    raise FormatError(Reason.NO_OUTLINE, "<object> has neither <robndbox> nor <bndbox>", node.line)


def _turned(box):
    if box.all("x_left_top"):
        return [[box.number(f"{axis}_{corner}") for axis in "xy"] for corner in _CORNERS]
    if box.all("x1"):
        return [[box.number(f"{axis}{corner}") for axis in "xy"] for corner in (1, 2, 3, 4)]
    return rotated(*(box.number(tag) for tag in ("cx", "cy", "w", "h", "angle")), f"<{box.tag}>", box.line)


def points_of_text(text: str, line: int) -> list[list[float]]:
    """The points [P, 2] of "x,y;x,y;...". Raises: FormatError."""
    points = []
    for pair in text.split(";"):
        parts = pair.split(",")
        if len(parts) != 2:
            raise FormatError(Reason.BAD_NUMBER, f"expected points as x,y, found '{pair[:40]}'", line)
        points.append([finite(part, "points", line) for part in parts])
    return points
