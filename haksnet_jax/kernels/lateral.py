"""A feature pyramid's top-down step: a level's own product, and what the coarser levels sum to, doubled.

    total = x @ kernel + bias + coarser, each position twice in both directions

There are two forms with equal results:

  plain   as it is written above.
  triton  lateral_triton.py, without the sums' float32 map in memory: NVIDIA GPUs from Ampere on, bfloat16, narrow
          levels, whose products take less time than their bytes. Its gradient is a kernel too for the narrowest.
"""

import functools

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import lateral_triton, triton
from haksnet_jax.target import by_platform, gradients_of


def lateral_sum(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, coarser: jax.Array, *, exact: bool
) -> tuple[jax.Array, jax.Array | None]:
    """The sum above, in float32, rounded once.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [C, C'] float32; rounded to the type of x.
      bias: [C'] float32.
      coarser: [B, ceil(H / 2), ceil(W / 2), C'] float32.
      exact: whether the sums that are not rounded are asked for too.

    Returns:
      [B, H, W, C'] in the type of x, and the same in float32 (or None).
    """
    plain = functools.partial(_plain, exact=exact)
    forms = {"default": plain}
    if triton.usable() and lateral_triton.suits(x, kernel):
        forms["cuda"] = functools.partial(lateral_sum_triton, exact=exact)
    return by_platform(x, kernel, bias, coarser, **forms)


def _plain(x, kernel, bias, coarser, *, exact):
    total = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias
    total += _doubled(coarser, *x.shape[1:3])
    return total.astype(x.dtype), total if exact else None


def _doubled(x, height, width):
    """[B, h, w, C] by repetition, cut to the finer level, which is 2 h or 2 h - 1 rows high."""
    by_product = functools.partial(doubled_by_product, height=height, width=width)
    by_repetition = functools.partial(doubled_by_repetition, height=height, width=width)
    return by_platform(x, default=by_repetition, tpu=by_product)


def doubled_by_repetition(x: jax.Array, height: int, width: int) -> jax.Array:
    """Each position twice in both directions. Args: x [B, h, w, C]; height, width. Returns: [B, height, width, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


def doubled_by_product(x: jax.Array, height: int, width: int) -> jax.Array:
    """Columns by a product with ones and zeros, exact in a TPU's float32 mode; laying them side by side takes longer.

    By the compiler's estimate for v5e, T's pyramid takes 12.0 instead of 16.8 ms with its gradient (2 images of 1024 x
    1024).
    """
    copies = jnp.arange(width)[:, None] // 2 == jnp.arange(x.shape[2])
    rows = x.repeat(2, axis=1)[:, :height]
    return jnp.einsum("wv,bhvc->bhwc", copies.astype(x.dtype), rows, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def lateral_sum_triton(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, coarser: jax.Array, exact: bool, interpret: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """`lateral_sum` by one Triton kernel (`lateral_triton.suits`); interpret: in Pallas' interpreter, anywhere."""
    return lateral_triton.lateral_sum(x, kernel, bias, coarser, exact=exact, interpret=interpret)


def _lateral_sum_triton_forward(x, kernel, bias, coarser, exact, interpret):
    return lateral_sum_triton(x, kernel, bias, coarser, exact, interpret), (x, kernel, bias, coarser)


def _lateral_sum_triton_backward(exact, interpret, saved, from_results):
    x, kernel, bias, coarser = saved
    if not exact and lateral_triton.suits_gradient(kernel):
        return lateral_triton.gradients(x, kernel, from_results[0], interpret=interpret)
    return gradients_of(functools.partial(_plain, exact=exact))(x, kernel, bias, coarser, from_results)


lateral_sum_triton.defvjp(_lateral_sum_triton_forward, _lateral_sum_triton_backward)
