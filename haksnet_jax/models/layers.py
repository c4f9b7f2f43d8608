"""Small modules that several parts of the detector share."""

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.kernels.depthwise import depthwise_conv, depthwise_conv_with_means
from haksnet_jax.kernels.narrow_conv import narrow_conv
from haksnet_jax.kernels.strided_conv import strided_conv
from haksnet_jax.models.initializers import kaiming_fan_out, normal
from haksnet_jax.models.rematerialization import mark_kept
from haksnet_jax.target import platform


class DepthwiseConv(nnx.Module):
    """A convolution of each channel with its own k x k kernel, stride 1, zero padding k // 2.

    Args:
      channels: C.
      size: k, odd.
      dtype: dtype of the result.
      rngs: source of the initial kernel, normal with std sqrt(2 / k^2).
    """

    def __init__(self, channels: int, size: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_depthwise_kernel(channels, size, rngs))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        return depthwise_conv(x.astype(self.dtype), self.kernel[...], self.bias[...])

    def with_means(
        self, x: jax.Array
    ) -> tuple[
        jax.Array, jax.Array, jax.Array
    ]:  # [B, H, W, C] -> [B, H, W, C], means over channels [B, H, W] and positions [B, C]
        return depthwise_conv_with_means(x.astype(self.dtype), self.kernel[...], self.bias[...])


