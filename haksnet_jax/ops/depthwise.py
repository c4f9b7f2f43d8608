"""Depthwise convolution: every channel is filtered by a kernel of its own.

To compilers this is a rare case of the general convolution, and each is bad at it in a place of its own: XLA's CPU and
TPU loops, cuDNN from 9 x 9 on, all of them at the gradients. So there are four forms with equal results, and one is
chosen for the platform that a computation is lowered for (not the one it is traced on: a CPU host compiles for TPUs):

  slices   sum of shifted, weighted copies: CPU, and 3 x 3 on small images on TPU. XLA fuses all copies into one loop.
  bands    each kernel row as a band matrix along the image rows: TPU, where the matrix unit is so much faster than
           shifting lanes that multiplying by the zeros beside the band is cheaper than leaving them out.
  library  the vendor's convolutions on kernels small enough for its fast paths: GPUs that cannot run the kernels of
  triton   depthwise_triton.py: NVIDIA GPUs from Ampere on.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from haksnet_jax.ops import depthwise_triton, triton
from haksnet_jax.ops.platforms import by_platform
from haksnet_jax.ops.rematerialization import mark_kept
from haksnet_jax.ops.sharding import over_mesh

# Columns of images on TPUs from which 3 x 3 kernels are bands too, and the convolutions of a cascade share one body.
_NARROWEST_BANDS = 128


@jax.custom_vjp
def depthwise_conv(x, kernel):
    """Convolves every channel of x with its own square kernel, at stride 1 with zeros around the image.

    out[b, i, j, c] = sum over dy, dx of x[b, i + dy - k // 2, j + dx - k // 2, c] * kernel[dy, dx, c]

    The kernel is rounded to the type of x; products and sums are float32 and the output is rounded once (the library
    form rounds each of its partial convolutions). The gradient with respect to the kernel is summed in float32.

    The batch may be sharded. The mesh should then be the ambient one (`jax.set_mesh`): each device takes its share of
    the batch over all axes of the mesh. Without an ambient mesh results are the same, but on NVIDIA GPUs every device
    computes the whole batch (XLA cannot split the kernels that run there), and TPUs sum large partial results.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C] weights, k odd, usually float32.

    Returns:
      [B, H, W, C] in the type of x.

    Raises:
      ValueError: shapes or types that do not fit, said at tracing.
    """
    return _convolve(x, kernel)


def _convolve(x, kernel):
    if x.ndim != 4 or kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "depthwise_conv expects x [B, H, W, C] and kernel [k, k, C] with the same C; "
            f"got x {list(x.shape)} and kernel {list(kernel.shape)}."
        )
    if kernel.shape[0] % 2 == 0:
        raise ValueError(f"depthwise_conv expects a kernel with an odd side; got kernel {list(kernel.shape)}.")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"depthwise_conv expects x in float32 or bfloat16; got {x.dtype}.")
    forms = {platform: convolve for platform, (convolve, _) in _forms(kernel.shape[0], x.shape[2]).items()}
    convolve = functools.partial(by_platform, **forms)
    return over_mesh(convolve, x, kernel.astype(x.dtype), split=1)


def _depthwise_conv_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _depthwise_conv_backward(residuals, gradient):
    x, kernel = residuals
    k = kernel.shape[0]
    # The transpose is the same operation with the kernel turned by 180 degrees, so the same form serves. The derivative
    # that JAX would build takes XLA's TPU compiler 15 times as long.
    x_gradient = _convolve(gradient, kernel[::-1, ::-1])
    forms = {
        platform: functools.partial(weight_gradient, k=k)
        for platform, (_, weight_gradient) in _forms(k, x.shape[2]).items()
    }
    weight_gradient = functools.partial(by_platform, **forms)
    return x_gradient, over_mesh(weight_gradient, x, gradient, summed=True).astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)


@jax.custom_vjp
def depthwise_cascade(x, kernels, biases):
    """Depthwise convolutions one after another, each with a bias: all of their results.

    On TPU, compiling each convolution and its two gradients is what takes time. There, on wide images, they are one
    scanned body in the bands form, whose kernels are filled up with zeros to the size of the largest: half of the
    compilation for rows of zeros that cost little beside what does not depend on the kernel's size.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernels: tuple of [k, k, C] weights of any odd sizes, usually float32.
      biases: tuple of [C], rounded to the type of x.

    Returns:
      Tuple of [B, H, W, C] in the type of x, each the input of the next.
    """
    return by_platform(x, kernels, biases, **_cascade_forms(x, _cascade_in_turn, _cascade_scanned))


def _depthwise_cascade_forward(x, kernels, biases):
    results = mark_kept(depthwise_cascade(x, kernels, biases))
    return results, (x, results, kernels, biases)


def _depthwise_cascade_backward(saved, gradients):
    x, results, kernels, biases = saved
    inputs = (x, *results[:-1])
    forms = _cascade_forms(x, _cascade_in_turn_gradients, _cascade_scanned_gradients)
    return by_platform(inputs, kernels, biases, gradients, **forms)


def _cascade_forms(x, in_turn, scanned):
    """By the TPU compiler's estimates (v5e, kernel selection of T's stages, 2 images, forward + gradients, in turn and
    scanned): 6.8 and 5.6 ms at 256 x 256, 4.1 and 3.2 at 128 x 128, but 3.2 and 4.0 at 64 x 64, 2.0 and 3.6 at 32 x 32.
    """
    return {"default": in_turn, **({"tpu": scanned} if x.shape[2] >= _NARROWEST_BANDS else {})}


depthwise_cascade.defvjp(_depthwise_cascade_forward, _depthwise_cascade_backward)


def _with_bias(x, kernel, bias):
    return depthwise_conv(x, kernel) + bias.astype(x.dtype)


def _cascade_in_turn(x, kernels, biases):
    results = []
    for kernel, bias in zip(kernels, biases, strict=True):
        x = _with_bias(x, kernel, bias)
        results.append(x)
    return tuple(results)


def _cascade_in_turn_gradients(inputs, kernels, biases, gradients):
    of_x = None
    of_kernels, of_biases = [], []
    for x, kernel, bias, gradient in reversed(list(zip(inputs, kernels, biases, gradients, strict=True))):
        of_x = gradient if of_x is None else gradient + of_x
        of_x, of_kernel, of_bias = jax.vjp(_with_bias, x, kernel, bias)[1](of_x)
        of_kernels.append(of_kernel)
        of_biases.append(of_bias)
    return of_x, tuple(of_kernels[::-1]), tuple(of_biases[::-1])


def _fill_up(kernels):
    """[n, k, k, C] of the largest k, with zeros around the smaller kernels."""
    size = max(kernel.shape[0] for kernel in kernels)
    margins = [((size - kernel.shape[0]) // 2,) * 2 for kernel in kernels]
    return jnp.stack(
        [jnp.pad(kernel, (margin, margin, (0, 0))) for kernel, margin in zip(kernels, margins, strict=True)]
    )


def _cascade_scanned(x, kernels, biases):
    def of_batch(x, kernels, biases):
        masks = diagonals(x.shape[2], kernels.shape[1])

        def layer(x, weights):
            kernel, bias = weights
            x = convolve_bands(x, kernel, masks) + bias
            return x, x

        return tuple(jax.lax.scan(layer, x, (kernels, biases))[1])

    return over_mesh(of_batch, x, _fill_up(kernels).astype(x.dtype), jnp.stack(biases).astype(x.dtype), split=1)


def _cascade_scanned_gradients(inputs, kernels, biases, gradients):
    n = len(kernels)

    def of_batch(*arrays):
        inputs, gradients, kernels = jnp.stack(arrays[:n]), jnp.stack(arrays[n:-1]), arrays[-1]
        masks = diagonals(inputs.shape[3], kernels.shape[1])

        def layer(of_x, scanned):
            x, kernel, gradient = scanned
            gradient += of_x
            of_kernel = weight_gradient_bands(x, gradient, kernel.shape[0], masks)
            of_bias = gradient.sum((0, 1, 2), dtype=jnp.float32)
            return convolve_bands(gradient, kernel[::-1, ::-1], masks), (of_kernel, of_bias)

        return jax.lax.scan(layer, jnp.zeros_like(inputs[0]), (inputs, kernels, gradients), reverse=True)

    filled = _fill_up(kernels).astype(inputs[0].dtype)
    of_x, (of_kernels, of_biases) = over_mesh(of_batch, *inputs, *gradients, filled, split=2 * n, summed=(False, True))
    (of_kernels,) = jax.vjp(_fill_up, kernels)[1](of_kernels.astype(kernels[0].dtype))
    return of_x, of_kernels, tuple(of_bias.astype(bias.dtype) for of_bias, bias in zip(of_biases, biases, strict=True))


def _forms(k, width):
    """(convolution, weight gradient) for each platform of `by_platform`: all choices are made here."""
    slices = (convolve_slices, weight_gradient_slices)
    bands = (convolve_bands, weight_gradient_bands)
    library = (convolve_library, weight_gradient_library)
    kernels = (depthwise_triton.convolve, depthwise_triton.weight_gradient)
    return {
        "cuda": kernels if triton.usable() else library,
        "rocm": library,
        # By the TPU compiler's own estimates for v5e, 2 images in bfloat16, slices / bands: forward, 256 x 256 x 32,
        # 5 x 5 0.53 / 0.37 ms and 9 x 9 1.7 / 0.44 ms. Channel mixing with its two 3 x 3, forward + gradients: 3.5 /
        # 1.5 ms at 256 x 256, 1.3 / 0.8 at 128 x 128, 0.8 / 0.8 at 64 x 64, 0.3 / 0.5 at 32 x 32. Both of one kind:
        # they want different layouts, and mixed ones took twice the sum of their parts.
        "tpu": slices if k <= 3 and width < _NARROWEST_BANDS else bands,
        "default": slices,
    }


def _pad(x, k):
    margin = (k // 2, k // 2)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def convolve_slices(x, kernel):
    """`depthwise_conv` as a sum of shifted copies (kernel in the type of x)."""
    _, height, width, _ = x.shape
    k = kernel.shape[0]
    padded = _pad(x, k)
    total = jnp.zeros(x.shape, jnp.float32)
    for dy, dx in itertools.product(range(k), repeat=2):
        shifted = padded[:, dy : dy + height, dx : dx + width]
        total += shifted.astype(jnp.float32) * kernel[dy, dx].astype(jnp.float32)
    return total.astype(x.dtype)


def weight_gradient_slices(x, gradient, k):
    """[k, k, C] float32 gradient of `depthwise_conv` with respect to its kernel, one kernel row after another."""
    _, height, width, _ = x.shape
    padded = _pad(x, k)

    def kernel_row(dy):
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
        products = tuple(
            rows[:, :, dx : dx + width].astype(jnp.float32) * gradient.astype(jnp.float32) for dx in range(k)
        )
        # One reduction of k arrays reads its inputs once, where k reductions read them k times.
        return jnp.stack(jax.lax.reduce(products, (np.float32(0),) * k, _add_each, (1, 2)), axis=1)

    # The images are summed after the loop: if they are sharded, devices then meet once and not at every kernel row.
    return jnp.sum(jax.lax.map(kernel_row, jnp.arange(k)), axis=1)


def _add_each(left, right):
    return tuple(a + b for a, b in zip(left, right, strict=True))


def matrix_precision(x):
    """The matrix units' exact float32; bfloat16 products are exact as they are."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def pad_rows(x, k):
    """[B, H + k - 1, W, C] with zeros above and below: bands leave out what columns beside the image would add."""
    return jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0), (0, 0)))


