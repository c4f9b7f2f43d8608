"""The regular grid of axis-parallel anchors on the levels of the feature pyramid."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from haksnet_jax.structures import AnyArray

STRIDES = (4, 8, 16, 32, 64)  # of the pyramid on a backbone of strides 4 to 32


def level_shapes(image_shape: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the feature maps of an image.

    Every level halves the one before, rounding up, as the padded convolutions and the subsampling do: for the strides
    of a pyramid that is the image's size divided by the stride, rounded up.

    Args:
      image_shape: (rows, columns) of the network's input, pixels.
      strides: pixels between neighbouring places of each level.

    Returns:
      ((rows, columns), ...) one pair a level.
    """
    rows, columns = image_shape
    return tuple((-(-rows // stride), -(-columns // stride)) for stride in strides)


def anchor_grid(
    image_shape: Sequence[int], strides: Sequence[int], *, scale: float, ratios: Sequence[float]
) -> Float[np.ndarray, "A 4"]:
    """Anchors of all levels of an image.

    At each place (x, y) of a level's feature map lies one anchor for each ratio, centred on the pixel coordinates
    (x * stride, y * stride), with an area of (scale * stride)^2. Anchors reach beyond the image at its rims.

    Args:
      image_shape: (rows, columns) of the network's input, pixels.
      strides: pixels between neighbouring places of each level.
      scale: side of a square anchor in strides.
      ratios: heights divided by widths.

    Returns:
      [A, 4] numpy float32 boxes (x1, y1, x2, y2), pixels: levels one after another, in a level ordered by row, then
      column, then ratio.
    """
    levels = []
    for stride, (rows, columns) in zip(strides, level_shapes(image_shape, strides), strict=True):
        # float32 from here on, as in the reference: overlaps that tie in exact arithmetic then round alike.
        height_factors = np.sqrt(np.asarray(ratios, np.float32))
        widths = np.float32(stride) * (1 / height_factors) * np.float32(scale)
        heights = np.float32(stride) * height_factors * np.float32(scale)
        at_origin = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
        y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).astype(np.float32)
        levels.append((centres[:, :, None] + at_origin).reshape(-1, 4))
    return np.concatenate(levels)


def inside_image(
    anchors: Float[AnyArray, "A 4"], image_size: Shaped[AnyArray, " 2"] | Sequence[int]
) -> Bool[AnyArray, " A"]:
    """Which anchors lie wholly within an image.

    Args:
      anchors: [A, 4] boxes (x1, y1, x2, y2), pixels; numpy or JAX.
      image_size: [2] rows and columns of the image's content, without padding.

    Returns:
      [A] bool.
    """
    rows, columns = image_size[0], image_size[1]
    x1, y1, x2, y2 = anchors[:, 0], anchors[:, 1], anchors[:, 2], anchors[:, 3]
    return (x1 >= 0) & (y1 >= 0) & (x2 < columns) & (y2 < rows)
