"""Convolution of a few channels, all with all: compilers and libraries are made for many channels.

A TPU's registers and matrix unit are 128 wide. With channels along them, four or eight channels leave most of that
empty; with the columns of the image along them, multiplied by band matrices, nothing. From eight channels on, all that
a kernel meets at a position fills them too (`convolve_columns`). NVIDIA GPUs have kernels for up to four channels: one
for 7 x 7 and four in bfloat16 on the matrix units (`narrow_conv_cuda`), others with a lane for each pair of an input
and an output channel. Elsewhere the caller says what to do.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import depthwise_triton, narrow_conv_cuda, ptx, triton
from haksnet_jax.kernels.depthwise import diagonals, matrix_precision
from haksnet_jax.kernels.strided_conv import convolve_columns
from haksnet_jax.target import by_platform, gradients_of, over_mesh, share_of

# By the TPU compiler's estimates for v5e (T's stages, 2 images, forward + gradients). 7 x 7 of 4 channels, bands and
# columns: 256 x 256 0.6 and 0.8 ms, 64 x 64 0.35 and 0.9. 3 x 3 with the MLP after it, bands, columns and the
# compiler's own convolution: 8 channels of 256 x 256 3.5, 3.4 and 6.1 ms, 16 of 128 x 128 2.2, 2.1 and 3.0, and bands
# take longer to compile; 40 of 64 x 64, columns 1.4 and the compiler's own 1.3. Bands as one convolution of rows, as
# depthwise kernels are: 5.4 and 3.6.
_MOST_CHANNELS_OF_BANDS = 7
_MOST_CHANNELS = 16
# Of the Triton kernel.
_MOST_CHANNELS_OF_PAIRS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow_conv(x: jax.Array, kernel: jax.Array, otherwise: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Convolves at stride 1 with zeros around the image: by forms for TPUs and NVIDIA GPUs, by `otherwise` elsewhere.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C, C'] weights, k odd, usually float32; rounded to the type of x.
      otherwise: function (x, kernel) of the same result, in float32 or bfloat16, for other platforms, and for more
        channels than their forms take: 16 on TPUs, 4 on NVIDIA GPUs.

    Returns:
      [B, H, W, C'] in the type that `otherwise` gives; sums are float32. Forms that multiply on matrix units round the
      gradient of the result to the type of x.
    """
    forms = _forms(x, kernel, otherwise, jax.eval_shape(otherwise, x, kernel).dtype)
    return by_platform(x, kernel, **{name: forward for name, (forward, _) in forms.items()})


def _forms(x, kernel, otherwise, dtype):
    """(convolution in dtype, its gradients) for each platform of `by_platform`: all choices are made here."""
    forms = {"default": (otherwise, gradients_of(otherwise))}
    channels = max(kernel.shape[2:])
    if narrow_conv_cuda.suits(share_of(x.shape), x.dtype, kernel.shape, ptx.shared_bytes()):
        forms["cuda"] = functools.partial(_convolve_cuda, dtype=dtype), _convolve_cuda_gradients
    elif channels <= _MOST_CHANNELS_OF_PAIRS and triton.usable() and _powers_of_two(*kernel.shape[2:]):
        forms["cuda"] = functools.partial(narrow_conv_triton, dtype=dtype), narrow_conv_triton_gradients
    if channels <= _MOST_CHANNELS_OF_BANDS:
        forms["tpu"] = functools.partial(narrow_conv_bands, dtype=dtype), narrow_conv_bands_gradients
    elif channels <= _MOST_CHANNELS:
        columns = functools.partial(_convolve_columns, dtype=dtype)
        forms["tpu"] = columns, gradients_of(columns)
    return forms


def _narrow_conv_forward(x, kernel, otherwise):
    return narrow_conv(x, kernel, otherwise), (x, kernel)


def _narrow_conv_backward(otherwise, saved, gradient):
    forms = _forms(*saved, otherwise, gradient.dtype)
    return by_platform(*saved, gradient, **{name: backward for name, (_, backward) in forms.items()})


narrow_conv.defvjp(_narrow_conv_forward, _narrow_conv_backward)


def _powers_of_two(*numbers):
    return all(number & (number - 1) == 0 for number in numbers)


def _convolve_cuda(x, kernel, dtype):
    return over_mesh(functools.partial(narrow_conv_cuda.convolve, dtype=dtype), x, kernel, split=1)


def _convolve_cuda_gradients(x, kernel, gradient):
    gradient = gradient.astype(x.dtype)
    x_gradient = _convolve_cuda(gradient, kernel[::-1, ::-1].swapaxes(2, 3), x.dtype)
    kernel_gradient = over_mesh(narrow_conv_cuda.weight_gradient, x, gradient, summed=True)
    return x_gradient, kernel_gradient.astype(kernel.dtype)


def narrow_conv_triton(
    x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike, *, interpret: bool = False
) -> jax.Array:
    """`narrow_conv` in dtype by one Triton kernel: sums over the input channels never leave the registers."""
    convolve = functools.partial(depthwise_triton.convolve_narrow, interpret=interpret)
    return over_mesh(convolve, x, kernel.astype(x.dtype), split=1).astype(dtype)


def narrow_conv_triton_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `narrow_conv_triton` with respect to x and kernel."""
    k = kernel.shape[0]
    turned = kernel.astype(x.dtype)[::-1, ::-1].swapaxes(2, 3)
    x_gradient = narrow_conv_triton(gradient, turned, x.dtype, interpret=interpret)

    def weight_gradient(x, gradient):
        return depthwise_triton.weight_gradient(x, gradient, k, pairs=True, interpret=interpret)[0]

    return x_gradient, over_mesh(weight_gradient, x, gradient, summed=True).astype(kernel.dtype)


def _convolve_columns(x, kernel, dtype):
    margin = (len(kernel) // 2, len(kernel) // 2)
    return convolve_columns(x, kernel.astype(x.dtype), 1, margin, dtype=dtype, precision=matrix_precision(x))


def narrow_conv_bands(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`narrow_conv` in dtype, as one product with band matrices for each kernel row, all channels in one."""
    return over_mesh(functools.partial(_convolve_bands, dtype=dtype), x, kernel.astype(x.dtype), split=1)


def narrow_conv_bands_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
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
