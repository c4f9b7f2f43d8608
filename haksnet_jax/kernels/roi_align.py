"""Rotated RoIAlign over all pyramid levels at once.

Every pooled value is a weighted sum of rows (one row: the channels of one position) of one table that holds the
levels one after another: 4 samples a bin with 4 neighbours each. So the forward pass is 16 gathers of rows, added up
in float32 as they are read, and the gradient 16 scatters of rows. RoIs are not pooled on levels that they do not belong
to, and no array holds the separate samples.

On NVIDIA GPUs from Ampere on, kernels of our own need no table, numbers or weights in memory (roi_align_cuda.py): one
reads the rows of every bin from the level itself; the other, the gradient, has a block of threads for each tile of a
level, which goes through the bins that meet it, in the same order in every run. What they do not take (see
`roi_align_cuda.suits`; no configuration of a detector here) is left to XLA's operations, whose scatters add in any
order on a GPU.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from haksnet_jax.kernels import ptx, roi_align_cuda
from haksnet_jax.target import by_platform

_CHUNK = 512  # bins at a time of `_chunked_sum`: with 1,024, their rows in float32 leave the chip


def roi_levels(boxes: jax.Array, num_levels: int = 4, finest_scale: float = 56.0) -> jax.Array:
    """Pyramid level of each oriented box: floor(log2(sqrt(w h) / finest_scale + 1e-6)), clamped to existing levels.

    Args:
      boxes: [R, 5] boxes (cx, cy, w, h, angle), pixels and radians.
      num_levels: number of levels.
      finest_scale: boxes with a side (square root of the area) below twice this many pixels belong to level 0.

    Returns:
      [R] int32 levels in 0..num_levels - 1.
    """
    side = jnp.sqrt(boxes[..., 2] * boxes[..., 3])
    level = jnp.floor(jnp.log2(side / finest_scale + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def rotated_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array,
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    output_size: int | tuple[int, int] = 7,
    samples_per_bin: int = 2,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Average of bilinear samples in the bins of oriented boxes, each box on its own pyramid level.

    A box is cut into output_size x output_size bins along its own axes, a bin into samples_per_bin x samples_per_bin
    cells with a sample in the middle of each. Box coordinates are divided by the level's stride and shifted by half a
    pixel, so that feature (0, 0) covers the pixels 0..stride. A sample up to one feature outside the map takes the
    border's value; farther outside it counts as 0. Boxes have no least size: one of zero size samples one point.

    The sums are float32 whatever the features are. There is a gradient to the features, of float32 sums as well, and
    none to the boxes.

    Args:
      features: tuple of [H_l, W_l, C] feature maps, finest first, of one dtype.
      boxes: [R, 5] boxes (cx, cy, w, h, angle) in pixels of the network's input, radians clockwise on the screen.
      levels: [R] int level of each box, 0..len(features) - 1 (see `roi_levels`).
      strides: pixels a feature of each level.
      output_size: number of bins, an int or (rows, columns): rows along the height, columns along the width.
      samples_per_bin: samples along each side of a bin.
      valid: None, or [R] bool: other rows give 0, and cost the gradient nothing.

    Returns:
      [R, rows, columns, C] pooled features in the features' dtype.
    """
    if len(features) != len(strides):
        raise ValueError(
            f"rotated_roi_align needs one stride a feature map; got {len(features)} maps and strides={strides}"
        )
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    features = tuple(features)
    shapes = tuple(feature.shape for feature in features)
    placed = _placed(lax.stop_gradient(jnp.asarray(boxes, jnp.float32)), levels, valid, strides)
    if roi_align_cuda.suits(shapes, features[0].dtype, len(boxes), (rows, columns), samples_per_bin):
        return _pooled((rows, columns), shapes, features, _frames(placed, len(features)))
    return _pooled_by_rows((rows, columns), samples_per_bin, features, placed)


class _Placed(NamedTuple):
    """Boxes on their levels, arrays of R."""

    cx: jax.Array  # in features, as the next three
    cy: jax.Array
    w: jax.Array
    h: jax.Array
    cos: jax.Array  # of the angle
    sin: jax.Array
    level: jax.Array
    valid: jax.Array | None  # None: all are


