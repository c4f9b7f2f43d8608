"""DIOR-R: 20 classes in images of 800 pixels, oriented boxes.

Source: Cheng et al., "Anchor-Free Oriented Proposal Generator for Object Detection", TGRS 2022 (the oriented boxes); Li
et al., "Object Detection in Optical Remote Sensing Images: A Survey and a New Benchmark", ISPRS 2020 (the images).
"""

import functools
import pathlib

from haksnet_jax.labels import classes
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content


class DiorR(records.OrientedBuilder, skip_registration=True):
    """DIOR-R with its official splits: 5862 images for training, 5863 for validation, 11738 for testing."""

    CLASSES = classes.CLASSES["dior_r"]
    DESCRIPTION = "DIOR-R: optical remote sensing images of 800 x 800 pixels, oriented boxes, 20 classes."
    HOMEPAGE = "https://gcheng-nwpu.github.io"
    CITATION = "Cheng et al., Anchor-Free Oriented Proposal Generator for Object Detection, TGRS 2022."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download DIOR with the oriented annotations (DIOR-R) from
{HOMEPAGE} and unpack its parts into one folder, the source:

  JPEGImages-trainval/00001.jpg   JPEGImages-test/11726.jpg
  Annotations/Oriented Bounding Boxes/00001.xml
  ImageSets/Main/train.txt  ImageSets/Main/val.txt  ImageSets/Main/test.txt
"""

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        read = functools.partial(pairing.read_xml, finder=classes.finder(self.class_names))
        images = {"train": "JPEGImages-trainval", "val": "JPEGImages-trainval", "test": "JPEGImages-test"}
        boxes = source / "Annotations" / "Oriented Bounding Boxes"
        if not boxes.is_dir() and (source / "Annotations" / "Oriented_Bounding_Boxes").is_dir():
            boxes = source / "Annotations" / "Oriented_Bounding_Boxes"  # as some archives spell it
        splits, problems = {}, []
        for split, folder in images.items():
            list_file = source / "ImageSets" / "Main" / f"{split}.txt"
            splits[split], found = pairing.pair_listed(list_file, [source / folder], boxes, read)
            problems += found
        return splits, problems
