"""HRSID: ships in radar images of 800 pixels, as polygons in COCO's format.

Source: Wei et al., "HRSID: A High-Resolution SAR Images Dataset for Ship Detection and Instance Segmentation", IEEE
Access 2020. It has outlines and axis-parallel boxes; the oriented box is the smallest rectangle around the outline.
"""

import pathlib

from haksnet_jax.labels import classes
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content


class Hrsid(records.OrientedBuilder, skip_registration=True):
    """HRSID with its official splits: 3642 images for training, 1962 for testing."""

    CLASSES = classes.CLASSES["hrsid"]
    DESCRIPTION = "HRSID: ships in synthetic-aperture-radar images of 800 x 800 pixels, one class."
    HOMEPAGE = "https://github.com/chaozhong2010/HRSID"
    CITATION = "Wei et al., HRSID: A High-Resolution SAR Images Dataset, IEEE Access 8, 2020."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download HRSID_JPG from the places that {HOMEPAGE} names; the
source is its folder HRSID_JPG:

  JPEGImages/P0001_0_800_7200_8000.jpg
  annotations/train2017.json  annotations/test2017.json
"""

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        splits, problems = {}, []
        for split in ("train", "test"):
            path = source / "annotations" / f"{split}2017.json"
            splits[split], found = pairing.pair_coco(path, source / "JPEGImages", self.class_names)
            problems += found
        return splits, problems
