"""SSDD, rotated boxes (RBox_SSDD): ships in radar images.

Source: Zhang et al., "SAR Ship Detection Dataset (SSDD): Official Release and Comprehensive Data Analysis", Remote
Sensing 2021. Each box is given by its corners and again by centre, sides and angle, rounded to whole pixels: the
corners are read.
"""

import functools
import pathlib

from haksnet_jax.labels import classes
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content

_COPIES = ("000615", "000635")  # of 000610 and 000013


class Ssdd(records.OrientedBuilder, skip_registration=True):
    """SSDD: 814 images for training, 114 to watch it by, 232 for testing; the latter also inshore and offshore.

    The official training split, 928 images, is parted by the last digit of an image's number, as the release parts the
    test images (1 and 9): those that end in 5 are `val`, but for two that are copies of images in `train`.
    """

    CLASSES = classes.CLASSES["ssdd"]
    DESCRIPTION = "SSDD: ships in synthetic-aperture-radar images, oriented boxes, one class."
    HOMEPAGE = "https://github.com/TianwenZhang0825/Official-SSDD"
    CITATION = "Zhang et al., SAR Ship Detection Dataset (SSDD), Remote Sensing 13(18), 3690, 2021."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download the archive that {HOMEPAGE} links to; the source
is its folder RBox_SSDD/voc_style:

  JPEGImages_train/000002.jpg  Annotations_train/000002.xml
  JPEGImages_test/000001.jpg   Annotations_test/000001.xml   and, if wanted, ..._test_inshore, ..._test_offshore

The official training split becomes train (814 images) and val (114: numbers that end in 5); train+val is all of it.
"""

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        read = functools.partial(pairing.read_xml, finder=classes.finder(self.class_names))
        splits, problems = {}, []
        for split in ("train", "test", "test_inshore", "test_offshore"):
            images, boxes = source / f"JPEGImages_{split}", source / f"Annotations_{split}"
            if split in ("train", "test") or images.is_dir():
                splits[split], found = pairing.pair_files(images, boxes, read)
                problems += found
        official = splits.pop("train")
        splits["train"] = [record for record in official if not is_validation(record.image.stem)]
        splits["val"] = [record for record in official if is_validation(record.image.stem)]
        return {split: found for split, found in splits.items() if found}, problems


def is_validation(name: str) -> bool:
    """Whether an image of the official training split belongs to `val`. Args: name, its number as text: "000005"."""
    return name.endswith("5") and name not in _COPIES