class NarrowConv(nnx.Module):
    """A full convolution of a few channels, k x k, stride 1, zero padding k // 2.

    Computed as a depthwise convolution of all pairs of input and output channels where `narrow_conv` has no form of its
    own: libraries of convolutions are made for many channels, and slow to tune and to run with four.

    Args:
      channels: of input and output.
      size: k, odd.
      dtype: dtype of the result.
      rngs: source of the initial kernel.
    """

    def __init__(self, channels: int, size: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(kaiming_fan_out(rngs.params(), (size, size, channels, channels)))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        summed = narrow_conv(x.astype(self.dtype), self.kernel[...], _sum_over_pairs)
        return (summed + self.bias[...]).astype(self.dtype)


def _sum_over_pairs(x, kernel):
    pairs = jnp.repeat(x, kernel.shape[-1], axis=-1)  # [B, H, W, C in * C out]
    filtered = depthwise_conv(pairs, kernel.reshape(*kernel.shape[:2], -1))
    return filtered.reshape(*x.shape, -1).sum(-2, dtype=jnp.float32)


class Weights(nnx.Module):
    """A kernel and a bias that a function elsewhere computes with."""

    def __init__(self, kernel: jax.Array, bias: jax.Array) -> None:
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)

    @classmethod
    def dense(cls, channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> Self:
        """Of a dense layer: kernel [C, C'], Kaiming normal by its outputs."""
        kernel = kaiming_fan_out(rngs.params(), (channels_in, channels_out))
        rngs.params()  # nnx.Linear draws for its bias too: initial values of what follows stay those of such layers
        return cls(kernel, jnp.zeros((channels_out,), jnp.float32))

    @classmethod
    def depthwise(cls, channels: int, size: int, *, rngs: nnx.Rngs) -> Self:
        """Of a depthwise convolution: kernel [k, k, C], as that of `DepthwiseConv`."""
        return cls(_depthwise_kernel(channels, size, rngs), jnp.zeros((channels,), jnp.float32))


def _depthwise_kernel(channels, size, rngs):
    return normal((2.0 / size**2) ** 0.5)(rngs.params(), (size, size, channels))


class StridedConv(nnx.Module):
    """A convolution k x k with padding k // 2 that takes every `stride`-th position, with a bias.

    Args:
      channels_in, channels_out: widths.
      size: k, odd.
      stride: in rows and columns.
      dtype: dtype of the arithmetic and the result.
      rngs: source of the initial kernel, Kaiming normal by its outputs.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        size: int,
        stride: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(kaiming_fan_out(rngs.params(), (size, size, channels_in, channels_out)))
        rngs.params()  # (see `Weights.dense`)
        self.bias = nnx.Param(jnp.zeros((channels_out,), jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C']
        kernel, bias = (parameter[...].astype(self.dtype) for parameter in (self.kernel, self.bias))
        return strided_conv(x.astype(self.dtype), kernel, self.stride) + bias


class OutputLinear(nnx.Linear):
    """A dense layer with float32 results: logits and box corrections in bfloat16 would be rounded to 8 bits at last.

    Products are of factors in the type of the input, sums and bias float32.
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:  # [..., C] -> [..., C'] float32
        assert out_sharding is None and self.bias is not None
        kernel = self.kernel[...].astype(inputs.dtype)
        return jnp.dot(inputs, kernel, preferred_element_type=jnp.float32) + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch normalisation with the reference's bookkeeping.

    Statistics are float32 and span the whole batch: under `jax.jit` with the batch sharded over devices this is
    synchronised batch normalisation. The running variance is the unbiased one (n / (n - 1)), as in PyTorch.

    Args:
      channels: C.
      momentum: share of the old running statistics that stays at each step (PyTorch's momentum 0.1 is 0.9 here).
      epsilon: added to the variance.
      dtype: dtype of the result.
    """

    def __init__(
        self, channels: int, *, momentum: float = 0.9, epsilon: float = 1e-5, dtype: jax.typing.DTypeLike
    ) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        mean, var = self.mean[...], self.var[...]
        if train:
            # One pass for both sums. Measured from the running mean: the plain E[x^2] - E[x]^2 loses digits where the
            # mean is large against the deviation.
            origin = jax.lax.stop_gradient(mean)
            offset = x.astype(jnp.float32) - origin
            axes = tuple(range(x.ndim - 1))
            offset_mean = offset.mean(axes)
            batch_var = jnp.maximum(jnp.square(offset).mean(axes) - jnp.square(offset_mean), 0.0)
            batch_mean = origin + offset_mean
            count = x.size // x.shape[-1]
            unbiased = batch_var * (count / max(count - 1, 1))
            self.mean.set_value(jax.lax.stop_gradient(self.momentum * mean + (1 - self.momentum) * batch_mean))
            self.var.set_value(jax.lax.stop_gradient(self.momentum * var + (1 - self.momentum) * unbiased))
            mean, var = mark_kept((batch_mean, batch_var))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * factor + (self.bias[...] - mean * factor)).astype(self.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x times the share of the normal distribution below it, with the error function: PyTorch's GELU.

    Args:
      x: [...] float32 or bfloat16.

    Returns:
      [...] in the type of x.
    """
    if platform() == "gpu" and x.dtype == jnp.bfloat16:
        return _gelu_on_gpu(x)
    return jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _gelu_on_gpu(x):
    """The GELU in float32, rounded once; the gradient keeps x alone and computes the error function again.

    XLA would write a map of the error function beside the result and read it again, which takes longer (H200, forward
    and gradient, 8 maps of 256 x 256 and 32 channels: 98 -> 78 us).
    """
    exact = x.astype(jnp.float32)
    return (exact * _normal_share(exact)).astype(x.dtype)


def _normal_share(x):
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(math.sqrt(0.5)))


def _gelu_backward(x, gradient):
    x = jax.lax.optimization_barrier(x)  # or the error function of the forward pass would be kept after all
    exact = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * exact * exact) * np.float32(1 / math.sqrt(2 * math.pi))
    return (((_normal_share(exact) + exact * density) * gradient.astype(jnp.float32)).astype(x.dtype),)


_gelu_on_gpu.defvjp(lambda x: (_gelu_on_gpu(x), x), _gelu_backward)


def sum_over_positions(x: jax.Array) -> jax.Array:
    """Sums of each image's channels. Args: x [B, H, W, C]. Returns: [B, C] float32.

    On GPUs in two steps: in one, XLA gives each image's sums to a few multiprocessors alone (29 us for 8 maps of 64 x
    64 and 160 channels on an H200, which are read in 5).
    """
    if platform() != "gpu":
        return x.sum((1, 2), dtype=jnp.float32)
    return jax.lax.optimization_barrier(x.sum(2, dtype=jnp.float32)).sum(1)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth: leaves out a residual branch for whole samples.

    Args:
      x: [B, ...] branch.
      rate: probability of leaving a sample's branch out, in 0..1 (a traced scalar is fine).
      key: random key.

    Returns:
      [B, ...] x / (1 - rate) for the samples that stay, 0 for the others.
    """
    keep = 1.0 - rate
    mask = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (mask / keep).astype(x.dtype)
