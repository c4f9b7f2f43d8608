"""The largest values of rows on NVIDIA GPUs: cuda/selection.cu."""

import functools

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import ptx

_MOST = 2048  # values that are kept
_WIDE = 1024  # threads of a block
_SHARED = 8 * 8192 + 4 * 8  # bytes of a block: entries, counts


def suits(dtype: jnp.dtype, k: int) -> bool:
    """Whether the kernel runs here and takes such values and so many results."""
    return dtype == jnp.float32 and 0 < k <= _MOST and ptx.shared_bytes() >= _SHARED


@functools.partial(jax.jit, static_argnames=("bounds", "k"))
def largest(values: jax.Array, *, bounds: tuple[int, ...], k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each part of rows, in the order of `jax.lax.top_k`.

    Args:
      values: [P, N] float32.
      bounds: where the parts begin, ascending, and where the last one ends: S + 1 numbers from 0 to N.
      k: at most 2,048.

    Returns:
      [P, S, k] values and [P, S, k] int32 places in the row; behind the values of shorter parts -inf, with place 0.
    """
    problems, num_values = values.shape
    parts = len(bounds) - 1
    top, index = ptx.call(
        "selection",
        "largest",
        (values, jnp.asarray(bounds, jnp.int32)),
        [jax.ShapeDtypeStruct((problems, parts, k), dtype) for dtype in (jnp.float32, jnp.int32)],
        grid=(problems, parts, 1),
        threads=_WIDE,
        shared=_SHARED,
        numbers={"VALUES": num_values, "PARTS": parts, "KEPT": k},
    )
    return top, index
