"""The largest values of rows on NVIDIA GPUs: cuda/selection.cu."""

import functools
import itertools

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import ptx

_MOST = 4096  # values that are kept
_WIDE, _NARROW = 1024, 256  # threads of a block
_GROUP = 8  # values, of which the largest is found first
_COUNTERS = 34 * 4  # bytes


def _room(k):
    """Candidates of a part, from which the largest are taken."""
    return -(-2 * k // 32) * 32


def suits(dtype: jnp.dtype, k: int) -> bool:
    """Whether the kernels run here and take such values and so many results."""
    return dtype == jnp.float32 and 0 < k <= _MOST and ptx.shared_bytes() >= 8 * _room(_MOST) + 4 * 32


@functools.partial(jax.jit, static_argnames=("bounds", "k"))
def largest(values: jax.Array, *, bounds: tuple[int, ...], k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each part of rows, in the order of `jax.lax.top_k`.

    Args:
      values: [P, N] float32.
      bounds: where the parts begin, ascending, and where the last one ends: S + 1 numbers from 0 to N.
      k: at most 4,096.

    Returns:
      [P, S, k] values and [P, S, k] int32 places in the row; behind the values of shorter parts -inf, with place 0.
    """
    problems, num_values = values.shape
    parts, room = len(bounds) - 1, _room(k)
    longest = max(end - start for start, end in itertools.pairwise(bounds))
    by_groups = max(12 * k, room + 1)  # values from which on there are groups enough for a bound that few values pass
    groups = num_values // _GROUP + parts + 1
    numbers = {"VALUES": num_values, "PARTS": parts, "KEPT": k, "ROOM": room, "LONG": by_groups, "GROUPS": groups}
    call = functools.partial(ptx.call, "selection", numbers=numbers | {"DIRECT": int(longest <= room)})
    where = jnp.asarray(bounds, jnp.int32)

    found = jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.int32)
    if longest > room:
        maxima = jnp.zeros(1, jnp.uint32)
        if longest >= by_groups:
            (maxima,) = call(
                "maxima",
                (values, where),
                [jax.ShapeDtypeStruct((problems, groups), jnp.uint32)],
                grid=(problems, parts, -(-longest // (_NARROW * _GROUP))),
                threads=_NARROW,
                shared=0,
            )
        found = call(
            "candidates",
            (values, where, maxima),
            [
                jax.ShapeDtypeStruct((problems, parts, room, 2), jnp.uint32),
                jax.ShapeDtypeStruct((problems, parts), jnp.int32),
            ],
            grid=(problems, parts, 1),
            threads=_WIDE,
            shared=_COUNTERS + 4 * room,
        )
    top, index = call(
        "ranked",
        (values, where, *found),
        [jax.ShapeDtypeStruct((problems, parts, k), dtype) for dtype in (jnp.float32, jnp.int32)],
        grid=(problems, parts, -(-max(k, min(longest, room)) // 32)),
        threads=_WIDE,
        shared=8 * room + 4 * 32,
    )
    return top, index
