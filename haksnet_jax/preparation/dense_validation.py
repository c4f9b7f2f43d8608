"""Checks images with masks, and pairs of images with masks of change, before anything is trained on them."""

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader, scaling
from haksnet_jax.images.settings import DEFAULT, ImageSettings
from haksnet_jax.labels import encodings, masks, problems
from haksnet_jax.labels.problems import Problem, Reason
from haksnet_jax.pipeline.dense_sources import CHANGE_CLASSES
from haksnet_jax.wording import counted

_MASKS = (*masks.MASK_EXTENSIONS, ".jpg", ".jpeg")


class DenseReport(NamedTuple):
    """What was found.

    Attributes:
      class_names: the classes, by label.
      num_images: examples that have all their files.
      counts: [256] int64 pixels of each label over all masks.
      problems: list of Problem, sorted by file.
    """

    class_names: tuple
    num_images: int
    counts: np.ndarray
    problems: list

    def describe(self) -> str:
        """Text: images, and each class with its share of the pixels."""
        total = int(self.counts.sum())
        width = max(len("without a label"), *map(len, self.class_names))
        lines = [f"{counted(self.num_images, 'image')} with masks, {total:,} pixels"]
        entries = [*zip(self.class_names, self.counts, strict=False), ("without a label", self.counts[masks.IGNORED])]
        lines += [f"  {name:<{width}} {int(count):>15,}  {count / max(total, 1):7.2%}" for name, count in entries]
        return "\n".join(lines)


def legend_of(
    images_dir: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    palette: str | os.PathLike[str] | None = None,
    values: Sequence[int] | None = None,
) -> tuple[tuple[str, ...], masks.Legend]:
    """The classes and the legend of a folder's masks.

    Args:
      images_dir: folder of images; a palette.txt or classes.txt is looked for in the two folders above it.
      classes: names of the classes, or None.
      palette: path of a palette, or None.
      values: of the classes in masks of numbers, or None.

    Returns:
      (class names, masks.Legend).

    Raises:
      UserError: nothing says what the classes are.
    """
    above = [pathlib.Path(os.path.abspath(images_dir)).parents[i] for i in range(2)]
    found = palette or next(
        (str(folder / "palette.txt") for folder in above if (folder / "palette.txt").is_file()), None
    )
    if found:
        return masks.read_palette(found)
    listed = next((folder / "classes.txt" for folder in above if (folder / "classes.txt").is_file()), None)
    if not classes and listed is not None:
        classes = [name for name in encodings.read_lines(listed) if name]
    if not classes:
        raise UserError(
            f"nothing says which classes the masks have: name them with --classes=FILE, or their colours with "
            f"--palette=FILE, or put a classes.txt or a palette.txt into {above[0]}"
        )
    return tuple(classes), masks.number_legend(len(classes), values)


def validate_masks(
    images_dir: str | os.PathLike[str],
    masks_dir: str | os.PathLike[str],
    class_names: Sequence[str],
    legend: masks.Legend,
    *,
    settings: ImageSettings = DEFAULT,
    decode: bool = True,
    num_threads: int | None = None,
) -> DenseReport:
    """Checks a folder of images and one of masks.

    Args:
      images_dir, masks_dir: folders, whose files belong together by their names.
      class_names: the classes, by label.
      legend: masks.Legend.
      settings: ImageSettings that are given.
      decode: False takes the images' sizes from their headers.
      num_threads: images at a time; None: one a core.

    Returns:
      DenseReport.

    Raises:
      UserError: a folder is missing or empty.
    """
    return _validate({"image": images_dir}, masks_dir, class_names, legend, settings, decode, num_threads)


def validate_pairs(
    before_dir: str | os.PathLike[str],
    after_dir: str | os.PathLike[str],
    masks_dir: str | os.PathLike[str],
    *,
    settings: ImageSettings = DEFAULT,
    decode: bool = True,
    num_threads: int | None = None,
) -> DenseReport:
    """Checks folders of pairs and of masks of change. Args, Returns and Raises: as `validate_masks`."""
    legend = masks.number_legend(2, ((0,), (1, 255)), ignored=())
    folders = {"before": before_dir, "after": after_dir}
    return _validate(folders, masks_dir, CHANGE_CLASSES, legend, settings, decode, num_threads)


