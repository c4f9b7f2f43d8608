"""A 3 x 3 convolution of the first channels of a map, the others left as they are, on GPUs in bfloat16.

On NVIDIA GPUs from Ampere on a kernel writes both parts at once, and its gradients touch the convolved channels alone
(`partial_conv_cuda`). Elsewhere it is one library convolution of all channels, where the others have a single weight of
one at the centre: exact in bfloat16, and without the copies of parts, which take a GPU longer than products with zeros.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from haksnet_jax.kernels import partial_conv_cuda, ptx
from haksnet_jax.target import by_platform, gradients_of, over_mesh, share_of


@jax.custom_vjp
def partial_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves the first P channels at stride 1 with zeros around the image.

    Args:
      x: [B, H, W, C] bfloat16 features; the batch may be sharded over the ambient mesh.
      kernel: [3, 3, P, P] weights, P at most C, rounded to bfloat16.

    Returns:
      [B, H, W, C] bfloat16: P convolved channels, then those of x.
    """
    convolve, _ = _forms(x, kernel)
    return over_mesh(convolve, x, kernel, split=1)


def _partial_conv_forward(x, kernel):
    return partial_conv(x, kernel), (x, kernel)


def _partial_conv_backward(saved, gradient):
    x, kernel = saved
    convolve, kernel_gradient = _forms(x, kernel)
    # The transpose is the same operation with the kernel turned by 180 degrees, outputs and inputs exchanged.
    x_gradient = over_mesh(convolve, gradient, kernel[::-1, ::-1].swapaxes(2, 3), split=1)
    found = over_mesh(kernel_gradient, x, gradient, summed=True)
    return x_gradient, found.astype(kernel.dtype)


partial_conv.defvjp(_partial_conv_forward, _partial_conv_backward)


def _forms(x, kernel):
    """(the convolution, the gradient of its kernel), chosen by platform."""
    num_convolved = kernel.shape[-1]

    def library_gradient(x, gradient):
        return gradients_of(with_identity)(x, jnp.zeros(kernel.shape, jnp.float32), gradient)[1]

    convolve = {"default": with_identity}
    kernel_gradient = {"default": library_gradient}
    if partial_conv_cuda.suits(share_of(x.shape), x.dtype, num_convolved, ptx.shared_bytes()):
        convolve["cuda"] = partial_conv_cuda.convolve
        kernel_gradient["cuda"] = functools.partial(partial_conv_cuda.weight_gradient, num_convolved=num_convolved)
    return functools.partial(by_platform, **convolve), functools.partial(by_platform, **kernel_gradient)


def with_identity(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`partial_conv` as one convolution of all channels."""
    num_convolved, num_channels = kernel.shape[-1], x.shape[-1]
    beyond = (0, num_channels - num_convolved)
    identity = np.zeros((3, 3, num_channels, num_channels), np.float32)
    identity[1, 1] = np.diag(np.arange(num_channels) >= num_convolved)
    return plain_convolution(x, jnp.pad(kernel, ((0, 0), (0, 0), beyond, beyond)) + identity)


def plain_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The library's 3 x 3 convolution at stride 1 with zeros around the image. Args: [B, H, W, C]; [3, 3, C, C']."""
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
