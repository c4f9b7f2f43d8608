"""Resizing, flips, rotation and padding of an image with its le90 boxes (numpy and OpenCV).

Coordinates are the reference's: pixel indices for flips (x becomes W - 1 - x), while a rotation turns boxes about
(W/2, H/2) and the image about ((W-1)/2, (H-1)/2), half a pixel apart.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from haksnet_jax.geometry.boxes import to_le90

FLIPS = ("horizontal", "vertical", "diagonal")
# The mean colour of the networks' normalisation in whole numbers (RGB): padding is next to zero once normalised.
PADDING = (124, 116, 104)
_BETWEEN_ROWS = 16  # pixels of four channels: a line of the cache


def padding_values(channels: int) -> tuple[int, ...]:
    """[C] values of padding: PADDING for three channels; for other numbers its mean, as their colours are not known."""
    return PADDING if channels == 3 else (round(sum(PADDING) / 3),) * channels


def _with_channels(image):
    """[H, W, C], of which OpenCV leaves out the last axis where C is 1."""
    return image if image.ndim == 3 else image[..., None]


def fitted_size(height: int, width: int, canvas: tuple[float, float]) -> tuple[int, int]:
    """(rows, columns) of an image resized to fit a canvas with its ratio kept, rounded half up.

    Args:
      height: rows of the image.
      width: columns of the image.
      canvas: (rows, columns) to fit into.
    """
    factor = min(canvas[0] / height, canvas[1] / width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_keep_ratio(
    image: np.ndarray, boxes: np.ndarray, canvas: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resizes an image to fit a canvas, bilinearly, and its boxes with it.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] boxes.
      canvas: (rows, columns) to fit into.

    Returns:
      (image [h, w, C], boxes [N, 5], scale [2] float32: factors of x and y). Rounding to whole pixels makes the two
      factors differ a little; centres take each its own, sides their geometric mean, angles stay.
    """
    height, width = image.shape[:2]
    rows, columns = fitted_size(height, width, canvas)
    scale = np.array([columns / width, rows / height], np.float32)
    if (rows, columns) == (height, width):
        return image, boxes, scale
    image = _with_channels(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR))
    side = math.sqrt(float(scale[0]) * float(scale[1]))
    factors = np.array([scale[0], scale[1], side, side, 1], boxes.dtype)
    return image, boxes * factors, scale


def random_resize(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    canvas: tuple[int, int],
    scale_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image to fit a canvas, times a random factor, and cuts a random part out where it is then too large.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] boxes.
      rng: np.random.Generator. Three values are drawn, whatever they decide.
      canvas: (rows, columns): at a factor of 1 the image fits it as in `resize_keep_ratio`.
      scale_range: (least, largest) factor; its logarithm is drawn evenly, so that halving is as likely as doubling.

    Returns:
      (image [h, w, C] with h and w no larger than the canvas, boxes [N, 5] with those that lie in what was cut off).
    """
    size, top, left = rng.random(3)
    factor = math.exp(math.log(scale_range[0]) + size * math.log(scale_range[1] / scale_range[0]))
    image, boxes, _ = resize_keep_ratio(image, boxes, (canvas[0] * factor, canvas[1] * factor))
    rows, columns = min(image.shape[0], canvas[0]), min(image.shape[1], canvas[1])
    top, left = int(top * (image.shape[0] - rows + 1)), int(left * (image.shape[1] - columns + 1))
    boxes = boxes - np.array([left, top, 0, 0, 0], boxes.dtype)
    return image[top : top + rows, left : left + columns], boxes


def random_gain(image: np.ndarray, rng: np.random.Generator, gain_range: tuple[float, float]) -> np.ndarray:
    """Multiplies all pixels by a random factor: another exposure, or another calibration of a radar.

    Args:
      image: [H, W, C] uint8.
      rng: np.random.Generator. One value is drawn.
      gain_range: (least, largest) factor; its logarithm is drawn evenly. Values above 255 become 255.

    Returns:
      [H, W, C] uint8, rounded half up.
    """
    gain = math.exp(math.log(gain_range[0]) + rng.random() * math.log(gain_range[1] / gain_range[0]))
    return _with_channels(cv2.LUT(image, np.minimum(np.arange(256) * gain + 0.5, 255).astype(np.uint8)))


def flip(image: np.ndarray, boxes: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors an image and its boxes.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] le90 boxes.
      direction: "horizontal" (left and right change places), "vertical", or "diagonal" (both: half a turn).

    Returns:
      (image, boxes le90).
    """
    codes = {"horizontal": 1, "vertical": 0, "diagonal": -1}
    if direction not in codes:
        raise ValueError(f"expected one of the flips {', '.join(FLIPS)}, found '{direction}'")
    return _with_channels(cv2.flip(image, codes[direction])), _flipped_boxes(boxes, image.shape[:2], direction)


