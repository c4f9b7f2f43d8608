"""Where labelled images come from: one folder a class, prepared TFDS data sets, generated scenes of one class each.

A source has a length and gives examples by index, the same ones each time; it can be pickled for worker processes. An
example is a dict:
  image     StoredImage, decoded when its pixels are asked for
  label     int class, 0-based
  image_id  str
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import headers, reader, scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.files import EXTENSIONS, is_image
from haksnet_jax.images.settings import DEFAULT, ImageSettings
from haksnet_jax.labels import encodings
from haksnet_jax.pipeline import prepared, scene_objects, scenes
from haksnet_jax.pipeline.scene_source import SCENE_CLASSES
from haksnet_jax.wording import counted

_MAX_MEASURED = 1000  # images of more than 8 bits whose values are looked at for the limits
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


class StoredImage:
    """An image as it lies in a file or a record, or decoded already.

    Args:
      data: bytes of the file, or None.
      pixels: [H, W, C] uint8, where it is decoded.
      name: path of the file, or what else to call it in an error.
      settings: ImageSettings, by which it is decoded.
    """

    def __init__(
        self,
        data: bytes | None = None,
        *,
        pixels: np.ndarray | None = None,
        name: str,
        settings: ImageSettings = DEFAULT,
    ) -> None:
        self._data, self._pixels, self._name, self._settings = data, pixels, name, settings
        self._header: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the whole image; of a JPEG, from its header alone.

        Raises:
          ImageError: the image cannot be used.
        """
        if self._pixels is None and self._is_colour_jpeg():
            return self._header.height, self._header.width
        return self.pixels().shape[:2]

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """[H / reduction, W / reduction, C] uint8, rounded up; whole where the format knows no partial decoding.

        Args:
          reduction: 1, 2, 4 or 8. A JPEG is then decoded from the first of its frequencies alone, which is faster and
            smooths like a mean over the pixels that become one.

        Raises:
          ImageError: the image cannot be used.
        """
        if self._pixels is None and reduction > 1 and self._is_colour_jpeg():
            assert self._data is not None
            decoded = cv2.imdecode(np.frombuffer(self._data, np.uint8), _REDUCED[reduction])
            if decoded is not None:
                return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        if self._pixels is None:
            assert self._data is not None
            self._pixels = reader.decode(self._data, self._name, self._settings)
        return self._pixels

    def _is_colour_jpeg(self):
        if self._settings.bands is not None or not self._data.startswith(b"\xff\xd8\xff"):
            return False
        if self._header is None:
            try:
                self._header = headers.read_header(self._data)
            except headers.ImageError as error:
                raise headers.ImageError(error.reason, error.sentence, self._name) from error
        return self._header.channels == 3


def _is_jpeg(name):
    return name.lower().endswith((".jpg", ".jpeg"))


def class_folders(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted: the classes of a set with one folder each.

    Raises:
      UserError: it does not exist, or holds no folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with one folder of images for each class, found no such folder")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: expected one folder of images for each class, found no folder in it")
    return tuple(names)


def _folders_are_not_classes(folder, missing, unknown):
    parts = [
        f"{what} {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}"
        for what, names in (("no folder for", missing), ("not among data.class_names", unknown))
        if names
    ]
    return f"{folder}: its folders are not the classes: {'; '.join(parts)}"


