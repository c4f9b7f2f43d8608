"""The largest values of a row, or of each of its parts: `jax.lax.top_k`, and a kernel for NVIDIA GPUs.

XLA sorts a row of 200,000 values in thirty kernels one after another, to find 2,000 of them. The kernel reads them
twice where values differ; where more equal ones than it can sort stand at the bound, -inf for instance, it narrows
their places down in rounds, about seventeen.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import ptx, selection_cuda
from haksnet_jax.target import by_platform


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of a row, in the order of `jax.lax.top_k`: descending, of equal ones the first.

    Args:
      values: [N] float32, N >= k.
      k: how many.

    Returns:
      [k] values, [k] int32 places. No gradient flows through them.
    """
    top, index = top_k_of_parts(values, (0, values.shape[0]), k)
    return top[0], index[0]


def top_k_of_parts(values: jax.Array, bounds: Sequence[int], k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each part of a row, in descending order, of equal ones the first.

    Args:
      values: [N] float32.
      bounds: where the parts begin, ascending, and where the last one ends: S + 1 numbers from 0 to N.
      k: how many of each part.

    Returns:
      [S, k] values and [S, k] int32 places in the row; behind the values of shorter parts -inf, with place 0. No
      gradient flows through them.
    """
    values, bounds = jax.lax.stop_gradient(values), tuple(bounds)
    forms = {}
    if selection_cuda.suits(values.dtype, k):
        forms["cuda"] = ptx.over_problems(functools.partial(selection_cuda.largest, bounds=bounds, k=k))
    return by_platform(values, default=functools.partial(_top_k_of_parts, bounds=bounds, k=k), **forms)


def _top_k_of_parts(values, bounds, k):
    parts = []
    for start, end in itertools.pairwise(bounds):
        count = min(k, end - start)
        top, index = jax.lax.top_k(values[start:end], count)
        behind = (0, k - count)
        parts.append((jnp.pad(top, behind, constant_values=-jnp.inf), jnp.pad(index + start, behind)))
    top, index = zip(*parts, strict=True)
    return jnp.stack(top), jnp.stack(index)
