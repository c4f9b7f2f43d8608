"""The small layers of kernel selection on NVIDIA GPUs, from sums that its convolutions leave: cuda/attention.cu."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import narrow_conv_cuda, ptx

_THREADS = 1024
_IMAGES = _COLUMNS = 128  # of a block of the gradient
_BEHIND = 24  # parameters of the layers behind the first kernel
_FUSION = (7, 7, 4, 4)
_FUSION_SIZE = 784


class Layers(NamedTuple):
    """Parameters of two dense layers, or their gradients, float32: kernels [4 C, 4] and [4, 4], biases [4]."""

    kernel_1: jax.Array
    bias_1: jax.Array
    kernel_2: jax.Array
    bias_2: jax.Array


class Fusion(NamedTuple):
    """Parameters of a convolution of four channels, or their gradients, float32: kernel [7, 7, 4, 4], bias [4]."""

    kernel: jax.Array
    bias: jax.Array


class Attention(NamedTuple):
    """What `forward` gives.

    Attributes:
      channel_means: [B, H, W, 4] bfloat16 means of the four maps over their channels.
      means: [B, 4 C] float32 means over the positions.
      hidden: [B, 4] float32 hidden layer.
      weights: [B, 4] float32 softmax of the second layer's result.
      fusion, fusion_turned: [1, 7, 2, 32, 4] bfloat16, a convolution's kernel as `narrow_conv_cuda` takes it, as it is
        and as its input's gradient takes it. The first axis stands for a batch: each device of a mesh makes its own.
    """

    channel_means: jax.Array
    means: jax.Array
    hidden: jax.Array
    weights: jax.Array
    fusion: jax.Array
    fusion_turned: jax.Array


def forward(
    position_sums: Sequence[jax.Array], channel_sums: Sequence[jax.Array], parameters: jax.Array, first: int
) -> Attention:
    """Means over the channels, and weights of the four kernels from the means over the positions, in one launch.

    Args:
      position_sums: of four maps [B, H, W, C], float32 [B, blocks, C], which are summed over the blocks.
      channel_sums: of them, float32 [B, blocks, H, W], which are summed over the blocks.
      parameters: [N] float32 array in which those of `Layers` and a kernel [7, 7, 4, 4] lie behind each other.
      first: where they begin.
    """
    num_images, blocks, num_channels = position_sums[0].shape
    _, channel_blocks, height, width = channel_sums[0].shape
    columns = 4 * num_channels
    # As many threads for a channel as there are, or blocks to add.
    parts_log = max(0, min(_THREADS // columns, blocks).bit_length() - 1)
    four = jax.ShapeDtypeStruct((num_images, 4), jnp.float32)
    arranged = jax.eval_shape(narrow_conv_cuda.arranged, jax.ShapeDtypeStruct(_FUSION, jnp.float32))
    arranged = jax.ShapeDtypeStruct((1, *arranged.shape), arranged.dtype)
    results = ptx.call(
        "attention",
        "attention",
        (*position_sums, *channel_sums, parameters),
        (
            jax.ShapeDtypeStruct((num_images, height, width, 4), jnp.bfloat16),
            jax.ShapeDtypeStruct((num_images, columns), jnp.float32),
            four,
            four,
            arranged,
            arranged,
        ),
        grid=(num_images * (1 + pl.cdiv(height * width, _THREADS)) + 1, 1, 1),
        threads=_THREADS,
        shared=4 * ((columns << parts_log) + 4 * _THREADS // 32 + _BEHIND),
        numbers={
            "BATCH": num_images,
            "HEIGHT": height,
            "WIDTH": width,
            "CHANNELS": num_channels,
            "BLOCKS": blocks,
            "CHANNEL_BLOCKS": channel_blocks,
            "PARTS_LOG": parts_log,
            "FIRST": first,
        },
    )
    return Attention(*results)


def gradient(
    of_weights: jax.Array,
    of_logits: jax.Array,
    of_fusion: jax.Array,
    attention: Attention,
    parameters: jax.Array,
    first: int,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the means over the positions, and of all parameters.

    Args:
      of_weights: [B, 4, blocks] float32, which summed over the blocks are the gradient of `forward`'s weights.
      of_logits: [B, 4, blocks] float32 sums over positions of the gradient of the convolution's results.
      of_fusion: [blocks, 7, 7, 4, 4] float32, which summed over the blocks are the gradient of its kernel.
      attention: what `forward` gave.
      parameters, first: what it got.

    Returns:
      ([B, 4 C] float32, [16 C + 812] float32 sums over the images, which `take_apart` takes apart).
    """
    num_images, columns = attention.means.shape
    of_means, of_parameters = ptx.call(
        "attention",
        "attention_gradient",
        (of_weights, of_logits, of_fusion, attention.weights, attention.hidden, attention.means, parameters),
        (
            jax.ShapeDtypeStruct((num_images, columns), jnp.float32),
            jax.ShapeDtypeStruct((4 * columns + _BEHIND + _FUSION_SIZE + 4,), jnp.float32),
        ),
        grid=(pl.cdiv(columns, _COLUMNS) + 1 + pl.cdiv(_FUSION_SIZE, 32), 1, 1),
        threads=_THREADS,
        shared=4 * (3 * 4 * _IMAGES + 4 * _THREADS),
        numbers={
            "BATCH": num_images,
            "CHANNELS": columns // 4,
            "BLOCKS": of_weights.shape[2],
            "FUSION_BLOCKS": of_fusion.shape[0],
            "FIRST": first,
        },
    )
    return of_means, of_parameters


def take_apart(parameters: jax.Array) -> tuple[Layers, Fusion]:
    """Parameters, or their gradients, that lie behind each other [16 C + 812]."""
    lengths = (4, 16, 4, _FUSION_SIZE, 4)
    ends = [len(parameters) - sum(lengths[n:]) for n in range(len(lengths))]
    kernel_1, bias_1, kernel_2, bias_2, kernel, bias = jnp.split(parameters, ends)
    layers = Layers(kernel_1.reshape(-1, 4), bias_1, kernel_2.reshape(4, 4), bias_2)
    return layers, Fusion(kernel.reshape(_FUSION), bias)
