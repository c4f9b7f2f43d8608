"""TFDS builders of DOTA v1.0, v1.5 and v2.0, and of any folder in DOTA's format.

Sources: Xia et al., "DOTA: A Large-scale Dataset for Object Detection in Aerial Images", CVPR 2018; Ding et al.,
"Object Detection in Aerial Images: A Large-Scale Benchmark and Challenges", TPAMI 2021.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from haksnet_jax.labels import classes
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content, Folders

FOLDER_HELP = """The source folder holds one folder a split (train, val, trainval, test or any other name), each with

  images/     PNG, JPEG, BMP or TIFF
  labelTxt/   a text file of the same name for each image; without this folder the split has no labels

or images/SPLIT beside labels/SPLIT, as YOLO lays it out.
"""


class FolderBuilder(records.OrientedBuilder, skip_registration=True):
    """A folder in DOTA's format.

    Args:
      folders: dict from split to (folder of images, labels or None); None looks into the source's folders.
      format: of the labels, see labels.label_set.FORMATS.
      **kwargs: of OrientedBuilder.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = FOLDER_HELP

    def __init__(self, *, folders: Folders | None = None, format: str = "dota", **kwargs: Any) -> None:
        self.folders, self.format = folders, format
        super().__init__(**kwargs)

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        folders = self.folders or split_folders(source)
        splits, problems = {}, []
        for split, (images, annotations) in folders.items():
            splits[split], found = pairing.pair_labels(images, annotations, self.class_names, self.format)
            problems += found
        return splits, problems


def split_folders(source: pathlib.Path) -> Folders:
    """dict from split to (folder of images, folder of labels or None) of a source folder.

    Raises:
      records.DataError: no folder in it has images.
    """
    found = {}
    for folder in sorted(path for path in source.iterdir() if not path.name.startswith(".")):
        if (folder / "images").is_dir():
            beside = [folder / name for name in ("labelTxt", "labels") if (folder / name).is_dir()]
            found[folder.name] = (folder / "images", beside[0] if beside else None)
    for folder in sorted((source / "images").glob("[!.]*/")) if not found else ():
        beside = source / "labels" / folder.name
        found[folder.name] = (folder, beside if beside.is_dir() else None)
    if not found:
        raise records.DataError(
            f"Expected folders like {source / 'train' / 'images'}, found none: name folders with --images and --labels."
        )
    return found


class Dota(FolderBuilder, skip_registration=True):
    """DOTA, as tiles or as whole scenes."""

    DESCRIPTION = "DOTA: aerial scenes with oriented boxes; 15, 16 or 18 classes in v1.0, v1.5 and v2.0."
    HOMEPAGE = "https://captain-whu.github.io/DOTA/dataset.html"
    CITATION = "Xia et al., DOTA: A Large-scale Dataset for Object Detection in Aerial Images, CVPR 2018."
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="v1.0", version="1.0.0", description="15 classes, 2018"),
        tfds.core.BuilderConfig(name="v1.5", version="1.0.0", description="16 classes, small objects added, 2019"),
        tfds.core.BuilderConfig(name="v2.0", version="1.0.0", description="18 classes, 2021"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download train, val and test from {HOMEPAGE} (images of v1.0
serve v1.0 and v1.5; v2.0 has more of them) and unpack the images of a split into SPLIT/images and its label files
(labelTxt-v1.0, -v1.5 or -v2.0) into SPLIT/labelTxt. Labels of the test split are not public. Cut the scenes into tiles
by `haksnet split` first, and build from its output.

{FOLDER_HELP}"""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the published order."""
        return classes.CLASSES[{"v1.0": "dota10", "v1.5": "dota15", "v2.0": "dota20"}[self.builder_config.name]]


class Folder(FolderBuilder, skip_registration=True):
    """A data set of one's own in DOTA's format.

    Args:
      class_names: its classes, in the order of their labels.
      **kwargs: of FolderBuilder.
    """

    DESCRIPTION = "A data set of one's own in DOTA's format."

    def __init__(self, *, class_names: Sequence[str], **kwargs: Any) -> None:
        self._class_names = tuple(class_names)
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self._class_names
