"""CVAT's XML ("CVAT for images 1.1"): one file for many images, boxes with a rotation in degrees, and polygons."""

import math
import pathlib

import numpy as np

from haksnet_jax.labels.formats.items import Item, rotated
from haksnet_jax.labels.formats.structured import FormatError, read_tree
from haksnet_jax.labels.formats.voc_xml import points_of_text
from haksnet_jax.labels.problems import Reason

_OTHERS = ("polyline", "points", "cuboid", "mask", "ellipse", "skeleton")


def read_file(path):
    """Objects of all images.

    Args:
      path: the file.

    Returns:
      (dict from image name without folder and ending to its list of Item and FormatError; tuple of the class names that
      the file lists, or None).

    Raises:
      FormatError: the file is no such XML.
      OSError: the file cannot be read.
    """
    root = read_tree(path)
    if root.tag != "annotations":
        raise FormatError(Reason.OTHER_FORMAT, f"expected CVAT's <annotations>, found <{root.tag[:40]}>", root.line)
    images = {}
    for image in root.all("image"):
        name = pathlib.PurePosixPath(image.attribute("name").replace("\\", "/")).stem
        images.setdefault(name, []).extend(
            _described(node) for node in image.children if node.tag in ("box", "polygon", *_OTHERS)
        )
    names = [
        label.one("name").text for job in ("task", "job", "project") for label in root.all(f"meta/{job}/labels/label")
    ]
    return images, tuple(dict.fromkeys(names)) or None


def _described(node):
    where = f"<{node.tag}>"
    try:
        if node.tag == "box":
            x1, y1, x2, y2 = (node.attribute_number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
            degrees = node.attribute_number("rotation") if "rotation" in node.attributes else 0.0
            points = rotated((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, math.radians(degrees))
        elif node.tag == "polygon":
            points = np.array(points_of_text(node.attribute("points"), node.line))
        else:
            raise FormatError(Reason.NO_OUTLINE, f"{where} is neither a box nor a polygon", node.line)
        values = {child.attributes.get("name", "").lower(): child.text for child in node.all("attribute")}
        return Item(node.attribute("label"), points, values.get("difficult"), node.line, where)
    except FormatError as error:
        return error
