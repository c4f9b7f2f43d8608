"""Convolution of a few channels, all with all: compilers and libraries are made for many channels.

A TPU's registers and matrix unit are 128 wide. With channels along them, four or eight channels leave most of that
empty; with the columns of the image along them (`convolve_bands`), nothing. Elsewhere the caller says what to do.
Where a convolution has a stride, blocks of pixels are laid into the channels instead, on every platform.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from haksnet_jax.ops.depthwise import diagonals, matrix_precision
from haksnet_jax.ops.platforms import by_platform
from haksnet_jax.ops.sharding import over_mesh

# By the TPU compiler's estimates for v5e (T's stages, 2 images, 3 x 3, forward + gradients, with the MLP after it),
# bands against its own convolution: 8 channels of 256 x 256 3.5 and 6.1 ms, 16 of 128 x 128 2.2 and 3.0 ms; 40 of
# 64 x 64 1.7 and 1.3 ms. As one convolution of rows for all kernel rows, as depthwise kernels are, the former two take
# 5.4 and 3.6 ms.
_MOST_CHANNELS = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow_conv(x, kernel, otherwise):
    """Convolves at stride 1 with zeros around the image: by band matrices on TPUs, by `otherwise` elsewhere.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C, C'] weights, k odd, usually float32; rounded to the type of x.
      otherwise: function (x, kernel) of the same result, for other platforms and for more than 16 channels.

    Returns:
      [B, H, W, C'] in the type that `otherwise` gives; sums are float32.
    """

    def bands(x, kernel):
        return narrow_conv_bands(x, kernel, jax.eval_shape(otherwise, x, kernel).dtype)

    return by_platform(x, kernel, **_forms(kernel, bands, otherwise))


def _forms(kernel, bands, otherwise):
    return {"default": otherwise, **({"tpu": bands} if max(kernel.shape[2:]) <= _MOST_CHANNELS else {})}


def _narrow_conv_forward(x, kernel, otherwise):
    return narrow_conv(x, kernel, otherwise), (x, kernel)


def _narrow_conv_backward(otherwise, saved, gradient):
    def gradients(x, kernel, gradient):
        return jax.vjp(otherwise, x, kernel)[1](gradient)

    return by_platform(*saved, gradient, **_forms(saved[1], narrow_conv_bands_gradients, gradients))


narrow_conv.defvjp(_narrow_conv_forward, _narrow_conv_backward)


def narrow_conv_bands(x, kernel, dtype):
    """`narrow_conv` in dtype, as one product with band matrices for each kernel row, all channels in one."""
    return over_mesh(functools.partial(_convolve_bands, dtype=dtype), x, kernel.astype(x.dtype), split=1)


def narrow_conv_bands_gradients(x, kernel, gradient):
    """The gradients of `narrow_conv_bands` with respect to x and kernel."""
    gradient = gradient.astype(x.dtype)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    weight_gradient = functools.partial(_weight_gradient_bands, k=kernel.shape[0])
    kernel_gradient = over_mesh(weight_gradient, x, gradient, summed=True)
    return narrow_conv_bands(gradient, turned, x.dtype), kernel_gradient.astype(kernel.dtype)


def _planes(x):
    return x.transpose(3, 0, 1, 2)  # [C, B, H, W]


def _pad_rows(x, k):
    """[B, H + k - 1, W, C] with zeros above and below: bands leave out what columns beside the image would add."""
    return jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0), (0, 0)))


def _band_matrices(kernel, dy, masks):
    """[..., W, W] matrices with row dy of a kernel [k, k, ...] on the k diagonals that `masks` name."""
    band = jnp.zeros((*kernel.shape[2:], *masks[0].shape), kernel.dtype)
    # Selects, not a gather: XLA fuses them into the product. Weights are taken out one by one: a whole row at once was
    # slower by the TPU compiler's estimate.
    for d, mask in enumerate(masks):
        band = jnp.where(mask, kernel[dy, d][..., None, None], band)
    return band


def _diagonal_sums(products, masks):
    """[k, ...] sums of products [..., W, W] over the k diagonals that `masks` name."""
    # Masked sums fuse into the product; moving the diagonals into columns took twice as long.
    return jnp.stack([jnp.sum(jnp.where(mask, products, 0.0), axis=(-2, -1)) for mask in masks])


def _convolve_bands(x, kernel, dtype):
    batch, height, width, _ = x.shape
    k, channels_out = len(kernel), kernel.shape[-1]
    padded = _planes(_pad_rows(x, k))
    masks = diagonals(width, k)

    def add_row(dy, total):
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=2)
        band = _band_matrices(kernel, dy, masks)
        return total + jnp.einsum(
            "ibhu,iowu->obhw", rows, band, precision=matrix_precision(x), preferred_element_type=jnp.float32
        )

    total = jax.lax.fori_loop(0, k, add_row, jnp.zeros((channels_out, batch, height, width), jnp.float32))
    return total.transpose(1, 2, 3, 0).astype(dtype)


def _weight_gradient_bands(x, gradient, k):
    """[k, k, C, C'] float32 gradient with respect to the kernel."""
    _, height, width, _ = x.shape
    padded, gradient = _planes(_pad_rows(x, k)), _planes(gradient)
    masks = diagonals(width, k)

    def kernel_row(dy):
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=2)
        products = jnp.einsum(
            "obhw,ibhu->iowu", gradient, rows, precision=matrix_precision(x), preferred_element_type=jnp.float32
        )
        return _diagonal_sums(products, masks)

    return jax.lax.map(kernel_row, jnp.arange(k))


def space_to_depth_conv(x, kernel, stride):
    """A strided convolution as one of stride 1, over blocks of stride x stride pixels laid into the channels.

    Convolutions of the three colours leave matrix units idle and make arrays of a few channels, which TPUs fill up to
    128: by the compiler's estimate for v5e, the first patch embedding (2 images of 1024 x 1024, forward + gradients)
    takes 20.0 ms as it stands and 1.1 ms so, with 3.2 and 0.01 GB to and from main memory.

    Args:
      x: [B, H, W, C] features.
      kernel: [k, k, C, C'] in the type of x, k odd and less than 2 * stride; k // 2 zeros surround the image.
      stride: of rows and columns.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C'] in the type of x.
    """
    _, height, width, _ = x.shape
    size, _, channels_in, channels_out = kernel.shape
    x = jnp.pad(x, ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0)))
    # Strided slices side by side: the TPU compiler's reshape and transpose took longer than all the rest.
    offsets = itertools.product(range(stride), repeat=2)
    x = jnp.concatenate([x[:, row::stride, column::stride] for row, column in offsets], axis=-1)
    # The kernel reaches into the block before, never into the one after.
    margin = (stride - size // 2, stride - 1 - size // 2)
    kernel = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0)))
    kernel = kernel.reshape(2, stride, 2, stride, channels_in, channels_out).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(2, 2, stride * stride * channels_in, channels_out)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 0), (1, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
