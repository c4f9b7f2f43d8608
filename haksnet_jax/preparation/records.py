"""Records: what the TFDS builders of all data sets share.

A data set gives its classes, its splits and a reader for its annotation files; everything it emits looks the same, so
that one source reads them all:

  image       PNG or JPEG bytes; three channels, eight bits. Where other than three bands are chosen, a grey PNG that
              holds one band below the other
  image_id    the file's name without extension
  objects     a sequence of polygon [8] float32 (x1 y1 ... x4 y4, pixels), label, difficulty int32

Records are ArrayRecord; TensorFlow is not needed. Annotations are all read before the first image is, and a data set
from which something would be lost is not built unless that is asked for.
"""

import abc
import collections
import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from haksnet_jax.errors import UserError
from haksnet_jax.images import reader, scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.labels.problems import UNREAD, Problem, count_reasons, listed, losses, of_image, unknown_classes
from haksnet_jax.pipeline import record_index, sources
from haksnet_jax.preparation.whole_folder import whole_folder


class Record(NamedTuple):
    """One image of a split.

    Attributes:
      image: path of the image file.
      read: () -> (Objects, list of Problem), or None for an image without annotations.
    """

    image: pathlib.Path
    read: Any


Content = tuple[dict[str, list[Record]], list[Problem]]  # of a data set: each split, and problems of the folders
Folders = dict[str, tuple[pathlib.Path, pathlib.Path | None]]  # of images and of labels, by split


class DataError(UserError):
    """The source cannot be built from; the message says in full what is wrong and what to do."""


class OrientedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders. A data set gives class_names, VERSION, MANUAL_DOWNLOAD_INSTRUCTIONS and `records`.

    Args:
      lossy: True builds although annotations or images have to be left out.
      images: ImageSettings that are given. What all images are read by is kept beside the records.
      **kwargs: of tfds.core.GeneratorBasedBuilder; file_format is always array_record.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""
    HOMEPAGE: str | None = None
    CITATION: str | None = None
    CLASSES: tuple[str, ...] = ()

    def __init__(
        self, *, lossy: bool = False, images: image_settings.ImageSettings = image_settings.DEFAULT, **kwargs: Any
    ) -> None:
        self.lossy = lossy
        self.images = images
        self.problems: list[Problem] = []  # what was wrong with the source, filled while building
        self.num_objects = 0  # that were read
        super().__init__(file_format="array_record", **kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.CLASSES

    @abc.abstractmethod
    def records(self, source: pathlib.Path) -> Content:
        """The data set's content.

        Args:
          source: pathlib.Path of the unpacked download.

        Returns:
          (dict from split to list of Record, list of Problem about the folders).

        Raises:
          DataError: the source does not look like this data set.
        """

    def _info(self):
        # dataset_info_from_configs wants each builder in a folder of its own
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3 if self.images.num_channels == 3 else 1), encoding_format="png"
                    ),
                    "image_id": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
                            "label": tfds.features.ClassLabel(names=list(self.class_names)),
                            "difficulty": tfds.features.Scalar(np.int32),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        splits, problems = self.records(pathlib.Path(dl_manager.manual_dir))
        self.problems = list(problems)
        content = {}
        for split, records in splits.items():
            twice = [name for name, n in collections.Counter(r.image.stem for r in records).items() if n > 1]
            if twice:
                raise DataError(f"Split {split} has {len(twice)} image names more than once, for example '{twice[0]}'.")
            content[split] = [(record.image, self._read(record)) for record in records]
        self.refuse_losses("annotations")
        self._choose_images([path for images in content.values() for path, _ in images])
        return {split: self._generate_examples(images) for split, images in content.items()}

    def _choose_images(self, paths):
        """Settles by which bands and limits all images are read. Args: paths, of all splits' images."""
        chosen = scaling.for_images(paths, self.images, max_measured=None)
        if chosen.num_channels != self.images.num_channels:
            raise DataError(
                f"The images are kept with {image_settings.told(chosen)} ({image_settings.FILE} beside them): name "
                "these bands by --bands."
            )
        self.images = chosen
        self.statistics = {}
        if chosen.bands is not None:
            mean, std = scaling.band_statistics(paths, chosen)
            self.statistics = {"mean": mean.round(3).tolist(), "std": std.round(3).tolist()}

    def _read(self, record):
        try:
            read_header(record.image)
        except (ImageError, OSError) as error:
            self.problems.append(of_image(record.image, error))
            return None
        if record.read is None:
            return []
        objects, problems = record.read()
        self.problems.extend(problems)
        self.num_objects += len(objects.labels)
        if any(problem.reason in UNREAD for problem in problems):
            return None  # it would seem to have no objects
        return [
            {"polygon": polygon.reshape(8).astype(np.float32), "label": int(label), "difficulty": int(difficulty)}
            for polygon, label, difficulty, _ in zip(*objects, strict=True)
        ]

    def refuse_losses(self, what: str) -> None:
        """Raises DataError when the problems so far lose something and that was not asked for."""
        lost = losses(self.problems)
        if not lost or self.lossy:
            return
        unknown = unknown_classes(self.problems, self.num_objects, allow=True)
        hint = f"\n{unknown}. Name the file that lists them with --classes." if unknown else ""
        raise DataError(
            f"{len(lost)} problems with the {what} would lose something ({count_reasons(lost)}):\n{listed(lost)}"
            f"{hint}\nCorrect them, or build without what they concern by --lossy."
        )

    def _generate_examples(self, images):
        for path, objects in images:
            if objects is None:
                continue
            try:
                data = encoded_image(path, self.images)
            except (ImageError, OSError) as error:
                self.problems.append(of_image(path, error))
                self.refuse_losses("images")
                continue
            yield path.stem, {"image": io.BytesIO(data), "image_id": path.stem, "objects": objects}


