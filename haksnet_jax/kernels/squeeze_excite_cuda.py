"""The gate of a squeeze-excite block, and its gradient, on NVIDIA GPUs: cuda/squeeze_excite.cu.

As XLA has it, the gate and its gradient are 12 launches or more, none of which has more to do than a launch takes at
least; here they are three, and one for the parameters.

The parameters are one array [2 C^2 / 4 + C / 4 + C] float32: what `pack` makes, and `unpack` takes apart.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_THREADS = 256  # of a block
_MOST_CHANNELS, _MOST_IMAGES = 512, 2**14
_IMAGES_OF_THREAD = 16  # of the sums over images; more are given to several threads, up to eight
# Numbers that threads leave for each other: four of each, and room for four behind each row of columns, which are eight
# at least.
_ROOM = 4 * _THREADS + 4 * _THREADS // 2


class Parameters(NamedTuple):
    """Of a gate sigmoid(excite(relu(squeeze(means)))): kernels [C, C / 4] and [C / 4, C], biases [C / 4] and [C]."""

    squeeze: jax.Array
    excite: jax.Array
    squeeze_bias: jax.Array
    excite_bias: jax.Array


def suits(num_images: int, num_channels: int) -> bool:
    """Whether the kernels take features [B, H, W, C]; they run wherever `ptx.shared_bytes` is not 0."""
    return num_channels % 32 == 0 and num_channels <= _MOST_CHANNELS and num_images <= _MOST_IMAGES


def pack(parameters: Parameters) -> jax.Array:
    """The parameters as one array, `ptx.joined`."""
    return jax.lax.optimization_barrier(ptx.joined(parameters))


def unpack(packed: jax.Array, num_channels: int) -> Parameters:
    """What `pack` made one array of."""
    width = num_channels // 4
    size = num_channels * width
    squeeze, excite, squeeze_bias, excite_bias = jnp.split(packed, (size, 2 * size, 2 * size + width))
    return Parameters(
        squeeze.reshape(num_channels, width), excite.reshape(width, num_channels), squeeze_bias, excite_bias
    )


def gate(row_sums: jax.Array, packed: jax.Array, *, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gate.

    Args:
      row_sums: [B, H, C] float32, the features' sums over their columns; B and C as `suits` says.
      packed: parameters, see `pack`.
      width: how many columns each sum is of.

    Returns:
      The gate [B, C], and for its gradient the means [B, C] and what is behind the ReLU [B, C / 4]; float32.
    """
    num_images, _, num_channels = row_sums.shape
    values, means, hidden = _launch(
        "squeeze_excite",
        (row_sums, packed),
        ((num_images, num_channels), (num_images, num_channels), (num_images, num_channels // 4)),
        WIDTH=width,
    )
    return values, means, hidden


def gradient(
    row_sums: jax.Array, gate: jax.Array, means: jax.Array, hidden: jax.Array, packed: jax.Array, *, width: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `gate`.

    Args:
      row_sums: [B, H, C] float32, whose sums over H are the gradient with respect to the gate.
      gate, means, hidden: what `gate` gave.
      packed, width: as for `gate`.

    Returns:
      [B, C] float32 gradient with respect to every feature of a channel, and that of the parameters, packed: sums over
      the images, always in the same order.
    """
    num_images, height, num_channels = row_sums.shape
    of_logits, of_hidden = _launch(
        "squeeze_excite_back",
        (row_sums, gate, hidden, packed),
        ((num_images, num_channels), (num_images, num_channels // 4)),
    )
    slices_log = next((log for log in (0, 1, 2) if num_images <= _IMAGES_OF_THREAD << log), 3)
    weight_blocks = pl.cdiv((packed.size // 4) << slices_log, _THREADS)
    of_features, of_packed = ptx.call(
        "squeeze_excite",
        "squeeze_excite_ends",
        (means, hidden, of_logits, of_hidden, packed),
        (jax.ShapeDtypeStruct(means.shape, jnp.float32), jax.ShapeDtypeStruct(packed.shape, jnp.float32)),
        grid=(weight_blocks + num_images * num_channels // 32, 1, 1),
        threads=_THREADS,
        shared=16 * _THREADS if slices_log else 0,
        numbers={
            "BATCH": num_images,
            "HEIGHT": height,
            "WIDTH": width,
            "CHANNELS": num_channels,
            "SLICES_LOG": slices_log,
            "WEIGHT_BLOCKS": weight_blocks,
            **_columns("CHANNEL", num_channels),
            **_columns("HIDDEN", num_channels // 4),
        },
    )
    return of_features, of_packed


def _launch(kernel, operands, shapes, **numbers):
    """Results of a kernel of whole images, whose first operand is [B, H, C]."""
    num_images, height, num_channels = operands[0].shape
    # What the blocks of an image all compute is repeated for nothing where images alone are enough to do.
    parts_log = next((log for log in (2, 1) if num_images << log <= ptx.MULTIPROCESSORS), 0)
    return ptx.call(
        "squeeze_excite",
        kernel,
        operands,
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(1 << parts_log, num_images, 1),
        threads=_THREADS,
        shared=4 * (_ROOM + 2 * num_channels + num_channels // 4),
        numbers={
            "HEIGHT": height,
            "CHANNELS": num_channels,
            "PARTS_LOG": parts_log,
            **_columns("CHANNEL", num_channels),
            **_columns("HIDDEN", num_channels // 4),
            **_columns("PART", num_channels >> parts_log),
            **numbers,
        },
    )


def _columns(name, count):
    """How threads share a matrix with so many columns: what divides by the vectors of a row, who adds up a column."""
    sharers_log = min(5, max(0, (_THREADS // count).bit_length() - 1))
    return {f"{name}_INVERSE": pl.cdiv(1 << 30, count // 4), f"{name}_SHARERS_LOG": sharers_log}
