"""Matching of anchors with objects on NVIDIA GPUs: cuda/matching.cu."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_THREADS = 256
_ANCHORS = 1024  # of a block
_MOST_BLOCKS = (1 << 16) - 1  # along y


def suits(num_anchors: int, num_objects: int) -> bool:
    """Whether the kernels run here and take so many boxes of a problem."""
    return 0 < num_anchors <= _ANCHORS * _MOST_BLOCKS and 0 < 4 * num_objects <= ptx.shared_bytes()


@functools.partial(jax.jit, static_argnames=("positive_iou", "negative_iou", "min_positive_iou"))
def match(
    anchors: jax.Array,
    candidates: jax.Array,
    objects: jax.Array,
    valid: jax.Array,
    *,
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What `geometry.matching.match_anchors` says of each problem, each operation rounded to float32.

    Args:
      anchors: [P, A, 4] or [1, A, 4] float32 boxes (x1, y1, x2, y2).
      candidates: [P, A] bool.
      objects: [P, M, 4] float32 boxes.
      valid: [P, M] bool.
      positive_iou, negative_iou, min_positive_iou: as there.

    Returns:
      Object of each anchor [P, A] int32, largest overlap [P, A] float32, positive [P, A] bool, negative [P, A] bool.
    """
    anchors, objects = anchors.astype(jnp.float32), objects.astype(jnp.float32)
    num_lists, num_anchors, _ = anchors.shape
    problems, num_objects = valid.shape
    blocks = pl.cdiv(num_anchors, _ANCHORS)
    numbers = {"ANCHORS": num_anchors, "ANCHOR_LISTS": num_lists, "OBJECTS": num_objects}
    launch = functools.partial(ptx.call, "matching", grid=(problems, blocks, 1), threads=_THREADS)

    def of_anchors(dtype):
        return jax.ShapeDtypeStruct((problems, num_anchors), dtype)

    best, best_object, of_objects = launch(
        "best_overlaps",
        (anchors, candidates, objects, valid),
        [
            of_anchors(jnp.float32),
            of_anchors(jnp.int32),
            jax.ShapeDtypeStruct((problems, blocks, num_objects), jnp.float32),
        ],
        shared=4 * num_objects,
        numbers=numbers,
    )
    of_objects = of_objects.max(axis=1)
    claims = jnp.where(valid & (of_objects >= max(min_positive_iou, 0.0)), of_objects, jnp.inf)
    limits = {"POSITIVE": positive_iou, "NEGATIVE": negative_iou, "CLAIMED": min_positive_iou}
    assigned, iou, positive, negative = launch(
        "assign",
        (anchors, candidates, objects, claims, best, best_object),
        [of_anchors(dtype) for dtype in (jnp.int32, jnp.float32, bool, bool)],
        shared=0,
        numbers=numbers | {name: int(np.float32(limit).view(np.uint32)) for name, limit in limits.items()},
    )
    return assigned, iou, positive, negative
