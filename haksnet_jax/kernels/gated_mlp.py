"""The block's MLP: a gated expansion with a depthwise 3 x 3 convolution on the one half.

    out = (depthwise(x @ filter_kernel + filter_bias) * (x @ gate_kernel + gate_bias)) @ project_kernel + project_bias

The hidden maps are 4 to 8 times as wide as x, at full resolution: writing and reading them is what this costs, and
keeping them for the gradient is most of a network's memory. So the gradient keeps x alone and computes them again.
There are five forms with equal results, chosen by platform, width and type:

  plain     as it is written above: CPU, and wide inputs, where products cost more than memory: above 128 channels, and
            above 64 on NVIDIA GPUs whose matrix units do depthwise convolutions (depthwise_cuda.py).
  composed  a product followed by a depthwise convolution is one ordinary convolution, whose kernel is the product of
            theirs: nine times the arithmetic, which matrix units have to spare for narrow inputs, but one wide map less
            to write and read, and no gradient of a wide depthwise convolution. The biases are the weights of a further
            channel of ones: the zeros around the image are then right at the borders too (the reference pads after it
            added the bias), and their gradients come with the others. Narrow inputs on GPUs without the kernels of
  triton    the composed form in one kernel of gated_mlp_triton.py, without any wide map in memory: NVIDIA GPUs from
            Ampere on, bfloat16, widths that are powers of two up to 128, where plain does not serve.
  cuda      the same by the kernels of gated_mlp_cuda.py: Hopper GPUs, bfloat16, 32 channels, and 64 for the gradient.
  columns   the composed form as plain products, for TPU: the columns that a kernel meets lie side by side as channels,
            and each kernel row is one product with them. Image by image and a chunk of the hidden channels at a time,
            so that no wide map leaves the chip. Its gradient is written out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import depthwise_cuda, gated_mlp_cuda, gated_mlp_triton, ptx, triton
from haksnet_jax.kernels.depthwise import depthwise_conv
from haksnet_jax.target import by_platform, gradients_of, over_mesh, share_of

# Widest input of the composed form: 16 C operations at a matrix unit's rate against 4 bytes moved and a depthwise
# kernel at half of the memory's speed are even near C = 128 on an H100.
_WIDEST_COMPOSED = 128
# With the depthwise kernels of depthwise_cuda.py: 8 x 128 x 128 x 128, 1,024 hidden, on an H200, forward / gradient in
# milliseconds: 1.13 / 3.37 by Triton, 1.00 / 2.74 as plain steps; 8 x 128 x 128 x 64, 512 hidden: 0.20 / 0.84 and
# 0.53 / 1.40.
_WIDEST_WITH_DEPTHWISE = 64
_PADDING = 8  # channels are added in eights: matrix units read 16 bytes at a time
# Hidden channels at a time of the columns form: the side of a TPU's matrix unit. By the compiler's estimates for v5e
# (one block of T's first stage, 2 images, forward + gradients), 256 of them take 4.0 ms instead of 2.8, because the
# maps then leave the chip; the composed form takes 6.4 ms and three times as long to compile.
_CHUNK = 128


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
def gated_mlp(x: jax.Array, weights: GatedMLPWeights) -> jax.Array:
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
    plain, composed = ((form, gradients_of(form)) for form in (gated_mlp_plain, gated_mlp_composed))
    columns = gated_mlp_columns, gated_mlp_columns_gradients
    fenced = _fenced(gated_mlp_plain)
    narrow = x.shape[-1] <= _WIDEST_COMPOSED
    library = composed if narrow else plain
    forward, gradients = library
    hidden_shape = share_of((*x.shape[:3], weights.project_kernel.shape[0]))
    side = weights.depthwise_kernel.shape[0]
    if x.shape[-1] > _WIDEST_WITH_DEPTHWISE and depthwise_cuda.suits(hidden_shape, x.dtype, side, ptx.shared_bytes()):
        forward, gradients = plain
    elif triton.usable() and gated_mlp_triton.suits(x, weights):
        forward, gradients = gated_mlp_triton.gated_mlp_triton, gated_mlp_triton.gated_mlp_triton_gradients
    shared_bytes = ptx.shared_bytes() if ptx.on_hopper() else 0
    if gated_mlp_cuda.suits(x, weights, shared_bytes):
        forward = gated_mlp_cuda.forward
    if gated_mlp_cuda.gradients_suit(x, weights, shared_bytes):
        gradients = gated_mlp_cuda.gradients
    return {
        "cpu": plain,
        "cuda": (forward, gradients),
        "tpu": columns if narrow else (fenced, gradients_of(fenced)),
        "default": library,
    }


def _fenced(form):
    """The form between barriers, for the TPU compiler, which fuses what lies before and behind it into its products.

    By its estimates for v5e, T's third stage takes 1.26 instead of 1.35 ms a block, the fourth 0.58 instead of 0.63.
    """
    barrier = jax.lax.optimization_barrier
    return lambda x, weights: barrier(form(barrier(x), weights))


def _gated_mlp_forward(x, weights):
    return gated_mlp(x, weights), (x, weights)


def _gated_mlp_backward(saved, gradient):
    x, weights = saved
    gradients = {name: backward for name, (_, backward) in _forms(x, weights).items()}
    return by_platform(x, weights, gradient, **gradients)


gated_mlp.defvjp(_gated_mlp_forward, _gated_mlp_backward)


def _rounded(weights, dtype):
    return GatedMLPWeights(*(weight.astype(dtype) for weight in weights))


def gated_mlp_plain(x: jax.Array, weights: GatedMLPWeights) -> jax.Array:
    """`gated_mlp`, one step after another."""
    rounded = _rounded(weights, x.dtype)
    filter_kernel, gate_kernel = jnp.split(rounded.expand_kernel, 2, axis=-1)
    filter_bias, gate_bias = jnp.split(rounded.expand_bias, 2)
    filtered = depthwise_conv(x @ filter_kernel + filter_bias, weights.depthwise_kernel, weights.depthwise_bias)
    hidden = filtered * (x @ gate_kernel + gate_bias)  # [B, H, W, D]
    return hidden @ rounded.project_kernel + rounded.project_bias


def gated_mlp_composed(x: jax.Array, weights: GatedMLPWeights) -> jax.Array:
    """`gated_mlp` with the expansion and the depthwise convolution as one convolution."""
    side = weights.depthwise_kernel.shape[0]
    kernel, gate_kernel = _composed_kernels(weights)
    x = _with_ones(x)
    filtered = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding=((side // 2, side // 2),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    hidden = filtered * (x @ gate_kernel.astype(x.dtype))  # [B, H, W, D]
    return hidden @ weights.project_kernel.astype(x.dtype) + weights.project_bias.astype(x.dtype)


def _composed_kernels(weights):
    """[k, k, C + 8, D] kernel of expansion and depthwise convolution, [C + 8, D] of the gate; both in float32."""
    num_channels = weights.expand_kernel.shape[0]
    side = weights.depthwise_kernel.shape[0]
    filter_kernel, gate_kernel = jnp.split(_with_bias_rows(weights.expand_kernel, weights.expand_bias), 2, axis=-1)
    # exact in float32, rounded once
    kernel = weights.depthwise_kernel[:, :, None, :] * filter_kernel
    return kernel.at[side // 2, side // 2, num_channels].add(weights.depthwise_bias), gate_kernel


def _with_bias_rows(kernel, bias):
    """[C + 8, D] the kernel, the bias, and seven rows of zeros."""
    return jnp.concatenate([kernel, bias[None], jnp.zeros((_PADDING - 1, len(bias)), kernel.dtype)])


def _with_ones(x):
    """[B, H, W, C + 8] x, a channel of ones, and seven of zeros."""
    ones = jnp.pad(jnp.ones((*x.shape[:-1], 1), x.dtype), ((0, 0),) * 3 + ((0, _PADDING - 1),))
    return jnp.concatenate([x, ones], axis=-1)


def gated_mlp_columns(x: jax.Array, weights: GatedMLPWeights) -> jax.Array:
    """`gated_mlp` in the columns form (see the module's text)."""

    def of_image(x, bias, *kernels):  # x: [1, H, W, C]
        ones = _with_ones(x)
        columns = _columns(ones, kernels[0].shape[1])

        def add_chunk(total, kernels):
            kernel, gate_kernel, project_kernel = kernels
            hidden = _rows_product(columns, kernel).astype(x.dtype) * (ones @ gate_kernel)  # [1, H, W, D of a chunk]
            return total + jnp.dot(hidden, project_kernel, preferred_element_type=jnp.float32), None

        total, _ = jax.lax.scan(add_chunk, jnp.zeros(x.shape, jnp.float32), kernels)
        return (total + bias).astype(x.dtype)

    def of_batch(x, *weights):
        return jax.lax.map(lambda image: of_image(image[None], *weights)[0], x)

    kernels = (kernel.astype(x.dtype) for kernel in _chunked_kernels(weights))
    return over_mesh(of_batch, x, weights.project_bias, *kernels, split=1)


def gated_mlp_columns_gradients(
    x: jax.Array, weights: GatedMLPWeights, gradient: jax.Array
) -> tuple[jax.Array, GatedMLPWeights]:
    """The gradients of `gated_mlp_columns` with respect to x and weights."""
    kernels, pull_back = jax.vjp(_chunked_kernels, weights)

    def of_image(x, gradient, *kernels):  # x, gradient: [1, H, W, C]
        num_channels = x.shape[-1]
        side = kernels[0].shape[1]
        ones = _with_ones(x)
        columns = _columns(ones, side)

        def add_chunk(total, kernels):
            kernel, gate_kernel, project_kernel = kernels
            filtered = _rows_product(columns, kernel).astype(x.dtype)
            gate = ones @ gate_kernel
            hidden_gradient = gradient @ project_kernel.T
            gate_gradient, filtered_gradient = hidden_gradient * filtered, hidden_gradient * gate
            kernel_gradients = (
                jnp.stack([_weight_gradient(rows, filtered_gradient) for rows in _rows(columns, side)]),
                _weight_gradient(ones, gate_gradient),
                _weight_gradient(filtered * gate, gradient),
            )
            total += _product(gate_gradient, gate_kernel[:num_channels].T)
            return total + _columns_gradient(filtered_gradient, kernel, num_channels), kernel_gradients

        x_gradient, kernel_gradients = jax.lax.scan(add_chunk, jnp.zeros(x.shape, jnp.float32), kernels)
        return x_gradient.astype(x.dtype), kernel_gradients

    def of_batch(x, gradient, *kernels):
        def add_image(totals, image):
            x_gradient, kernel_gradients = of_image(*(array[None] for array in image), *kernels)
            return jax.tree.map(jnp.add, totals, kernel_gradients), x_gradient[0]

        totals = tuple(jnp.zeros(kernel.shape, jnp.float32) for kernel in kernels)
        totals, x_gradient = jax.lax.scan(add_image, totals, (x, gradient))
        return x_gradient, (*totals, gradient.sum((0, 1, 2), dtype=jnp.float32))

    rounded = (kernel.astype(x.dtype) for kernel in kernels)
    x_gradient, (*kernel_gradients, bias_gradient) = over_mesh(
        of_batch, x, gradient, *rounded, split=2, summed=(False, True)
    )
    (weights_gradient,) = pull_back(tuple(kernel_gradients))
    return x_gradient, weights_gradient._replace(project_bias=bias_gradient.astype(weights.project_bias.dtype))


def _chunked_kernels(weights):
    """The composed kernels in n chunks of d hidden channels.

    Returns:
      [n, k, k (C + 8), d] kernel whose second axis is of rows and third of columns and channels, [n, C + 8, d] of the
      gate, [n, d, C] of the projection; all in float32.
    """
    kernel, gate_kernel = _composed_kernels(weights)
    side, _, _, hidden = kernel.shape
    size = _CHUNK if hidden % _CHUNK == 0 else hidden

    def chunked(kernel):
        return jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], hidden // size, size), -2, 0)

    project_kernel = weights.project_kernel.reshape(hidden // size, size, -1)
    return chunked(kernel.reshape(side, -1, hidden)), chunked(gate_kernel), project_kernel


def _columns(x, side):
    """[B, H + k - 1, W, k C] with zeros around x: the channels of k columns side by side."""
    width = x.shape[2]
    margin = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    return jnp.concatenate([padded[:, :, dx : dx + width] for dx in range(side)], axis=-1)


def _rows(padded, side):
    """The k maps [B, H, W, ...] in padded [B, H + k - 1, W, ...], one row down from each to the next."""
    return [padded[:, dy : dy + padded.shape[1] - side + 1] for dy in range(side)]


def _product(x, kernel):
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _weight_gradient(x, gradient):
    """[C, D] float32 gradient of x @ kernel with respect to the kernel."""
    return jnp.einsum("bhwc,bhwd->cd", x, gradient, preferred_element_type=jnp.float32)


def _rows_product(columns, kernel):
    """[B, H, W, D] float32 convolution of `_columns` with a kernel [k, k (C + 8), D]."""
    return sum(_product(rows, row) for rows, row in zip(_rows(columns, len(kernel)), kernel, strict=True))


def _columns_gradient(gradient, kernel, num_channels):
    """[B, H, W, C] float32 gradient of `_rows_product` with respect to the x under its columns."""
    side = len(kernel)
    margin = (side // 2, side // 2)
    kernel = kernel.reshape(side, side, -1, kernel.shape[-1])[:, :, :num_channels]
    rows = _rows(jnp.pad(gradient, ((0, 0), margin, (0, 0), (0, 0))), side)[::-1]
    total = 0.0
    for dx in range(side):
        # One product for each column of the kernel: side by side, their channels would have to be moved apart again.
        column = sum(_product(row, kernel[dy, dx].T) for dy, row in enumerate(rows))
        padded = jnp.pad(column, ((0, 0), (0, 0), margin, (0, 0)))
        total += padded[:, :, side - 1 - dx : side - 1 - dx + column.shape[2]]
    return total
