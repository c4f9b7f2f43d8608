"""Checks a data set in DOTA's format before anything is trained on it: every problem with file and line.

Reasons by which something would be lost, beside those of `pipeline.labels.LEFT_OUT` and of `read_header`:
  image_without_labels, labels_without_image   no partner of the same name
  same_name            two images differ in their extension alone
  undecodable_image    the content is damaged, though the header is not
  wholly_outside       the object lies outside its image
  too_small            a side is below --min-side (default 2 pixels, as in training)
Reasons by which nothing is lost, beside those of `pipeline.labels`:
  partly_outside       the object reaches beyond its image, and is not marked as truncated by tiling (difficulty 2)
  wrong_extension      the content is of another format than the name says
  blank_image          all pixels are equal
  several_pages        the first image of the file is read, the others are not
  first_bands          bands without declared colours, neither one nor three: the first is read, or the first three
  turned_image         the file says that it is to be turned (EXIF): labels have to be those of the turned image
  similar_classes      two classes differ only in case, blanks, hyphens or underscores (when no --classes are given)
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import pathlib
import re
from typing import NamedTuple

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import EXTENSIONS_OF, ImageError, read_header
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import DEFAULT
from haksnet_jax.labels import dota as labels
from haksnet_jax.labels.problems import losses, of_image
from haksnet_jax.preparation import splitting
from haksnet_jax.results import visualize

SIZE_EDGES = (8, 16, 32, 64, 128, 256, 512)  # pixels, sides of squares of the same area


class ValidationError(UserError):
    """There is nothing that could be checked; the message says why."""


class Checked(NamedTuple):
    """What one image and its labels hold.

    Attributes:
      path: of the image.
      size: (columns, rows), or None when the image cannot be used.
      objects: labels.Objects; only those that training would see.
      boxes: [N, 5] le90 boxes of the objects.
      problems: list of labels.Problem.
    """

    path: str
    size: tuple[int, int] | None
    objects: labels.Objects
    boxes: np.ndarray
    problems: list


class Report(NamedTuple):
    """What a data set holds and what is wrong with it.

    Attributes:
      class_names: the classes.
      images: list of Checked.
      problems: list of labels.Problem, in the order of the files.
      has_labels: False for images alone.
    """

    class_names: tuple[str, ...]
    images: list
    problems: list
    has_labels: bool

    @property
    def lost(self):
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
            problems.append(labels.Problem(path, 0, "wrong_extension", detail))
        if header.orientation != 1:
            detail = f"by its orientation tag it is shown, read and labelled turned, as {size[0]} x {size[1]} pixels"
            problems.append(labels.Problem(path, 0, "turned_image", detail))
        if header.pages > 1:
            detail = f"the file holds {header.pages} images, of which the first is read"
            problems.append(labels.Problem(path, 0, "several_pages", detail))
        if decode or header.format == "TIFF":  # (of a TIFF much can be told without decoding it)
            with ImageFile(path, settings, **({} if decode else {"whole_up_to": 0})) as image:
                bands = [name for name in image.band_names if name != "alpha"]
                if settings.bands is None and len(bands) not in (1, 3) and "red" not in bands:
                    detail = (
                        f"the image has {len(bands)} bands without declared colours, of which "
                        f"{'the first is read as grey' if len(bands) < 3 else 'the first three are read as colours'}: "
                        "choose others by --bands"
                    )
                    problems.append(labels.Problem(path, 0, "first_bands", detail))
                if decode and _is_blank(image):
                    detail = "all pixels that were looked at have one value"
                    problems.append(labels.Problem(path, 0, "blank_image", detail))
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


def check_one(image, label_path, class_names, *, decode=True, min_side=2.0, settings=DEFAULT):
    """Checks one image and its label file.

    Args:
      image: path of the image.
      label_path: path of its label file, or None.
      class_names: the classes, in the order of their labels.
      decode: False looks at the image's header and end alone.
      min_side: sides below it are reported, in pixels.
      settings: ImageSettings, as images will be read.

    Returns:
      A Checked.
    """
    size, problems = _check_image(image, decode, settings)
    objects, found = labels.Objects(np.zeros((0, 4, 2)), *np.zeros((3, 0), np.int32)), []
    if label_path is not None:
        try:
            objects, found = labels.read_labels(label_path, class_names)
        except OSError as error:
            found = [labels.Problem(label_path, 0, "unreadable_labels", str(error.strerror))]
    keep = np.ones(len(objects.labels), bool)
    for row, fraction in enumerate(labels.outside_fraction(objects.polygons, *size) if size else ()):
        if fraction > 0:
            keep[row] = fraction < 1
            if keep[row] and objects.difficulty[row] == splitting.TRUNCATED:  # what the tile splitter cut and said so
                continue
            found.append(
                labels.Problem(
                    label_path,
                    int(objects.lines[row]),
                    "partly_outside" if keep[row] else "wholly_outside",
                    f"{fraction:.1%} of the object lies outside the image of {size[0]} x {size[1]} pixels",
                )
            )
    boxes, large = labels.polygons_to_boxes(objects.polygons, min_side)
    for row in np.flatnonzero(~large).tolist():
        detail = f"a side of the object is below {min_side:g} pixels"
        found.append(labels.Problem(label_path, int(objects.lines[row]), "too_small", detail))
    keep &= large
    found.sort(key=lambda problem: problem.line)
    return Checked(image, size, labels.Objects(*(part[keep] for part in objects)), boxes[keep], [*problems, *found])


def validate(
    images_dir, labels_dir=None, class_names=None, *, decode=True, min_side=2.0, num_threads=None, settings=DEFAULT
):
    """Checks a data set in DOTA's format.

    Args:
      images_dir: folder of images.
      labels_dir: folder of label files of the same names, or None.
      class_names: the classes, in the order of their labels; None takes those found, in alphabetical order.
      decode: False looks at the images' headers and ends alone, which is much faster.
      min_side: sides below it are reported, in pixels.
      num_threads: images at a time; None: one a core.
      settings: ImageSettings that are given; what they leave open is what is kept beside the images.

    Returns:
      A Report.

    Raises:
      ValidationError: a folder is missing, or there is no image.
    """
    if labels_dir is not None and not os.path.isdir(labels_dir):
        raise ValidationError(f"Expected a folder at {labels_dir}, found none.")
    paths = [str(path) for path in image_files.list_images(images_dir)]
    settings = image_settings.merged(settings, image_settings.read_folder(images_dir)[0])
    problems, pairs, seen, label_paths = [], [], {}, {}
    if labels_dir is not None:
        label_paths = {
            path.stem: str(path)
            for path in sorted(pathlib.Path(labels_dir).iterdir())
            if path.suffix.lower() == ".txt" and not path.name.startswith(".")
        }
    for path in paths:
        stem = pathlib.Path(path).stem
        if stem in seen:
            detail = f"{pathlib.Path(seen[stem]).name} has the same name: one label file cannot serve two images"
            problems.append(labels.Problem(path, 0, "same_name", detail))
            continue
        seen[stem] = path
        if labels_dir is not None and stem not in label_paths:
            detail = f"expected {os.path.join(labels_dir, stem + '.txt')}, found none"
            problems.append(labels.Problem(path, 0, "image_without_labels", detail))
        pairs.append((path, label_paths.get(stem)))
    for stem in label_paths.keys() - seen.keys():
        detail = f"there is no image of this name in {images_dir}"
        problems.append(labels.Problem(label_paths[stem], 0, "labels_without_image", detail))
    if class_names is None:
        found = {name for path in label_paths.values() for name in splitting.written_class_names(path)}
        class_names = tuple(sorted(found))
        spellings = collections.defaultdict(list)
        for name in class_names:
            spellings[re.sub(r"[\s_-]+", "", name).lower()].append(name)
        for names in spellings.values():
            if len(names) > 1:
                detail = f"classes {', '.join(names)} may be one class in several spellings"
                problems.append(labels.Problem(str(labels_dir), 0, "similar_classes", detail))
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        check = functools.partial(
            check_one, class_names=class_names, decode=decode, min_side=min_side, settings=settings
        )
        images = list(pool.map(lambda pair: check(*pair), pairs))
    problems += [problem for image in images for problem in image.problems]
    problems.sort(key=lambda problem: problem[:2])
    return Report(tuple(class_names), images, problems, labels_dir is not None)


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe(report):
    """Text: images, classes with their counts, and how large the objects are."""
    sizes = np.array([image.size for image in report.images if image.size], np.int64).reshape(-1, 2)
    lines = [_count(len(report.images), "image")]
    if len(sizes):
        low, middle, high = sizes.min(axis=0), np.median(sizes, axis=0).astype(int), sizes.max(axis=0)
        lines[0] += (
            f", {low[0]} to {high[0]} pixels wide (median {middle[0]}), {low[1]} to {high[1]} high (median {middle[1]})"
        )
    if not report.has_labels:
        return "\n".join([*lines, "no labels"])
    counts = np.array([len(image.objects.labels) for image in report.images])
    lines.append(
        f"{counts.sum()} objects, at most {counts.max()} in an image; {int((counts == 0).sum())} images without objects"
    )
    classes = np.concatenate([image.objects.labels for image in report.images])
    difficult = np.concatenate([image.objects.difficulty for image in report.images]) > 0
    width = max([5, *map(len, report.class_names)])
    lines += ["", f"{'class':{width}}  objects  images  difficult  median side, px"]
    boxes = np.concatenate([image.boxes for image in report.images])
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
    for label, name in enumerate(report.class_names):
        mine = classes == label
        num_images = sum(bool((image.objects.labels == label).any()) for image in report.images)
        side = f"{np.median(sides[mine]):.0f}" if mine.any() else "-"
        lines.append(f"{name:{width}}  {mine.sum():7d}  {num_images:6d}  {(mine & difficult).sum():9d}  {side:>15}")
    lines += ["", "side of a square of the object's area, px"]
    edges = [0, *SIZE_EDGES, np.inf]
    histogram = [int(((sides >= low) & (sides < high)).sum()) for low, high in itertools.pairwise(edges)]
    names = [f"below {SIZE_EDGES[0]}"]
    names += [f"{low} to {high}" for low, high in itertools.pairwise(SIZE_EDGES)]
    names += [f"{SIZE_EDGES[-1]} and more"]
    for name, count in zip(names, histogram, strict=True):
        bar = "#" * round(40 * count / max(1, max(histogram)))
        lines.append(f"{name:>12}  {count:7d}  {bar}".rstrip())
    return "\n".join(lines)


def contact_sheet(report, num_images=12, seed=0, side=512):
    """Drawn samples: images with objects first, and of images larger than `side` a cut-out around one of the objects.

    Args:
      report: a Report.
      num_images: samples.
      seed: of the choice.
      side: largest cut-out in pixels.

    Returns:
      uint8 [H, W, 3] RGB.

    Raises:
      ValidationError: no image can be drawn.
    """
    rng = np.random.default_rng(seed)
    usable = [image for image in report.images if image.size]
    rng.shuffle(usable)
    usable.sort(key=lambda image: not len(image.boxes))
    drawn, captions = [], []
    for image in usable:
        if len(drawn) == num_images:
            break
        columns, rows = image.size
        middle = rng.permutation(image.boxes)[0, :2] if len(image.boxes) else (columns / 2, rows / 2)
        x1 = int(np.clip(middle[0] - side / 2, 0, max(columns - side, 0)))
        y1 = int(np.clip(middle[1] - side / 2, 0, max(rows - side, 0)))
        try:
            with ImageFile(image.path) as file:
                pixels = file.read(x1, y1, min(x1 + side, columns), min(y1 + side, rows))
        except ImageError:  # named in the report already
            continue
        drawn.append(
            visualize.draw_labels(
                np.ascontiguousarray(pixels),
                image.objects.polygons - [x1, y1],
                image.objects.labels,
                report.class_names,
                difficulty=image.objects.difficulty,
            )
        )
        captions.append(f"{pathlib.Path(image.path).stem}: {_count(len(image.boxes), 'object')}")
    if not drawn:
        raise ValidationError("No image can be drawn.")
    return visualize.contact_sheet(drawn, captions)


def write_sheet(report, path):
    """Draws samples to a file. Args: report; path, ending like an image. Raises: ValidationError."""
    encoded = cv2.imencode(pathlib.Path(path).suffix or ".png", contact_sheet(report)[..., ::-1])[1]
    try:
        files.write_bytes(path, encoded.tobytes())
    except OSError as error:
        raise ValidationError(f"cannot write {path}: {error.strerror}") from error
