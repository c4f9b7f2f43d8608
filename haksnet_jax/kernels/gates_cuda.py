"""The gradient of a mixture of four maps with respect to its weights, on NVIDIA GPUs in bfloat16: cuda/gates.cu."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_THREADS = 256


def gradient(
    of_mixed: jax.Array, maps: Sequence[jax.Array], spatial: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of the factors of weights w[b, h, w, i] = spatial[b, h, w, i] * kernel[b, i].

    Args:
      of_mixed: [B, H, W, C] bfloat16 gradient with respect to the sum of maps[i] * w[..., i], C a multiple of 8.
      maps: four arrays like it.
      spatial: [B, H, W, 4] bfloat16, the sigmoid of logits; B at most 65,535.
      kernel: [B, 4] float32.

    Returns:
      ([B, H, W, 4] bfloat16 gradient of the logits, rounded once, [B, 4, blocks] float32, whose sums over the blocks
      are the gradient of kernel, [B, 4, blocks] float32, the same of the sums over positions of the logits' gradient
      before it is rounded).
    """
    num_images, height, width, num_channels = of_mixed.shape
    members_log = _members_log(num_channels)
    blocks = pl.cdiv((height * width) << members_log, _THREADS)
    of_blocks = jax.ShapeDtypeStruct((num_images, 4, blocks), jnp.float32)
    of_logits, of_kernel, of_bias = ptx.call(
        "gates",
        "gates_gradient",
        (of_mixed, *maps, spatial, kernel),
        (jax.ShapeDtypeStruct(spatial.shape, spatial.dtype), of_blocks, of_blocks),
        grid=(blocks, num_images, 1),
        threads=_THREADS,
        shared=4 * 8 * _THREADS // 32,
        numbers={"HEIGHT": height, "WIDTH": width, "CHANNELS": num_channels, "MEMBERS_LOG": members_log},
    )
    return of_logits, of_kernel, of_bias


def _members_log(num_channels):
    """The logarithm of how many threads share a position.

    8 images on an H200, 4 / 8 threads, microseconds: 256 x 256 x 32 45 / 48, 128 x 128 x 64 31 / 24, 64 x 64 x 160
    23 / 18, 32 x 32 x 256 4.4 / 6.4.
    """
    return 3 if 64 <= num_channels < 256 else 2
