"""How an image is looked at: as a whole that fits the network's input, in windows, mirrored; and the way back.

A view is what goes through the network at once: pixels of an image, perhaps resized, in the top left corner of a
canvas.
Functions here are pure: they read an image and give arrays.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax.geometry.boxes import boxes_to_corners, to_le90
from haksnet_jax.inference.view_settings import Settings, shared_pixels, tile_side
from haksnet_jax.pipeline import transforms
from haksnet_jax.results import tiles

_EDGE = 2.0  # pixels from a window's edge within which a box counts as cut off there


class ModelInput(NamedTuple):
    """What a network takes.

    Attributes:
      size: (rows, columns) in pixels.
      divisor: its sides are padded to multiples of this.
      keep_ratio: whether images are resized with their ratio of sides kept.
    """

    size: tuple[int, int]
    divisor: int = 32
    keep_ratio: bool = True


class View(NamedTuple):
    """Where the pixels of one row of a batch lie in which image.

    Attributes:
      index: of the image.
      offset: x, y of its top left pixel in the image.
      factors: x, y by which its pixels were resized.
      mirrored_width: columns of the content, where it is mirrored; else None.
      grid: (side, x of windows, y of windows, image width, image height), or None for a whole image.
    """

    index: int  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    offset: tuple[int, int]
    factors: tuple[float, float]
    mirrored_width: int | None
    grid: Any


def fits(height: int, width: int, input_size: tuple[int, int]) -> bool:
    """Whether an image is no larger than the network's input, lying or standing."""
    return max(height, width) <= max(input_size) and min(height, width) <= min(input_size)


def is_fitted(image: Any, settings: Settings, input_size: tuple[int, int]) -> bool:
    """Whether an image is looked at as a whole. Args: image, with height and width."""
    return settings.resize == "fit" or (settings.resize == "auto" and fits(image.height, image.width, input_size))


def count(image: Any, settings: Settings, input_size: tuple[int, int]) -> int:
    """How many views of an image `views_of` gives, those of a single colour too, mirror images not counted."""
    if is_fitted(image, settings, input_size):
        return len(settings.scales)
    return sum(len(windows) for _, windows in grids(image.height, image.width, settings, input_size))


def views_of(
    index: int, image: Any, settings: Settings, model_input: ModelInput
) -> Iterator[tuple[np.ndarray, View, Any] | None]:
    """Reads the views of an image, one after another.

    Args:
      index: of the image, for `View`.
      image: with height, width and read(x1, y1, x2, y2) -> [h, w, 3] uint8.
      settings: Settings.
      model_input: ModelInput.

    Yields:
      (content [h, w, 3] uint8, View, canvas), where canvas is the (rows, columns) that the content is padded to,
      or None for windows, whose canvas is the square of `tile_side`. Or None: a window of a single colour, left out.
    """
    if is_fitted(image, settings, model_input.size):
        views = _whole(index, image, settings, model_input)
    else:
        views = _windows(index, image, settings, model_input.size)
    for found in views:
        yield found
        if settings.flip and found is not None:
            content, view, canvas = found
            yield content[:, ::-1], view._replace(mirrored_width=content.shape[1]), canvas


