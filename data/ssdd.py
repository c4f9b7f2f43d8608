"""SSDD, rotated boxes (RBox_SSDD): ships in radar images. python -m data.ssdd --help

Source: Zhang et al., "SAR Ship Detection Dataset (SSDD): Official Release and Comprehensive Data Analysis", Remote
Sensing 2021. Each box is given by its corners and again by centre, sides and angle, rounded to whole pixels: the
corners are read.
"""

import functools
import sys

from data import annotations, builder
from haksnet_jax.labels import dota as labels


def describe(node):
    """Class, corners and difficulty of an <object>."""
    box = node.one("rotated_bndbox")
    polygon = [[box.number(f"{axis}{corner}") for axis in "xy"] for corner in (1, 2, 3, 4)]
    difficult = node.number("difficult") if node.all("difficult") else 0
    return node.one("name").text, polygon, difficult


class Ssdd(builder.OrientedBuilder, skip_registration=True):
    """SSDD with its official splits: 928 images for training, 232 for testing, the latter also inshore and offshore."""

    CLASSES = labels.CLASSES["ssdd"]
    DESCRIPTION = "SSDD: ships in synthetic-aperture-radar images, oriented boxes, one class."
    HOMEPAGE = "https://github.com/TianwenZhang0825/Official-SSDD"
    CITATION = "Zhang et al., SAR Ship Detection Dataset (SSDD), Remote Sensing 13(18), 3690, 2021."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download the archive that {HOMEPAGE} links to; the source
is its folder RBox_SSDD/voc_style:

  JPEGImages_train/000002.jpg  Annotations_train/000002.xml
  JPEGImages_test/000001.jpg   Annotations_test/000001.xml   and, if wanted, ..._test_inshore, ..._test_offshore

Folders in DOTA's format (SPLIT/images, SPLIT/labelTxt) are built by data.dota.build --classes=ssdd.
"""

    def records(self, source):
        """See the base class."""
        read = functools.partial(
            annotations.read_xml, class_names=self.class_names, objects_at="object", describe=describe
        )
        splits, problems = {}, []
        for split in ("train", "test", "test_inshore", "test_offshore"):
            images, boxes = source / f"JPEGImages_{split}", source / f"Annotations_{split}"
            if split in ("train", "test") or images.is_dir():
                splits[split], found = builder.pair_files(images, boxes, ".xml", read)
                problems += found
        return splits, problems


if __name__ == "__main__":
    sys.exit(builder.main(Ssdd))