def _placed(boxes, levels, valid, strides):
    scale = jnp.asarray(1 / np.asarray(strides), jnp.float32)[levels]
    cx, cy, w, h, angle = (boxes[:, n] for n in range(5))
    sides = cx * scale - 0.5, cy * scale - 0.5, w * scale, h * scale
    return _Placed(*sides, jnp.cos(angle), jnp.sin(angle), levels, valid)


def _frames(placed, num_levels):
    """Boxes as the kernels take them, see `roi_align_cuda.pool`. Elsewhere the packing would be work for nothing."""
    *numbers, levels, valid = placed
    levels = jnp.clip(levels, 0, num_levels - 1)
    levels = (levels if valid is None else jnp.where(valid, levels, -1)).astype(jnp.float32)
    return jnp.stack([*numbers, levels, jnp.zeros_like(levels)], axis=1)


def _placed_of(frames):
    """What `_frames` packed, for a device that does not run the kernels."""
    *numbers, levels, _ = frames.T
    return _Placed(*numbers, jnp.maximum(levels, 0).astype(jnp.int32), levels >= 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pooled(bins, shapes, features, frames):
    """RoIAlign in a process whose GPUs run the kernels, for them and for its other devices.

    Args:
      bins: rows and columns of them.
      shapes: (H_l, W_l, C) of the features, for the gradient, which needs nothing else of them.
      features: tuple of [H_l, W_l, C].
      frames: [R, 8], see `roi_align_cuda.pool`.
    """
    del shapes

    def by_rows(frames, *features):
        return _pooled_by_rows(bins, roi_align_cuda.SAMPLES, features, _placed_of(frames))

    cuda = ptx.over_problems(functools.partial(roi_align_cuda.pool, bins=bins))
    return by_platform(frames, *features, cuda=cuda, default=by_rows)


def _pooled_forward(bins, shapes, features, frames):
    return _pooled(bins, shapes, features, frames), frames


def _pooled_backward(bins, shapes, frames, gradient):
    sizes = [shape[:2] for shape in shapes]

    def by_rows(frames, gradient):
        index, weight = _sample_rows(_placed_of(frames), sizes, *bins, roi_align_cuda.SAMPLES)
        rows = [height * width for height, width in sizes]
        levels = _spread_rows(rows, index, weight, gradient.reshape(-1, gradient.shape[-1]))
        return tuple(level.reshape(shape) for level, shape in zip(levels, shapes, strict=True))

    cuda = ptx.over_problems(functools.partial(roi_align_cuda.spread, shapes=tuple(sizes)))
    return by_platform(frames, gradient, cuda=cuda, default=by_rows), None


_pooled.defvjp(_pooled_forward, _pooled_backward)


def _pooled_by_rows(bins, samples, features, placed):
    """RoIAlign by numbers and weights of rows."""
    num_channels = features[0].shape[-1]
    index, weight = _sample_rows(placed, [feature.shape[:2] for feature in features], *bins, samples)
    tables = tuple(feature.reshape(-1, num_channels) for feature in features)
    # The barrier keeps XLA from computing positions anew for each of the channels.
    pooled = _weighted_rows(tuple(map(len, tables)), tables, *lax.optimization_barrier((index, weight)))
    return pooled.reshape(len(placed.level), *bins, num_channels)


def _sample_rows(placed, shapes, rows, columns, samples):
    """Which rows of the table each bin adds up, and with which weights.

    Returns:
      index [K, P] int32 and weight [K, P] float32 with K = 4 samples^2 terms and P = R rows columns bins. Terms of
      weight 0 because the sample lies outside have the index T (number of rows in the table), one too many.
    """
    sizes = [height * width for height, width in shapes]
    num_rows = sum(sizes)
    cx, cy, w, h, cos, sin, levels, valid = placed
    offset = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[levels][:, None]
    height, width = (jnp.asarray([shape[axis] for shape in shapes], jnp.int32)[levels][:, None] for axis in (0, 1))

    # Offsets of the samples from the centre along the box's axes, in units of its sides: [samples, samples, rows,
    # columns].
    down = (np.arange(rows)[None, :] + (np.arange(samples)[:, None] + 0.5) / samples) / rows - 0.5
    right = (np.arange(columns)[None, :] + (np.arange(samples)[:, None] + 0.5) / samples) / columns - 0.5
    down, right = np.broadcast_arrays(down[:, None, :, None], right[None, :, None, :])
    down, right = (x.reshape(samples * samples, 1, rows * columns).astype(np.float32) for x in (down, right))
    down, right = down * h[:, None], right * w[:, None]  # [samples^2, R, bins]
    x = right * cos[:, None] - down * sin[:, None] + cx[:, None]
    y = right * sin[:, None] + down * cos[:, None] + cy[:, None]

    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    if valid is not None:
        inside &= valid[:, None]
    # where before any arithmetic: positions that are not finite must not become indices.
    y_low, y_high, y_share = _neighbours(jnp.where(inside, y, 0.0), height)
    x_low, x_high, x_share = _neighbours(jnp.where(inside, x, 0.0), width)
    count = samples * samples
    index, weight = [], []
    for row, row_weight in ((y_low, 1 - y_share), (y_high, y_share)):
        for column, column_weight in ((x_low, 1 - x_share), (x_high, x_share)):
            index.append(jnp.where(inside, offset + row * width + column, num_rows))
            weight.append(jnp.where(inside, row_weight * column_weight / count, 0.0))
    return jnp.stack(index).reshape(4 * count, -1), jnp.stack(weight).reshape(4 * count, -1)


def _neighbours(position, size):
    """The two features that a position lies between, clamped to the map, and the share of the second."""
    position = jnp.clip(position, 0.0, size - 1.0)
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, size - 1), position - low


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_rows(sizes, levels, index, weight):
    """[P, C] sums over k of weight[k, p] * table[index[k, p]], in float32, returned in the levels' dtype.

    The table is the levels one after another. The gradient is to them alone. An own rule, because the derived one would
    hold [K, P, C] products and add up in the levels' dtype. `sizes` are the levels' numbers of rows, for the gradient,
    which needs nothing else of them.
    """
    del sizes
    table = jnp.concatenate(levels)
    return by_platform(table, index, weight, tpu=_chunked_sum, default=_unrolled_sum)


