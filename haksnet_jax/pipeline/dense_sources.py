"""Where images with masks, and pairs of images with masks of change, come from: folders and generated scenes.

A source has a length and gives examples by index, the same ones each time; it can be pickled for worker processes. An
example of segmentation is a dict:
  image        [H, W, C] uint8, RGB unless bands are chosen
  mask         [H, W] uint8 labels, 255 where there is none
  num_unknown  pixels of the mask whose value or colour is no class; they have no label
  image_id     str
An example of change has `before` and `after` in the place of `image`; a source's `image_names` says which it is.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader, scaling
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.settings import DEFAULT, ImageSettings
from haksnet_jax.labels import masks
from haksnet_jax.labels.problems import Problem, Reason
from haksnet_jax.pipeline import scene_objects, scenes
from haksnet_jax.pipeline.scene_source import SCENE_CLASSES
from haksnet_jax.wording import counted

CHANGE_CLASSES = ("unchanged", "changed")
SCENE_MASK_CLASSES = ("land", "water", *SCENE_CLASSES)
SCENE_COLOURS = (  # as one would paint them: the two that lie below all else not loud
    (188, 176, 132), (84, 132, 188), (255, 226, 64), (96, 230, 120), (240, 110, 230), (70, 225, 225), (236, 112, 52),
)  # fmt: skip
_CHECKED_MASKS = 16  # masks that are read when a source is opened, spread over it


def read_image(path: str | os.PathLike[str], settings: ImageSettings = DEFAULT) -> np.ndarray:
    """[H, W, C] uint8 of an image file. Args: path; settings, ImageSettings. Raises: ImageError, it cannot be read."""
    try:
        return reader.read(path, settings)
    except OSError as error:
        raise ImageError("unreadable_image", f"the image cannot be read ({error.strerror})", path) from error


def _files_of(folder, what, extensions):
    """{name without ending: path} of a folder's files with these endings, sorted."""
    folder = pathlib.Path(folder)
    if files.is_bucket(folder):
        raise UserError(f"{folder} is in a bucket, and images are read from disks: mount or copy it, and name that")
    if not folder.is_dir():
        raise UserError(
            f"the folder of {what} {folder} does not exist, looked for from {os.getcwd()}: name it, in training with "
            "--set data.root=DIR and the folders of data.train and data.val"
        )
    found = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")):
        stem, extension = os.path.splitext(name)
        if extension.lower() not in extensions:
            continue
        if stem in found:
            raise UserError(f"{found[stem]} and {folder / name} have the same name: rename or remove one of them")
        found[stem] = folder / name
    if not found:
        raise UserError(f"{folder} holds no file of {what}; expected files ending in {', '.join(extensions)}")
    return found


class _Cache:
    """Decoded examples in memory, up to a size; every worker process fills its own."""

    def __init__(self, gib):
        self._left = gib * 2**30
        self._examples = {}

    def get(self, index, read):
        example = self._examples.get(index)
        if example is None:
            example = read(index)
            size = sum(value.nbytes for value in example.values() if isinstance(value, np.ndarray))
            if size <= self._left:
                self._left -= size
                self._examples[index] = example
        return example


