"""CVAT's XML ("CVAT for images 1.1"): one file for many images, boxes with a rotation in degrees, and polygons."""

import math
import os

import numpy as np

from haksnet_jax.labels.formats.items import ImageNames, Item, rotated
from haksnet_jax.labels.formats.structured import FormatError, read_tree
from haksnet_jax.labels.formats.voc_xml import points_of_text
from haksnet_jax.labels.problems import Reason
from haksnet_jax.wording import counted

_OTHERS = ("polyline", "points", "cuboid", "mask", "ellipse", "skeleton")


def read_file(
    path: str | os.PathLike[str],
) -> tuple[dict[str, list[Item | FormatError]], tuple[str, ...] | None, list[FormatError]]:
    """Objects of all images.

    Args:
      path: the file.

    Returns:
      (dict from image name without folder and ending to its list of Item and FormatError; tuple of the class names that
      the file lists, or None; list of FormatError of images and labels that cannot be read).

    Raises:
      FormatError: the file is no such XML.
      OSError: the file cannot be read.
    """
    root = read_tree(path)
    if root.tag != "annotations":
        raise FormatError(Reason.OTHER_FORMAT, f"expected CVAT's <annotations>, found <{root.tag[:40]}>", root.line)
    if root.all("track"):
        detail = "this is CVAT's export of a video (<track>): export it as 'CVAT for images', a box for each image"
        raise FormatError(Reason.OTHER_FORMAT, detail, root.all("track")[0].line)
    images: dict[str, list[Item | FormatError]] = {}
    known, problems, names = ImageNames(), [], []
    for image in root.all("image"):
        shapes = [node for node in image.children if node.tag in ("box", "polygon", *_OTHERS)]
        try:
            name = known.stem(image.attribute("name"))
        except FormatError as error:
            more = f"; left out with it: {counted(len(shapes), 'object')}" if shapes else ""
            problems.append(FormatError(error.reason, f"{error}{more}", image.line))
            continue
        images.setdefault(name, []).extend(_described(node) for node in shapes)
    for label in [node for job in ("task", "job", "project") for node in root.all(f"meta/{job}/labels/label")]:
        try:
            names.append(label.one("name").text)
        except FormatError as error:
            problems.append(error)
    return images, tuple(dict.fromkeys(names)) or None, problems


def _described(node):
    where = f"<{node.tag}>"
    try:
        if node.tag == "box":
            x1, y1, x2, y2 = (node.attribute_number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
            degrees = node.attribute_number("rotation") if "rotation" in node.attributes else 0.0
            w, h = abs(x2 - x1), abs(y2 - y1)
            points = rotated((x1 + x2) / 2, (y1 + y2) / 2, w, h, math.radians(degrees), where, node.line)
        elif node.tag == "polygon":
            points = np.array(points_of_text(node.attribute("points"), node.line))
        else:
            raise FormatError(Reason.NO_OUTLINE, f"{where} is neither a box nor a polygon", node.line)
        values = {child.attributes.get("name", "").lower(): child.text for child in node.all("attribute")}
        return Item(node.attribute("label"), points, values.get("difficult"), node.line, where)
    except FormatError as error:
        return error
