"""A pyramid's top-down step as Pallas kernels for NVIDIA GPUs (Triton backend).

    total = x @ kernel + bias + coarser, each position twice in both directions

The sums are float32, and a map of them is twice what the rounded one is: XLA writes the products as such a map, and
reads it again to add and to round; its gradient reads the rounded map's four times. Here a program owns some positions
of the coarser map and the four finer ones of each: the coarser map is read once, products stay on the chip, and in the
gradient the four are added up where they are read.

The kernels run under Pallas' interpreter on any machine, which is how they are tested without a GPU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels.triton import plgpu, power_of_two
from haksnet_jax.target import over_mesh

_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column) of the four finer positions of a coarser one
_COLUMNS = 32  # positions of a row of the coarser map that a program owns
_NUM_WARPS = 4
_NUM_PROGRAMS = 264  # of the gradient, each of which holds sums of its own: two for each multiprocessor of an H200


def suits(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether the kernels take such factors: bfloat16, x [B, H, W, C], kernel [C, C'], powers of two, C up to 64.

    On an H200 (8 images, C' = 256): 32 channels of 256 x 256 397 -> 175 us, 64 of 128 x 128 with exact sums 152 -> 98.
    """
    channels_in, channels = kernel.shape
    return (
        x.dtype == jnp.bfloat16
        and 16 <= channels_in <= 64
        and 64 <= channels <= 256
        and all(width == power_of_two(width) for width in (channels_in, channels))
    )


def suits_gradient(kernel: jax.Array) -> bool:
    """Whether the gradient's kernel is worth it, kernel [C, C'].

    Its programs hold the sums of the weights' gradients in registers: with 32 x 256 of them each thread has 64, which
    leaves room for the rest (332 -> 226 us at 256 x 256 positions). With 64 x 256 it was slower than XLA in every form
    (296 -> 461 us and more at 128 x 128).
    """
    return kernel.size <= 32 * 256


class _Places:
    """The finer positions of a program's coarser ones, and which of them there are."""

    def __init__(self, image_row, columns, shape):
        num_images, self.height, self.width, _ = shape
        rows, coarse_width = pl.cdiv(self.height, 2), pl.cdiv(self.width, 2)
        image = jax.lax.div(image_row, rows)
        self.row, self.columns = image_row - image * rows, columns
        self.first_row = image * self.height
        self.coarse = image_row * coarse_width + columns
        self.known = (columns < coarse_width) & (image < num_images)

    def quarter(self, down, right):
        row, column = 2 * self.row + down, 2 * self.columns + right
        known = self.known & (row < self.height) & (column < self.width)
        return (self.first_row + row) * self.width + column, known


def _load(ref, rows, channels, known):
    return plgpu.load(ref.at[rows[:, None], channels[None, :]], mask=known[:, None], other=0.0)


def _store(ref, rows, channels, known, values):
    plgpu.store(ref.at[rows[:, None], channels[None, :]], values.astype(ref.dtype), mask=known[:, None])


def _forward_kernel(x_ref, kernel_ref, bias_ref, coarser_ref, *out_refs, shape):
    places = _Places(pl.program_id(0), pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS), shape)
    channels_in, channels = jnp.arange(kernel_ref.shape[0]), jnp.arange(kernel_ref.shape[1])
    kernel = plgpu.load(kernel_ref.at[channels_in[:, None], channels[None, :]])
    bias = plgpu.load(bias_ref.at[channels])[None, :]
    coarser = _load(coarser_ref, places.coarse, channels, places.known)
    for quarter in _QUARTERS:
        rows, known = places.quarter(*quarter)
        total = plgpu.dot(_load(x_ref, rows, channels_in, known), kernel) + bias + coarser
        for out_ref in out_refs:
            _store(out_ref, rows, channels, known, total)


