"""Crops, flips, turns and colours of an image that is classified as a whole (numpy and OpenCV)."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax.pipeline.classification_sources import StoredImage
from haksnet_jax.pipeline.rand_augment import brightness, color, contrast, rand_augment

CROP_ATTEMPTS = 10
_ENLARGING = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_SHRINKING = (cv2.INTER_AREA, cv2.INTER_LINEAR)  # a cubic filter of a shrunk image would skip pixels and sharpen them


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random part of an image: of random area and aspect ratio, at a random place.

    Area is drawn evenly, the logarithm of the aspect ratio evenly, ten times until a box fits; else the largest box in
    the middle with an aspect ratio in range is taken.

    Args:
      height: rows of the image.
      width: columns.
      rng: np.random.Generator.
      scale: (least, largest) area, as a share of the image's.
      ratio: (least, largest) width over height.

    Returns:
      (top, left, rows, columns), whole pixels inside the image.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    aspect = min(max(width / height, ratio[0]), ratio[1])
    columns, rows = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def largest_reduction(rows: int, columns: int, size: tuple[int, int]) -> int:
    """How coarsely a JPEG may be decoded: 1, 2, 4 or 8, such that a part stays at least as large as it will be.

    Args:
      rows, columns: of the part of the whole image.
      size: (rows, columns) that it will be resized to.
    """
    return next(r for r in (8, 4, 2, 1) if r == 1 or (rows >= size[0] * r and columns >= size[1] * r))


def crop_and_resize(
    image: StoredImage, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: int = 0
) -> np.ndarray:
    """Cuts a part out of a stored image and resizes it.

    Args:
      image: StoredImage.
      box: (top, left, rows, columns) in pixels of the whole image.
      size: (rows, columns) of the result.
      interpolation: 0 or 1, which of two is taken: bilinear or bicubic where the part grows, the mean over what becomes
        one pixel or bilinear where it shrinks.

    Returns:
      [rows, columns, C] uint8.
    """
    reduction = largest_reduction(box[2], box[3], size)
    pixels = image.pixels(reduction)
    # What knows no partial decoding is whole.
    scale = 1.0 if pixels.shape[:2] == tuple(image.size) else 1.0 / reduction
    top, left = round(box[0] * scale), round(box[1] * scale)
    bottom, right = round((box[0] + box[2]) * scale), round((box[1] + box[3]) * scale)
    part = pixels[top : max(top + 1, bottom), left : max(left + 1, right)]
    if part.shape[:2] == tuple(size):
        return np.ascontiguousarray(part)
    shrinks = part.shape[0] * part.shape[1] > size[0] * size[1]
    how = (_SHRINKING if shrinks else _ENLARGING)[interpolation]
    resized = cv2.resize(np.ascontiguousarray(part), (size[1], size[0]), interpolation=how)
    return resized if resized.ndim == 3 else resized[..., None]  # OpenCV drops an axis of one band


def centre_crop(image: StoredImage, size: tuple[int, int], share: float) -> np.ndarray:
    """The middle of an image, for evaluation.

    Args:
      image: StoredImage.
      size: (rows, columns) of the result.
      share: of the largest part in the middle with the result's aspect ratio, how much of its sides is taken. With
        0.875 and 224 pixels: resized to 256 on the shorter side, then 224 in the middle.

    Returns:
      [rows, columns, C] uint8.
    """
    height, width = image.size
    factor = min(height / size[0], width / size[1]) * share
    rows, columns = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    return crop_and_resize(image, ((height - rows) // 2, (width - columns) // 2, rows, columns), size)


def colour_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation by random factors, in random order.

    Args:
      image: [H, W, 3] uint8 RGB.
      rng: np.random.Generator.
      strength: factors are drawn evenly from 1 - strength to 1 + strength.

    Returns:
      [H, W, 3] uint8.
    """
    adjust = (brightness, contrast, color)
    for which in rng.permutation(len(adjust)):
        image = adjust[which](image, rng.uniform(1.0 - strength, 1.0 + strength))
    return image


class Augment(NamedTuple):
    """What happens to an image on the host."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of a random part, share of the image's; (1, 1): the whole
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height
    flip_probabilities: tuple[float, float] = (0.5, 0.0)  # left and right, up and down
    quarter_turns: bool = False  # by 0, 90, 180 or 270 degrees, each as likely: for images from above
    rand_augment_magnitude: float = 0.0  # mean magnitude of two random operations, of 10; 0 for none. RGB alone
    colour_jitter: float = 0.0  # strength of random brightness, contrast and saturation; 0 for none. RGB alone


class TrainingRow:
    """(example, rng) -> {"image", "label"}: a random part of the image, mirrored, turned and recoloured at random.

    Args:
      size: (rows, columns) of the result; a square where quarter turns are on.
      augment: Augment.
    """

    def __init__(self, *, size: tuple[int, int], augment: Any) -> None:
        self.size, self.augment = (size[0], size[1]), augment

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray | np.generic]:
        augment = self.augment
        height, width = example["image"].size
        box = (0, 0, height, width)
        if augment.crop_scale != (1.0, 1.0):
            box = random_crop_box(height, width, rng, scale=augment.crop_scale, ratio=augment.crop_ratio)
        image = crop_and_resize(example["image"], box, self.size, int(rng.integers(2)))
        for axis, probability in zip((1, 0), augment.flip_probabilities, strict=True):
            if rng.random() < probability:
                image = np.flip(image, axis)
        if augment.quarter_turns:
            image = np.rot90(image, int(rng.integers(4)))
        image = np.ascontiguousarray(image)
        if augment.rand_augment_magnitude:
            image = rand_augment(image, rng, magnitude=augment.rand_augment_magnitude)
        if augment.colour_jitter:
            image = colour_jitter(image, rng, augment.colour_jitter)
        return {"image": image, "label": np.int32(example["label"])}


class EvaluationRow:
    """example -> {"image", "label"}, the middle of the image; `filler` gives one without content.

    Args:
      size: (rows, columns) of the result.
      share: see `centre_crop`.
      num_bands: C.
    """

    def __init__(self, *, size: tuple[int, int], share: float, num_bands: int = 3) -> None:
        self.size, self.share, self.num_bands = (size[0], size[1]), share, num_bands

    def __call__(self, example: dict[str, Any]) -> dict[str, np.ndarray | np.generic]:
        return {"image": centre_crop(example["image"], self.size, self.share), "label": np.int32(example["label"])}

    def filler(self) -> dict[str, np.ndarray | np.generic]:
        """A row that only fills up a batch."""
        return {"image": np.zeros((*self.size, self.num_bands), np.uint8), "label": np.int32(-1)}
