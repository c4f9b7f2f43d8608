"""Strided convolution, of which the network has one in front of each stage.

Few channels are an array of little use to matrix units, so blocks of pixels are laid into them first. What then stands
is a convolution for GPUs and CPUs and a product for TPUs, whose compiler cuts such a convolution of few images into
tiles of its own, moves maps there and back, and takes its neighbours along.
"""

import itertools

import jax
import jax.numpy as jnp

from haksnet_jax.target import by_platform, platform

_FEW_CHANNELS = 8  # fewer than these are laid together


def strided_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves with k // 2 zeros around the image.

    By the TPU compiler's estimates for v5e (T's patch embeddings, 2 images, forward + gradients), as convolution and as
    product: stage 1 0.94 and 0.60 ms (as it stands, without blocks, 20), 2 0.78 and 0.84, 3 0.36 and 0.57, 4 0.44 and
    0.30; the products compile in half of the time.

    Args:
      x: [B, H, W, C] features.
      kernel: [k, k, C, C'] in the type of x, k odd; less than 2 * stride where C < 8.
      stride: of rows and columns.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C'] in the type of x.
    """
    padding = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    if x.shape[3] < _FEW_CHANNELS:
        x, kernel = _blocks(x, stride), _kernel_of_blocks(kernel, stride)
        stride, padding = 1, (1, 0)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # Computed again for the gradient: what the kernel meets is up to nine times as large as the map.
    product = jax.checkpoint(lambda x, kernel: convolve_columns(x, kernel, stride, padding))
    return by_platform(x, kernel, tpu=product, default=convolve)


def convolve_columns(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: tuple[int, int],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike | None = None,
) -> jax.Array:
    """A convolution as one product: all that the kernel meets at a position lies side by side as channels.

    Args:
      x: [B, H, W, C] features.
      kernel: [k, k, C, C'] in the type of x.
      stride: of rows and columns.
      padding: zeros before and behind rows and columns.
      dtype: of the result; None: that of x.
      precision: of the product, as `jax.lax.dot` takes it.

    Returns:
      [B, H', W', C'].
    """
    size = len(kernel)
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    ends = [side - size + 1 for side in x.shape[1:3]]  # of the positions at stride 1
    columns = [
        x[:, row : row + ends[0] : stride, column : column + ends[1] : stride]
        for row, column in itertools.product(range(size), repeat=2)
    ]
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return jnp.dot(jnp.concatenate(columns, axis=-1), kernel, precision=precision, preferred_element_type=dtype)


def _blocks(x, stride):
    """[B, ceil(H / s), ceil(W / s), s s C] the pixels of each block of s x s as channels."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % stride), (0, -x.shape[2] % stride), (0, 0)))
    return blocks_by_slices(x, stride) if platform() == "tpu" else blocks_by_transposition(x, stride)


def blocks_by_slices(x: jax.Array, stride: int) -> jax.Array:
    """Strided slices side by side: the TPU compiler's reshape and transposition took longer than all the rest."""
    offsets = itertools.product(range(stride), repeat=2)
    return jnp.concatenate([x[:, row::stride, column::stride] for row, column in offsets], axis=-1)


def blocks_by_transposition(x: jax.Array, stride: int) -> jax.Array:
    """The same for GPUs.

    Of a concatenation they would ask for each number which of its parts it comes from, and compute what stands before
    it for all of them: normalisation and mixing took 3.2 of 90 ms of a pre-training step.
    """
    batch, height, width, num_channels = x.shape
    x = x.reshape(batch, height // stride, stride, width // stride, stride, num_channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // stride, width // stride, stride * stride * num_channels)


def _kernel_of_blocks(kernel, stride):
    """[2, 2, s s C, C'] a kernel [k, k, C, C'] over blocks: it reaches into the block before, never into the next."""
    size, _, channels_in, channels_out = kernel.shape
    margin = (stride - size // 2, stride - 1 - size // 2)
    kernel = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0)))
    kernel = kernel.reshape(2, stride, 2, stride, channels_in, channels_out).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(2, 2, stride * stride * channels_in, channels_out)