def lateral_sum(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, coarser: jax.Array, *, exact: bool, interpret: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """The sum above in one kernel.

    Args:
      x: [B, H, W, C] features (see `suits`).
      kernel: [C, C'] float32; rounded to the type of x.
      bias: [C'] float32.
      coarser: [B, ceil(H / 2), ceil(W / 2), C'] float32.
      exact: whether the sums that are not rounded are asked for.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      [B, H, W, C'] in the type of x, and the same in float32 (or None).
    """
    types = (x.dtype, jnp.float32) if exact else (x.dtype,)

    def run(x, coarser, kernel, bias):
        positions, channels = x.size // x.shape[-1], kernel.shape[1]
        rounded, *unrounded = pl.pallas_call(
            functools.partial(_forward_kernel, shape=x.shape),
            grid=(x.shape[0] * pl.cdiv(x.shape[1], 2), pl.cdiv(pl.cdiv(x.shape[2], 2), _COLUMNS)),
            out_shape=[jax.ShapeDtypeStruct((positions, channels), dtype) for dtype in types],
            compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS, num_stages=1),
            interpret=interpret,
            name="lateral_sum",
        )(x.reshape(positions, -1), kernel, bias, coarser.reshape(-1, channels))
        shape = (*x.shape[:3], channels)
        return rounded.reshape(shape), unrounded[0].reshape(shape) if exact else None

    return over_mesh(run, x, coarser, kernel.astype(x.dtype), bias, split=2)


def _gradient_kernel(x_ref, kernel_ref, gradient_ref, x_out, coarser_out, kernel_out, bias_out, *, shape, num_tiles):
    channels_in, channels = jnp.arange(kernel_ref.shape[0]), jnp.arange(kernel_ref.shape[1])
    kernel = plgpu.load(kernel_ref.at[channels_in[:, None], channels[None, :]])
    program, num_programs = pl.program_id(0), pl.num_programs(0)
    tiles_in_row = pl.cdiv(pl.cdiv(shape[2], 2), _COLUMNS)

    def add_tile(i, sums):
        kernel_sum, bias_sum = sums
        tile = program + i * num_programs
        image_row = jax.lax.div(tile, tiles_in_row)
        places = _Places(image_row, (tile - image_row * tiles_in_row) * _COLUMNS + jnp.arange(_COLUMNS), shape)
        coarser = jnp.zeros((_COLUMNS, channels.shape[0]), jnp.float32)
        for quarter in _QUARTERS:
            rows, known = places.quarter(*quarter)
            gradient = _load(gradient_ref, rows, channels, known)
            coarser += gradient.astype(jnp.float32)
            _store(x_out, rows, channels_in, known, plgpu.dot(gradient, kernel, trans_b=True))
            kernel_sum += plgpu.dot(_load(x_ref, rows, channels_in, known), gradient, trans_a=True)
        _store(coarser_out, places.coarse, channels, places.known, coarser)
        return kernel_sum, bias_sum + jnp.sum(coarser, axis=0)

    zeros = jnp.zeros(kernel_ref.shape, jnp.float32), jnp.zeros(channels.shape, jnp.float32)
    kernel_sum, bias_sum = jax.lax.fori_loop(0, num_tiles, add_tile, zeros)
    plgpu.store(kernel_out.at[program, channels_in[:, None], channels[None, :]], kernel_sum)
    plgpu.store(bias_out.at[program, channels], bias_sum)


def gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of the rounded sum with respect to x, kernel, bias and coarser.

    Args:
      x, kernel, interpret: as for `lateral_sum` (see `suits_gradient`).
      gradient: [B, H, W, C'] of the rounded sum, in the type of x.

    Returns:
      The four gradients, in the types of what they belong to.
    """

    def run(x, gradient, kernel):
        num_images, height, width, channels_in = x.shape
        positions, channels = x.size // channels_in, kernel.shape[1]
        coarse = (num_images, pl.cdiv(height, 2), pl.cdiv(width, 2))
        num_tiles = coarse[0] * coarse[1] * pl.cdiv(coarse[2], _COLUMNS)
        num_programs = min(_NUM_PROGRAMS, num_tiles)
        from_x, from_coarser, from_kernel, from_bias = pl.pallas_call(
            functools.partial(_gradient_kernel, shape=x.shape, num_tiles=pl.cdiv(num_tiles, num_programs)),
            grid=(num_programs,),
            out_shape=[
                jax.ShapeDtypeStruct((positions, channels_in), x.dtype),
                jax.ShapeDtypeStruct((math.prod(coarse), channels), jnp.float32),
                jax.ShapeDtypeStruct((num_programs, channels_in, channels), jnp.float32),
                jax.ShapeDtypeStruct((num_programs, channels), jnp.float32),
            ],
            compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS, num_stages=1),
            interpret=interpret,
            name="lateral_sum_gradient",
        )(x.reshape(positions, -1), kernel, gradient.reshape(positions, -1))
        return from_x.reshape(x.shape), from_kernel.sum(0), from_bias.sum(0), from_coarser.reshape(*coarse, channels)

    return over_mesh(run, x, gradient, kernel.astype(x.dtype), split=2, summed=(False, True, True, False))
