"""TFDS builders of DOTA v1.0, v1.5 and v2.0, and of any folder in DOTA's format.

Sources: Xia et al., "DOTA: A Large-scale Dataset for Object Detection in Aerial Images", CVPR 2018; Ding et al.,
"Object Detection in Aerial Images: A Large-Scale Benchmark and Challenges", TPAMI 2021.
"""

import functools

import tensorflow_datasets as tfds

from data import builder
from haksnet_jax.labels import dota as labels

FOLDER_HELP = """The source folder holds one folder a split (train, val, trainval, test or any other name), each with

  images/     PNG, JPEG, BMP or TIFF
  labelTxt/   a text file of the same name for each image; without this folder the split has no labels
"""


def split_records(images, annotations, class_names):
    """Records of one folder of images with DOTA's label files, and the problems of the folders.

    Args:
      images: pathlib.Path of the folder of images.
      annotations: pathlib.Path of the folder of label files, or None.
      class_names: the classes, in the order of their labels.

    Returns:
      (list of builder.Record, list of labels.Problem).

    Raises:
      builder.DataError: a folder is missing or empty.
    """
    read = functools.partial(labels.read_labels, class_names=class_names)
    return builder.pair_files(images, annotations, ".txt", read)


class FolderBuilder(builder.OrientedBuilder, skip_registration=True):
    """A folder in DOTA's format.

    Args:
      folders: dict from split to (folder of images, folder of labels or None); None looks into the source's folders.
      **kwargs: of OrientedBuilder.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = FOLDER_HELP

    def __init__(self, *, folders=None, **kwargs):
        self.folders = folders
        super().__init__(**kwargs)

    def records(self, source):
        """See the base class."""
        folders = self.folders or split_folders(source)
        splits, problems = {}, []
        for split, (images, annotations) in folders.items():
            splits[split], found = split_records(images, annotations, self.class_names)
            problems += found
        return splits, problems


def split_folders(source):
    """dict from split to (folder of images, folder of labels or None) of a source folder.

    Raises:
      builder.DataError: no folder in it has images.
    """
    found = {}
    for folder in sorted(source.iterdir()):
        if (folder / "images").is_dir():
            annotations = folder / "labelTxt"
            found[folder.name] = (folder / "images", annotations if annotations.is_dir() else None)
    if not found:
        raise builder.DataError(f"Expected folders like {source / 'train' / 'images'}, found none.\n{FOLDER_HELP}")
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
by python -m data.dota.split first, and build from its output.

{FOLDER_HELP}"""

    @property
    def class_names(self):
        """Names of the classes, in the published order."""
        return labels.CLASSES[{"v1.0": "dota10", "v1.5": "dota15", "v2.0": "dota20"}[self.builder_config.name]]


class Folder(FolderBuilder, skip_registration=True):
    """A data set of one's own in DOTA's format.

    Args:
      class_names: its classes, in the order of their labels.
      **kwargs: of FolderBuilder.
    """

    DESCRIPTION = "A data set of one's own in DOTA's format."

    def __init__(self, *, class_names, **kwargs):
        self._class_names = tuple(class_names)
        super().__init__(**kwargs)

    @property
    def class_names(self):
        """Names of the classes, in the order of their labels."""
        return self._class_names
