"""Non-maximum suppression on NVIDIA GPUs (cuda/suppression.cu), of boxes that are sorted, those that count first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_MOST_BOXES = 8192  # of a problem
_THREADS, _COLUMNS = 256, 128  # of a block that compares boxes: a thread a row
_WIDE = 1024  # threads of a block of `greedy`


def suits(num_boxes: int, iou_threshold: float, max_outputs: int) -> bool:
    """Whether the kernels run here and take so many boxes of a problem, a threshold and a number of results."""
    return ptx.shared_bytes() > 0 and 0 < num_boxes <= _MOST_BOXES and iou_threshold >= 0 and max_outputs > 0


@functools.partial(jax.jit, static_argnames=("iou_threshold",))
def horizontal_words(
    boxes: jax.Array, counts: jax.Array, groups: jax.Array | None = None, *, iou_threshold: float
) -> jax.Array:
    """Which box would suppress which: IoU, each operation rounded to float32, greater than the threshold.

    Args:
      boxes: [P, 4, N] float32 sides x1, y1, x2, y2.
      counts: [P] int32, how many boxes of each problem count.
      groups: None, or [P, N] int32: only boxes of one group suppress one another.
      iou_threshold: 0..1.

    Returns:
      [P, ceil(N / 32), N] uint32: bit n of word c in row j says that box 32 c + n would suppress box j, which comes
      after it. Where box 32 c comes after box j, or j does not count, the word is anything.
    """
    return _words("horizontal_words", 6, boxes, counts, groups, iou_threshold)


@functools.partial(jax.jit, static_argnames=("iou_threshold",))
def rotated_words(
    frames: jax.Array, counts: jax.Array, groups: jax.Array | None = None, *, iou_threshold: float
) -> jax.Array:
    """The same of oriented boxes, by the overlap that geometry/rotated_iou.py describes.

    Only pairs whose surrounding circles meet are compared. IoUs are those of `iou_of_frames` but for the rounding of
    sums of products.

    Args:
      frames: [P, 9, N] float32, the arrays of `box_frames` one after another.
      counts, groups, iou_threshold: of `horizontal_words`.

    Returns:
      [P, ceil(N / 32), N] uint32 as `horizontal_words`.
    """
    return _words("rotated_words", 11, frames, counts, groups, iou_threshold)


def _words(kernel, numbers_in_shared_memory, boxes, counts, groups, iou_threshold):
    """Calls a kernel that compares boxes. Args: what it keeps of each column's box on the chip, in numbers."""
    problems, _, n = boxes.shape
    (words,) = ptx.call(
        "suppression",
        kernel if groups is None else f"{kernel}_of_groups",
        (boxes, counts, *([] if groups is None else [groups])),
        [jax.ShapeDtypeStruct((problems, pl.cdiv(n, 32), n), jnp.uint32)],
        grid=(problems, pl.cdiv(n, _THREADS), pl.cdiv(n, _COLUMNS)),
        threads=_THREADS,
        shared=_COLUMNS * 4 * numbers_in_shared_memory,
        numbers={"BOXES": n, "THRESHOLD": int(np.float32(iou_threshold).view(np.uint32))},
    )
    return words


@functools.partial(jax.jit, static_argnames=("max_outputs",))
def greedy(
    words: jax.Array, order: jax.Array, counts: jax.Array, *, max_outputs: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The boxes that greedy suppression keeps: those that no kept one suppresses.

    Args:
      words: [P, ceil(N / 32), N] uint32 as `horizontal_words` gives them, N at most 8,192.
      order: [P, N] int32 what each sorted box is called.
      counts: [P] int32, how many boxes of each problem count.
      max_outputs: boxes of a problem that are kept at most, at least 1.

    Returns:
      index [P, max_outputs] int32, of `order`, 0 behind the kept ones; [P] int32 how many are kept; [P] int32 how many
      are not, though none that is kept suppresses them.
    """
    problems, _, n = words.shape
    together = next(count for count in (2, 4, 8) if n <= count * _WIDE)
    index, totals = ptx.call(
        "suppression",
        f"greedy_{together}",
        (words, order, counts),
        [
            jax.ShapeDtypeStruct((problems, max_outputs), jnp.int32),
            jax.ShapeDtypeStruct((problems, 2), jnp.int32),
        ],
        grid=(problems, 1, 1),
        threads=_WIDE,
        shared=4 * (2 + _WIDE // 32),
        numbers={"BOXES": n, "MOST": max_outputs},
    )
    return index, totals[:, 0], totals[:, 1]
