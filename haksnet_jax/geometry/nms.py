"""Non-maximum suppression in fixed size: exact greedy suppression of horizontal or oriented boxes.

Boxes are sorted once and taken in blocks of up to 2048. A block settles itself: with the matrix of who would suppress
whom, `kept = alive and not suppressed by a kept one` is repeated until nothing changes. The best box is right from
the first pass on, and each pass settles those whose suppressors are settled, so the passes number as many as the
longest chain of suppressions (a handful, where a loop over boxes would take thousands of steps), and the fixed point
is the greedy result. Then the block suppresses everything after it. The loop over blocks ends when enough boxes are
kept or none is left. Up to 2048 boxes are one block: one matrix, no loop over blocks, which is also the cheap form
under `vmap`.

On NVIDIA GPUs up to 8192 boxes are one matrix, and kernels of our own fill it and follow it
(kernels/suppression_cuda.py).
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from haksnet_jax.geometry.rotated_iou import box_frames, iou_of_frames
from haksnet_jax.kernels import ptx, suppression_cuda
from haksnet_jax.kernels.selection import descending
from haksnet_jax.structures import AnyArray
from haksnet_jax.target import by_platform, is_portable

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
    words = functools.partial(_words, suppression_cuda.horizontal_words, 4)
    return _nms(columns, _horizontal_iou, words, scores, valid, iou_threshold, max_outputs, groups, block_size)


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
    words = functools.partial(_words, suppression_cuda.rotated_words, len(frames))
    return _nms(frames, _rotated_iou, words, scores, valid, iou_threshold, max_outputs, groups, block_size)


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


def _words(kernel, num_columns, columns, groups, count, iou_threshold):
    """Who would suppress whom, by a kernel of `suppression_cuda`. Args: sorted columns and groups [n], count []."""
    words = functools.partial(kernel, iou_threshold=iou_threshold)
    groups = [] if groups is None else [groups.astype(jnp.int32)]
    return ptx.over_problems(words)(jnp.stack(columns[:num_columns]), count, *groups)


def _greedy_on_cuda(words, iou_threshold, max_outputs, columns, groups, alive, order):
    """`_greedy_in_blocks` by kernels. Args: words, a function that compares the boxes."""
    count = jnp.sum(alive, dtype=jnp.int32)
    greedy = functools.partial(suppression_cuda.greedy, max_outputs=max_outputs)
    return ptx.over_problems(greedy)(words(columns, groups, count, iou_threshold), order, count)


def _nms(columns, overlap, words, scores, valid, iou_threshold, max_outputs, groups, block_size):
    """The suppression, for any overlap of boxes given as columns (a tuple of [N] arrays)."""
    scores = jnp.asarray(scores)
    num_boxes = scores.shape[0]
    if num_boxes == 0:
        empty = jnp.zeros(max_outputs, jnp.int32)
        return empty, empty > 0, jnp.int32(0)
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(column) for column in columns])
    alive = jnp.asarray(valid, bool) & jnp.isfinite(scores) & finite
    order = descending(jnp.where(alive, scores, -jnp.inf))
    columns, alive = tuple(column[order] for column in columns), alive[order]
    groups = None if groups is None else jnp.asarray(groups)[order]

    forms = {}
    if suppression_cuda.suits(num_boxes, iou_threshold, max_outputs):
        forms["cuda"] = functools.partial(_greedy_on_cuda, words, iou_threshold, max_outputs)
    in_blocks = functools.partial(_greedy_in_blocks, overlap, iou_threshold, max_outputs, min(block_size, num_boxes))
    index, num_kept, num_cut = by_platform(columns, groups, alive, order, default=in_blocks, **forms)
    return index, jnp.arange(max_outputs) < num_kept, num_cut


def _greedy_in_blocks(overlap, iou_threshold, max_outputs, block_size, columns, groups, alive, order):
    """The suppression of boxes that are sorted by score, those that count before all others.

    Args:
      overlap: function of two tuples of columns.
      iou_threshold, max_outputs, block_size: of `nms_horizontal`.
      columns: tuple of [N] arrays.
      groups: None or [N] int.
      alive: [N] bool, which boxes count.
      order: [N] int32, what they are called in the result.

    Returns:
      index [max_outputs] int32, 0 behind the kept ones; [] int32 how many are kept; num_cut [] int32.
    """
    num_boxes = order.shape[0]
    num_blocks = -(-num_boxes // block_size)
    num_rows = num_blocks * block_size
    sources = (*columns, alive) if groups is None else (*columns, groups, alive)
    *columns, alive = (jnp.pad(source, (0, num_rows - num_boxes)) for source in sources)
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
    if is_portable():  # a sort: other runtimes know no scatter of a batch
        first = order[jnp.argsort(~kept[:num_boxes], stable=True)][:max_outputs]
        index = jnp.where(jnp.arange(max_outputs) < num_kept, jnp.pad(first, (0, max_outputs - first.shape[0])), 0)
    else:
        slot = jnp.where(kept, jnp.cumsum(kept, dtype=jnp.int32) - 1, max_outputs)[:num_boxes]
        index = jnp.zeros(max_outputs, jnp.int32).at[slot].set(order, mode="drop")
    return index, num_kept, jnp.sum(alive, dtype=jnp.int32) - num_kept