def _files(folder, extensions):
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "expected a folder, found a file" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {what}")
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    found, twice = {}, []
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() not in extensions:
            continue
        if stem in found:
            detail = f"{found[stem].name} has the same name: one of them must go"
            twice.append(Problem(str(folder / name), 0, Reason.SAME_NAME, detail))
        found.setdefault(stem, folder / name)
    if not found:
        raise UserError(f"{folder} holds no file ending in {', '.join(extensions)}")
    return found, twice


def _validate(folders, masks_dir, class_names, legend, settings, decode, num_threads):
    found, problems = {}, []
    for name, folder in folders.items():
        found[name], twice = _files(folder, image_files.EXTENSIONS)
        problems += twice
    found["mask"], twice = _files(masks_dir, _MASKS)
    problems += twice
    where = {**folders, "mask": masks_dir}
    whole = []
    for stem in sorted(set().union(*found.values())):
        missing = [name for name in found if stem not in found[name]]
        if not missing:
            whole.append(stem)
            continue
        has = next(paths[stem] for paths in found.values() if stem in paths)
        detail = f"there is no file {stem}.* in {' and '.join(str(where[name]) for name in missing)}"
        problems.append(Problem(str(has), 0, Reason.NO_PARTNER, detail))
    if not whole:
        raise UserError(
            f"no mask in {masks_dir} has the name of an image: the first image is {min(found[next(iter(folders))])}"
        )
    every = [found[name][stem] for name in folders for stem in whole]
    settings = scaling.for_images(every, settings)

    def check(stem):
        return _check_one([found[name][stem] for name in folders], found["mask"][stem], legend, settings, decode)

    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        checked = list(pool.map(check, whole))
    counts = sum((part for part, _ in checked), start=np.zeros(256, np.int64))
    problems += [problem for _, one in checked for problem in one]
    problems += _check_counts(counts, class_names, masks_dir)
    problems.sort(key=lambda problem: problem[:2])
    return DenseReport(tuple(class_names), len(whole), counts, problems)


def _check_one(images, mask, legend, settings, decode):
    """([256] counts of labels, list of Problem) of one example."""
    found, sizes = [], []
    for path in images:
        try:
            with reader.ImageFile(path, settings) as image:
                if decode:
                    image.read(0, 0, image.width, min(image.height, 1))
                sizes.append((path, (image.height, image.width)))
        except (UserError, OSError) as error:
            found.append(problems.of_image(path, error))
    try:
        labels, unknown = masks.read_mask(mask, legend)
    except UserError as error:
        detail = str(error).removeprefix(f"{mask}: ")
        return np.zeros(256, np.int64), [*found, Problem(str(mask), 0, Reason.UNREADABLE_MASK, detail)]
    for path, size in sizes:
        if size != labels.shape:
            detail = f"{labels.shape[0]} x {labels.shape[1]} pixels, and {path} has {size[0]} x {size[1]}"
            found.append(Problem(str(mask), 0, Reason.SIZE_DIFFERS, detail))
    if unknown:
        found.append(Problem(str(mask), 0, Reason.UNKNOWN_VALUE, masks.describe_unknown(unknown)))
    counts = np.bincount(labels.reshape(-1), minlength=256)
    if counts[: legend.num_classes].sum() == 0:
        found.append(Problem(str(mask), 0, Reason.NO_LABELLED_PIXEL, "no pixel has a class"))
    return counts, found


def _check_counts(counts, class_names, masks_dir):
    present = [name for name, count in zip(class_names, counts, strict=False) if count]
    found = [
        Problem(str(masks_dir), 0, Reason.EMPTY_CLASS, f"no mask has a pixel of the class {name}")
        for name in class_names
        if name not in present
    ]
    if len(present) == 1:
        detail = f"every pixel that has a label is {present[0]}: there is nothing to tell apart"
        found.append(Problem(str(masks_dir), 0, Reason.ONE_CLASS, detail))
    return found