class _Folders:
    """What the folder sources share: files of equal names in several folders, their masks, their problems.

    Attributes:
      class_names: the classes, in the order of the labels.
      image_names: what an example's images are called.
      image_ids: names that every folder has, sorted.
      problems: list of Problem: files that have no partner; they are left out.
      image_settings: ImageSettings by which all images are read, limits included where they are needed.
    """

    def __init__(self, folders, masks_dir, class_names, legend, cache_gib, image_settings, keep_unreadable):
        self.class_names = tuple(class_names)
        self.image_names = tuple(folders)
        self._legend = legend
        self._cache_gib = cache_gib
        self._cache = _Cache(cache_gib)
        self.problems = []
        images = {name: _files_of(folder, "images", image_files.EXTENSIONS) for name, folder in folders.items()}
        of_masks = _files_of(masks_dir, "masks", (*masks.MASK_EXTENSIONS, ".jpg", ".jpeg"))
        every = sorted(set(of_masks).union(*images.values()))
        self.image_ids = [
            stem for stem in every if stem in of_masks and all(stem in found for found in images.values())
        ]
        for stem in every:
            for folder, found in (*zip(folders.values(), images.values(), strict=True), (masks_dir, of_masks)):
                if stem not in found:
                    has = next(other[stem] for other in (*images.values(), of_masks) if stem in other)
                    detail = f"left out: there is no file {stem}.* in {folder}"
                    self.problems.append(Problem(str(has), 0, Reason.NO_PARTNER, detail))
        if not self.image_ids:
            raise UserError(
                f"no image of {next(iter(folders.values()))} has a mask of its name in {masks_dir}: expected for "
                f"example {next(iter(next(iter(images.values()))))}.png"
            )
        self._paths = {name: [str(found[stem]) for stem in self.image_ids] for name, found in images.items()}
        self._mask_paths = [str(of_masks[stem]) for stem in self.image_ids]
        every = [path for paths in self._paths.values() for path in paths]
        self.image_settings = scaling.for_images(every, image_settings)
        self._check_some_masks(keep_unreadable)

    def _check_some_masks(self, keep_unreadable):
        """Finds before training a legend that does not fit the masks, or masks that are none."""
        step = max(1, len(self) // _CHECKED_MASKS)
        labelled = num_unread = 0
        paths = self._mask_paths[::step][:_CHECKED_MASKS]
        for path in paths:
            try:
                labels, unknown = masks.read_mask(path, self._legend)
            except ImageError:
                if not keep_unreadable:
                    raise
                num_unread += 1
                continue
            labelled += int((labels != masks.IGNORED).sum())
            if sum(unknown.values()) > 0.01 * labels.size:
                raise UserError(
                    f"{path}: {masks.describe_unknown(unknown)}; the classes "
                    f"({', '.join(self.class_names[:8])}{', ...' if len(self.class_names) > 8 else ''}) have "
                    f"{self._described_legend()}"
                )
        if not labelled and num_unread < len(paths):
            raise UserError(f"{os.path.dirname(self._mask_paths[0])}: no pixel of the masks looked at has a class")

    def _described_legend(self):
        legend = self._legend.values if self._legend.colours is None else self._legend.colours
        known = [value for value, label in legend.items() if label != masks.IGNORED]
        if self._legend.colours is not None:
            return "the colours " + ", ".join(masks.hexadecimal(value) for value in known[:8])
        return f"the values {', '.join(map(str, known[:8]))} (data.mask_values says which value is which class)"

    def __len__(self):
        return len(self.image_ids)

    def __getstate__(self):
        return {**self.__dict__, "_cache": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._cache = _Cache(self._cache_gib)

    def __getitem__(self, index):
        return dict(self._cache.get(range(len(self))[index], self._read))

    def _read(self, index):
        labels, unknown = masks.read_mask(self._mask_paths[index], self._legend)
        example = {}
        for name, paths in self._paths.items():
            example[name] = read_image(paths[index], self.image_settings)
            if example[name].shape[:2] != labels.shape:
                raise UserError(
                    f"{self._mask_paths[index]} has {labels.shape[0]} x {labels.shape[1]} pixels, its image "
                    f"{paths[index]} {example[name].shape[0]} x {example[name].shape[1]}: both must have the same"
                )
        return example | {
            "mask": labels,
            "num_unknown": np.int32(sum(unknown.values())),
            "image_id": self.image_ids[index],
        }

    def summary(self):
        """Text: how many images, of how many classes, and how many files have no partner."""
        without = len(self.problems)
        first = f" (the first: {self.problems[0].path})" if without else ""
        return f"{counted(len(self), self._what)} of {len(self.class_names)} classes" + (
            f"; left out {counted(without, 'file')} without a partner{first}" if without else ""
        )


class MaskFolder(_Folders):
    """Images of a folder with masks of the same names in another.

    Args:
      images_dir: folder of images; folders in it are not searched.
      masks_dir: folder of masks, PNG or TIFF.
      class_names: the classes, in the order of the labels.
      legend: masks.Legend.
      cache_gib: GiB of decoded examples that each process keeps in memory.
      image_settings: ImageSettings: bands, limits and nodata that are given.
      keep_unreadable: whether masks that cannot be read are an error (ImageError) only when it is their turn.

    Raises:
      UserError: a folder is missing or empty, no image has a mask, or masks hold something else than the classes.
    """

    _what = "image"

    def __init__(
        self,
        images_dir: str | os.PathLike[str],
        masks_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        legend: masks.Legend,
        *,
        cache_gib: float = 0.0,
        image_settings: ImageSettings = DEFAULT,
        keep_unreadable: bool = False,
    ) -> None:
        folders = {"image": images_dir}
        super().__init__(folders, masks_dir, class_names, legend, cache_gib, image_settings, keep_unreadable)


class PairFolder(_Folders):
    """Pairs of images of the same names in two folders, with masks of change in a third.

    Args:
      before_dir, after_dir: folders of the earlier and the later images.
      masks_dir: folder of masks: 0 unchanged, 1 or 255 changed.
      cache_gib: GiB of decoded examples that each process keeps in memory.
      image_settings: ImageSettings, for both dates.
      keep_unreadable: as MaskFolder.

    Raises:
      UserError: as MaskFolder.
    """

    _what = "pair"

    def __init__(
        self,
        before_dir: str | os.PathLike[str],
        after_dir: str | os.PathLike[str],
        masks_dir: str | os.PathLike[str],
        *,
        cache_gib: float = 0.0,
        image_settings: ImageSettings = DEFAULT,
        keep_unreadable: bool = False,
    ) -> None:
        legend = masks.number_legend(2, ((0,), (1, 255)), ignored=())
        folders = {"before": before_dir, "after": after_dir}
        super().__init__(folders, masks_dir, CHANGE_CLASSES, legend, cache_gib, image_settings, keep_unreadable)


class MaskScenes:
    """Generated scenes whose masks are land, water, and the objects by their classes.

    Args:
      num_scenes: length.
      size: side in pixels.
      seed: another seed gives other scenes.
      objects_per_scene: smallest and largest number of objects.
    """

    class_names: tuple[str, ...] = SCENE_MASK_CLASSES
    image_names: tuple[str, ...] = ("image",)

    def __init__(
        self, num_scenes: int, size: int = 192, seed: int = 0, objects_per_scene: tuple[int, int] = (3, 14)
    ) -> None:
        if num_scenes < 1 or size < 64:
            raise UserError(f"data: expected num_scenes >= 1 and size >= 64, got {num_scenes} and {size}")
        self.num_scenes, self.size, self.seed = num_scenes, size, seed
        self.objects_per_scene = objects_per_scene[0], objects_per_scene[1]
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return self.num_scenes

    @property
    def image_ids(self) -> Sequence[str]:
        """Identifiers of the scenes."""
        return [f"scene_{self.seed}_{index:06d}" for index in range(self.num_scenes)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        looks = [scene_objects.LOOKS[name] for name in SCENE_CLASSES]
        rng = np.random.default_rng([self.seed, index])
        image, mask = scenes.draw_scene_with_mask(rng, (self.size, self.size), looks, self.objects_per_scene)
        return {
            "image": image,
            "mask": mask,
            "num_unknown": np.int32(0),
            "image_id": f"scene_{self.seed}_{index:06d}",
        }

    def summary(self) -> str:
        """Text: how many scenes of which size."""
        return f"{counted(self.num_scenes, 'generated scene')} of {self.size} x {self.size} pixels, seed {self.seed}"


class PairScenes(MaskScenes):
    """Generated scenes at two dates, between which objects come and go. Args: as MaskScenes."""

    class_names = CHANGE_CLASSES
    image_names = ("before", "after")

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        looks = [scene_objects.LOOKS[name] for name in SCENE_CLASSES]
        rng = np.random.default_rng([self.seed, index])
        before, after, mask = scenes.draw_pair(rng, (self.size, self.size), looks, self.objects_per_scene)
        return {
            "before": before,
            "after": after,
            "mask": mask,
            "num_unknown": np.int32(0),
            "image_id": f"scene_{self.seed}_{index:06d}",
        }
