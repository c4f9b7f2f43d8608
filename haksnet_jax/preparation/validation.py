"""Checks a data set before anything is trained on it: every problem with file and line.

A function for each kind of data: `validate` for labelled objects. Each gives a Report; what can be named, and whether
it loses something, is said by `labels.problems.Reason` and, for images that cannot be read, by `images.headers`.
"""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import outside_fraction, polygons_to_boxes
from haksnet_jax.images import files as image_files
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import EXTENSIONS_OF, ImageError, read_header
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import DEFAULT
from haksnet_jax.labels import classes, folders, objects
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.problems import Problem, Reason, losses, of_image
from haksnet_jax.preparation.tiling import TRUNCATED


class ValidationError(UserError):
    """There is nothing that could be checked; the message says why."""


class Checked(NamedTuple):
    """What one image and its labels hold.

    Attributes:
      path: of the image.
      size: (columns, rows), or None when the image cannot be used.
      objects: objects.Objects; only those that training would see.
      boxes: [N, 5] le90 boxes of the objects.
      problems: list of Problem.
    """

    path: str
    size: tuple[int, int] | None
    objects: objects.Objects
    boxes: np.ndarray
    problems: list


class Report(NamedTuple):
    """What a data set holds and what is wrong with it.

    Attributes:
      class_names: the classes.
      images: list of Checked.
      problems: list of Problem, in the order of the files.
      has_labels: False for images alone.
    """

    class_names: tuple[str, ...]
    images: list
    problems: list
    has_labels: bool

    @property
    def lost(self) -> list[Problem]:
        """The problems by which an image or an object would be lost."""
        return losses(self.problems)


def _check_image(path, decode, settings):
    """((columns, rows) or None, problems) of an image file."""
    problems = []
    try:
        header = read_header(path)
        size = (header.width, header.height)
        if pathlib.Path(path).suffix.lower() not in EXTENSIONS_OF[header.format]:
            detail = f"the file is a {header.format}, whatever its name says; it is read as one"
            problems.append(Problem(path, 0, "wrong_extension", detail))
        if header.orientation != 1:
            detail = f"by its orientation tag it is shown, read and labelled turned, as {size[0]} x {size[1]} pixels"
            problems.append(Problem(path, 0, "turned_image", detail))
        if header.pages > 1:
            detail = f"the file holds {header.pages} images, of which the first is read"
            problems.append(Problem(path, 0, "several_pages", detail))
        if decode or header.format == "TIFF":  # (of a TIFF much can be told without decoding it)
            with ImageFile(path, settings, **({} if decode else {"whole_up_to": 0})) as image:
                bands = [name for name in image.band_names if name != "alpha"]
                if settings.bands is None and len(bands) not in (1, 3) and "red" not in bands:
                    detail = (
                        f"the image has {len(bands)} bands without declared colours, of which "
                        f"{'the first is read as grey' if len(bands) < 3 else 'the first three are read as colours'}: "
                        "choose others by --bands"
                    )
                    problems.append(Problem(path, 0, "first_bands", detail))
                if decode and _is_blank(image):
                    detail = "all pixels that were looked at have one value"
                    problems.append(Problem(path, 0, "blank_image", detail))
    except (ImageError, OSError) as error:
        return None, [*problems, of_image(path, error)]
    return size, problems


def _is_blank(image):
    """Whether the image is one colour, judged by at most 16 x 16 windows so that a huge TIFF is not read whole."""
    first = None
    for y in np.unique(np.linspace(0, max(image.height - 64, 0), 16, dtype=int)).tolist():
        for x in np.unique(np.linspace(0, max(image.width - 64, 0), 16, dtype=int)).tolist():
            pixels, _ = image.samples(x, y, min(x + 64, image.width), min(y + 64, image.height))
            first = pixels[0, 0] if first is None else first
            if (pixels != first).any():
                return False
    return True