def encoded_image(
    path: str | os.PathLike[str], settings: image_settings.ImageSettings = image_settings.DEFAULT
) -> bytes:
    """The bytes of an image of eight bits: as they are where they fit, else decoded and as PNG.

    Args:
      path: of the image.
      settings: ImageSettings.

    Returns:
      PNG or JPEG of three channels; for another number of bands a PNG in which they lie below each other, see
      `sources.TfdsSource`.

    Raises:
      ImageError: the file is no image, cannot be decoded, or lacks a band.
      OSError: the file cannot be read.
    """
    header = read_header(path)
    scaled = settings.limits is not None and settings.limits[1] <= 255
    as_it_is = settings.bands is None and settings.nodata is None and not scaled
    if as_it_is and header.format in ("PNG", "JPEG") and header.channels == 3 and header.bits == 8:
        return pathlib.Path(path).read_bytes()
    pixels = reader.read(path, settings)
    if pixels.shape[-1] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    else:
        pixels = np.concatenate(np.moveaxis(pixels, -1, 0))
    return cv2.imencode(".png", pixels)[1].tobytes()


def prepare(builder: OrientedBuilder, source: str | os.PathLike[str]) -> pathlib.Path:
    """Builds a data set in TFDS's own layout, builder.data_dir.

    Args:
      builder: an OrientedBuilder.
      source: folder of the unpacked download.

    Returns:
      pathlib.Path of the folder that sources.TfdsSource reads.

    Raises:
      DataError: the source is not as expected, or something would be lost.
      OSError: writing failed.
    """
    if not pathlib.Path(source).is_dir():
        raise DataError(f"Expected the unpacked data set at {source}, found no folder.")
    config = tfds.download.DownloadConfig(manual_dir=str(source))
    with tempfile.TemporaryDirectory() as downloads:  # TFDS makes this folder although nothing is downloaded
        try:
            builder.download_and_prepare(download_dir=downloads, download_config=config)
        except RuntimeError as error:  # what ArrayRecord raises when the disk is full
            raise OSError(str(error).strip().splitlines()[0]) from error
    return pathlib.Path(builder.data_dir)


def write_index(folder: pathlib.Path, splits: Iterable[str]) -> None:
    """Reads all records once and writes their index, in the order in which training reads them.

    Args:
      folder: pathlib.Path of the records.
      splits: their names.
    """
    indexes = {}
    for split in splits:
        source = sources.TfdsSource(folder, split)
        found = [source.labels(index) for index in range(len(source))]
        arrays = [np.concatenate([one[name] for one in found]) for name in ("polygons", "labels", "difficulty")]
        indexes[split] = record_index.RecordIndex(np.array(source.image_ids), source.num_objects, *arrays)
    record_index.write(folder, indexes)


def prepare_at(
    make_builder: Callable[..., OrientedBuilder],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    overwrite: bool = False,
) -> OrientedBuilder:
    """Builds a data set so that its records lie in `output` itself; the folder appears whole or not at all.

    Args:
      make_builder: function of data_dir that makes an OrientedBuilder.
      source: folder of the unpacked download.
      output: the folder; sources.TfdsSource reads it.
      overwrite: True replaces a data set that is there, once the new one is complete.

    Returns:
      The OrientedBuilder, with its problems.

    Raises:
      UserError: see prepare; or the folder is there already, or another process builds it.
      OSError: writing failed.
    """
    with whole_folder(output, overwrite=overwrite, known_by="dataset_info.json") as folder:
        builder = make_builder(data_dir=folder.parent / "prepared")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces folders, which would only confuse here
            tfds.disable_progress_bar()
            built = prepare(builder, source)
        if builder.images != image_settings.DEFAULT:
            image_settings.write_folder(built, builder.images, builder.statistics)
        os.rmdir(folder)
        os.replace(built, folder)
        write_index(folder, builder.info.splits)
    return builder
