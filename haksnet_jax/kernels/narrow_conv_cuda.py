"""7 x 7 convolution of four channels on the matrix units of NVIDIA GPUs, in bfloat16: cuda/narrow.cu."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_SIDE = 7
_CHANNELS = 4
_COLUMNS = 32  # of a warp
_WARPS = 4  # of a block of the convolution
_ENOUGH_WARPS = 1000  # half of what an H100 holds at a time: more rows for each are worth fewer warps than that
_BLOCKS = 264  # of the weight gradient, at most: two for each multiprocessor of an H100
_MOST_BLOCKS = (1 << 16) - 1  # of a grid, in y and z


def suits(shape: tuple[int, ...], dtype: jnp.dtype, kernel_shape: tuple[int, ...], shared_bytes: int) -> bool:
    """Whether the kernels take features [B, H, W, C] of a type and weights of this shape."""
    if dtype != jnp.bfloat16 or kernel_shape != (_SIDE, _SIDE, _CHANNELS, _CHANNELS):
        return False
    num_images, height, width, _ = shape
    # Places in an image, and up to thirteen rows outside it that are not read, are numbers of 32 bits.
    if max(height, 16) * width * _CHANNELS >= 1 << 30:
        return False
    return max(num_images, height) <= _MOST_BLOCKS and _weight_gradient_shared(8) <= shared_bytes


def _warps(shape, rows):
    num_images, height, width, _ = shape
    return num_images * pl.cdiv(height, rows) * pl.cdiv(width, _COLUMNS)


def _rows(shape):
    """Rows of outputs of a warp: the more, the fewer times an input row is loaded."""
    return next((rows for rows in (8, 4) if _warps(shape, rows) >= _ENOUGH_WARPS), 2)


def _numbers(shape):
    return dict(zip(("BATCH", "HEIGHT", "WIDTH"), shape[:3], strict=True))


def arranged(kernel: jax.Array) -> jax.Array:
    """[7, 2, 32, 4] bfloat16 weights as the threads of a warp multiply with them.

    A pair of outputs meets eight columns. Thread 4 g + j has, in instruction n, two input channels of their columns
    2 n + j // 2 and 4 + 2 n + j // 2, from 2 (j % 2) on, for output g: channel g % 4 of the pair's first (g < 4) or
    second column.

    Args:
      kernel: [7, 7, 4, 4].
    """
    kernel = kernel.astype(jnp.bfloat16)
    both = [jnp.pad(kernel, ((0, 0), margin, (0, 0), (0, 0))) for margin in ((0, 1), (1, 0))]
    taps = jnp.stack(both, axis=3)  # [row, column of eight, input, column of the pair, output]
    taps = taps.reshape(_SIDE, 2, 2, 4, 2, 2 * _CHANNELS).transpose(0, 2, 5, 3, 1, 4)
    return taps.reshape(_SIDE, 2, 32, 4)


@functools.partial(jax.jit, static_argnames=("dtype",))
def convolve(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Convolution at stride 1 with zeros around the image.

    Args:
      x: [B, H, W, 4] bfloat16 features.
      kernel: [7, 7, 4, 4] weights, which are rounded to bfloat16.
      dtype: of the result, float32 or bfloat16.

    Returns:
      [B, H, W, 4] in dtype; sums are float32. A number that is not finite reaches both outputs of a pair of columns.
    """
    return convolve_arranged(x, arranged(kernel), dtype)


def convolve_arranged(x: jax.Array, weights: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`convolve` with a kernel that is `arranged` already."""
    num_images, height, width, _ = x.shape
    rows = _rows(x.shape)
    (out,) = ptx.call(
        "narrow",
        f"narrow_{rows}_{jnp.dtype(dtype).name}",
        (x, weights),
        (jax.ShapeDtypeStruct(x.shape, dtype),),
        grid=(pl.cdiv(width, _COLUMNS), pl.cdiv(height, _WARPS * rows), num_images),
        threads=32 * _WARPS,
        shared=0,
        numbers=_numbers(x.shape),
    )
    return out


def _weight_gradient_shared(warps):
    return 4 * 320 * _SIDE * warps  # kRowWords of narrow.cu for each warp and kernel row


@jax.jit
def weight_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of `convolve` with respect to its kernel: sums of blocks of threads, which XLA adds.

    Args:
      x: [B, H, W, 4] bfloat16 input of the convolution.
      gradient: [B, H, W, 4] bfloat16 gradient with respect to its output.

    Returns:
      [7, 7, 4, 4] float32.
    """
    return weight_gradient_sums(x, gradient).sum(0)


def weight_gradient_sums(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """[blocks, 7, 7, 4, 4] float32, whose sums over the blocks are `weight_gradient`."""
    rows, warps = (8, 8) if _rows(x.shape) == 8 else (2, 4)
    blocks = min(pl.cdiv(_warps(x.shape, rows), warps), _BLOCKS)
    (sums,) = ptx.call(
        "narrow",
        f"narrow_{rows}_weight_gradient",
        (x, gradient),
        (jax.ShapeDtypeStruct((blocks, _SIDE, _SIDE, _CHANNELS, _CHANNELS), jnp.float32),),
        grid=(blocks, 1, 1),
        threads=32 * warps,
        shared=_weight_gradient_shared(warps),
        numbers=_numbers(x.shape),
    )
    return sums