def diagonals(width, k):
    """k masks [W, W] of an output and an input column: those that the kernel's column d joins."""
    difference = jnp.arange(width)[None, :] - jnp.arange(width)[:, None]
    return [difference == d - k // 2 for d in range(k)]


def band_matrices(kernel, dy, masks):
    """[..., W, W] matrices with row dy of a kernel [k, k, ...] on the k diagonals that `masks` name."""
    band = jnp.zeros((*kernel.shape[2:], *masks[0].shape), kernel.dtype)
    # Selects, not a gather: XLA fuses them into the product. Weights are taken out one by one: a whole row at once was
    # slower by the TPU compiler's estimate (kernel selection 5.9 against 5.6 ms).
    for d, mask in enumerate(masks):
        band = jnp.where(mask, kernel[dy, d][..., None, None], band)
    return band


def diagonal_sums(products, masks):
    """[k, ...] sums of products [..., W, W] over the k diagonals that `masks` name."""
    # Masked sums fuse into the product; moving the diagonals into columns took twice as long.
    return jnp.stack([jnp.sum(jnp.where(mask, products, 0.0), axis=(-2, -1)) for mask in masks])


def convolve_bands(x, kernel, masks=None):
    """`depthwise_conv` as one product with band matrices [width, width] for each kernel row.

    Around a loop, the masks should be made outside (`diagonals`): XLA otherwise makes them anew for every kernel row.
    """
    _, height, width, _ = x.shape
    k = kernel.shape[0]
    padded = pad_rows(x, k)
    masks = diagonals(width, k) if masks is None else masks

    def add_row(dy, total):
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
        band = band_matrices(kernel, dy, masks)
        return total + jnp.einsum(
            "bhuc,cwu->bhwc", rows, band, precision=matrix_precision(x), preferred_element_type=jnp.float32
        )

    return jax.lax.fori_loop(0, k, add_row, jnp.zeros(x.shape, jnp.float32)).astype(x.dtype)


def weight_gradient_bands(x, gradient, k, masks=None):
    """[k, k, C] float32 gradient of `depthwise_conv` with respect to its kernel, by products of whole image rows.

    The product of the gradient's columns with the input's columns holds the sums for all differences of columns; those
    for one difference lie on one diagonal.
    """
    _, height, width, _ = x.shape
    padded = pad_rows(x, k)
    masks = diagonals(width, k) if masks is None else masks

    def kernel_row(dy):
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
        products = jnp.einsum(
            "bhwc,bhuc->cwu", gradient, rows, precision=matrix_precision(x), preferred_element_type=jnp.float32
        )
        return diagonal_sums(products, masks)

    return jax.lax.map(kernel_row, jnp.arange(k))


def convolve_library(x, kernel):
    """`depthwise_conv` by the vendor's convolution; large kernels as the sum of four 5 x 5 kernels.

    cuDNN is fast up to 7 x 7 in bfloat16, and in float32 (whose 7 x 7 gradients are not) up to 5 x 5. Beyond lies a
    cliff: on an H100, 9 x 9 took 14 times as long as 7 x 7.
    """
    k = kernel.shape[0]
    if k <= 5 or (k == 7 and x.dtype == jnp.bfloat16):
        return _library_convolution(x, kernel, (k // 2, k // 2), (k // 2, k // 2))
    total = jnp.zeros(x.shape, jnp.float32)
    # Parts of 5 rows, the last one ending with the kernel; where two overlap, the later one holds zeros.
    starts = sorted({*range(0, k - 5, 5), k - 5})
    for top, left in itertools.product(starts, repeat=2):
        part = kernel[top : top + 5, left : left + 5]
        rows, columns = (_not_in_earlier_part(starts, start) for start in (top, left))
        part = part * (rows[:, None] & columns[None, :])[:, :, None].astype(part.dtype)
        rows, columns = ((k // 2 - start, start + 4 - k // 2) for start in (top, left))
        total += _library_convolution(x, part, rows, columns).astype(jnp.float32)
    return total.astype(x.dtype)


def _not_in_earlier_part(starts, start):
    earlier = max((other + 5 for other in starts if other < start), default=0)
    return jnp.arange(start, start + 5) >= earlier


def _library_convolution(x, kernel, rows, columns):
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding=(rows, columns),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def weight_gradient_library(x, gradient, k):
    """[k, k, C] float32 gradient of `convolve_library` with respect to its kernel, as JAX derives it."""
    kernel = jnp.zeros((k, k, x.shape[3]), x.dtype)
    _, pull_back = jax.vjp(functools.partial(convolve_library, x), kernel)
    return pull_back(gradient)[0].astype(jnp.float32)
