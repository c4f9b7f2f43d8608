"""A convolution of the first channels of a map on NVIDIA GPUs, in bfloat16: cuda/partial_conv.cu."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_THREADS = 256
_ROWS, _COLUMNS = 8, 32  # of a block
_TAPS = 9
# By the convolved channels: of how many of the gradient's channels a block has the sums, and among how many of its
# eight warps they are divided; the other warps have other rows.
_SHARES = {8: (8, 1), 16: (16, 4), 32: (32, 8), 40: (40, 8), 64: (32, 8)}


def suits(shape: tuple[int, ...], dtype: jnp.dtype, num_convolved: int, shared_bytes: int) -> bool:
    """Whether the kernels take a map [B, H, W, C] of a type, with this much shared memory a block."""
    num_images, height, width, channels = shape
    if dtype != jnp.bfloat16 or num_convolved not in _SHARES or channels != 4 * num_convolved:
        return False
    places = height * width * channels
    fits = max(_bytes(num_convolved), _gradient_bytes(num_convolved)) <= shared_bytes
    return fits and places < 1 << 31 and num_images * _regions(shape)[1] < 1 << 31


def _regions(shape):
    """(side by side, of an image)."""
    across = pl.cdiv(shape[2], _COLUMNS)
    return across, across * pl.cdiv(shape[1], _ROWS)


def _pitch(channels):
    return channels // 8 | 1


def _steps(num_convolved):
    """Pairs of groups of eight terms."""
    return pl.cdiv(_TAPS * num_convolved // 8, 2)


def _halo_bytes(num_convolved):
    return (_ROWS + 2) * (_COLUMNS + 2) * _pitch(num_convolved) * 16


def _bytes(num_convolved):
    return _halo_bytes(num_convolved) + _steps(num_convolved) * num_convolved // 8 * 256


def _gradient_bytes(num_convolved):
    return _halo_bytes(num_convolved) + _ROWS * _COLUMNS * _pitch(_SHARES[num_convolved][0]) * 16


def _numbers(shape):
    across, of_image = _regions(shape)
    return {**dict(zip(("BATCH", "HEIGHT", "WIDTH", "CHANNELS"), shape, strict=True)), "ACROSS": across} | {
        "REGIONS": of_image
    }


def _factors(kernel):
    """[steps, P / 8, 32, 2, 2] bfloat16: each thread's factors for the instruction mma.m16n8k16.

    Thread 4 g + m has rows 2 m, 2 m + 1, 2 m + 8 and 2 m + 9 of column g.
    """
    num_convolved = kernel.shape[-1]
    steps = _steps(num_convolved)
    rows = kernel.reshape(_TAPS * num_convolved, num_convolved)
    rows = jnp.pad(rows, ((0, 16 * steps - len(rows)), (0, 0))).astype(jnp.bfloat16)
    by_thread = rows.reshape(steps, 2, 4, 2, num_convolved // 8, 8).transpose(0, 4, 5, 2, 1, 3)
    return by_thread.reshape(steps, num_convolved // 8, 32, 2, 2)


@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution of the first P channels, with zeros around the image; the others as they are.

    Args:
      x: [B, H, W, 4 P] bfloat16.
      kernel: [3, 3, P, P] weights, rounded to bfloat16.

    Returns:
      [B, H, W, 4 P] bfloat16; sums are float32.
    """
    num_convolved = kernel.shape[-1]
    (out,) = ptx.call(
        "partial_conv",
        f"partial_conv_{num_convolved}",
        (x, _factors(kernel)),
        (jax.ShapeDtypeStruct(x.shape, x.dtype),),
        grid=(x.shape[0] * _regions(x.shape)[1], 1, 1),
        threads=_THREADS,
        shared=_bytes(num_convolved),
        numbers=_numbers(x.shape),
    )
    return out


@functools.partial(jax.jit, static_argnames=("num_convolved",))
def weight_gradient(x: jax.Array, gradient: jax.Array, num_convolved: int) -> jax.Array:
    """Gradient of `convolve` with respect to the kernel.

    Every block of threads writes the sums of its own regions, and XLA adds them: the same bits in every run.

    Args:
      x: [B, H, W, 4 P] bfloat16 input.
      gradient: [B, H, W, 4 P] bfloat16 with respect to the output.
      num_convolved: P.

    Returns:
      [3, 3, P, P] float32.
    """
    outs, across = _SHARES[num_convolved]
    parts = num_convolved // outs
    blocks = min(x.shape[0] * _regions(x.shape)[1], 2 * ptx.MULTIPROCESSORS // parts)
    shares = _THREADS // 32 // across
    (sums,) = ptx.call(
        "partial_conv",
        f"partial_conv_{num_convolved}_weight_gradient",
        (x, gradient),
        (jax.ShapeDtypeStruct((blocks * shares, 3, 3, num_convolved, num_convolved), jnp.float32),),
        grid=(blocks, parts, 1),
        threads=_THREADS,
        shared=_gradient_bytes(num_convolved),
        numbers=_numbers(x.shape),
    )
    return sums.sum(0)
