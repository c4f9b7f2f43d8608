"""Depthwise convolution and its weight gradient as two Pallas kernels for NVIDIA GPUs (Triton backend).

A depthwise convolution has k * k products for each number it reads, so the way to speed is reuse: a program holds
several output rows in registers and loads each input row once for all output rows that it touches:
(rows + k - 1) * k / rows loads an output instead of k * k. Shifted columns are loaded again; they come from the
first-level cache. Borders are masked loads: no padded copy of the input exists.

Both kernels run under Pallas' interpreter on any machine, which is how they are tested without a GPU.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels.triton import plgpu, power_of_two


class Tile(NamedTuple):
    """What one program of a kernel owns.

    Attributes:
      rows: rows held in registers: output rows, or rows of the output's gradient.
      columns: columns, a power of two.
      channels: channels, a power of two.
      num_warps: warps of 32 threads that share the tile.
      chunks: weight gradient alone: how many times `rows` rows a program walks through before it writes partial sums.
      taps: weight gradient alone: columns of the kernel whose sums are held at once, for one pass over the gradient;
        they divide k.
      images: weight gradient alone: images that a program walks through too; they divide the batch.
    """

    rows: int
    columns: int
    channels: int
    num_warps: int
    chunks: int = 1
    taps: int = 1
    images: int = 1


def _even_rows(height, most):
    """Rows of a tile, up to `most`, such that the tiles' last row leaves as little idle as can be: 7 of 28, 8 of 64."""
    return pl.cdiv(height, pl.cdiv(height, most))


def _channel_block(num_channels, most=32):
    """Largest power of two up to `most` that divides the channels; if that is below 8, one that covers them, masked."""
    divisor = math.gcd(num_channels, most)
    return divisor if divisor >= 8 else min(power_of_two(num_channels), most)


