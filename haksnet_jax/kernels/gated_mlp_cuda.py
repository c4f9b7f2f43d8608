"""The block's MLP and its gradient on the matrix units of Hopper GPUs, in bfloat16: cuda/gated_mlp.cu.

The composed form of gated_mlp.py, as in gated_mlp_triton.py, with what Triton's compiler does not do: the neighbours of
positions are read from where they lie in shared memory, from nine places of the same three bands, and factors stay.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx
from haksnet_jax.kernels.gated_mlp_triton import (
    ALWAYS,
    EDGES,
    GradientSums,
    compose,
    composed_convolution,
    gradients_of_parts,
)
from haksnet_jax.target import over_mesh, share_of

if TYPE_CHECKING:
    from haksnet_jax.kernels.gated_mlp import GatedMLPWeights  # which imports this module

_TAPS = 9
_ROWS = 64  # positions at a time
_FORWARD_CHANNELS = 32
_FORWARD_HIDDEN = 128  # hidden channels at a time
_FORWARD_GROUPS = 2  # of 128 threads
_GRADIENT_CHANNELS = (32, 64)
_GRADIENT_HIDDEN = 64  # of a block
_GRADIENT_GROUPS = 4
# Most channels whose taps' gradient registers can hold beside the other sums; above, a library convolution gives it.
_SUMS_TAPS = 32


def suits(x: jax.Array, weights: "GatedMLPWeights", shared_bytes: int) -> bool:
    """Whether `forward` takes these shapes and types, with this much shared memory a block (0: no Hopper GPU)."""
    hidden, channels = weights.project_kernel.shape
    fits = hidden % _FORWARD_HIDDEN == 0 and _forward_bytes(channels, hidden) <= shared_bytes
    return channels == _FORWARD_CHANNELS and fits and _counts(x, weights)


def gradients_suit(x: jax.Array, weights: "GatedMLPWeights", shared_bytes: int) -> bool:
    """Whether `gradients` takes these shapes and types, see `suits`."""
    hidden, channels = weights.project_kernel.shape
    if channels not in _GRADIENT_CHANNELS or hidden % _GRADIENT_HIDDEN:
        return False
    return _gradient_bytes(channels) <= shared_bytes and _counts(x, weights)


def _counts(x, weights):
    """Whether type and kernel are right, and the kernels' numbers of 32 bits are enough.

    They divide positions by the length of a row, and rows by the rows of an image, as multiplications: exact while the
    number times the divisor stays below 2^32.
    """
    num_images, height, width, channels = share_of(x.shape)
    rows, pitch = num_images * height + _ROWS, width + 2
    exact = height > 1 and rows * pitch * pitch < 1 << 32 and rows * height < 1 << 32
    places = num_images * height * width * max(channels, weights.project_kernel.shape[0])
    return x.dtype == jnp.bfloat16 and weights.depthwise_kernel.shape[:2] == (3, 3) and exact and places < 1 << 31


def _tiles(shape):
    """Of 64 positions, counted with one more at either end of each row."""
    num_images, height, width, _ = shape
    return pl.cdiv(num_images * height * (width + 2), _ROWS)


def _numbers(shape, hidden):
    num_images, height, width, _ = shape
    return {
        "BATCH": num_images,
        "HEIGHT": height,
        "WIDTH": width,
        "PITCH": width + 2,
        # 2^32 over a divisor, rounded up: the high half of a product with it is a division.
        "PITCH_INVERSE": pl.cdiv(1 << 32, width + 2),
        "HEIGHT_INVERSE": pl.cdiv(1 << 32, height),
        "TILES": _tiles(shape),
        "HIDDEN": hidden,
    }


# Bytes of shared memory, as cuda/gated_mlp.cu lays it out.


def _plane_bytes(channels):
    """Eight channels of a band."""
    return 16 * (66 if channels == 32 else 67)


def _factor_bytes(channels, hidden):
    return 2 * hidden * ((_TAPS + 2) * channels + EDGES)


def _forward_bytes(channels, hidden):
    bands = 3 * channels // 8 * _plane_bytes(channels)
    return _factor_bytes(channels, hidden) + 4 * hidden + _FORWARD_GROUPS * bands


def _gradient_bytes(channels):
    slots = 3 if channels == 32 else 2
    maps = 3 * _GRADIENT_HIDDEN // 8 * 65 * 16
    slot = (5 * channels // 8 + EDGES // 8) * _plane_bytes(channels) + maps
    barriers = 8 * 4 * slots
    # For 64 channels this is all that a Hopper GPU's block can have, to the byte.
    return _factor_bytes(channels, _GRADIENT_HIDDEN) + 4 * _GRADIENT_HIDDEN + barriers + slots * slot


def _packed(composed, size):
    """The factors of `size` hidden channels after those of `size` others, eight terms of a sum side by side.

    Args:
      composed: Composed.
      size: hidden channels that a kernel takes at a time, n times.

    Returns:
      [n, numbers] bfloat16: taps [9, C / 8, size, 8], gate and projection [C / 8, size, 8], edges [2, size, 8].
    """

    def by_eight(factors):  # [..., K, D] -> [n, ..., K / 8, size, 8]
        *before, terms, hidden = factors.shape
        parts = factors.astype(jnp.bfloat16).reshape(*before, terms // 8, 8, hidden // size, size)
        return jnp.moveaxis(parts, (-2, -3), (0, -1)).reshape(hidden // size, -1)

    factors = (composed.taps, composed.gate, composed.project.T, composed.edges)
    return jnp.concatenate([by_eight(each) for each in factors], axis=1)


def forward(x: jax.Array, weights: "GatedMLPWeights") -> jax.Array:
    """`gated_mlp` in one kernel.

    Args:
      x: [B, H, W, 32] bfloat16, H at least 2.
      weights: GatedMLPWeights with a 3 x 3 depthwise kernel, D a multiple of 128, at most 256 on an H100.

    Returns:
      [B, H, W, 32] bfloat16; sums are float32.
    """
    composed = compose(weights)

    def run(x, factors, gate_bias, project_bias):
        channels, hidden = x.shape[3], gate_bias.shape[0]
        (out,) = ptx.call(
            "gated_mlp",
            f"gated_mlp_{channels}",
            (x, factors, gate_bias, project_bias),
            (jax.ShapeDtypeStruct(x.shape, x.dtype),),
            grid=(min(ptx.MULTIPROCESSORS, pl.cdiv(_tiles(x.shape), _FORWARD_GROUPS)), 1, 1),
            threads=128 * _FORWARD_GROUPS,
            shared=_forward_bytes(channels, hidden),
            numbers=_numbers(x.shape, hidden),
        )
        return out

    return over_mesh(run, x, _packed(composed, _FORWARD_HIDDEN), composed.gate_bias, composed.project_bias, split=1)


def gradients(x: jax.Array, weights: "GatedMLPWeights", gradient: jax.Array) -> tuple[jax.Array, "GatedMLPWeights"]:
    """Gradients of `gated_mlp` with respect to x and the weights: one kernel, and one or two library convolutions.

    Every block of threads writes the sums of its own positions, and XLA adds them: the same bits in every run.

    Args:
      x: [B, H, W, C] bfloat16, C 32 or 64, H at least 2.
      weights: GatedMLPWeights with a 3 x 3 depthwise kernel, D a multiple of 64.
      gradient: [B, H, W, C] bfloat16 with respect to the output.

    Returns:
      (gradient to x, GatedMLPWeights of gradients).
    """
    hidden, channels = weights.project_kernel.shape
    chunks = hidden // _GRADIENT_HIDDEN
    composed, pull_back = jax.vjp(compose, weights)

    def run(x, gradient, factors, gate_bias):
        programs = min(max(ptx.MULTIPROCESSORS // chunks, 1), _tiles(x.shape))
        widths = (EDGES, channels, 8, channels) + ((_TAPS * channels,) if channels <= _SUMS_TAPS else ())
        filtered, from_gate, *sums = ptx.call(
            "gated_mlp",
            f"gated_mlp_gradient_{channels}",
            (x, gradient, factors, gate_bias),
            (
                jax.ShapeDtypeStruct((*x.shape[:3], hidden), x.dtype),
                jax.ShapeDtypeStruct((*x.shape[:3], chunks, channels), x.dtype),
                *(jax.ShapeDtypeStruct((programs, hidden, width), jnp.float32) for width in widths),
            ),
            grid=(chunks, programs, 1),
            threads=128 * _GRADIENT_GROUPS,
            shared=_gradient_bytes(channels),
            numbers=_numbers(x.shape, hidden),
        )
        return filtered, from_gate.astype(jnp.float32).sum(3), *sums

    # All results have a leading axis of images or of programs, which devices split; the sums over it follow here.
    packed = _packed(composed, _GRADIENT_HIDDEN)
    filtered, from_gate, *sums = over_mesh(run, x, gradient, packed, composed.gate_bias, split=2)
    edges, gate, gate_edges, project, *taps = (partial_sums.sum(0) for partial_sums in sums)
    factors = composed.taps.astype(x.dtype)
    if taps:
        (from_filter,) = jax.vjp(lambda x: composed_convolution(x, factors), x)[1](filtered)
        by_column = taps[0].reshape(hidden, 3, 3, channels)  # columns of the depthwise kernel, then its rows
        taps_gradient = by_column.transpose(2, 1, 3, 0).reshape(_TAPS, channels, hidden)
    else:
        from_filter, taps_gradient = jax.vjp(composed_convolution, x, factors)[1](filtered)
    gate_bias = gate_edges[:, ALWAYS - 8]  # (the second eight columns of what positions see)
    parts = GradientSums(taps_gradient, edges, gate, gate_bias, project)
    return gradients_of_parts(x, gradient, pull_back, from_filter, from_gate, parts)
