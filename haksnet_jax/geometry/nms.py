"""Non-maximum suppression in fixed size: exact greedy suppression of horizontal or oriented boxes.

Boxes are sorted once and taken in blocks of up to 2048. A block settles itself: with the matrix of who would suppress
whom, `kept = alive and not suppressed by a kept one` is repeated until nothing changes. The best box is right from
the first pass on, and each pass settles those whose suppressors are settled, so the passes number as many as the
longest chain of suppressions (a handful, where a loop over boxes would take thousands of steps), and the fixed point
is the greedy result. Then the block suppresses everything after it. The loop over blocks ends when enough boxes are
kept or none is left. Up to 2048 boxes are one block: one matrix, no loop over blocks, which is also the cheap form
under `vmap`.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from haksnet_jax.geometry.rotated_iou import box_frames, iou_of_frames
from haksnet_jax.structures import AnyArray
from haksnet_jax.target import is_portable

# A matrix of half a MiB, 32 boxes in a word. Smaller blocks would mean more steps that wait on one another.
_BLOCK = 2048
# Passes between two looks at whether anything changed: each look costs a GPU a round trip to the host, a pass far less.
_PASSES = 3


def nms_horizontal(
    hboxes: Float[AnyArray, "N 4"],
    scores: Float[AnyArray, " N"],
    valid: Bool[AnyArray, " N"],
    *,
    iou_threshold: float,
    max_outputs: int,
    groups: Int[AnyArray, " N"] | None = None,
    block_size: int = _BLOCK,
) -> tuple[Int[Array, " {max_outputs}"], Bool[Array, " {max_outputs}"], Int[Array, ""]]:
    """Greedy non-maximum suppression of axis-parallel boxes.

    From the best score down, a box is kept unless its IoU with a box kept before it is greater than the threshold
    (equal is not enough). Equal scores are taken in the order of their index. Boxes without area overlap nothing.
    Rows with a non-finite score or coordinate count as not valid.

    Args:
      hboxes: [N, 4] float32 boxes x1 y1 x2 y2, pixels.
      scores: [N] float32; larger is better.
      valid: [N] bool, which rows are boxes.
      iou_threshold: overlap above which a box is suppressed, 0..1.
      max_outputs: number of rows returned, a static int.
      groups: None, or [N] int: only boxes of one group (class, level) suppress one another.
      block_size: boxes settled at a time; changes speed and memory, not the result.

    Returns:
      index: [max_outputs] int32 rows of the kept boxes, descending score; 0 where not kept.
      kept: [max_outputs] bool, which of the rows of `index` count.
      num_cut: [] int32 boxes left out because of `max_outputs` alone: valid, not returned, and not suppressed by a
        returned one. (Some of them would suppress one another if there were room.) 0 if and only if the cap cut
        nothing.
    """
    x1, y1, x2, y2 = jnp.moveaxis(lax.stop_gradient(jnp.asarray(hboxes, jnp.float32)), -1, 0)
    columns = (x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
    return _nms(columns, _horizontal_iou, scores, valid, iou_threshold, max_outputs, groups, block_size)


def nms_rotated(
    boxes: Float[AnyArray, "N 5"],
    scores: Float[AnyArray, " N"],
    valid: Bool[AnyArray, " N"],
    *,
    iou_threshold: float,
    max_outputs: int,
    groups: Int[AnyArray, " N"] | None = None,
    block_size: int = _BLOCK,
) -> tuple[Int[Array, " {max_outputs}"], Bool[Array, " {max_outputs}"], Int[Array, ""]]:
    """Greedy non-maximum suppression of oriented boxes, by the exact overlap of the rectangles.

    As `nms_horizontal`: suppressed where the IoU is greater than the threshold.

    Args:
      boxes: [N, 5] float32 boxes (cx, cy, w, h, angle), pixels and radians.
      scores: [N] float32; larger is better.
      valid: [N] bool, which rows are boxes.
      iou_threshold: overlap above which a box is suppressed, 0..1.
      max_outputs: number of rows returned, a static int.
      groups: None, or [N] int: only boxes of one group (class) suppress one another.
      block_size: boxes settled at a time; changes speed and memory, not the result.

    Returns:
      index [max_outputs] int32, kept [max_outputs] bool, num_cut [] int32: as for `nms_horizontal`.
    """
    frames = box_frames(lax.stop_gradient(jnp.asarray(boxes, jnp.float32)))
    return _nms(frames, _rotated_iou, scores, valid, iou_threshold, max_outputs, groups, block_size)


def _horizontal_iou(first, second):
    ax1, ay1, ax2, ay2, area1 = first
    bx1, by1, bx2, by2, area2 = second
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0.0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0.0)
    shared = width * height
    union = area1 + area2 - shared
    # where, not + eps: boxes without area must get 0, and an IoU of exactly the threshold must stay exact.
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1.0), 0.0)


def _rotated_iou(first, second):
    return iou_of_frames(first, second[:5])


def _packed(flags):
    """[..., n] bool to [..., ceil(n / 32)] uint32: what every pass reads is an eighth as long."""
    if is_portable():  # as they are: other runtimes know few operations on bits
        return flags
    flags = jnp.pad(flags, [(0, 0)] * (flags.ndim - 1) + [(0, -flags.shape[-1] % 32)])
    bits = flags.reshape(*flags.shape[:-1], -1, 32).astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)
    return jnp.sum(bits, axis=-1, dtype=jnp.uint32)


def _suppressed(suppresses, kept):
    """[m] bool: whom a kept box suppresses. Args: suppresses [m, n / 32] packed, row j column i; kept [n] bool."""
    return jnp.any((suppresses & _packed(kept)).astype(bool), axis=1)


def _settle(alive, suppresses):
    """Greedy result within a block: the fixed point of kept = alive and not suppressed by a kept one.

    Args:
      alive: [n] bool candidates, best first.
      suppresses: [n, n / 32] packed, row j column i: box i suppresses box j if i is kept. False unless i is before j.
    """

    def passes(state):
        for _ in range(_PASSES):
            kept = state[0]
            state = (alive & ~_suppressed(suppresses, kept), kept)
        return state

    return lax.while_loop(lambda state: jnp.any(state[0] != state[1]), passes, (alive, ~alive))[0]


def _nms(columns, overlap, scores, valid, iou_threshold, max_outputs, groups, block_size):
    """The suppression, for any overlap of boxes given as columns (a tuple of [N] arrays)."""
    scores = jnp.asarray(scores)
    num_boxes = scores.shape[0]
    if num_boxes == 0:
        empty = jnp.zeros(max_outputs, jnp.int32)
        return empty, empty > 0, jnp.int32(0)
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(column) for column in columns])
    alive = jnp.asarray(valid, bool) & jnp.isfinite(scores) & finite
    order = jnp.argsort(jnp.where(alive, -scores, jnp.inf), stable=True)

    block_size = min(block_size, num_boxes)
    num_blocks = -(-num_boxes // block_size)
    num_rows = num_blocks * block_size
    sources = (*columns, alive) if groups is None else (*columns, jnp.asarray(groups), alive)
    *columns, alive = (jnp.pad(source[order], (0, num_rows - num_boxes)) for source in sources)
    position = jnp.arange(num_rows)

    def suppression(start, candidates, candidate_position):
        """[n, block_size / 32] packed: which boxes of the block at `start` would suppress which candidates."""
        block = columns if num_blocks == 1 else [lax.dynamic_slice_in_dim(x, start, block_size) for x in columns]
        block = [column[None, :] for column in block]
        candidates = [column[:, None] for column in candidates]
        block_position = start + jnp.arange(block_size)
        result = block_position[None, :] < candidate_position[:, None]
        if groups is not None:
            result &= block.pop() == candidates.pop()
        return _packed(result & (overlap(block, candidates) > iou_threshold))

    def cap(kept, num_kept):
        return kept & (num_kept + jnp.cumsum(kept, dtype=jnp.int32) <= max_outputs)

    if num_blocks == 1:
        suppresses = suppression(0, columns, position)
        kept = _settle(alive, suppresses)
        if max_outputs < num_boxes:
            kept = cap(kept, 0)
            alive &= ~_suppressed(suppresses, kept)
        else:
            alive = kept
    else:

        def has_work(state):
            block, alive, _, num_kept = state
            return (num_kept < max_outputs) & jnp.any(alive & (position >= block * block_size))

        def settle_block(state):
            block, alive, kept, num_kept = state
            start = block * block_size
            in_block = [lax.dynamic_slice_in_dim(column, start, block_size) for column in columns]
            suppresses = suppression(start, in_block, start + jnp.arange(block_size))
            block_kept = cap(_settle(lax.dynamic_slice_in_dim(alive, start, block_size), suppresses), num_kept)
            alive &= ~_suppressed(suppression(start, columns, position), block_kept)
            kept = lax.dynamic_update_slice_in_dim(kept, block_kept, start, 0)
            return block + 1, alive, kept, num_kept + jnp.sum(block_kept, dtype=jnp.int32)

        state = (jnp.int32(0), alive, jnp.zeros(num_rows, bool), jnp.int32(0))
        _, alive, kept, _ = lax.while_loop(has_work, settle_block, state)

    num_kept = jnp.sum(kept, dtype=jnp.int32)
    is_kept = jnp.arange(max_outputs) < num_kept
    if is_portable():  # a sort: other runtimes know no scatter of a batch
        first = order[jnp.argsort(~kept[:num_boxes], stable=True)][:max_outputs].astype(jnp.int32)
        index = jnp.where(is_kept, jnp.pad(first, (0, max_outputs - first.shape[0])), 0)
    else:
        slot = jnp.where(kept, jnp.cumsum(kept, dtype=jnp.int32) - 1, max_outputs)[:num_boxes]
        index = jnp.zeros(max_outputs, jnp.int32).at[slot].set(order.astype(jnp.int32), mode="drop")
    return index, is_kept, jnp.sum(alive, dtype=jnp.int32) - num_kept