class ClassFolderSource:
    """Images in one folder for each class: `FOLDER/CLASS/IMAGE.jpg`.

    Attributes:
      class_names: the classes, in the order of the labels.
      image_ids: `PREFIX/CLASS/IMAGE.jpg` of each example.
      labels: [len] int32.
      num_ignored: files and folders that are no images of a class: by their endings, or since they lie elsewhere.
      image_settings: ImageSettings by which all images are read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        image_list: str | os.PathLike[str] | None = None,
        share: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        cache_mib: float = 0,
        settings: ImageSettings = DEFAULT,
        prefix: str = "",
        may_lack_classes: bool = False,
    ) -> None:
        """Lists the files; images are read when asked for.

        Args:
          folder: of the classes' folders. A folder that is no class is an error: its images would be lost.
          class_names: the classes, in the order of their labels.
          image_list: text file of `CLASS/IMAGE` (the ending may be missing), one a line: only these images. Stated
            splits come so.
          share: (from, to), 0 to 1: the images of each class, shuffled with the seed, that this source takes. Two
            sources with (0, 0.8) and (0.8, 1) share no image and miss none.
          seed: of that shuffling.
          cache_mib: decoded images that are kept in the memory of each process, at most.
          settings: ImageSettings that are given; what they leave open is what is kept beside the images, or what their
            values say.
          prefix: in front of the identifiers, to tell images of two folders apart that have the same names.
          may_lack_classes: whether a class may have no image here, as in a small split for validation.

        Raises:
          UserError: a folder is missing or unknown, a class has no image, or an image of the list is not there.
        """
        self.class_names = tuple(class_names)
        self._folder = pathlib.Path(folder)
        found = class_folders(folder)
        missing, unknown = (sorted(a - b) for a, b in ((set(class_names), set(found)), (set(found), set(class_names))))
        if (missing and not may_lack_classes) or unknown:
            raise UserError(_folders_are_not_classes(folder, missing, unknown))
        if not 0 <= share[0] < share[1] <= 1:
            raise UserError(f"data.*.share: expected (from, to) with 0 <= from < to <= 1, got {tuple(share)}")
        wanted = None if image_list is None else self._read_list(image_list)
        self._files, labels = [], []
        self.num_ignored = sum(entry.is_file() and is_image(entry.name) for entry in os.scandir(folder))
        for label, name in enumerate(self.class_names):
            if name in missing:
                continue
            images = self._images_of(name, wanted, share, np.random.default_rng([seed, label]))
            if not images and not may_lack_classes:
                raise UserError(f"{self._folder / name}: expected images of the class {name!r}, found none to take")
            self._files += [f"{name}/{file}" for file in images]
            labels += [label] * len(images)
        if wanted:
            raise UserError(
                f"{image_list}: {len(wanted)} of its images are not in {folder}, the first is {next(iter(wanted))!r}"
            )
        if not labels:
            raise UserError(f"{folder}: expected images in the folders of its classes, found none to take")
        self.image_ids = [f"{prefix}/{file}" if prefix else file for file in self._files]
        self.labels = np.array(labels, np.int32)
        # A JPEG has 8 bits: one of each folder tells what is kept beside it, and a million headers stay unread.
        first = {name.split("/")[0]: name for name in reversed(self._files)}.values()
        looked_at = dict.fromkeys([*first, *(name for name in self._files if not _is_jpeg(name))])
        paths = [self._folder / name for name in looked_at]
        self.image_settings = scaling.for_images(paths, settings, max_measured=_MAX_MEASURED)
        self._cache_bytes = cache_mib * 2**20
        self._cache: dict[int, StoredImage] = {}

    def _images_of(self, name, wanted, share, rng):
        """Names of a class's images that are taken. Args: name of the class; wanted, {CLASS/IMAGE: ...} or None."""
        files = sorted(entry.name for entry in os.scandir(self._folder / name) if not entry.name.startswith("."))
        images = [file for file in files if is_image(file)]
        self.num_ignored += len(files) - len(images)
        if wanted is not None:
            images = [file for file in images if wanted.pop(f"{name}/{os.path.splitext(file)[0]}", None)]
        if tuple(share) != (0.0, 1.0):
            first, last = (round(part * len(images)) for part in share)
            images = [images[index] for index in sorted(rng.permutation(len(images))[first:last])]
        return images

    def _read_list(self, path):
        wanted = {}
        for number, line in enumerate(encodings.read_lines(path), 1):
            if not line:
                continue
            if line.split("/")[0] not in self.class_names or line.count("/") != 1:
                raise UserError(
                    f"{path}:{number}: expected CLASS/IMAGE with one of data.class_names, got {line[:80]!r}"
                )
            stem, ending = os.path.splitext(line)
            wanted[stem if ending.lower() in EXTENSIONS else line] = True
        return wanted

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__) | {"_cache": {}}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # raises IndexError beyond the end
        example = {"label": int(self.labels[index]), "image_id": self.image_ids[index]}
        if index in self._cache:
            return example | {"image": self._cache[index]}
        path = self._folder / self._files[index]
        image = StoredImage(files.read_regular(path), name=str(path), settings=self.image_settings)
        if self._cache_bytes > 0:
            image = StoredImage(pixels=image.pixels(), name=str(path))
            self._cache_bytes -= image.pixels().nbytes
            self._cache[index] = image
        return example | {"image": image}

    def summary(self) -> str:
        """Text: how many images, and of which class the most and the fewest."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        fewest, most = int(counts.argmin()), int(counts.argmax())
        text = (
            f"{counted(len(self), 'image')} of {len(self.class_names)} classes in {self._folder}, {counts[fewest]} "
            f"({self.class_names[fewest]}) to {counts[most]} ({self.class_names[most]}) a class"
        )
        return text + (
            f"; {counted(self.num_ignored, 'file or folder', 'files or folders')} left out" if self.num_ignored else ""
        )


def image_settings_of(model_info: dict[str, Any]) -> ImageSettings:
    """ImageSettings that a model keeps. Args: model_info, dict of its model.json. Raises: UserError, damaged."""
    return image_settings.from_json(model_info.get("images", {}), "model.json, images")


class TfdsClassificationSource:
    """A data set of labelled images prepared with TensorFlow Datasets as ArrayRecord files, read without TensorFlow.

    Expected features: `image` (encoded) and `label`.

    Attributes:
      class_names: the classes, in the order of the labels.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        split: str,
        class_names: Sequence[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Opens the data set.

        Args:
          directory: a prepared folder (the one with `dataset_info.json`), or a name such as `imagenet2012` to look up
            in data_dir.
          split: name of the split, such as "train".
          class_names: the classes that are expected, in this order; None takes the data set's.
          data_dir: folder of prepared data sets, for a name.

        Raises:
          UserError: no prepared data set is there, or it has other splits, features or classes.
        """
        builder = prepared.open_builder(directory, data_dir)
        if split not in builder.info.splits:
            found = ", ".join(builder.info.splits) or "none; prepare the data set first"
            raise UserError(f"{builder.data_dir} has no split {split!r}; its splits: {found}")
        features = builder.info.features
        try:
            self.class_names = tuple(features["label"].names)
            features["image"]
        except (KeyError, TypeError, AttributeError) as error:  # of other names, or of other kinds
            found = prepared.names_of(features)
            raise UserError(f"{builder.data_dir}: expected the features image and label, found {found}") from error
        if class_names is not None and tuple(class_names) != self.class_names:
            raise UserError(
                f"{builder.data_dir} has {len(self.class_names)} classes ({', '.join(self.class_names[:3])}, ...) and "
                f"data.class_names {len(class_names)} ({', '.join(class_names[:3])}, ...): expected the same"
            )
        self._name = f"{builder.data_dir} [{split}]"
        self._split = split
        self._records = prepared.Records(builder, split)
        if not len(self._records):
            raise UserError(f"{self._name} holds no image")

    def __len__(self) -> int:
        return len(self._records)

    @property
    def image_ids(self) -> Sequence[str]:
        """Names of the examples: split and number, since reading those of a million records would take minutes."""
        return [f"{self._split}/{index:07d}" for index in range(len(self))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        record = self._records[index]
        image_id = f"{self._split}/{index:07d}"
        image = StoredImage(bytes(record["image"]), name=f"{self._name}, record {index}")
        return {"image": image, "label": int(record["label"]), "image_id": image_id}

    def summary(self) -> str:
        """Text: how many images."""
        return f"{counted(len(self), 'image')} of {len(self.class_names)} classes in {self._name}"


class SceneClassSource:
    """Generated aerial scenes with objects of one class each, which is their label."""

    def __init__(
        self, num_scenes: int, size: int = 64, seed: int = 0, class_names: Sequence[str] = SCENE_CLASSES
    ) -> None:
        """Sets the scenes up; each is drawn when asked for, and kept.

        Args:
          num_scenes: how many; classes take turns.
          size: rows and columns in pixels, at least 64.
          seed: another seed gives other scenes.
          class_names: classes to draw, among `scene_objects.LOOKS`.

        Raises:
          UserError: a class that cannot be drawn, or a size or number out of range.
        """
        unknown = [name for name in class_names if name not in scene_objects.LOOKS]
        if unknown or not class_names:
            raise UserError(
                f"data.class_names: cannot draw {', '.join(unknown) or 'no class'}; what can be drawn: "
                f"{', '.join(scene_objects.LOOKS)}"
            )
        if size < 64 or num_scenes < 1:
            raise UserError(f"expected num_scenes >= 1 and a size of at least 64 pixels, got {num_scenes} and {size}")
        self.class_names = tuple(class_names)
        self.num_scenes, self.size, self.seed = num_scenes, size, seed
        self._drawn: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__) | {"_drawn": {}}

    def __len__(self) -> int:
        return self.num_scenes

    @property
    def image_ids(self) -> Sequence[str]:
        """Identifiers of the scenes."""
        return [f"scene_{self.seed}_{index:06d}" for index in range(self.num_scenes)]

    @property
    def labels(self) -> np.ndarray:
        """[len] int32."""
        return np.arange(self.num_scenes, dtype=np.int32) % len(self.class_names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        label = index % len(self.class_names)
        image_id = f"scene_{self.seed}_{index:06d}"
        if index not in self._drawn:  # (kept: drawing takes longer than the step of a small network)
            self._drawn[index] = StoredImage(pixels=self._draw(index, label), name=image_id)
        return {"image": self._drawn[index], "label": label, "image_id": image_id}

    def _draw(self, index, label):
        rng = np.random.default_rng([self.seed, index])
        look = scene_objects.LOOKS[self.class_names[label]]
        boxes = ()
        while not len(boxes):  # where the ground for an object is taken, a scene may have none
            image, boxes, _ = scenes.draw_scene(rng, (self.size, self.size), [look], (2, 4))
        return image

    def summary(self) -> str:
        """Text: how many scenes of which size."""
        return f"{counted(self.num_scenes, 'generated scene')} of {self.size} x {self.size} pixels, seed {self.seed}"
