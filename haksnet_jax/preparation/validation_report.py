"""What a validated data set holds, as text and as drawn samples."""

import itertools
import os
import pathlib

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels.problems import printable
from haksnet_jax.preparation.validation import Report, ValidationError
from haksnet_jax.results import visualize
from haksnet_jax.wording import counted

SIZE_EDGES = (8, 16, 32, 64, 128, 256, 512)  # pixels, sides of squares of the same area


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe(report: Report) -> str:
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
        f"{counted(int(counts.sum()), 'object')}, at most {counts.max()} in an image; "
        f"{counted(int((counts == 0).sum()), 'image')} without objects"
    )
    classes = np.concatenate([image.objects.labels for image in report.images])
    difficult = np.concatenate([image.objects.difficulty for image in report.images]) > 0
    shown_names = [printable(name) for name in report.class_names]
    width = max([5, *map(len, shown_names)])
    lines += ["", f"{'class':{width}}  objects  images  difficult  median side, px"]
    boxes = np.concatenate([image.boxes for image in report.images])
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
    for label, name in enumerate(shown_names):
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


def contact_sheet(report: Report, num_images: int = 12, seed: int = 0, side: int = 512) -> np.ndarray:
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
    drawn: list[np.ndarray] = []
    captions = []
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


def write_sheet(report: Report, path: str | os.PathLike[str]) -> None:
    """Draws samples to a file. Args: report; path, ending like an image. Raises: ValidationError."""
    encoded = cv2.imencode(pathlib.Path(path).suffix or ".png", contact_sheet(report)[..., ::-1])[1]
    try:
        files.write_bytes(path, encoded.tobytes())
    except OSError as error:
        raise ValidationError(f"cannot write {path}: {error.strerror}") from error
