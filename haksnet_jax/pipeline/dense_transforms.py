"""Random crops, turns, flips and light of images with masks, and of pairs of images (numpy and OpenCV).

Both dates of a pair and their mask share every change of place; light is drawn for each date alone.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.pipeline.transforms import PADDING

_CROP_TRIALS = 10
IMAGES = ("image", "before", "after")  # what an example's images are called


def padding(channels: int) -> tuple[float, ...]:
    """Values of pixels outside an image, by channel: the mean colour, or its mean where the bands are others."""
    return PADDING if channels == 3 else (round(sum(PADDING) / 3),) * channels


def warp(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], *, nearest: bool = False, outside: Any | None = None
) -> np.ndarray:
    """Looks an image up at moved positions.

    Args:
      image: [H, W] or [H, W, C].
      matrix: [2, 3] from (column, row) of the result to those of the image.
      size: (rows, columns) of the result.
      nearest: the next pixel's value instead of bilinear interpolation.
      outside: values of what lies outside the image; None: `padding`.

    Returns:
      [rows, columns] or [rows, columns, C] in the type of the image.
    """
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    if image.ndim == 2:
        return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderValue=0 if outside is None else outside)
    channels = image.shape[-1]
    outside = padding(channels) if outside is None else outside
    parts = [
        cv2.warpAffine(
            np.ascontiguousarray(image[..., i : i + 4]), matrix, size[::-1], flags=flags, borderValue=outside[i : i + 4]
        ).reshape(*size, -1)
        for i in range(0, channels, 4)  # OpenCV knows borders of up to four channels
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def crop_matrix(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    crop: tuple[int, int],
    *,
    scale_range: tuple[float, float] = (1.0, 1.0),
    max_degrees: float = 0.0,
) -> np.ndarray:
    """Draws where a crop lies in an image.

    Args:
      rng: np.random.Generator. Four values are drawn, whatever they decide.
      image_size: (rows, columns) of the image.
      crop: (rows, columns) of the crop.
      scale_range: (least, largest) factor by which the image is enlarged; its logarithm is drawn evenly.
      max_degrees: the crop's angle is drawn evenly between this and its negative.

    Returns:
      [2, 3] float64 matrix from pixels of the crop to those of the image. The crop (without its turn) lies within the
      image along an axis along which it fits, else the image lies within the crop.
    """
    size, angle, *place = rng.random(4)
    scale = math.exp(math.log(scale_range[0]) + size * math.log(scale_range[1] / scale_range[0]))
    angle = math.radians(max_degrees * (2 * angle - 1))
    first = []
    for length, side, share in zip(image_size, crop, place, strict=True):
        spare = length - side / scale
        # (whole pixels: a crop of the same scale is then an exact copy)
        first.append(math.floor(min(spare, 0) + share * (abs(spare) + 1)) if spare >= 0 else math.ceil(share * spare))
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    turn = np.array([[cos, -sin], [sin, cos]])
    # The crop's middle goes to the middle of the window in the image, pixels having their centres at + 0.5.
    middle = np.array([crop[1] / 2, crop[0] / 2])
    origin = np.array([first[1], first[0]]) + middle / scale - turn @ middle + turn @ (0.5, 0.5) - 0.5
    return np.concatenate([turn, origin[:, None]], axis=1)


def random_light(
    image: np.ndarray, rng: np.random.Generator, *, brightness: float, contrast: float, saturation: float, tint: float
) -> np.ndarray:
    """Another light, another season, another camera: changes the values of all pixels alike.

    Args:
      image: [H, W, C] uint8.
      rng: np.random.Generator. 3 + C values are drawn.
      brightness: largest offset, as a share of 255.
      contrast: largest relative change of the distance from the mean.
      saturation: largest relative change of the distance from grey (of three channels).
      tint: largest relative change of a channel.

    Returns:
      [H, W, C] uint8.
    """
    channels = image.shape[-1]
    draws = 2 * rng.random(3 + channels) - 1
    gains = (1 + contrast * draws[1]) * (1 + tint * draws[3:])
    middle = float(image.mean())
    values = np.arange(256)[:, None]
    table = (values - middle) * gains + middle + 255 * brightness * draws[0]
    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)  # [256, C]
    if channels == 3:
        image = cv2.LUT(image, table[:, None])
    else:
        image = np.stack([table[image[..., c], c] for c in range(channels)], axis=-1)
    if channels == 3 and saturation:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = 1 + saturation * draws[2]
        image = cv2.addWeighted(image, share, grey, 1 - share, 0)
    return image


class Augment(NamedTuple):
    """What happens to crops and their light at random."""

    scale_range: tuple[float, float] = (0.5, 2.0)  # factor of size
    max_degrees: float = 0.0  # of a turn beside quarter turns
    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.5  # probability
    quarter_turns: bool = True  # of square crops; others turn by half turns
    brightness: float = 0.15  # largest offset, as a share of 255
    contrast: float = 0.2  # largest relative change of the distance from the mean
    saturation: float = 0.3  # largest relative change of the distance from grey
    tint: float = 0.05  # largest relative change of each channel
    max_class_share: float = 0.75  # of a crop that one class may take, else it is drawn again (10 times at most)
    mosaic: float = 0.0  # probability of a crop made of four images
    exchange: float = 0.0  # of pairs: probability that the dates change places

    def light(self) -> dict[str, float] | None:
        """{name: strength} of `random_light`, or None where it would change nothing."""
        strengths = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation", "tint")}
        return strengths if any(strengths.values()) else None


class Augmentation:
    """(example, rng) -> one row of a training batch: images [h, w, C] and mask [h, w] of the crop's size.

    The row also has `num_unknown` (as the source counts it), and `num_empty`: 1 where no pixel of the crop has a label.

    Args:
      source: where further examples of a mosaic come from.
      crop: (rows, columns).
      augment: Augment.
    """

    def __init__(self, source: Any, *, crop: tuple[int, int], augment: Augment) -> None:
        self.source = source
        self.crop = tuple(crop)
        self.augment, self.light = augment, augment.light()

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray | np.generic]:
        row = self._mosaic(example, rng) if rng.random() < self.augment.mosaic else self._cropped(example, rng)
        row = self._turned(row, rng)
        if self.light is not None:
            row |= {name: random_light(row[name], rng, **self.light) for name in IMAGES if name in row}
        if "before" in row and rng.random() < self.augment.exchange:
            row["before"], row["after"] = row["after"], row["before"]
        row = {name: np.ascontiguousarray(value) for name, value in row.items()}
        labelled = (row["mask"] != IGNORED).any()
        return row | {"num_unknown": np.int32(example["num_unknown"]), "num_empty": np.int32(not labelled)}

    def _cropped(self, example, rng):
        mask, augment = example["mask"], self.augment
        for _ in range(_CROP_TRIALS):
            matrix = crop_matrix(
                rng, mask.shape, self.crop, scale_range=augment.scale_range, max_degrees=augment.max_degrees
            )
            cropped = warp(mask, matrix, self.crop, nearest=True, outside=IGNORED)
            counts = np.bincount(cropped.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
            if 0 < counts.max() <= augment.max_class_share * counts.sum():
                break
        images = {name: warp(example[name], matrix, self.crop) for name in IMAGES if name in example}
        return images | {"mask": cropped}

    def _mosaic(self, example, rng):
        others = [self.source[int(index)] for index in rng.integers(len(self.source), size=3)]
        parts = [self._cropped(each, rng) for each in (example, *others)]
        row, column = (round(side * share) for side, share in zip(self.crop, rng.uniform(0.25, 0.75, 2), strict=True))
        mixed = {name: value.copy() for name, value in parts[0].items()}
        for part, place in zip(
            parts[1:],
            (np.s_[:row, column:], np.s_[row:, :column], np.s_[row:, column:]),
            strict=True,
        ):
            for name in mixed:
                mixed[name][place] = part[name][place]
        return mixed

    def _turned(self, row, rng):
        horizontal, vertical, turns = rng.random(3)
        turns = int(turns * 4) if self.augment.quarter_turns else 0
        if self.crop[0] != self.crop[1]:
            turns -= turns % 2
        if horizontal < self.augment.horizontal_flip:
            row = {name: value[:, ::-1] for name, value in row.items()}
        if vertical < self.augment.vertical_flip:
            row = {name: value[::-1] for name, value in row.items()}
        return {name: np.rot90(value, turns) for name, value in row.items()} if turns else row
