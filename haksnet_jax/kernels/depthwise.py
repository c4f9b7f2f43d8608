"""Depthwise convolution: every channel is filtered by a kernel of its own.

To compilers this is a rare case of the general convolution, and each is bad at it in a place of its own: XLA's CPU and
TPU loops, cuDNN from 9 x 9 on, all of them at the gradients. So there are five forms with equal results, and one is
chosen for the platform that a computation is lowered for (not the one it is traced on: a CPU host compiles for TPUs):

  slices   sum of shifted, weighted copies: CPU, and 3 x 3 on small images on TPU. XLA fuses all copies into one loop.
  bands    a convolution over the rows alone, which takes the columns of an image for its channels and multiplies them
           by a band matrix for each kernel row: TPU, where the matrix unit is so much faster than shifting lanes that
           multiplying by the zeros beside the band is cheaper than leaving them out.
  library  the vendor's convolutions on kernels small enough for its fast paths: GPUs that cannot run the kernels of
  triton   depthwise_triton.py: NVIDIA GPUs from Ampere on.
  cuda     depthwise_cuda.py: the same GPUs, on their matrix units, in bfloat16 with k from 3 to 9 and channels in
           eights, if a block has enough shared memory.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from haksnet_jax.kernels import depthwise_cuda, depthwise_triton, ptx, triton
from haksnet_jax.target import by_platform, over_mesh, share_of

_LANES = 128  # of a TPU's registers and matrix unit


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Convolves every channel of x with its own square kernel, at stride 1 with zeros around the image.

    out[b, i, j, c] = bias[c] + sum over dy, dx of x[b, i + dy - k // 2, j + dx - k // 2, c] * kernel[dy, dx, c]

    The kernel is rounded to the type of x; products and sums are float32 and the output is rounded once (the library
    form rounds each of its partial convolutions, and where there is no kernel of our own the bias is rounded and added
    after that). The gradient with respect to the kernel is summed in float32, on TPUs
    from products of 16 bits where the inputs are bfloat16.

    The batch may be sharded. The mesh should then be the ambient one (`jax.set_mesh`): each device takes its share of
    the batch over all axes of the mesh. Without an ambient mesh results are the same, but on NVIDIA GPUs every device
    computes the whole batch (XLA cannot split the kernels that run there), and TPUs sum large partial results.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C] weights, k odd, usually float32.
      bias: [C], or None.

    Returns:
      [B, H, W, C] in the type of x.

    Raises:
      ValueError: shapes or types that do not fit, said at tracing.
    """
    return _depthwise_conv(x, kernel, bias, False)


