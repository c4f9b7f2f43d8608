"""The RPN's head on the matrix units of Hopper GPUs: cuda/rpn.cu."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haksnet_jax.kernels import ptx
from haksnet_jax.target import over_mesh

_LEVELS, _CHANNELS, _ANCHORS = 5, 256, 3
_TILE_ROWS, _TILE_COLUMNS = 24, 8
_TAPS, _PLANES = 9, 4  # of a step: eight channels each
_STAGES = 4
_OUTPUT_COLUMNS = 32  # 21 of them are used
_BAND = (_TILE_ROWS + 2) * (_TILE_COLUMNS + 2)
_SHARED = _CHANNELS * (2 * _BAND + _STAGES * _PLANES * 16 + 2 * 2 * _OUTPUT_COLUMNS) + 8 * 17
_THREADS = 384


def suits(features: Sequence[jax.Array], num_anchors: int) -> bool:
    """Whether the kernel runs here and takes such features."""
    shapes = len(features) == _LEVELS and num_anchors == _ANCHORS and features[0].shape[-1] == _CHANNELS
    return shapes and features[0].dtype == jnp.bfloat16 and ptx.on_hopper() and ptx.shared_bytes() >= _SHARED


def head(
    features: Sequence[jax.Array], kernel: jax.Array, bias: jax.Array, outputs: jax.Array, output_bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Outputs of every position of a pyramid; all sums are float32.

    Args:
      features: five [B, H_l, W_l, 256] bfloat16.
      kernel: [3, 3, 256, 256], rounded to bfloat16.
      bias: [256] float32 of the hidden layer.
      outputs: [256, 21] float32, of which 16 bits count: logits of three anchors, then deltas.
      output_bias: [21] float32.

    Returns:
      [B, cells, 3] and [B, cells, 18] float32, level by level.
    """
    shapes = [level.shape[1:3] for level in features]
    across = [-(-width // _TILE_COLUMNS) for _, width in shapes]
    tiles = [-(-height // _TILE_ROWS) * columns for (height, _), columns in zip(shapes, across, strict=True)]
    cells = [height * width for height, width in shapes]
    first_tiles, first_cells = ([0, *itertools.accumulate(counts)][:-1] for counts in (tiles, cells))
    levels = [(*shape, *rest) for shape, *rest in zip(shapes, across, first_tiles, first_cells, tiles, strict=True)]

    steps = kernel.astype(jnp.bfloat16).reshape(_TAPS, -1, _PLANES, 8, _CHANNELS)
    steps = steps.transpose(1, 0, 2, 4, 3)  # [chunk, tap, plane, hidden channel, 8]
    padded = jnp.pad(outputs, ((0, 0), (0, _OUTPUT_COLUMNS - outputs.shape[1])))
    upper = jax.lax.reduce_precision(padded, 8, 7)  # (conversions there and back may be left out by the compiler)
    parts = jnp.stack([upper, padded - upper]).astype(jnp.bfloat16)
    parts = parts.reshape(2, -1, 8, _OUTPUT_COLUMNS).transpose(0, 1, 3, 2)

    def run(*arrays):
        batch = len(arrays[0])
        return tuple(
            ptx.call(
                "rpn",
                "rpn_head",
                arrays,
                [jax.ShapeDtypeStruct((batch, sum(cells), _ANCHORS * n), jnp.float32) for n in (1, 6)],
                grid=(sum(tiles), batch, 1),
                threads=_THREADS,
                shared=_SHARED,
                numbers={"CELLS": sum(cells)},
            )
        )

    about = jnp.asarray(np.array(levels, np.int32))
    return over_mesh(run, *features, about, steps, bias, parts, output_bias, split=_LEVELS)
