"""Depthwise convolution: every channel is filtered by a kernel of its own."""

import jax
import jax.numpy as jnp


def depthwise_conv(x, kernel):
    """Convolves every channel of x with its own square kernel, at stride 1 with zeros around the image.

    Products and sums are float32; the output is rounded once, to the type of x.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C] float32 weights, k odd.

    Returns:
      [B, H, W, C] in the type of x.
    """
    k, _, num_channels = kernel.shape
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        window_strides=(1, 1),
        padding=[(k // 2, k // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=num_channels,
        preferred_element_type=jnp.float32 if x.dtype == jnp.float32 else None,
    ).astype(x.dtype)
