"""The block's MLP: a gated expansion with a depthwise 3 x 3 convolution on the one half.

    out = (depthwise(x @ filter_kernel + filter_bias) * (x @ gate_kernel + gate_bias)) @ project_kernel + project_bias

The hidden maps are 4 to 8 times as wide as x, at full resolution: writing and reading them is what this costs, and
keeping them for the gradient is most of a network's memory. So the gradient keeps x alone and computes them again.
There are three forms with equal results, chosen by platform, width and type:

  plain     as it is written above: CPU, and wide inputs, where products cost more than memory.
  composed  a product followed by a depthwise convolution is one ordinary convolution, whose kernel is the product of
            theirs: nine times the arithmetic, which matrix units have to spare for narrow inputs, but one wide map less
            to write and read, and no gradient of a wide depthwise convolution. The biases are the weights of a further
            channel of ones: the zeros around the image are then right at the borders too (the reference pads after it
            added the bias), and their gradients come with the others.
  triton    the composed form in one kernel of gated_mlp_triton.py, without any wide map in memory: NVIDIA GPUs from
            Ampere on, bfloat16, widths that are powers of two up to 128.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from haksnet_jax.ops import gated_mlp_triton, triton
from haksnet_jax.ops.depthwise import depthwise_conv
from haksnet_jax.ops.platforms import by_platform

# Widest input of the composed form: 16 C operations at a matrix unit's rate against 4 bytes moved and a depthwise
# kernel at half of the memory's speed are even near C = 128 on an H100.
_WIDEST_COMPOSED = 128
_PADDING = 8  # channels are added in eights: matrix units read 16 bytes at a time


class GatedMLPWeights(NamedTuple):
    """Parameters, C input channels and D hidden ones.

    Attributes:
      expand_kernel: [C, 2 D], the filtered half first.
      expand_bias: [2 D].
      depthwise_kernel: [3, 3, D] (any odd side).
      depthwise_bias: [D].
      project_kernel: [D, C].
      project_bias: [C].
    """

    expand_kernel: jax.Array
    expand_bias: jax.Array
    depthwise_kernel: jax.Array
    depthwise_bias: jax.Array
    project_kernel: jax.Array
    project_bias: jax.Array


@jax.custom_vjp
def gated_mlp(x, weights):
    """Gated expansion, depthwise convolution and projection (see the module's text).

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      weights: GatedMLPWeights, usually float32; rounded to the type of x where it is multiplied with them.

    Returns:
      [B, H, W, C] in the type of x.
    """
    return by_platform(x, weights, **{name: forward for name, (forward, _) in _forms(x, weights).items()})


def _forms(x, weights):
    """(function, its gradients) for each platform of `by_platform`."""
    plain, composed = ((form, _gradients_of(form)) for form in (gated_mlp_plain, gated_mlp_composed))
    library = composed if x.shape[-1] <= _WIDEST_COMPOSED else plain
    cuda = library
    if triton.usable() and gated_mlp_triton.suits(x, weights):
        cuda = gated_mlp_triton.gated_mlp_triton, gated_mlp_triton.gated_mlp_triton_gradients
    return {"cpu": plain, "cuda": cuda, "default": library}


def _gradients_of(form):
    return lambda x, weights, gradient: jax.vjp(form, x, weights)[1](gradient)


def _gated_mlp_forward(x, weights):
    return gated_mlp(x, weights), (x, weights)


def _gated_mlp_backward(saved, gradient):
    x, weights = saved
    gradients = {name: backward for name, (_, backward) in _forms(x, weights).items()}
    return by_platform(x, weights, gradient, **gradients)


gated_mlp.defvjp(_gated_mlp_forward, _gated_mlp_backward)


def _rounded(weights, dtype):
    return GatedMLPWeights(*(weight.astype(dtype) for weight in weights))


def gated_mlp_plain(x, weights):
    """`gated_mlp`, one step after another."""
    rounded = _rounded(weights, x.dtype)
    filter_kernel, gate_kernel = jnp.split(rounded.expand_kernel, 2, axis=-1)
    filter_bias, gate_bias = jnp.split(rounded.expand_bias, 2)
    filtered = depthwise_conv(x @ filter_kernel + filter_bias, weights.depthwise_kernel) + rounded.depthwise_bias
    hidden = filtered * (x @ gate_kernel + gate_bias)  # [B, H, W, D]
    return hidden @ rounded.project_kernel + rounded.project_bias


def gated_mlp_composed(x, weights):
    """`gated_mlp` with the expansion and the depthwise convolution as one convolution."""
    num_channels = x.shape[-1]
    side = weights.depthwise_kernel.shape[0]
    filter_kernel, gate_kernel = jnp.split(_with_bias_rows(weights.expand_kernel, weights.expand_bias), 2, axis=-1)
    # [k, k, C + 8, D]: exact in float32, rounded once
    kernel = weights.depthwise_kernel[:, :, None, :] * filter_kernel
    kernel = kernel.at[side // 2, side // 2, num_channels].add(weights.depthwise_bias)
    ones = jnp.pad(jnp.ones((*x.shape[:-1], 1), x.dtype), ((0, 0),) * 3 + ((0, _PADDING - 1),))
    x = jnp.concatenate([x, ones], axis=-1)  # [B, H, W, C + 8]
    filtered = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding=((side // 2, side // 2),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    hidden = filtered * (x @ gate_kernel.astype(x.dtype))  # [B, H, W, D]
    return hidden @ weights.project_kernel.astype(x.dtype) + weights.project_bias.astype(x.dtype)


def _with_bias_rows(kernel, bias):
    """[C + 8, D] the kernel, the bias, and seven rows of zeros."""
    return jnp.concatenate([kernel, bias[None], jnp.zeros((_PADDING - 1, len(bias)), kernel.dtype)])