def _check_objects(found, size, path, min_side):
    """What of an image's objects training would see.

    Args:
      found: Objects.
      size: (columns, rows) of the image, or None where it cannot be used.
      path: of the labels, for the problems.
      min_side: pixels.

    Returns:
      (Objects, [N, 5] boxes, list of Problem).
    """
    problems = []
    keep = np.ones(len(found.labels), bool)
    for row, fraction in enumerate(outside_fraction(found.polygons, *size) if size else ()):
        if fraction > 0:
            keep[row] = fraction < 1
            if keep[row] and found.difficulty[row] == TRUNCATED:  # what the tile splitter cut and said so
                continue
            reason = Reason.PARTLY_OUTSIDE if keep[row] else Reason.WHOLLY_OUTSIDE
            detail = f"{fraction:.1%} of the object lies outside the image of {size[0]} x {size[1]} pixels"
            problems.append(Problem(path, int(found.lines[row]), reason, detail))
    boxes, large = polygons_to_boxes(found.polygons, min_side)
    for row in np.flatnonzero(~large).tolist():
        detail = f"a side of the object is below {min_side:g} pixels"
        problems.append(Problem(path, int(found.lines[row]), Reason.TOO_SMALL, detail))
    keep &= large
    return objects.select(found, keep), boxes[keep], problems


def check_one(
    image: str,
    label_set: LabelSet | None,
    class_names: tuple[str, ...],
    *,
    decode: bool = True,
    min_side: float = 2.0,
    settings: image_settings.ImageSettings = DEFAULT,
) -> Checked:
    """Checks one image and its labels.

    Args:
      image: path of the image.
      label_set: LabelSet, or None without labels.
      class_names: the classes, in the order of their labels.
      decode: False looks at the image's header and end alone.
      min_side: sides below it are reported, in pixels.
      settings: ImageSettings, as images will be read.

    Returns:
      A Checked.
    """
    size, problems = _check_image(image, decode, settings)
    stem = pathlib.Path(image).stem
    found, path = objects.none(), image
    odd: list[Problem] = []
    if label_set is not None and stem in label_set.files:
        path = str(label_set.files[stem])
        found, odd = label_set.read(stem, class_names, image)
    kept, boxes, outside = _check_objects(found, size, path, min_side)
    odd = sorted([*odd, *outside], key=lambda problem: problem.line)
    return Checked(image, size, kept, boxes, [*problems, *odd])


def validate(
    images_dir: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    format: str = "dota",
    decode: bool = True,
    min_side: float = 2.0,
    num_threads: int | None = None,
    settings: image_settings.ImageSettings = DEFAULT,
) -> Report:
    """Checks images and labelled objects.

    Args:
      images_dir: folder of images.
      labels: folder of label files of the same names, or a file of labels; None: the images alone are checked.
      class_names: the classes, in the order of their labels; None takes those that the labels list themselves, else all
        that they name, in alphabetical order.
      format: of the labels, see label_set.FORMATS.
      decode: False looks at the images' headers and ends alone, which is much faster.
      min_side: sides below it are reported, in pixels.
      num_threads: images at a time; None: one a core.
      settings: ImageSettings that are given; what they leave open is what is kept beside the images.

    Returns:
      A Report.

    Raises:
      UserError: labels or images are missing, or tiles are not complete.
    """
    if labels is not None and not os.path.exists(labels):
        raise ValidationError(f"Expected labels at {labels}, found none.")
    folders.require_finished(images_dir)
    images, problems = _unique_names(map(str, image_files.list_images(images_dir)))
    settings = image_settings.merged(settings, image_settings.read_folder(images_dir)[0])
    label_set = None
    if labels is not None:
        label_set = LabelSet(labels, format)
        problems += [*label_set.problems, *folders.pair(images, label_set.files, labels, images_dir)]
        if class_names is None:
            class_names = label_set.found_class_names()
            for names in classes.similar(class_names):
                detail = f"classes {', '.join(names)} may be one class in several spellings"
                problems.append(Problem(str(labels), 0, Reason.SIMILAR_CLASSES, detail))
    class_names = tuple(class_names or ())
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        check = functools.partial(
            check_one,
            label_set=label_set,
            class_names=class_names,
            decode=decode,
            min_side=min_side,
            settings=settings,
        )
        checked = list(pool.map(check, images.values()))
    problems += [problem for image in checked for problem in image.problems]
    problems.sort(key=lambda problem: problem[:2])
    return Report(class_names, checked, problems, labels is not None)


def _unique_names(paths):
    """(dict from name without ending to path, list of Problem: names that are there twice)."""
    images, problems = {}, []
    for path in paths:
        stem = pathlib.Path(path).stem
        if stem in images:
            detail = f"{pathlib.Path(images[stem]).name} has the same name: one label file cannot serve two images"
            problems.append(Problem(path, 0, Reason.SAME_NAME, detail))
            continue
        images[stem] = path
    return images, problems
