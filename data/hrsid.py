"""HRSID: ships in radar images of 800 pixels, as polygons in COCO's format. python -m data.hrsid --help

Source: Wei et al., "HRSID: A High-Resolution SAR Images Dataset for Ship Detection and Instance Segmentation", IEEE
Access 2020. It has outlines and axis-parallel boxes; the oriented box is the smallest rectangle around the outline.
"""

import functools
import json
import math
import sys

import cv2
import numpy as np

from data import annotations, builder
from haksnet_jax.labels import dota as labels


def describe(annotation):
    """Class, corners and difficulty of a COCO annotation: the smallest rectangle around all parts of the outline."""
    parts = annotation.get("segmentation")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, list) for part in parts):
        raise annotations.AnnotationError("no_outline", f"annotation {annotation.get('id')} has no outline as polygons")
    try:
        points = np.array([number for part in parts for number in part], np.float32).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.full((1, 2), math.nan)
    if len(points) < 3 or not np.isfinite(points).all():
        raise annotations.AnnotationError(
            "bad_number", f"the outline of annotation {annotation.get('id')} is not three or more pairs of numbers"
        )
    return annotation["class_name"], cv2.boxPoints(cv2.minAreaRect(points)), annotation.get("iscrowd", 0)


def read_coco(path, images, class_names):
    """Records of one COCO file.

    Args:
      path: the JSON file.
      images: folder of images.
      class_names: the classes, in the order of their labels.

    Returns:
      (list of builder.Record, list of labels.Problem). Problems with objects have no line; they name the annotation.

    Raises:
      builder.DataError: the file is missing or is no such file.
    """
    if not path.is_file() or not images.is_dir():
        raise builder.DataError(f"Expected {path} and a folder {images}; one of them is missing.")
    try:
        content = json.loads(path.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        by_image = {image["id"]: [] for image in content["images"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        problems = []
        for annotation in content["annotations"]:
            annotation["class_name"] = names.get(annotation["category_id"], str(annotation["category_id"]))
            if annotation["image_id"] in by_image:
                by_image[annotation["image_id"]].append(annotation)
            else:
                detail = f"annotation {annotation['id']} belongs to image {annotation['image_id']}, which is not listed"
                problems.append(labels.Problem(str(path), 0, "labels_without_image", detail))
    except (ValueError, KeyError, TypeError) as error:
        raise builder.DataError(f"{path} is no COCO annotation file: {error!r}.") from None
    records = []
    for image_id, found in by_image.items():
        image = images / files[image_id]
        if not image.is_file():
            problems.append(labels.Problem(str(path), 0, "missing_file", f"expected {image}, found none"))
            continue
        items = [(0, annotation) for annotation in found]
        read = functools.partial(annotations.collect, path, items, class_names, describe)
        records.append(builder.Record(image, read))
    return records, problems


class Hrsid(builder.OrientedBuilder, skip_registration=True):
    """HRSID with its official splits: 3642 images for training, 1962 for testing."""

    CLASSES = labels.CLASSES["hrsid"]
    DESCRIPTION = "HRSID: ships in synthetic-aperture-radar images of 800 x 800 pixels, one class."
    HOMEPAGE = "https://github.com/chaozhong2010/HRSID"
    CITATION = "Wei et al., HRSID: A High-Resolution SAR Images Dataset, IEEE Access 8, 2020."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download HRSID_JPG from the places that {HOMEPAGE} names; the
source is its folder HRSID_JPG:

  JPEGImages/P0001_0_800_7200_8000.jpg
  annotations/train2017.json  annotations/test2017.json
"""

    def records(self, source):
        """See the base class."""
        splits, problems = {}, []
        for split in ("train", "test"):
            path = source / "annotations" / f"{split}2017.json"
            splits[split], found = read_coco(path, source / "JPEGImages", self.class_names)
            problems += found
        return splits, problems


if __name__ == "__main__":
    sys.exit(builder.main(Hrsid))
