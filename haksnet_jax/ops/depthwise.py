"""Depthwise convolution: every channel is filtered by a kernel of its own.

To compilers this is a rare case of the general convolution, and each is bad at it in a place of its own: XLA's CPU and
TPU loops, cuDNN from 9 x 9 on, all of them at the gradients. So there are three forms with equal results, and one is
chosen for the platform that a computation is lowered for (not the one it is traced on: a CPU host compiles for TPUs):

  slices   sum of shifted, weighted copies: CPU, TPU. XLA fuses all of them into one loop.
  library  the vendor's convolutions on kernels small enough for its fast paths: GPUs that cannot run the kernels of
  triton   depthwise_triton.py: NVIDIA GPUs from Ampere on.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from haksnet_jax.ops import depthwise_triton


@jax.custom_vjp
def depthwise_conv(x, kernel):
    """Convolves every channel of x with its own square kernel, at stride 1 with zeros around the image.

    out[b, i, j, c] = sum over dy, dx of x[b, i + dy - k // 2, j + dx - k // 2, c] * kernel[dy, dx, c]

    The kernel is rounded to the type of x; products and sums are float32 and the output is rounded once (the library
    form rounds each of its partial convolutions). The gradient with respect to the kernel is summed in float32.

    The batch may be sharded. On NVIDIA GPUs the mesh must then be the ambient one (`jax.set_mesh`), since XLA cannot
    split the kernels that run there: each device takes its share of the batch. Without an ambient mesh every device
    computes the whole batch.

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
    return jax.lax.platform_dependent(
        x,
        kernel.astype(x.dtype),
        cuda=convolve_triton if depthwise_triton.usable() else convolve_library,
        rocm=convolve_library,
        default=convolve_slices,
    )


def _depthwise_conv_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _depthwise_conv_backward(residuals, gradient):
    x, kernel = residuals
    # The transpose is the same operation with the kernel turned by 180 degrees, so the same form serves. The derivative
    # that JAX would build takes XLA's TPU compiler 15 times as long.
    x_gradient = _convolve(gradient, kernel[::-1, ::-1])
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cuda=functools.partial(
            weight_gradient_triton if depthwise_triton.usable() else weight_gradient_library, k=kernel.shape[0]
        ),
        rocm=functools.partial(weight_gradient_library, k=kernel.shape[0]),
        default=functools.partial(weight_gradient_slices, k=kernel.shape[0]),
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)


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
        rows = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1).astype(jnp.float32)
        products = (rows[:, :, dx : dx + width] * gradient.astype(jnp.float32) for dx in range(k))
        return jnp.stack([jnp.sum(product, axis=(0, 1, 2)) for product in products])

    # A loop over the rows: k * k reductions side by side take TPU's compiler several times as long.
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


def convolve_triton(x, kernel, *, interpret=False):
    """`depthwise_conv` by depthwise_triton.py, each device of the ambient mesh on its share of the batch."""
    convolve = functools.partial(depthwise_triton.convolve, interpret=interpret)
    axes = _batch_axes(x.shape[0])
    if not axes:
        return convolve(x, kernel)
    split, whole = jax.P(axes), jax.P()
    return jax.shard_map(convolve, in_specs=(split, whole), out_specs=split, axis_names=set(axes), check_vma=False)(
        x, kernel
    )


def weight_gradient_triton(x, gradient, k, *, interpret=False):
    """[k, k, C] float32 gradient with respect to the kernel by depthwise_triton.py, summed over the devices."""
    weight_gradient = functools.partial(depthwise_triton.weight_gradient, k=k, interpret=interpret)
    axes = _batch_axes(x.shape[0])
    if not axes:
        return weight_gradient(x, gradient)
    return jax.shard_map(
        lambda x, gradient: jax.lax.psum(weight_gradient(x, gradient), axes),
        in_specs=(jax.P(axes), jax.P(axes)),
        out_specs=jax.P(),
        axis_names=set(axes),
        check_vma=False,
    )(x, gradient)


def _batch_axes(num_images):
    """Axes of the ambient mesh to split a batch over: none without a mesh, in shard_map, or if it does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    )
    num_devices = math.prod(mesh.shape[name] for name in axes)
    return axes if num_devices > 1 and num_images % num_devices == 0 else ()
