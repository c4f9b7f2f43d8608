"""Modules and resampling that the decoders of dense maps share: convolutions with normalisation, bilinear enlarging."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.kernels.depthwise import depthwise_conv
from haksnet_jax.models.initializers import kaiming_fan_out, normal
from haksnet_jax.models.layers import BatchNorm


class Conv(nnx.Conv):
    """A convolution at stride 1 whose output has the size of its input. Args: as `nnx.Conv`; size, k, odd."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        size: int = 1,
        *,
        use_bias: bool = False,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            channels_in,
            channels,
            (size, size),
            padding=size // 2,
            use_bias=use_bias,
            kernel_init=kaiming_fan_out,
            dtype=dtype,
            rngs=rngs,
        )


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch normalisation. Args: as `Conv`."""

    def __init__(
        self, channels_in: int, channels: int, size: int = 1, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.conv = Conv(channels_in, channels, size, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(channels, dtype=dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C']
        return self.norm(self.conv(x), train=train)


class SeparableConvNorm(nnx.Module):
    """Depthwise convolution, batch normalisation, 1 x 1 convolution; no biases.

    Args:
      channels: C of input and output.
      size: k. An even kernel reaches one position further down and right than up and left, over a map that is
        continued by reflection there (by one position; zeros beyond).
      dtype: of the arithmetic.
      rngs: source of the initial parameters.
    """

    def __init__(self, channels: int, size: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.depthwise = nnx.Param(normal((2.0 / size**2) ** 0.5)(rngs.params(), (size, size, channels)))
        self.norm = BatchNorm(channels, dtype=dtype)
        self.pointwise = Conv(channels, channels, dtype=dtype, rngs=rngs)
        self.size = size
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        _, height, width, _ = x.shape
        kernel, x = self.depthwise[...], x.astype(self.dtype)
        if self.size % 2 == 0:
            # The odd kernel that a row and a column of zeros makes of it; `depthwise_conv` knows no others.
            kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0)))
            x = reflect_after(x, 1, 1)
        x = depthwise_conv(x, kernel)[:, :height, :width]
        return self.pointwise(self.norm(x, train=train))


def relu6(x: jax.Array) -> jax.Array:
    """Values held between 0 and 6."""
    return jnp.clip(x, 0, 6)


def reflect_after(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Continues a map [B, H, W, C] by reflection, below and at the right, the border itself not repeated."""
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="reflect")


def channel_dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Leaves whole channels of a map [B, H, W, C] out at random and scales the others; nothing without a key."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, x.shape[-1]))
    return x * (kept / (1 - rate)).astype(x.dtype)


def enlarge(x: jax.Array, factor: int, *, axes: Sequence[int] = (1, 2)) -> jax.Array:
    """Enlarges a map bilinearly by a whole factor, as PyTorch's `interpolate` does without `align_corners`.

    A new position p lies at (p + 0.5) / factor - 0.5 of the old ones; beyond the outer ones their value is repeated.
    Every `factor`-th new position has the same two weights, so this is a few shifted and weighted copies, which
    compilers fuse with what uses them, instead of a gather or a product with a matrix.

    Args:
      x: array.
      factor: whole number, at least 1.
      axes: which axes are enlarged, one after another.

    Returns:
      The enlarged array in the type of x.
    """
    if factor == 1:
        return x
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    for axis in axes:
        x = _enlarge_axis(x, offsets, axis)
    return x


def _enlarge_axis(x, offsets, axis):
    size = x.shape[axis]
    before = jnp.concatenate([_cut(x, axis, 0, 1), _cut(x, axis, 0, size - 1)], axis)
    after = jnp.concatenate([_cut(x, axis, 1, size), _cut(x, axis, size - 1, size)], axis)
    shape = [1] * (x.ndim + 1)
    shape[axis + 1] = len(offsets)

    def weighted(weights, values):
        return jnp.asarray(weights, x.dtype).reshape(shape) * jnp.expand_dims(values, axis + 1)

    mixed = (
        weighted(np.maximum(-offsets, 0), before)
        + weighted(1 - np.abs(offsets), x)
        + weighted(np.maximum(offsets, 0), after)
    )
    return mixed.reshape(*x.shape[:axis], size * len(offsets), *x.shape[axis + 1 :])


def _cut(x, axis, first, last):
    return jax.lax.slice_in_dim(x, first, last, axis=axis)


def enlarge_class_maps(logits: jax.Array, factor: int) -> jax.Array:
    """Logits of a decoder's grid to logits of pixels, class by class.

    Classes come before positions: with five or six of them last, a TPU would pad each pixel to 128 lanes. Columns are
    made by a product with the interpolation's matrix, since weaving copies along the last axis is slow there too.

    Args:
      logits: [B, h, w, K] float32.
      factor: of both sides.

    Returns:
      [B, K, h * factor, w * factor] float32, bilinear as `enlarge`.
    """
    x = jnp.moveaxis(logits.astype(jnp.float32), -1, 1)
    matrix = interpolation_matrix(x.shape[-1], x.shape[-1] * factor)
    x = jnp.einsum("bkhw,vw->bkhv", x, matrix, precision=jax.lax.Precision.HIGHEST)
    return enlarge(x, factor, axes=(2,))


def interpolation_matrix(size: int, new_size: int) -> np.ndarray:
    """[new_size, size] float32 matrix of bilinear interpolation along one axis, for any two sizes (see `enlarge`)."""
    place = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    lower = np.minimum(place.astype(int), max(size - 2, 0))
    share = place - lower
    matrix = np.zeros((new_size, size), np.float32)
    matrix[np.arange(new_size), lower] = 1 - share
    matrix[np.arange(new_size), np.minimum(lower + 1, size - 1)] += share
    return matrix


def resample(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """x [B, rows, columns, C] with its sides multiplied by matrices [new, old]: pooling, or interpolation."""
    for equation, matrix in (("oh,bhwc->bowc", rows), ("ow,bhwc->bhoc", columns)):
        x = jnp.einsum(equation, jnp.asarray(matrix, jnp.float32), x, precision=jax.lax.Precision.HIGHEST)
    return x