def _whole(index, image, settings, model_input):
    """Yields (content, view, canvas) of the whole image at each scale."""
    divisor = model_input.divisor
    pixels = image.read(0, 0, image.width, image.height)
    for scale in settings.scales:
        short, long = sorted(max(divisor, round(side * scale)) for side in model_input.size)
        if not model_input.keep_ratio:
            rows, columns = (max(1, round(side * scale)) for side in model_input.size)
            full = (rows, columns)
        else:
            # The longer side of the image fits the longer side of the input, whichever way it lies: as upstream.
            full = (long, short) if image.height > image.width else (short, long)
            rows, columns = transforms.fitted_size(image.height, image.width, full)
        content = pixels
        if (rows, columns) != pixels.shape[:2]:
            content = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
        least = (rows, columns) if settings.pad == "least" else full
        canvas = tuple(-(-side // divisor) * divisor for side in least)
        factors = (columns / image.width, rows / image.height)
        yield content, View(index, (0, 0), factors, None, None), canvas


def grids(height: int, width: int, settings: Settings, input_size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """[(side of the windows, [n, 4] windows)] of each scale, in pixels of an image of that size."""
    side = tile_side(settings, input_size)
    found = []
    for scale in settings.scales:
        window = max(1, round(side / scale))
        overlap = min(int(shared_pixels(settings, input_size) / scale), window - 1)
        found.append((window, tiles.windows(width, height, window, overlap, padding=False)))
    return found


def _windows(index, image, settings, input_size):
    """Yields (content, view, None) of each window at each scale, or None for a window of a single colour."""
    side = tile_side(settings, input_size)
    for window, windows in grids(image.height, image.width, settings, input_size):
        grid = (window, np.unique(windows[:, 0]), np.unique(windows[:, 1]), image.width, image.height)
        # Row after row: files hold their pixels in this order, and what was decoded for one window is still there
        # for its neighbours.
        for x1, y1, x2, y2 in windows[np.lexsort((windows[:, 0], windows[:, 1]))].tolist():
            content = image.read(x1, y1, x2, y2)
            if (content == content[0, 0]).all():
                yield None
                continue
            factors = (1.0, 1.0)
            if window != side:
                rows, columns = (max(1, min(side, round(n * side / window))) for n in content.shape[:2])
                factors = (columns / content.shape[1], rows / content.shape[0])
                content = cv2.resize(content, (columns, rows), interpolation=cv2.INTER_LINEAR)
            yield content, View(index, (x1, y1), factors, None, grid), None


def to_image(view: View, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Detections of one view in pixels of its image; those that a window's edge cuts off are left to its neighbour.

    Args:
      view: View.
      boxes: [n, 5] in pixels of the view before its content was resized, as the network gives them.
      scores, labels: [n].

    Returns:
      {"boxes", "scores", "labels"}.
    """
    if view.mirrored_width is not None:
        boxes = boxes * np.array([-1, 1, 1, 1, -1], np.float32)
        boxes[:, 0] += (view.mirrored_width - 1) / view.factors[0]  # pixel x becomes W - 1 - x, as in training
        boxes = to_le90(boxes)
    upright = boxes[:, 3] > boxes[:, 2]  # factors of x and y that differ exchange the sides of what is almost square
    boxes[upright] = to_le90(boxes[upright])
    boxes[:, :2] += np.array(view.offset, np.float32)
    if view.grid is not None:
        keep = ~cut_off(boxes, view)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    return {"boxes": boxes, "scores": scores, "labels": labels}


def cut_off(boxes: np.ndarray, view: View) -> np.ndarray:
    """Which boxes reach an edge of their window, inside the image, while another window holds them whole.

    Such a box is often a piece of an object, too small a part of it for merging to see that both are one.

    Args:
      boxes: [n, 5] in pixels of the image.
      view: where they were found; a window.

    Returns:
      [n] bool.
    """
    side, xs, ys, width, height = view.grid
    corners = boxes_to_corners(boxes.astype(np.float64))
    low, high = corners.min(axis=1), corners.max(axis=1)
    reaches = np.zeros(len(boxes), bool)
    elsewhere = np.ones(len(boxes), bool)
    for axis, (start, starts, length) in enumerate(zip(view.offset, (xs, ys), (width, height), strict=True)):

        def inside(first, axis=axis, length=length):
            """[n] or [n, windows] whether boxes stay clear of the edges of windows that begin at `first`."""
            lower, upper = low[:, axis], high[:, axis]
            if np.ndim(first):
                lower, upper = lower[:, None], upper[:, None]
            clear_low = (first <= 0) | (lower > first + _EDGE)
            return clear_low & ((first + side >= length) | (upper < first + side - _EDGE))

        reaches |= ~inside(start)
        elsewhere &= inside(starts).any(axis=-1)
    return reaches & elsewhere