def _flipped_boxes(boxes, image_size, direction):
    height, width = image_size
    boxes = boxes.copy()
    if direction in ("horizontal", "diagonal"):
        boxes[:, 0] = width - 1 - boxes[:, 0]
    if direction in ("vertical", "diagonal"):
        boxes[:, 1] = height - 1 - boxes[:, 1]
    if direction != "diagonal":
        boxes[:, 4] = -boxes[:, 4]
    return to_le90(boxes)


def rotate(image: np.ndarray, boxes: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns an image and its boxes about the middle, on a canvas of the same size.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] le90 boxes.
      degrees: positive is counter-clockwise on the screen.

    Returns:
      (image, boxes le90). What turns out of the canvas is cut off, what turns in is black; boxes are all returned.
    """
    return move(image, boxes, None, degrees)


def move(image: np.ndarray, boxes: np.ndarray, direction: str | None, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors an image with its boxes, then turns it: in one pass over its pixels where it interpolates.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] le90 boxes.
      direction: as of `flip`, or None for none.
      degrees: as of `rotate`.

    Returns:
      (image, boxes le90), as `flip` and then `rotate` give them.
    """
    moved_boxes = move_boxes(boxes, image.shape[:2], direction, degrees)
    if not moves_whole_pixels(image.shape[:2], degrees):
        return _warp(image, move_matrix(image.shape[:2], direction, degrees)), moved_boxes
    if direction is not None:
        image, _ = flip(image, boxes, direction)
    return _quarter_turned(image, int(degrees // 90) % 4), moved_boxes


def move_boxes(boxes: np.ndarray, image_size: tuple[int, int], direction: str | None, degrees: float) -> np.ndarray:
    """[N, 5] le90 boxes moved as `move` does. Args: as of `move`; image_size (rows, columns)."""
    if direction is not None:
        boxes = _flipped_boxes(boxes, image_size, direction)
    if degrees % 360 == 0:
        return boxes
    height, width = image_size
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    centres = boxes[:, :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    # a turned rectangle is itself the smallest one around its corners, so no search for it is needed
    boxes = np.concatenate([centres, boxes[:, 2:4], boxes[:, 4:] - math.radians(degrees)], axis=-1)
    return to_le90(boxes.astype(np.float32))


def move_matrix(image_size: tuple[int, int], direction: str | None, degrees: float) -> np.ndarray:
    """[2, 3] where the pixels of an image go by `move`. Args: image_size (rows, columns); direction; degrees."""
    height, width = image_size
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    mirror = np.eye(3)
    if direction in ("horizontal", "diagonal"):
        mirror[0] = [-1, 0, width - 1]
    if direction in ("vertical", "diagonal"):
        mirror[1] = [0, -1, height - 1]
    matrix = matrix @ mirror
    # (the cosine of a quarter turn is not quite 0)
    return np.rint(matrix) if moves_whole_pixels(image_size, degrees) else matrix


def moves_whole_pixels(image_size: tuple[int, int], degrees: float) -> bool:
    """Whether a turn needs no interpolation. Args: image_size (rows, columns); degrees."""
    return degrees % 360 == 0 or (degrees % 90 == 0 and image_size[0] == image_size[1])


def _quarter_turned(image, quarters):
    """The image turned counter-clockwise by 0 to 3 quarters."""
    codes = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
    if quarters == 0:
        return image
    if image.shape[-1] > 4:  # which OpenCV does not transpose
        return np.ascontiguousarray(np.rot90(image, quarters))
    return _with_channels(cv2.rotate(image, codes[quarters]))


def _warp(image, matrix):
    """The image moved by a matrix [2, 3] on a canvas of the same size, bilinearly, black from outside.

    OpenCV moves four channels in less than half the time that it takes for three (3.3 ms of one core instead of 7.4
    for 1024 x 1024 pixels, the same values), so others are filled up to four.
    """
    height, width, channels = image.shape
    if channels == 3:
        # Rows that are no power of two apart: of those that are, the cache keeps eight, and a turn by some 90 degrees,
        # which reads down the columns, takes 5.5 ms instead of 3.4.
        filled = np.empty((height, width + _BETWEEN_ROWS, 4), np.uint8)[:, :width]
        moved = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=filled), matrix, (width, height))
        return cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)
    if channels in (1, 4):
        return _with_channels(cv2.warpAffine(image, matrix, (width, height)))
    filled = np.zeros((height, width, -(-channels // 4) * 4), np.uint8)
    filled[..., :channels] = image
    parts = [cv2.warpAffine(part, matrix, (width, height)) for part in np.split(filled, filled.shape[-1] // 4, axis=-1)]
    return np.concatenate(parts, axis=-1)[..., :channels]


def usable(boxes: np.ndarray, image_size: tuple[int, int], *, min_side: float, drop_outside: bool = True) -> np.ndarray:
    """Which boxes stay in training.

    Args:
      boxes: [N, 5] boxes.
      image_size: (rows, columns) of the image's content.
      min_side: boxes with a side of this many pixels or less are left out; 0 leaves out none but empty ones.
      drop_outside: leaves out boxes whose centre is not inside the image.

    Returns:
      [N] bool.
    """
    cx, cy, w, h, _ = boxes.T
    keep = (w > min_side) & (h > min_side)
    if drop_outside:
        keep &= (cx > 0) & (cy > 0) & (cx < image_size[1]) & (cy < image_size[0])
    return keep


def pad(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Puts an image into the upper left of a canvas.

    Args:
      image: [h, w, C] uint8.
      canvas: (rows, columns), not smaller than the image.

    Returns:
      [rows, columns, C] uint8, filled at the right and bottom with `padding_values(C)`.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(canvas):
        return image
    values = padding_values(image.shape[-1])
    padded = np.empty((*canvas, len(values)), np.uint8)
    padded[:height, :width] = image
    padded[:height, width:] = values
    padded[height:] = values
    return padded


def random_flip_and_rotation(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    flip_probabilities: Sequence[float],
    rotation_probability: float,
    max_degrees: float = 180.0,
    quarter_turn_labels: Sequence[int] = (),
    move: Callable[..., tuple[np.ndarray, np.ndarray]] = move,
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors and turns at random.

    Args:
      image: [H, W, C] uint8.
      boxes: [N, 5] le90 boxes.
      labels: [N] classes.
      rng: np.random.Generator. The same number of values is drawn whatever they decide.
      flip_probabilities: of a horizontal, a vertical and a diagonal flip; at most one of them happens.
      rotation_probability: of a rotation.
      max_degrees: the angle is drawn evenly between this and its negative.
      quarter_turn_labels: an image with an object of one of these classes turns by 90, 180 or -90 degrees, with
        probabilities 1/4, 1/2, 1/4 as in the reference (which draws from 90, 180, -90, -180): their boxes are
        axis-parallel by convention and would not be so after another turn.
      move: what moves them, a function as `move`; degrees are 0 where nothing turns.

    Returns:
      (image, boxes).
    """
    which_flip, whether_to_turn, angle, quarter = rng.random(4)
    flips = zip(FLIPS, np.cumsum(flip_probabilities), strict=True)
    direction = next((name for name, threshold in flips if which_flip < threshold), None)
    degrees = 0.0
    if whether_to_turn < rotation_probability:
        if np.isin(labels, list(quarter_turn_labels)).any():
            degrees = (90.0, 180.0, -90.0, -180.0)[int(quarter * 4)]
        else:
            degrees = max_degrees * (2 * angle - 1)
    return move(image, boxes, direction, degrees)