def _unrolled_sum(table, index, weight):
    """One kernel, where gathers can be fused with what follows."""
    total = 0.0
    for k in range(len(index)):
        rows = table.at[index[k]].get(mode="clip")
        total += weight[k][:, None] * rows.astype(jnp.float32)
    return total.astype(table.dtype)


def _chunked_sum(table, index, weight):
    """The same sum with one gather for all terms of a chunk of the bins, whose rows stay on the chip.

    A TPU fuses no gathers: unrolled as above, the rows of all terms would be in memory at once. By its compiler's
    estimate (v5e, 512 RoIs of 256 channels in each of 2 images), forward and gradient take 11.7 ms so, where a loop
    over the terms took 14.0 and moved 3.3 GB more.
    """
    num_bins = index.shape[1]
    num_chunks = -(-num_bins // _CHUNK)
    size = -(-num_bins // (16 * num_chunks)) * 16  # whole tiles
    beyond = num_chunks * size - num_bins

    def chunked(terms):
        return jnp.pad(terms, ((0, 0), (0, beyond))).reshape(-1, num_chunks, size).swapaxes(0, 1)

    def of_chunk(terms):
        index, weight = terms
        rows = table.at[index].get(mode="clip")
        return (weight[..., None] * rows.astype(jnp.float32)).sum(0).astype(table.dtype)

    return lax.map(of_chunk, (chunked(index), chunked(weight))).reshape(-1, table.shape[1])[:num_bins]


def _weighted_rows_forward(sizes, levels, index, weight):
    return _weighted_rows(sizes, levels, index, weight), (index, weight)


def _weighted_rows_backward(sizes, saved, gradient):
    return _spread_rows(sizes, *saved, gradient), None, None


_weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)


def _spread_rows(sizes, index, weight, gradient):
    """The transpose of `_weighted_rows`: of index [K, P], weight [K, P], gradient [P, C] a tuple of levels [T_l, C]."""
    table = _scattered_rows(sum(sizes), index, weight, gradient)
    return tuple(jnp.split(table, np.cumsum(sizes)[:-1]))


def _scattered_rows(num_rows, index, weight, gradient):
    """[T, C] sums of weight[k, p] * gradient[p] over all terms with index[k, p] = t.

    A loop: each scatter is a kernel of its own whatever we write, and this way the products of one term are held at a
    time, not of all.
    """

    def add_term(total, term):
        term_index, term_weight = term
        return total.at[term_index].add(term_weight[:, None] * gradient.astype(jnp.float32), mode="drop"), None

    total = jnp.zeros((num_rows, gradient.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_term, total, (index, weight))
    return total.astype(gradient.dtype)
