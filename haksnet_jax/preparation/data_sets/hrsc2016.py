"""HRSC2016: ships in harbours, one class, boxes of any angle.

Source: Liu et al., "A High Resolution Optical Satellite Image Dataset for Ship Recognition and Some New Baselines",
ICPRAM 2017. Boxes are centre, width, height and an angle in radians that grows clockwise on the screen, as ours.
"""

import functools
import pathlib

import numpy as np

from haksnet_jax.labels import classes
from haksnet_jax.labels.formats import items, voc_xml
from haksnet_jax.labels.formats.structured import Node
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content


def describe(node: Node) -> tuple[str, np.ndarray, str | None]:
    """Class, corners and difficulty of an <HRSC_Object>; all ships are one class, as in the published results."""
    cx, cy, w, h, angle = (node.number(f"mbox_{name}") for name in ("cx", "cy", "w", "h", "ang"))
    return "ship", items.rotated(cx, cy, w, h, angle, "<HRSC_Object>", node.line), voc_xml.difficulty(node)


class Hrsc2016(records.OrientedBuilder, skip_registration=True):
    """HRSC2016 with its official splits: 436 images for training, 181 for validation, 444 for testing."""

    CLASSES = classes.CLASSES["hrsc2016"]
    DESCRIPTION = "HRSC2016: ships in satellite images of harbours, oriented boxes, one class."
    HOMEPAGE = "https://sites.google.com/site/hrsc2016"
    CITATION = "Liu et al., A High Resolution Optical Satellite Image Dataset for Ship Recognition, ICPRAM 2017."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Ask for the data set at {HOMEPAGE} and unpack its parts into
one folder, the source:

  FullDataSet/AllImages/100000001.bmp   FullDataSet/Annotations/100000001.xml
  ImageSets/train.txt  ImageSets/val.txt  ImageSets/test.txt
"""

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        read = functools.partial(
            pairing.read_xml,
            finder=classes.finder(self.class_names),
            objects_at="HRSC_Objects/HRSC_Object",
            describe=describe,
        )
        content = source / "FullDataSet"
        splits, problems = {}, []
        for split in ("train", "val", "test"):
            list_file = source / "ImageSets" / f"{split}.txt"
            splits[split], found = pairing.pair_listed(
                list_file, [content / "AllImages"], content / "Annotations", read
            )
            problems += found
        return splits, problems