def convolve_tile(shape: Sequence[int]) -> Tile:
    """Tile of `convolve` for an input of this shape."""
    _, height, width, num_channels = shape
    channels = _channel_block(num_channels)
    columns = min(512 // channels, power_of_two(width))
    return Tile(_even_rows(height, 8), columns, channels, num_warps=4)


def weight_gradient_tile(shape: Sequence[int], k: int) -> Tile:
    """Tile of `weight_gradient` for an input of this shape and a kernel of k x k.

    On an H100, 8 images in bfloat16, these took, against one column of taps at a time in the tiles of `convolve`: 3 x 3
    0.06 against 0.09 ms (256 x 256 x 32) and 0.06 against 0.14 (64 x 64 x 640), 5 x 5 0.08 against 0.15, 7 x 7 0.16
    against 0.17 and 9 x 9 0.21 against 0.23 (256 x 256 x 32), 9 x 9 0.10 against 0.14 (128 x 128 x 64) and 0.08 against
    0.11 (64 x 64 x 160). The best of some hundred others took up to a tenth less.

    Many small images have one program each at first, and the partial sums of 9 x 9 then take as much memory traffic as
    the features themselves (512 images of 7 x 7 x 256: 42 of 68 MB): as long as enough programs stay, each walks
    through several images.
    """
    num_images, height, width, num_channels = shape
    together = k <= 5  # the sums of all taps fit the registers
    rows = _even_rows(height, 8 if together else 16)
    channels = _channel_block(num_channels, 64 if together else 32)
    row_blocks = pl.cdiv(height, rows)

    def programs(columns, chunks):
        blocks = pl.cdiv(width, columns) * pl.cdiv(num_channels, channels)
        return num_images * blocks * pl.cdiv(row_blocks, chunks)

    # The larger what a program walks through, the fewer sums across threads; but enough programs must fill a large GPU.
    if together:
        columns = min(8, power_of_two(width))
        chunks = next((n for n in (8, 4, 2) if n <= row_blocks and programs(columns, n) >= 512), 1)
    else:
        chunks = min(2, row_blocks)
        columns = min(next((n for n in (16, 8) if programs(n, chunks) >= 1024), 4), power_of_two(width))
    num_warps = min(max(columns * channels // 128, 1), 4)
    several = (32, 16, 8, 4, 2) if num_images >= 64 else ()  # (few images: tiles as they were measured)
    enough = (n for n in several if num_images % n == 0 and programs(columns, chunks) >= n * 1024)
    return Tile(rows, columns, channels, num_warps, chunks, taps=k if together else 1, images=next(enough, 1))


def _load(ref, batch, row, columns, channels, inside):
    """[columns, channels] float32 of one image row; zero where `inside` is false or the row lies outside the image."""
    inside &= (row >= 0) & (row < ref.shape[1])
    index = ref.at[batch, row, columns[:, None], channels[None, :]]
    return plgpu.load(index, mask=inside, other=0.0).astype(jnp.float32)


def _block(tile, num_channels):
    """(columns [tile.columns], channels [tile.channels], index of the column block) of this program.

    Grid axis 0 counts channel blocks fastest, so that neighbouring programs read one stretch of memory.
    """
    num_blocks = pl.cdiv(num_channels, tile.channels)
    column_block = pl.program_id(0) // num_blocks
    columns = column_block * tile.columns + jnp.arange(tile.columns, dtype=jnp.int32)
    channels = (pl.program_id(0) % num_blocks) * tile.channels + jnp.arange(tile.channels, dtype=jnp.int32)
    return columns, channels, column_block


def _sums_over_taps(x_ref, kernel_ref, tile, first_row, batch, columns, inputs, lanes, known):
    """`tile.rows` sums of the taps, [columns, lanes] each: every row is loaded once, for all sums that it belongs to.

    Args:
      x_ref, kernel_ref: [B, H, W, C] and [k, k, lanes].
      first_row, batch, columns: where the outputs lie.
      inputs: channel of x of each lane.
      lanes: of the kernel; `known` [1, lanes], whether there is such a one.
    """
    k, width = kernel_ref.shape[0], x_ref.shape[2]

    def add_column(dx, sums):
        sums = list(sums)
        shifted = columns + (dx - k // 2)
        inside = ((shifted >= 0) & (shifted < width))[:, None] & known
        weights = [plgpu.load(kernel_ref.at[dy, dx, lanes], mask=known[0], other=0.0)[None, :] for dy in range(k)]
        for r in range(tile.rows + k - 1):
            row = _load(x_ref, batch, first_row + (r - k // 2), shifted, inputs, inside)
            for t in range(max(0, r - k + 1), min(tile.rows, r + 1)):
                sums[t] += row * weights[r - t]
        return tuple(sums)

    zeros = jnp.zeros((tile.columns, tile.channels), jnp.float32)
    return jax.lax.fori_loop(0, k, add_column, (zeros,) * tile.rows)


def _convolve_kernel(x_ref, kernel_ref, bias_ref, out_ref, *sums_out, tile):
    _, height, width, num_channels = x_ref.shape
    columns, channels, column_block = _block(tile, num_channels)
    first_row, batch = pl.program_id(1) * tile.rows, pl.program_id(2)
    known = (channels < num_channels)[None, :]
    sums = _sums_over_taps(x_ref, kernel_ref, tile, first_row, batch, columns, channels, channels, known)
    inside = (columns < width)[:, None] & known
    bias = plgpu.load(bias_ref.at[channels], mask=known[0], other=0.0)[None, :]
    over_positions = jnp.zeros((tile.channels,), jnp.float32)
    for t in range(tile.rows):
        row = first_row + t
        here = inside & (row < height)
        value = sums[t] + bias
        index = out_ref.at[batch, row, columns[:, None], channels[None, :]]
        plgpu.store(index, value.astype(out_ref.dtype), mask=here)
        if sums_out:
            value = jnp.where(here, value, 0.0)
            over_positions += jnp.sum(value, axis=0)
            channel_block = pl.program_id(0) % pl.cdiv(num_channels, tile.channels)
            index = sums_out[0].at[batch, channel_block, row, columns]
            plgpu.store(index, jnp.sum(value, axis=1), mask=(columns < width) & (row < height))
    if sums_out:
        index = sums_out[1].at[batch, pl.program_id(1), column_block, channels]
        plgpu.store(index, over_positions, mask=known[0])


def _weight_gradient_kernel(x_ref, gradient_ref, out_ref, *bias_out, tile, k):
    width, num_channels = x_ref.shape[2], out_ref.shape[-1]
    columns, channels, column_block = _block(tile, num_channels)
    inputs = outputs = channels
    if num_channels != x_ref.shape[3]:  # of all pairs of an input and an output channel, which are few
        num_outputs = jnp.full_like(channels, gradient_ref.shape[3])
        inputs, outputs = jax.lax.div(channels, num_outputs), jax.lax.rem(channels, num_outputs)
    strip, images = pl.program_id(1), pl.program_id(2)
    known = (channels < num_channels)[None, :]
    inside = (columns < width)[:, None] & known
    zeros = jnp.zeros((tile.columns, tile.channels), jnp.float32)

    def some_columns(group, _):
        dx = [group * tile.taps + d for d in range(tile.taps)]
        shifted = [columns + (d - k // 2) for d in dx]
        inside_shifted = [((s >= 0) & (s < width))[:, None] & known for s in shifted]

        def add_chunk(number, sums):
            sums = list(sums)
            batch, chunk = images, number
            if tile.images > 1:
                batch = images * tile.images + jax.lax.div(number, jnp.int32(tile.chunks))
                chunk = jax.lax.rem(number, jnp.int32(tile.chunks))
            first_row = (strip * tile.chunks + chunk) * tile.rows
            gradients = [_load(gradient_ref, batch, first_row + t, columns, outputs, inside) for t in range(tile.rows)]
            for r, d in itertools.product(range(tile.rows + k - 1), range(tile.taps)):
                row = _load(x_ref, batch, first_row + (r - k // 2), shifted[d], inputs, inside_shifted[d])
                for t in range(max(0, r - k + 1), min(tile.rows, r + 1)):
                    sums[d * k + r - t] += row * gradients[t]
            if bias_out:
                sums[-1] += sum(gradients)
            return tuple(sums)

        sums = jax.lax.fori_loop(0, tile.images * tile.chunks, add_chunk, (zeros,) * (k * tile.taps + len(bias_out)))
        for d, dy in itertools.product(range(tile.taps), range(k)):
            index = out_ref.at[images, strip, column_block, dy, dx[d], channels]
            plgpu.store(index, jnp.sum(sums[d * k + dy], axis=0), mask=known[0])
        if bias_out:
            index = bias_out[0].at[images, strip, column_block, channels]
            plgpu.store(index, jnp.sum(sums[-1], axis=0), mask=known[0])
        return 0

    jax.lax.fori_loop(0, k // tile.taps, some_columns, 0)


@functools.partial(jax.jit, static_argnames=("means", "tile", "interpret"))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    means: bool = False,
    tile: Tile | None = None,
    interpret: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Depthwise convolution at stride 1 with zeros around the image.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C] weights, k odd.
      bias: [C] that is added before the result is rounded, or None.
      means: whether to give the result's means too, from the values that the kernel holds anyway.
      tile: what one program owns; chosen by shape if None.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      [B, H, W, C] in the type of x; products and sums are float32. With `means` (result, [B, H, W] float32 means over
      the channels, [B, C] float32 means over the positions), of the values before they are rounded.
    """
    num_images, height, width, num_channels = x.shape
    tile = tile or convolve_tile(x.shape)
    channel_blocks, column_blocks = pl.cdiv(num_channels, tile.channels), pl.cdiv(width, tile.columns)
    row_blocks = pl.cdiv(height, tile.rows)
    bias = jnp.zeros((num_channels,), jnp.float32) if bias is None else bias.astype(jnp.float32)
    out, *sums = pl.pallas_call(
        functools.partial(_convolve_kernel, tile=tile),
        grid=(channel_blocks * column_blocks, row_blocks, num_images),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(
                jax.ShapeDtypeStruct(shape, jnp.float32)
                for shape in (
                    (num_images, channel_blocks, height, width),
                    (num_images, row_blocks, column_blocks, num_channels),
                )
                if means
            ),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        interpret=interpret,
        name=f"depthwise_{kernel.shape[0]}x{kernel.shape[0]}",
    )(x, kernel.astype(jnp.float32), bias)  # (float32 once here, not in every program)
    if not means:
        return out
    over_channels, over_positions = sums
    return out, over_channels.sum(1) / num_channels, over_positions.sum((1, 2)) / (height * width)


def _narrow_kernel(x_ref, kernel_ref, out_ref, *, tile):
    """As `_convolve_kernel` for few channels, all with all: a lane for each pair of an input and an output channel."""
    _, height, width, _ = x_ref.shape
    num_pairs = kernel_ref.shape[2]
    num_outputs = out_ref.shape[3]
    lanes = jnp.arange(tile.channels, dtype=jnp.int32)
    columns = pl.program_id(0) * tile.columns + jnp.arange(tile.columns, dtype=jnp.int32)
    first_row, batch = pl.program_id(1) * tile.rows, pl.program_id(2)
    inputs = jax.lax.div(lanes, jnp.full_like(lanes, num_outputs))
    known = (lanes < num_pairs)[None, :]
    sums = _sums_over_taps(x_ref, kernel_ref, tile, first_row, batch, columns, inputs, lanes, known)
    outputs = jnp.arange(num_outputs, dtype=jnp.int32)
    for t in range(tile.rows):
        row = first_row + t
        total = jnp.sum(sums[t].reshape(tile.columns, tile.channels // num_outputs, num_outputs), axis=1)
        index = out_ref.at[batch, row, columns[:, None], outputs[None, :]]
        plgpu.store(index, total, mask=(columns < width)[:, None] & (row < height))


@functools.partial(jax.jit, static_argnames=("interpret",))
def convolve_narrow(x: jax.Array, kernel: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Convolution of a few channels, all with all, at stride 1 with zeros around the image.

    Args:
      x: [B, H, W, C] features, float32 or bfloat16.
      kernel: [k, k, C, C'] weights, k odd, C * C' and C' powers of two.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      [B, H, W, C'] float32.
    """
    num_images, height, width, _ = x.shape
    k, _, num_inputs, num_outputs = kernel.shape
    pairs = num_inputs * num_outputs
    tile = Tile(min(8, power_of_two(height)), min(512 // pairs, power_of_two(width)), pairs, num_warps=4)
    return pl.pallas_call(
        functools.partial(_narrow_kernel, tile=tile),
        grid=(pl.cdiv(width, tile.columns), pl.cdiv(height, tile.rows), num_images),
        out_shape=jax.ShapeDtypeStruct((num_images, height, width, num_outputs), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        interpret=interpret,
        name=f"narrow_{k}x{k}",
    )(x, kernel.astype(jnp.float32).reshape(k, k, pairs))


@functools.partial(jax.jit, static_argnames=("k", "pairs", "tile", "interpret"))
def weight_gradient(
    x: jax.Array, gradient: jax.Array, k: int, *, pairs: bool = False, tile: Tile | None = None, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `convolve` with respect to its kernel and its bias.

    The one is the correlation of the input with the output's gradient, the other the sum of that gradient.

    Every program writes the sums of its own region, and XLA adds them: no atomic additions, the same bits in every run.

    Args:
      x: [B, H, W, C] input of the convolution, float32 or bfloat16.
      gradient: [B, H, W, C] gradient with respect to its output.
      k: side of the kernel, odd.
      pairs: of `convolve_narrow` instead: every channel of x [B, H, W, C] with every one of the gradient [B, H, W, C'].
      tile: what one program owns; chosen by shape if None.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      ([k, k, C] float32, or [k, k, C, C'] with `pairs`; [C] float32 gradient with respect to the bias).
    """
    num_images, height, width, num_channels = x.shape
    kernel_shape: tuple[int, ...] = (k, k, num_channels)
    if pairs:
        kernel_shape = (k, k, num_channels, gradient.shape[3])
        num_channels *= gradient.shape[3]
    tile = tile or weight_gradient_tile((*x.shape[:3], num_channels), k)
    column_blocks = pl.cdiv(width, tile.columns)
    strips = pl.cdiv(height, tile.rows * tile.chunks)
    programs = (num_images // tile.images, strips, column_blocks)
    one_pass = tile.taps == k and not pairs  # over the gradient, whose sum is then there for the taking
    kernel_sums, *bias_sums = pl.pallas_call(
        functools.partial(_weight_gradient_kernel, tile=tile, k=k),
        grid=(pl.cdiv(num_channels, tile.channels) * column_blocks, strips, programs[0]),
        out_shape=[
            jax.ShapeDtypeStruct((*programs, k, k, num_channels), jnp.float32),
            *([jax.ShapeDtypeStruct((*programs, num_channels), jnp.float32)] if one_pass else []),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=1),
        interpret=interpret,
        name=f"depthwise_{k}x{k}_weight_gradient",
    )(x, gradient)
    kernel_gradient = kernel_sums.sum((0, 1, 2)).reshape(kernel_shape)
    return kernel_gradient, (bias_sums[0] if one_pass else gradient).sum((0, 1, 2), dtype=jnp.float32)
