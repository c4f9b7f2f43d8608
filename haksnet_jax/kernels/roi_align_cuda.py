"""Rotated RoIAlign on NVIDIA GPUs, and its gradient to the pyramid's levels: cuda/roi_align.cu."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

SAMPLES = 2  # along each side of a bin
_DTYPES = ("bfloat16", "float32")
_MOST_LEVELS = 4
_SLICE = 256  # channels of a block
_EACH = 8  # channels of a thread
_THREADS = 256  # of a block
_BINS = 64  # of a block of `pool`, eight of each warp
_TILE_HEIGHT, _TILE_WIDTH = 4, 8  # features of a block of `spread`
_LISTED_BOXES, _LISTED_ROWS, _LEVEL_ROWS = 512, 32, 1 << 16  # kBoxes, kRows and kLevelRows of roi_align.cu
_MOST_BYTES = 1 << 32  # of an image's map
_MOST_FEATURES = (1 << 15) - 1  # along a side


def suits(
    shapes: Sequence[tuple[int, ...]], dtype: jnp.dtype, num_boxes: int, bins: tuple[int, int], samples_per_bin: int
) -> bool:
    """Whether the kernels run here and take such maps [H_l, W_l, C], boxes of an image, and bins (rows, columns)."""
    if jnp.dtype(dtype).name not in _DTYPES or samples_per_bin != SAMPLES or not 0 < len(shapes) <= _MOST_LEVELS:
        return False
    num_channels = shapes[0][-1]
    if num_channels % _EACH or not all(0 < side <= _MOST_FEATURES for shape in shapes for side in shape):
        return False
    if max(math.prod(shape) for shape in shapes) * jnp.dtype(dtype).itemsize > _MOST_BYTES:
        return False
    num_bins = bins[0] * bins[1]
    # The kernels divide a bin's number by multiplying it with an inverse, which is exact below this.
    if num_boxes < 1 or num_bins < 1 or (num_boxes + _LISTED_BOXES) * num_bins**2 >= 1 << 31:
        return False
    return _spread_shared(dtype) <= ptx.shared_bytes()


def _numbers(shapes, num_boxes, bins, num_channels):
    sizes = [*shapes, *[(0, 0)] * (_MOST_LEVELS - len(shapes))]
    numbers = {"BOXES": num_boxes, "BIN_ROWS": bins[0], "BIN_COLUMNS": bins[1], "CHANNELS": num_channels}
    for name, count in zip(("BINS_INVERSE", "COLUMNS_INVERSE"), (bins[0] * bins[1], bins[1]), strict=True):
        numbers[name] = -(-(1 << 32) // count) if count > 1 else 0
    for name, count in zip(("ROW_STEP", "COLUMN_STEP"), bins, strict=True):
        numbers[name] = int(np.float32(0.25 / count).view(np.uint32))
    for letter, (height, width) in zip("ABCD", sizes, strict=True):
        numbers |= {f"HEIGHT_{letter}": height, f"WIDTH_{letter}": width}
    return numbers


@functools.partial(jax.jit, static_argnames=("bins",))
def pool(frames: jax.Array, *maps: jax.Array, bins: tuple[int, int]) -> jax.Array:
    """Averages of bilinear samples in the bins of boxes.

    Args:
      frames: [B, R, 8] float32 boxes on their levels: (cx, cy, w, h) in features, cosine, sine, level (-1: gives
        zeros) and 0.
      *maps: [B, H_l, W_l, C] features of each level, float32 or bfloat16.
      bins: rows and columns of them.

    Returns:
      [B, R, rows, columns, C] in the maps' type: float32 sums in the order of neighbours and samples, rounded once.
    """
    num_images, num_boxes, _ = frames.shape
    num_channels, dtype = maps[0].shape[-1], maps[0].dtype
    (pooled,) = ptx.call(
        "roi_align",
        f"pool_{dtype.name}",
        (frames, *maps, *[maps[-1]] * (_MOST_LEVELS - len(maps))),
        [jax.ShapeDtypeStruct((num_images, num_boxes, *bins, num_channels), dtype)],
        grid=(pl.cdiv(num_boxes * bins[0] * bins[1], _BINS), pl.cdiv(num_channels, _SLICE), num_images),
        threads=_THREADS,
        shared=_BINS * (16 * 8 + 8),  # 16 terms and the address of a map for each bin
        numbers=_numbers([level.shape[1:3] for level in maps], num_boxes, bins, num_channels),
    )
    return pooled


def _spread_shared(dtype):
    """Bytes of shared memory of a block of `spread`: rows, weights, lists of boxes and bins, two counts a warp."""
    rows = _LISTED_ROWS * _SLICE * jnp.dtype(dtype).itemsize
    weights = 4 * _TILE_HEIGHT * _TILE_WIDTH * (_LISTED_ROWS + 1)
    return rows + weights + 4 * (_LISTED_BOXES + _THREADS + 2 * (_THREADS // 32))


def _reaches(frames, shapes):
    """Features that each box may meet: [B, R, 4] int32 (left, right, top, bottom), the last ones included.

    Rows are counted from level 0 on, _LEVEL_ROWS for each level, so that a box of another level than a tile's lies
    above or below it.
    """
    cx, cy, w, h, cos, sin, level, _ = jnp.moveaxis(frames, -1, 0)
    sizes = jnp.asarray(shapes, jnp.float32)[jnp.maximum(level, 0).astype(jnp.int32)]
    ends, may_meet = [], level >= 0
    for centre, along, across, size in ((cx, w * cos, h * sin, sizes[..., 1]), (cy, w * sin, h * cos, sizes[..., 0])):
        # Longer by far more than rounding moves a sample.
        far = 0.5 * (1 + 1e-5) * (jnp.abs(along) + jnp.abs(across)) + 0.02
        may_meet &= (centre + far >= -1) & (centre - far <= size)
        # A place beside the map counts as its border.
        first, last = jnp.clip(centre - far, 0, size - 1), jnp.clip(centre + far, 0, size - 1) + 1
        ends += [jnp.where(may_meet, end, 0).astype(jnp.int32) for end in (first, last)]
    rows = level.astype(jnp.int32) * _LEVEL_ROWS
    left, right, top, bottom = ends
    return jnp.stack([left, jnp.where(may_meet, right, -1), top + rows, bottom + rows], axis=-1)


@functools.partial(jax.jit, static_argnames=("shapes",))
def spread(frames: jax.Array, gradient: jax.Array, *, shapes: tuple[tuple[int, int], ...]) -> tuple[jax.Array, ...]:
    """The transpose of `pool`.

    Args:
      frames: [B, R, 8] float32 boxes on their levels: (cx, cy, w, h) in features, cosine, sine, level (-1: gives
        zeros) and 0.
      gradient: [B, R, rows, columns, C], float32 or bfloat16.
      shapes: (H_l, W_l) of each level.

    Returns:
      Tuple of [B, H_l, W_l, C] in the gradient's type. A bin's weights for a feature are added up first; sums over bins
      are float32, in the order of boxes and bins, and rounded once.
    """
    num_images, num_boxes, *bins, num_channels = gradient.shape
    tiles = sum(pl.cdiv(height, _TILE_HEIGHT) * pl.cdiv(width, _TILE_WIDTH) for height, width in shapes)
    none = [jax.ShapeDtypeStruct((1,), gradient.dtype)] * (_MOST_LEVELS - len(shapes))  # of levels that are not there
    maps = ptx.call(
        "roi_align",
        f"spread_{gradient.dtype.name}",
        (frames, _reaches(frames, shapes), gradient),
        [jax.ShapeDtypeStruct((num_images, *shape, num_channels), gradient.dtype) for shape in shapes] + none,
        grid=(tiles, pl.cdiv(num_channels, _SLICE), num_images),
        threads=_THREADS,
        shared=_spread_shared(gradient.dtype),
        numbers=_numbers(shapes, num_boxes, bins, num_channels),
    )
    return tuple(maps[: len(shapes)])