def depthwise_conv_with_means(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`depthwise_conv`, and means of its result that a kernel has at hand while it writes it.

    Args:
      x, kernel, bias: as for `depthwise_conv`.

    Returns:
      ([B, H, W, C] in the type of x, [B, H, W] means over the channels, [B, C] means over the positions, float32).
    """
    return _depthwise_conv(x, kernel, bias, True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _depthwise_conv(x, kernel, bias, means):
    return _convolve(x, kernel, bias, means)


def _convolve(x, kernel, bias=None, means=False):
    if x.ndim != 4 or kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "depthwise_conv expects x [B, H, W, C] and kernel [k, k, C] with the same C; "
            f"got x {list(x.shape)} and kernel {list(kernel.shape)}."
        )
    if kernel.shape[0] % 2 == 0:
        raise ValueError(f"depthwise_conv expects a kernel with an odd side; got kernel {list(kernel.shape)}.")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"depthwise_conv expects x in float32 or bfloat16; got {x.dtype}.")
    forms = {
        platform: functools.partial(convolve, means=means)
        for platform, (convolve, _) in _forms(x, kernel.shape[0]).items()
    }
    convolve = functools.partial(by_platform, **forms)
    return over_mesh(convolve, x, kernel.astype(x.dtype), *([] if bias is None else [bias]), split=1)


def _depthwise_conv_forward(x, kernel, bias, means):
    return _convolve(x, kernel, bias, means), (x, kernel, bias)


def _depthwise_conv_backward(means, residuals, gradient):
    x, kernel, bias = residuals
    k = kernel.shape[0]
    if means:
        gradient, of_channel_means, of_position_means = gradient
        _, height, width, channels = gradient.shape
        spread = of_channel_means[..., None] / channels + of_position_means[:, None, None] / (height * width)
        gradient = (gradient.astype(jnp.float32) + spread).astype(x.dtype)
    # The transpose is the same operation with the kernel turned by 180 degrees, so the same form serves. The derivative
    # that JAX would build takes XLA's TPU compiler 15 times as long.
    x_gradient = _convolve(gradient, kernel[::-1, ::-1])
    forms = {
        platform: functools.partial(weight_gradient, k=k) for platform, (_, weight_gradient) in _forms(x, k).items()
    }
    weight_gradient = functools.partial(by_platform, **forms)
    kernel_gradient, bias_gradient = over_mesh(weight_gradient, x, gradient, summed=True)
    bias_gradient = None if bias is None else bias_gradient.astype(bias.dtype)
    return x_gradient, kernel_gradient.astype(kernel.dtype), bias_gradient


_depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)


def _forms(x, k):
    """(convolution, gradients of kernel and bias) for each platform of `by_platform`: all choices are made here."""
    slices = _with_bias(convolve_slices, weight_gradient_slices)
    bands = _with_bias(convolve_bands, weight_gradient_bands)
    library = _with_bias(convolve_library, weight_gradient_library)
    grouped = _with_bias(convolve_grouped, weight_gradient_library)
    cuda = library
    if depthwise_cuda.suits(share_of(x.shape), x.dtype, k, ptx.shared_bytes()):
        cuda = (depthwise_cuda.convolve, depthwise_cuda.weight_gradient)
    elif triton.usable():
        cuda = (depthwise_triton.convolve, depthwise_triton.weight_gradient)
    return {
        "cuda": cuda,
        "rocm": library,
        "portable": grouped,
        # By the TPU compiler's own estimates for v5e, 2 images in bfloat16, slices / bands: forward, 256 x 256 x 32,
        # 5 x 5 0.53 / 0.23 ms and 9 x 9 1.7 / 0.28 ms. Channel mixing with its two 3 x 3, forward + gradients: 3.5 /
        # 1.1 ms at 256 x 256, 1.3 / 0.6 at 128 x 128, 0.8 / 0.7 at 64 x 64, 0.3 / 0.5 at 32 x 32; and the MLP with its
        # one 1.3 / 1.8 at 64 x 64.
        "tpu": slices if k <= 3 and x.shape[2] < _LANES else bands,
        "default": slices,
    }


def _with_bias(convolve, weight_gradient):
    """The two functions with bias, means and the bias' gradient, which compilers fuse with what is beside them."""

    def convolve_and_add(x, kernel, bias=None, *, means):
        out = convolve(x, kernel)
        out = out if bias is None else out + bias.astype(x.dtype)
        return (out, out.mean(-1, dtype=jnp.float32), out.mean((1, 2), dtype=jnp.float32)) if means else out

    def gradients(x, gradient, k):
        return weight_gradient(x, gradient, k), gradient.sum((0, 1, 2), dtype=jnp.float32)

    return convolve_and_add, gradients


def _pad(x, k):
    margin = (k // 2, k // 2)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def convolve_slices(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_conv` as a sum of shifted copies (kernel in the type of x)."""
    _, height, width, _ = x.shape
    k = kernel.shape[0]
    padded = _pad(x, k)
    total = jnp.zeros(x.shape, jnp.float32)
    for dy, dx in itertools.product(range(k), repeat=2):
        shifted = padded[:, dy : dy + height, dx : dx + width]
        total += shifted.astype(jnp.float32) * kernel[dy, dx].astype(jnp.float32)
    return total.astype(x.dtype)


def weight_gradient_slices(x: jax.Array, gradient: jax.Array, k: int) -> jax.Array:
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


def matrix_precision(x: jax.Array) -> jax.lax.Precision | None:
    """The matrix units' exact float32; bfloat16 products are exact as they are."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def diagonals(width: int, k: int) -> list[jax.Array]:
    """k masks [W, W] of an output and an input column: those that the kernel's column d joins."""
    difference = jnp.arange(width)[None, :] - jnp.arange(width)[:, None]
    return [difference == d - k // 2 for d in range(k)]


def convolve_bands(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_conv` as a convolution of rows: their columns are its channels, in a group for each channel of x."""
    batch, height, width, channels = x.shape
    k = kernel.shape[0]
    rows = _fenced(x.swapaxes(2, 3)).reshape(batch, height, channels * width)
    bands = _band_matrices(kernel, width).reshape(k, width, channels * width)
    out = _convolve_rows(rows, bands, k, channels)
    return _fenced(out.astype(x.dtype).reshape(batch, height, channels, width)).swapaxes(2, 3)


def _convolve_rows(rows, kernel, k, num_groups):
    """[N, H - K + k, O] float32 convolution of rows [N, H, I] by a kernel [K, I / groups, O], k // 2 zeros around."""
    return jax.lax.conv_general_dilated(
        rows,
        kernel,
        window_strides=(1,),
        padding=((k // 2, k // 2),),
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=num_groups,
        precision=matrix_precision(rows),
        preferred_element_type=jnp.float32,
    )


def _band_matrices(kernel, width):
    """[k, W, C, W] weights by kernel row, input column, channel and output column; zeros outside the bands."""
    k = kernel.shape[0]
    # A tree of selects by the bits of the kernel's column, not a gather: XLA fuses them into the convolution. (With the
    # weights behind a barrier it compiles faster.)
    chosen = jax.lax.optimization_barrier([kernel[:, d, None, :, None] for d in range(k)])
    column = jnp.arange(width)[:, None, None] - jnp.arange(width) + k // 2
    bit = 1
    while bit < k:
        odd = (column & bit) != 0
        pairs = itertools.zip_longest(chosen[::2], chosen[1::2])
        chosen = [even if other is None else jnp.where(odd, other, even) for even, other in pairs]
        bit *= 2
    return jnp.where((column >= 0) & (column < k), chosen[0], 0)


def _fenced(planes):
    """planes [B, H, C, W], made as they are: nothing of what lies on the one side is fused into the other.

    Fused into convolutions, their neighbours make them no faster, and the TPU compiler takes twice as long.
    """
    if planes.shape[3] < _LANES:
        return jax.lax.optimization_barrier(planes)
    # As the rows that are multiplied. The compiler lays them out by their shape: by its estimates for v5e, kernel
    # selection in T's first stage takes 4.1 ms behind a barrier of four axes and 3.0 ms so, in its third 1.9 and 2.2.
    return jax.lax.optimization_barrier(planes.reshape(*planes.shape[:2], -1)).reshape(planes.shape)


def weight_gradient_bands(x: jax.Array, gradient: jax.Array, k: int) -> jax.Array:
    """[k, k, C] float32 gradient of `depthwise_conv` with respect to its kernel, by products of whole image rows.

    The product of the gradient's columns with the input's columns holds the sums for all differences of columns; those
    for one difference lie on one diagonal. All differences of rows are one convolution of the input by the gradient.
    """
    batch, height, width, channels = x.shape
    planes, gradient = _fenced(x.swapaxes(2, 3)), _fenced(gradient.swapaxes(2, 3))
    rows = planes.transpose(3, 1, 2, 0).reshape(width, height, channels * batch)
    gradient_rows = gradient.transpose(1, 0, 2, 3).reshape(height, batch, channels * width)
    products = _convolve_rows(rows, gradient_rows, k, channels)
    products = products.reshape(width, k, channels, width)  # by input column, kernel row, channel and output column
    # As masked sums it takes the TPU compiler three times as long, and the chip up to twice.
    masks = jnp.stack(diagonals(width, k)).astype(jnp.float32)  # [k, output column, input column]
    # Three passes of 16 bits are enough for what bfloat16 factors gave, and six take long to compile: 9 x 9 with its
    # gradients in T's third stage 4.9 instead of 3.3 s.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.HIGH
    return jnp.einsum("uycw,xwu->yxc", products, masks, precision=precision)


def convolve_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_conv` by one convolution, as other runtimes know it."""
    margin = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return _library_convolution(x, kernel, margin, margin)


def convolve_library(x: jax.Array, kernel: jax.Array) -> jax.Array:
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


def weight_gradient_library(x: jax.Array, gradient: jax.Array, k: int) -> jax.Array:
    """[k, k, C] float32 gradient of `convolve_library` with respect to its kernel, as JAX derives it."""
    kernel = jnp.zeros((k, k, x.shape[3]), x.dtype)
    _, pull_back = jax.vjp(functools.partial(convolve_library, x), kernel)
    return pull_back(gradient)[0].astype(jnp.float32)
