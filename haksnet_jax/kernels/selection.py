"""The largest values of a row, or of each of its parts: `jax.lax.top_k`, and a kernel for NVIDIA GPUs.

XLA sorts a row of 200,000 values in thirty kernels one after another, to find 2,000 of them. The three kernels here
read them once where they differ, and again those near the bound; where very many equal ones stand there, zeros for
instance, they are counted in one more pass.
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


def descending(values: jax.Array) -> jax.Array:
    """The places of a row's values from the largest on, of equal ones the first.

    Args:
      values: [N] float32, none of them NaN.

    Returns:
      [N] int32.
    """
    values, forms = jax.lax.stop_gradient(values), {}
    if selection_cuda.suits(values.dtype, values.shape[0]):
        forms["cuda"] = _descending_on_cuda
    return by_platform(values, default=lambda values: jnp.argsort(-values, stable=True).astype(jnp.int32), **forms)


def _descending_on_cuda(values):
    count = values.shape[0]
    values = jnp.where(values == 0, 0.0, values)  # the kernel takes -0 for less than 0
    return ptx.over_problems(functools.partial(selection_cuda.largest, bounds=(0, count), k=count))(values)[1][0]


def _top_k_of_parts(values, bounds, k):
    parts = []
    for start, end in itertools.pairwise(bounds):
        count = min(k, end - start)
        top, index = jax.lax.top_k(values[start:end], count)
        behind = (0, k - count)
        parts.append((jnp.pad(top, behind, constant_values=-jnp.inf), jnp.pad(index + start, behind)))
    top, index = zip(*parts, strict=True)
    return jnp.stack(top), jnp.stack(index)
