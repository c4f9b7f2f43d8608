"""Checks folders of images with one folder for each class, before anything is trained on them."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images.files import is_image
from haksnet_jax.images.headers import EXTENSIONS_OF, ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import DEFAULT, ImageSettings
from haksnet_jax.labels.problems import Problem, Reason, losses, of_image, printable
from haksnet_jax.pipeline.classification_sources import class_folders

_FEW = 10  # images of a class, below which it is named


class ClassReport(NamedTuple):
    """What was found.

    Attributes:
      class_names: the classes: all names of folders.
      counts: {split's folder: [K] images that can be used}.
      sizes: [N, 2] columns and rows of the images that can be used.
      problems: list of Problem, in the order of the files.
    """

    class_names: tuple
    counts: dict
    sizes: np.ndarray
    problems: list

    @property
    def lost(self) -> list[Problem]:
        """The problems by which an image or a class would be lost."""
        return losses(self.problems)

    def describe(self) -> str:
        """Text: images of each class and split, and their sizes."""
        names = [printable(name) for name in self.class_names]
        width = max([5, *map(len, names)])
        heads = [os.path.basename(os.path.normpath(folder)) or folder for folder in self.counts]
        lines = [f"{'class':<{width}}  " + "  ".join(f"{head:>8}" for head in heads)]
        for index, name in enumerate(names):
            lines.append(f"{name:<{width}}  " + "  ".join(f"{counts[index]:8d}" for counts in self.counts.values()))
        lines.append(f"{'all':<{width}}  " + "  ".join(f"{counts.sum():8d}" for counts in self.counts.values()))
        if len(self.sizes):
            low, middle, high = (
                self.sizes.min(axis=0),
                np.median(self.sizes, axis=0).astype(int),
                self.sizes.max(axis=0),
            )
            lines.append(
                f"{low[0]} to {high[0]} pixels wide (median {middle[0]}), {low[1]} to {high[1]} high "
                f"(median {middle[1]})"
            )
        return "\n".join(lines)


class _Seen(NamedTuple):
    """One image: its digest, (columns, rows) or None where it cannot be used, and what is odd about it."""

    digest: str
    size: tuple | None
    problems: list


def _check(path, settings):
    problems = []
    try:
        data = files.read_regular(path)
        digest = hashlib.sha256(data).hexdigest()
        with ImageFile(path, settings, data=data) as image:
            size = (image.width, image.height)
            if path.suffix.lower() not in EXTENSIONS_OF[image.header.format]:
                detail = f"the file is a {image.header.format}, whatever its name says; it is read as one"
                problems.append(Problem(str(path), 0, Reason.WRONG_EXTENSION, detail))
            pixels = image.read(0, 0, image.width, image.height)
            if pixels.min() == pixels.max():
                detail = f"all of its {image.width} x {image.height} pixels are equal"
                problems.append(Problem(str(path), 0, Reason.BLANK_IMAGE, detail))
    except (ImageError, OSError) as error:
        return _Seen("", None, [of_image(path, error)])
    return _Seen(digest, size, problems)


def validate_class_folders(
    folders: Sequence[str | os.PathLike[str]], *, settings: ImageSettings = DEFAULT, num_threads: int | None = None
) -> ClassReport:
    """Checks splits of labelled images: unreadable ones, empty classes, classes of one split alone, images twice.

    Args:
      folders: of the splits, each with one folder for each class.
      settings: ImageSettings that are given.
      num_threads: images at a time; None: one a core.

    Returns:
      ClassReport.

    Raises:
      UserError: a split's folder is missing, or holds no folder; or one is named twice.
    """
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise UserError("two of the folders are the same: name the folder of each split once")
    found = {str(folder): class_folders(folder) for folder in folders}
    class_names = tuple(sorted(set().union(*found.values())))
    problems, counts, sizes = [], {}, []
    first_seen: dict[bytes, pathlib.Path] = {}
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        for folder, own in found.items():
            counts[folder] = np.zeros(len(class_names), int)
            problems += _without_class(pathlib.Path(folder), "it lies beside the folders of the classes")
            for label, name in enumerate(class_names):
                if name not in own:
                    detail = f"there is no folder {name!r}, which another split has"
                    problems.append(Problem(folder, 0, Reason.CLASS_MISSING, detail))
                    continue
                paths = _images(pathlib.Path(folder, name), problems)
                for path, seen in zip(paths, pool.map(lambda path: _check(path, settings), paths), strict=True):
                    problems += seen.problems
                    if seen.size is None:
                        continue
                    counts[folder][label] += 1
                    sizes.append(seen.size)
                    _compare(path, seen.digest, first_seen, problems)
                if paths and counts[folder][label] < _FEW:
                    detail = f"{counts[folder][label]} images of the class can be used"
                    problems.append(Problem(str(paths[0].parent), 0, Reason.FEW_IMAGES, detail))
    return ClassReport(class_names, counts, np.array(sizes).reshape(-1, 2), problems)


def _images(folder, problems):
    """Paths of a class's images; what else lies there is named."""
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    images = [name for name in names if is_image(name) and not (folder / name).is_dir()]
    others = [name for name in names if name not in set(images)]
    for name in others:
        if not (folder / name).is_dir():
            problems.append(Problem(str(folder / name), 0, Reason.NO_IMAGE, "it is no image by its ending"))
        else:
            problems += _without_class(folder / name, "it lies in a folder inside of a class, which is not searched")
    if not images:
        kinds = collections.Counter(pathlib.Path(name).suffix.lower() or "no ending" for name in others)
        held = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(3)) or "nothing"
        detail = f"the class has no image: the folder holds {held}"
        problems.append(Problem(str(folder), 0, Reason.CLASS_WITHOUT_IMAGES, detail))
    return [folder / name for name in images]


def _without_class(folder, where):
    """Problems of the images that lie in a folder which is no class'. Args: folder; where, in words."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and is_image(entry.name))
    return [Problem(str(folder / name), 0, Reason.NO_CLASS, where) for name in names]


def _compare(path, digest, first_seen, problems):
    """Names an image whose bytes were seen before. Args: first_seen, {digest: path}, is added to."""
    earlier = first_seen.setdefault(digest, path)
    if earlier is path:
        return
    same_class, same_split = earlier.parent.name == path.parent.name, earlier.parents[1] == path.parents[1]
    if not same_class:
        reason, what = Reason.TWO_CLASSES, "in another class"
    elif not same_split:
        reason, what = Reason.TWO_SPLITS, "in another split, whose metrics are then not of unseen images"
    else:
        reason, what = Reason.TWICE, "a second time"
    problems.append(Problem(str(path), 0, reason, f"the same image as {earlier}, {what}"))
