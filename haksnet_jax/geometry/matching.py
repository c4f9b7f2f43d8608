"""Which anchors and proposals are responsible for which objects, and which of them take part in the loss.

One image; `jax.vmap` gives a batch. Nothing here carries gradients.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from haksnet_jax.geometry.boxes import hbox_area
from haksnet_jax.kernels import matching_cuda, ptx, selection_cuda
from haksnet_jax.kernels.selection import top_k_of_parts
from haksnet_jax.structures import AnyArray
from haksnet_jax.target import by_platform

# Ground-truth boxes compared with all anchors in one step of `match_anchors`. The step holds [32, A] overlaps: 34 MB
# for the 261,888 anchors of a 1024 px image. Eight images with 60 (500) objects took 0.94 (6.4) ms on an H100; with
# blocks of 16 1.01 (7.2) ms, with blocks of 64 0.96 (6.7) ms.
_BLOCK = 32


class Matches(NamedTuple):
    """What each anchor (or proposal) is matched to; A is the number of them.

    Attributes:
      gt_index: [A] int32 row of the ground-truth box; 0 where there is none.
      iou: [A] float32 largest overlap with any ground-truth box, in 0..1; 0 where there is none. A positive that a
        ground-truth box claimed as its best can be assigned to another box than the one of this overlap.
      positive: [A] bool, to be classified as an object and regressed to `gt_index`.
      negative: [A] bool, to be classified as background. What is neither is left out of the loss.
    """

    gt_index: Int[AnyArray, "*B A"]
    iou: Float[AnyArray, "*B A"]
    positive: Bool[AnyArray, "*B A"]
    negative: Bool[AnyArray, "*B A"]


class Samples(NamedTuple):
    """A random choice of positives and negatives; R is `num_samples`.

    Attributes:
      index: [R] int32 chosen rows, the positives first; 0 where not valid.
      positive: [R] bool.
      valid: [R] bool; the valid rows come first. Fewer than R where there were too few candidates.
      num_positive_candidates: [] int32 positives there were to choose from.
      num_negative_candidates: [] int32 negatives there were to choose from.
    """

    index: Int[AnyArray, "*B R"]  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    positive: Bool[AnyArray, "*B R"]
    valid: Bool[AnyArray, "*B R"]
    num_positive_candidates: Int[AnyArray, "*B"]
    num_negative_candidates: Int[AnyArray, "*B"]


def match_anchors(
    anchors: Float[AnyArray, "A 4"],
    gt_hboxes: Float[AnyArray, "M 4"],
    gt_valid: Bool[AnyArray, " M"],
    candidates: Bool[AnyArray, " A"],
    *,
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float,
) -> Matches:
    """Matches axis-parallel anchors to axis-parallel ground truth by their overlap.

    A candidate whose best overlap reaches `positive_iou` is positive, one below `negative_iou` negative, both with
    regard to the ground-truth box of that overlap (the first of several equal ones). Then every ground-truth box claims
    its best candidates, all that tie, as positives where that overlap reaches `min_positive_iou`, whatever they were
    before; a candidate claimed by several goes to the last of them. Ties are equal float32 numbers, as in the
    reference.

    The [A, M] overlaps never exist at once: a loop compares all anchors with a block of ground-truth boxes at a time
    and ends after the last valid row, so padding at the end costs nothing. On NVIDIA GPUs kernels of our own compare
    anchors with the boxes near them (kernels/matching_cuda.py).

    Args:
      anchors: [A, 4] float32 boxes (x1, y1, x2, y2), pixels.
      gt_hboxes: [M, 4] float32 boxes, pixels; for oriented objects the enclosing boxes.
      gt_valid: [M] bool, which rows are objects.
      candidates: [A] bool, anchors that take part. The others are neither positive nor negative, and no object's best.
      positive_iou: overlap from which an anchor is positive.
      negative_iou: overlap below which it is negative.
      min_positive_iou: overlap from which a ground-truth box's best anchors are positive.

    Returns:
      Matches with [A] rows.
    """
    anchors, gt_hboxes = jax.lax.stop_gradient((anchors, gt_hboxes))
    thresholds = {
        "positive_iou": positive_iou,
        "negative_iou": negative_iou,
        "min_positive_iou": min_positive_iou,
    }
    forms = {}
    if matching_cuda.suits(anchors.shape[0], gt_hboxes.shape[0]):
        # All images have the same anchors.
        forms["cuda"] = ptx.over_problems(functools.partial(matching_cuda.match, **thresholds), common=1)
    in_blocks = functools.partial(_match_in_blocks, **thresholds)
    return Matches(*by_platform(anchors, candidates, gt_hboxes, gt_valid, default=in_blocks, **forms))


def _match_in_blocks(anchors, candidates, gt_hboxes, gt_valid, *, positive_iou, negative_iou, min_positive_iou):
    """`match_anchors` in operations that every compiler knows. Returns: the arrays of Matches, in its order."""
    num_anchors, num_gt = anchors.shape[0], gt_hboxes.shape[0]
    num_blocks = max(1, math.ceil(num_gt / _BLOCK))
    gt_hboxes = jnp.pad(gt_hboxes, ((0, num_blocks * _BLOCK - num_gt), (0, 0)))
    gt_valid = jnp.pad(gt_valid, (0, num_blocks * _BLOCK - num_gt))
    end = jnp.max(jnp.where(gt_valid, jnp.arange(1, gt_valid.shape[0] + 1), 0))  # one past the last valid row

    anchor_sides = anchors.T  # anchors along the minor axis: whole vector registers, coalesced loads
    anchor_area = hbox_area(anchors)

    def compare_block(state):
        start, best, best_index, claimed_by = state
        hboxes = jax.lax.dynamic_slice_in_dim(gt_hboxes, start, _BLOCK)
        valid = jax.lax.dynamic_slice_in_dim(gt_valid, start, _BLOCK)
        overlap = _hbox_iou(hboxes, anchor_sides, anchor_area)
        overlap = jnp.where(valid[:, None] & candidates, overlap, -1.0)
        # Without the barrier the compiler may compute the overlaps twice, once for the maximum and once for the
        # comparison with it, and round differently (fused multiply-adds): a box would then not find its own best.
        overlap = jax.lax.optimization_barrier(overlap)
        best_of_gt = overlap.max(axis=1)
        claims = jnp.where(best_of_gt >= max(min_positive_iou, 0.0), best_of_gt, jnp.inf)
        for row in range(_BLOCK):  # unrolled: one kernel that reads the block once
            index = start + row
            better = overlap[row] > best  # strictly, so that the first of equal overlaps stays
            best = jnp.where(better, overlap[row], best)
            best_index = jnp.where(better, index, best_index)
            claimed_by = jnp.where(overlap[row] == claims[row], index, claimed_by)
        return start + _BLOCK, best, best_index, claimed_by

    nothing = jnp.full(num_anchors, -1, jnp.int32)
    state = (jnp.int32(0), jnp.full(num_anchors, -1.0, jnp.float32), nothing, nothing)
    _, best, best_index, claimed_by = jax.lax.while_loop(lambda state: state[0] < end, compare_block, state)

    claimed = claimed_by >= 0
    above = best >= positive_iou  # -1 for those that are no candidates
    return (
        jnp.maximum(jnp.where(claimed, claimed_by, best_index), 0),
        jnp.maximum(best, 0.0),
        claimed | above,
        candidates & (best < negative_iou) & ~claimed,
    )


def _hbox_iou(hboxes, anchor_sides, anchor_area):
    """Overlaps [M, A] of boxes [M, 4] with anchors given as sides [4, A] and areas [A]."""
    x1, y1, x2, y2 = anchor_sides
    width = jnp.minimum(hboxes[:, 2, None], x2) - jnp.maximum(hboxes[:, 0, None], x1)
    height = jnp.minimum(hboxes[:, 3, None], y2) - jnp.maximum(hboxes[:, 1, None], y1)
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    union = anchor_area + hbox_area(hboxes)[:, None] - intersection
    return intersection / jnp.maximum(union, 1e-6)  # 0 for two boxes without area, not 0 / 0


def match_proposals(
    iou: Float[AnyArray, "N M"], valid: Bool[AnyArray, " N"], gt_valid: Bool[AnyArray, " M"], *, positive_iou: float
) -> Matches:
    """Matches proposals to ground truth by given overlaps.

    A valid proposal whose best overlap reaches `positive_iou` is positive, every other valid one negative.

    Args:
      iou: [N, M] float32 overlaps of proposals and ground-truth boxes, M >= 1; anything where one of them is not valid.
      valid: [N] bool, which proposals count.
      gt_valid: [M] bool, which ground-truth boxes count.
      positive_iou: overlap from which a proposal is positive.

    Returns:
      Matches with [N] rows; the first of equal overlaps is the one matched.
    """
    iou = jnp.where(valid[:, None] & gt_valid, jax.lax.stop_gradient(iou), -1.0)
    best = iou.max(axis=1)
    return Matches(
        gt_index=jnp.argmax(iou, axis=1).astype(jnp.int32),
        iou=jnp.maximum(best, 0.0),
        positive=best >= positive_iou,
        negative=valid & (best < positive_iou),
    )


def sample(
    key: jax.Array,
    positive: Bool[AnyArray, " N"],
    negative: Bool[AnyArray, " N"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> Samples:
    """Draws rows for the loss at random: positives up to a share, negatives for the rest.

    At most `int(num_samples * positive_fraction)` positives are drawn; negatives fill up to `num_samples`, so that
    fewer positives mean more negatives. All are drawn uniformly without replacement: each row gets a random
    number of 31 bits (on NVIDIA GPUs 30), and the rows with the largest ones are taken. (Rows that draw the same
    number, 1 pair in 1e9, are taken in a fixed order.)

    Args:
      key: random key.
      positive: [N] bool candidates.
      negative: [N] bool candidates; none is positive as well.
      num_samples: number of rows R of the result.
      positive_fraction: largest share of positives, 0..1.

    Returns:
      Samples with [R] rows.
    """
    most_positives = int(num_samples * positive_fraction)
    lottery = (jax.random.bits(key, positive.shape, jnp.uint32) >> 1).astype(jnp.int32)
    # One draw serves both: no row is positive and negative, so the two choices are independent.
    tickets = jnp.where(jnp.stack([positive, negative]), lottery, -1)
    default = jax.vmap(functools.partial(_largest, k=num_samples))
    forms = {}
    if selection_cuda.suits(jnp.float32, num_samples):
        forms["cuda"] = functools.partial(_largest_on_cuda, k=num_samples)
    positive_index, negative_index = by_platform(tickets, default=default, **forms)

    num_positive_candidates = positive.sum(dtype=jnp.int32)
    num_negative_candidates = negative.sum(dtype=jnp.int32)
    num_positives = jnp.minimum(num_positive_candidates, most_positives)
    num_negatives = jnp.minimum(num_negative_candidates, num_samples - num_positives)

    slot = jnp.arange(num_samples)
    is_positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    index = jnp.where(is_positive, positive_index, negative_index[jnp.maximum(slot - num_positives, 0)])
    return Samples(jnp.where(valid, index, 0), is_positive, valid, num_positive_candidates, num_negative_candidates)


def _largest_on_cuda(tickets, k):
    """`_largest` of each row of tickets [S, N], by kernels that take float32.

    Numbers from 0 to 2^30 are in the same order as the float32 numbers with their bits. So the last bit is not looked
    at.
    """
    values = jnp.where(tickets < 0, -1.0, jax.lax.bitcast_convert_type(tickets >> 1, jnp.float32))
    num_parts, length = values.shape
    index = top_k_of_parts(values.reshape(-1), tuple(range(0, values.size + 1, length)), k)[1]
    return index - length * jnp.arange(num_parts, dtype=jnp.int32)[:, None]


def _largest(values, k):
    """Indices [k] of the k largest of values [N], in descending order; where k > N some lie beyond N, at the end.

    Sorting all anchors is slow: samples of eight 1024 px images took 0.14 ms this way on an H100, 0.98 ms by plain
    top_k. The k largest values lie in the k groups with the largest maxima: a value in any other group has k larger
    ones, those maxima, above it. So only the maxima and the members of k groups are sorted.
    """
    size = math.isqrt(values.shape[0] // k)  # as many groups as members of k groups: both sorts equally long
    if size < 4:  # reading the groups costs more than it saves
        padding = max(k - values.shape[0], 0)
        return jax.lax.top_k(jnp.pad(values, (0, padding), constant_values=-1), k)[1]
    groups = math.ceil(values.shape[0] / size)
    values = jnp.pad(values, (0, groups * size - values.shape[0]), constant_values=-1).reshape(groups, size)
    group = jax.lax.top_k(values.max(axis=1), k)[1]
    member = jax.lax.top_k(values[group].reshape(-1), k)[1]
    return group[member // size] * size + member % size
