"""Depthwise convolutions after each other on NVIDIA GPUs in bfloat16, with few passes over the maps.

As JAX derives it, the gradient of each convolution's result is a pass of its own: in kernel selection the gradient that
comes through the next convolution, plus the mixture's gradient times a weight, plus the gradients of two means; in
channel mixing the gradient that comes through the second convolution, times the GELU's slope. Here the convolution's
kernel does that where it writes its result. Band matrices of all kernels, and the sums of the blocks of all weight
gradients, are made in one launch each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import depthwise_cuda, gates_cuda, ptx
from haksnet_jax.kernels.depthwise_cuda import band_of_cascade
from haksnet_jax.models.rematerialization import mark_kept
from haksnet_jax.target import known_platform, over_mesh, share_of

SIDES = (3, 5, 7, 9)  # of the kernels that are selected among
_PAIR = (3, 3)
Gates = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def suits(x: jax.Array, sides: Sequence[int]) -> bool:
    """Whether the cascades here take such features, for kernels with such sides; they serve an ambient mesh of GPUs."""
    shared_bytes = ptx.shared_bytes() if known_platform() == "gpu" else 0
    return bool(shared_bytes) and all(depthwise_cuda.suits(share_of(x.shape), x.dtype, k, shared_bytes) for k in sides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def select_kernels(
    gates: Gates, parameters: Any, x: jax.Array, taps: Sequence[jax.Array], biases: Sequence[jax.Array]
) -> jax.Array:
    """x times the weighted sum of four depthwise convolutions after each other.

    Args:
      gates: function (parameters, [B, H, W, 4] float32 means over the channels, [B, 4 C] float32 means over the
        positions) of what the weights are products of: logits [B, H, W, 4] in the type of x, of a sigmoid, and
        [B, 4] float32.
      parameters: pytree.
      x: [B, H, W, C] bfloat16.
      taps: kernels [k, k, C] of sides 3, 5, 7 and 9.
      biases: four [C].

    Returns:
      [B, H, W, C] bfloat16.
    """
    return _select_forward(gates, parameters, x, taps, biases)[0]


def _select_forward(gates, parameters, x, taps, biases):
    entries = depthwise_cuda.cascade_bands(taps)
    cascade, channel_means, position_means = [x], [], []
    for number, bias in enumerate(biases):

        def convolve(x, entries, bias, number=number):
            band = band_of_cascade(entries, SIDES, number, turned=False)
            return depthwise_cuda.convolve_bands(x, band, bias, means=True)

        u, channel_mean, position_mean = mark_kept(over_mesh(convolve, cascade[-1], entries, bias, split=1))
        cascade.append(u)
        channel_means.append(channel_mean)
        position_means.append(position_mean)
    means = jnp.stack(channel_means, axis=-1), jnp.concatenate(position_means, axis=-1)
    (logits, kernel), pull_back = jax.vjp(gates, parameters, *means)
    spatial = jax.nn.sigmoid(logits)
    weights = spatial.astype(jnp.float32) * kernel[:, None, None, :]
    mixed = sum(u.astype(jnp.float32) * weights[..., i, None] for i, u in enumerate(cascade[1:])).astype(x.dtype)
    return x * mixed, (cascade, mixed, spatial, kernel, entries, pull_back)


def _select_backward(gates, saved, gradient):
    (x, *cascade), mixed, spatial, kernel, entries, pull_back = saved
    batch, height, width, num_channels = x.shape
    of_mixed = gradient * x
    pair = over_mesh(_gates_gradient, of_mixed, *cascade, spatial, kernel)
    of_parameters, of_channel_means, of_position_means = pull_back(pair)
    of_position_means = of_position_means.reshape(batch, len(SIDES), num_channels)
    spread = of_channel_means[..., -1:] / num_channels + of_position_means[:, None, None, -1] / (height * width)
    weight = spatial[..., -1:].astype(jnp.float32) * kernel[:, None, None, -1:]
    of_last = (of_mixed.astype(jnp.float32) * weight + spread).astype(x.dtype)
    # (The gradient of the channel means comes from a convolution with results of this type: nothing is lost.)
    addends = depthwise_cuda.Addends(of_mixed, spatial, kernel, of_channel_means.astype(x.dtype), of_position_means)
    of_cascade = [of_last]
    for number in (3, 2, 1):

        def convolve(gradient, *arrays, number=number):
            band = band_of_cascade(arrays[-1], SIDES, number, turned=True)
            return depthwise_cuda.convolve_and_add(gradient, band, depthwise_cuda.Addends(*arrays[:-1]), number - 1)

        of_cascade.insert(0, over_mesh(convolve, of_cascade[0], *addends, entries, split=1 + len(addends)))
    of_x = _convolve_back(of_cascade[0], entries, SIDES) + gradient * mixed
    of_taps, of_biases = _weight_gradients((x, *cascade[:-1]), of_cascade, SIDES)
    return of_parameters, of_x, of_taps, of_biases


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
    entries = depthwise_cuda.cascade_bands(taps)

    def first(x, entries, bias):
        return depthwise_cuda.convolve_and_activate(x, band_of_cascade(entries, _PAIR, 0, turned=False), bias)

    def second(x, entries, bias):
        return depthwise_cuda.convolve_bands(x, band_of_cascade(entries, _PAIR, 1, turned=False), bias)

    hidden, activated = mark_kept(over_mesh(first, x, entries, biases[0], split=1))
    return over_mesh(second, activated, entries, biases[1], split=1), (x, hidden, activated, entries)


def _twice_backward(saved, gradient):
    x, hidden, activated, entries = saved

    def convolve(gradient, hidden, entries):
        band = band_of_cascade(entries, _PAIR, 1, turned=True)
        return depthwise_cuda.convolve_through_gelu(gradient, band, hidden)

    of_hidden = over_mesh(convolve, gradient, hidden, entries, split=2)
    of_taps, of_biases = _weight_gradients((x, activated), (of_hidden, gradient), _PAIR)
    return _convolve_back(of_hidden, entries, _PAIR), of_taps, of_biases


convolve_twice.defvjp(_twice_forward, _twice_backward)


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
