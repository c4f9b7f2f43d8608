"""Depthwise convolutions after each other on NVIDIA GPUs in bfloat16, with few passes over the maps.

As JAX derives it, the gradient of each convolution's result is a pass of its own: in kernel selection the gradient that
comes through the next convolution, plus the mixture's gradient times a weight, plus the gradients of two means; in
channel mixing the gradient that comes through the second convolution, times the GELU's slope. Here the convolution's
kernel does that where it writes its result. Band matrices of all kernels, and the sums of the blocks of all weight
gradients, are made in one launch each; so are all means and dense layers of kernel selection, and their gradients.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import attention_cuda, depthwise_cuda, gates_cuda, narrow_conv_cuda, ptx
from haksnet_jax.kernels.attention_cuda import Attention, Fusion, Layers
from haksnet_jax.kernels.depthwise_cuda import band_of_cascade, bias_of_cascade
from haksnet_jax.models.rematerialization import mark_kept
from haksnet_jax.target import known_platform, over_mesh, share_of

SIDES = (3, 5, 7, 9)  # of the kernels that are selected among
_PAIR = (3, 3)


def suits(x: jax.Array, sides: Sequence[int]) -> bool:
    """Whether the cascades here take such features, for kernels with such sides; they serve an ambient mesh of GPUs."""
    shared_bytes = ptx.shared_bytes() if known_platform() == "gpu" else 0
    shape = share_of(x.shape)
    fusion = (*shape[:3], 4), x.dtype, (7, 7, 4, 4)
    return (
        bool(shared_bytes)
        and all(depthwise_cuda.suits(shape, x.dtype, k, shared_bytes) for k in sides)
        and (tuple(sides) != SIDES or narrow_conv_cuda.suits(*fusion, shared_bytes))
    )


@jax.custom_vjp
def select_kernels(
    fusion: Fusion,
    layers: Layers,
    x: jax.Array,
    taps: Sequence[jax.Array],
    biases: Sequence[jax.Array],
) -> jax.Array:
    """x times the weighted sum of four depthwise convolutions after each other.

    A weight is the product of one for each position, a sigmoid, and one for each kernel, a softmax.

    Args:
      fusion: Fusion, of the sigmoid's logits by means over the channels [B, H, W, 4].
      layers: Layers, 4 C -> 4 with a ReLU and 4 -> 4, of the softmax's logits; their input are the means over the
        positions.
      x: [B, H, W, C] bfloat16.
      taps: kernels [k, k, C] of sides 3, 5, 7 and 9.
      biases: four [C].

    Returns:
      [B, H, W, C] bfloat16.
    """
    return _select_forward(fusion, layers, x, taps, biases)[0]


def _select_forward(fusion, layers, x, taps, biases):
    flat, entries = _prepare(taps, biases, (*layers, fusion.kernel))
    cascade, sums = [x], []
    for number in range(len(SIDES)):

        def convolve(x, entries, flat, number=number):
            band = band_of_cascade(entries, SIDES, number, turned=False)
            return depthwise_cuda.convolve_with_sums(x, band, bias_of_cascade(flat, SIDES, number, x.shape[3]))

        u, *of_u = over_mesh(convolve, cascade[-1], entries, flat, split=1)
        cascade.append(mark_kept(u))
        sums.append(of_u)
    over_channels, over_positions = zip(*sums, strict=True)
    attention = mark_kept(over_mesh(_attend, *over_positions, *over_channels, flat, split=2 * len(SIDES)))
    fuse = functools.partial(narrow_conv_cuda.convolve_arranged, dtype=jnp.float32)
    products = over_mesh(fuse, attention.channel_means, attention.fusion)
    spatial = jax.nn.sigmoid(mark_kept((products + fusion.bias).astype(x.dtype)))
    weights = spatial.astype(jnp.float32) * attention.weights[:, None, None, :]
    mixed = sum(u.astype(jnp.float32) * weights[..., i, None] for i, u in enumerate(cascade[1:])).astype(x.dtype)
    return x * mixed, (cascade, mixed, spatial, attention, flat, entries)


def _select_backward(saved, gradient):
    (x, *cascade), mixed, spatial, attention, flat, entries = saved
    kernel = attention.weights
    batch, height, width, num_channels = x.shape
    of_mixed = gradient * x
    of_logits, *sums = over_mesh(_gates_gradient, of_mixed, *cascade, spatial, kernel)
    fuse = functools.partial(narrow_conv_cuda.convolve_arranged, dtype=x.dtype)
    of_channel_means = over_mesh(fuse, of_logits, attention.fusion_turned)
    split = (*sums, of_logits, *attention)
    of_position_means, of_parameters = over_mesh(_attend_gradient, *split, flat, split=len(split), summed=(False, True))
    of_position_means = of_position_means.reshape(batch, len(SIDES), num_channels)
    of_last_means = of_channel_means[..., -1:].astype(jnp.float32)
    spread = of_last_means / num_channels + of_position_means[:, None, None, -1] / (height * width)
    weight = spatial[..., -1:].astype(jnp.float32) * kernel[:, None, None, -1:]
    of_last = (of_mixed.astype(jnp.float32) * weight + spread).astype(x.dtype)
    addends = depthwise_cuda.Addends(of_mixed, spatial, kernel, of_channel_means, of_position_means)
    of_cascade = [of_last]
    for number in (3, 2, 1):

        def convolve(gradient, *arrays, number=number):
            band = band_of_cascade(arrays[-1], SIDES, number, turned=True)
            return depthwise_cuda.convolve_and_add(gradient, band, depthwise_cuda.Addends(*arrays[:-1]), number - 1)

        of_cascade.insert(0, over_mesh(convolve, of_cascade[0], *addends, entries, split=1 + len(addends)))
    of_x = _convolve_back(of_cascade[0], entries, SIDES) + gradient * mixed
    of_taps, of_biases = _weight_gradients((x, *cascade[:-1]), of_cascade, SIDES)
    of_layers, of_fusion = attention_cuda.take_apart(of_parameters)
    return of_fusion, of_layers, of_x, of_taps, of_biases


def _attend(*arrays):
    *sums, flat = arrays
    over_positions, over_channels = sums[: len(SIDES)], sums[len(SIDES) :]
    first = depthwise_cuda.cascade_length(SIDES, over_positions[0].shape[2])
    return attention_cuda.forward(over_positions, over_channels, flat, first)


def _attend_gradient(of_kernel, sums_of_logits, of_logits, *arrays):
    *attention, flat = arrays
    attention = Attention(*attention)
    of_fusion = narrow_conv_cuda.weight_gradient_sums(attention.channel_means, of_logits)
    first = depthwise_cuda.cascade_length(SIDES, attention.means.shape[1] // len(SIDES))
    return attention_cuda.gradient(of_kernel, sums_of_logits, of_fusion, attention, flat, first)


def _gates_gradient(of_mixed, *arrays):
    *maps, spatial, kernel = arrays
    return gates_cuda.gradient(of_mixed, maps, spatial, kernel)


select_kernels.defvjp(_select_forward, _select_backward)


@jax.custom_vjp
def convolve_twice(x: jax.Array, taps: Sequence[jax.Array], biases: Sequence[jax.Array]) -> jax.Array:
    """Two depthwise convolutions 3 x 3 with a GELU between.

    Args:
      x: [B, H, W, C] bfloat16.
      taps: two kernels [3, 3, C].
      biases: two [C].

    Returns:
      [B, H, W, C] bfloat16.
    """
    return _twice_forward(x, taps, biases)[0]


def _twice_forward(x, taps, biases):
    flat, entries = _prepare(taps, biases)

    def convolve(function, x, entries, flat, number):
        band = band_of_cascade(entries, _PAIR, number, turned=False)
        return function(x, band, bias_of_cascade(flat, _PAIR, number, x.shape[3]))

    first = functools.partial(convolve, depthwise_cuda.convolve_and_activate, number=0)
    second = functools.partial(convolve, depthwise_cuda.convolve_bands, number=1)
    hidden, activated = mark_kept(over_mesh(first, x, entries, flat, split=1))
    return over_mesh(second, activated, entries, flat, split=1), (x, hidden, activated, entries)


def _twice_backward(saved, gradient):
    x, hidden, activated, entries = saved

    def convolve(gradient, hidden, entries):
        band = band_of_cascade(entries, _PAIR, 1, turned=True)
        return depthwise_cuda.convolve_through_gelu(gradient, band, hidden)

    of_hidden = over_mesh(convolve, gradient, hidden, entries, split=2)
    of_taps, of_biases = _weight_gradients((x, activated), (of_hidden, gradient), _PAIR)
    return _convolve_back(of_hidden, entries, _PAIR), of_taps, of_biases


convolve_twice.defvjp(_twice_forward, _twice_backward)


def _prepare(taps, biases, others=()):
    """The parameters as one array, and the band matrices of all kernels."""
    flat = depthwise_cuda.cascade_parameters(taps, biases, others)
    return flat, depthwise_cuda.cascade_bands(flat, [len(kernel) for kernel in taps], taps[0].shape[2])


def _convolve_back(gradient, entries, sides):
    """The gradient of the first convolution's input."""

    def convolve(gradient, entries):
        return depthwise_cuda.convolve_bands(gradient, band_of_cascade(entries, sides, 0, turned=True))

    return over_mesh(convolve, gradient, entries, split=1)


def _weight_gradients(inputs, gradients, sides):
    """The gradients of all kernels and of all biases: two lists."""

    def rows(*maps):
        return depthwise_cuda.cascade_weight_gradients(maps[: len(sides)], maps[len(sides) :], sides)

    return depthwise_cuda.kernels_and_biases(over_mesh(rows, *inputs, *gradients, summed=True), sides)
