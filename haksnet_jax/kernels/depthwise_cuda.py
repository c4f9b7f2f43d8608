"""Depthwise convolution and its weight gradient on the matrix units of NVIDIA GPUs, in bfloat16: cuda/depthwise.cu.

A block of threads owns sixteen channels of a region: sixteen segments of eight columns and eight rows each, which lie
side by side, above each other and in several images, as the maps' size suggests.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels import ptx

_SIDES = (3, 5, 7, 9)
_THREADS = 256
_CHANNELS = 16
_STRIP = 8  # rows of a segment, and columns
_TAPS = 9  # of a row of every kernel as the band matrices hold it, zeros around smaller ones
_ENTRIES = 24  # different pairs of neighbouring entries in a band matrix
_MOST_BLOCKS = (1 << 16) - 1  # of a grid, in y and z
_SHARED = 228 << 10  # bytes of a multiprocessor of an H100, of which each block costs 1,024 more than it asks for


class Region(NamedTuple):
    """Segments of a block side by side, above each other and in several images: sixteen in all."""

    tiles: int
    strips: int
    images: int


class Layout(NamedTuple):
    """Of a region in shared memory, lengths in words of two columns, as `Layout` of cuda/depthwise.cu has it."""

    row_words: int
    strip_words: int
    strip_pad: int
    image_words: int
    plane_words: int
    rows: int
    rows_inverse: int
    items_inverse: int

    @property
    def bytes(self) -> int:
        """Of all channels, with the 16 words that set the second eight apart and as many behind."""
        return 4 * (_CHANNELS * self.plane_words + 32)


def region(height: int, width: int) -> Region:
    """The region that covers maps of this size with the fewest idle segments."""
    if width <= 2 * _STRIP:
        return Region(2, 1, 8) if height <= _STRIP else Region(2, 2, 4)
    wide, tall = Region(8, 2, 1), Region(4, 4, 1)

    def covered(region):
        return pl.cdiv(width, _STRIP * region.tiles) * pl.cdiv(height, _STRIP * region.strips)

    return min(wide, tall, key=covered)


def layout(region: Region, k: int, *, halo: bool) -> Layout:
    """Where a region lies in shared memory, with the rows and columns around it that a k x k kernel meets, or without.

    A matrix instruction loads eight segments at once, 16 bytes of each. The lengths keep those in different banks.
    """
    row_words = (region.tiles + halo) * _STRIP // 2
    rows = _STRIP * region.strips + (k - 1 if halo else 0)
    strip_pad = {8: 0, 4: 16, 2: 8}[region.tiles]
    words = rows * row_words + (rows - 1) // _STRIP * strip_pad
    if region.images > 1:  # 4 words of each segment of an image stand between those of its neighbours
        words += (4 * region.tiles * region.strips - words) % 32
    plane_words = words * region.images
    inverses = pl.cdiv(1 << 16, rows), pl.cdiv(1 << 20, 2 * row_words)
    return Layout(row_words, _STRIP * row_words + strip_pad, strip_pad, words, plane_words, rows, *inverses)


def _blocks(shape, chosen):
    """Regions that cover features [B, H, W, C]: along the columns, along the rows, and over the images."""
    num_images, height, width, _ = shape
    return (
        pl.cdiv(width, _STRIP * chosen.tiles),
        pl.cdiv(height, _STRIP * chosen.strips),
        pl.cdiv(num_images, chosen.images),
    )


def suits(shape: tuple[int, ...], dtype: jnp.dtype, k: int, shared_bytes: int) -> bool:
    """Whether the kernels take features [B, H, W, C] of a type and k x k taps, with this much shared memory a block."""
    if dtype != jnp.bfloat16 or k not in _SIDES or shape[3] % 8:
        return False
    _, height, width, num_channels = shape
    chosen = region(height, width)
    if chosen.images * height * width * num_channels >= 1 << 31:  # places in a block's images are numbers of 32 bits
        return False
    if max(_blocks(shape, chosen)[1:]) > _MOST_BLOCKS:
        return False
    return layout(chosen, k, halo=True).bytes + layout(chosen, k, halo=False).bytes <= shared_bytes


def _numbers(shape, k, chosen):
    with_halo, plain = layout(chosen, k, halo=True), layout(chosen, k, halo=False)
    return {
        **dict(zip(("BATCH", "HEIGHT", "WIDTH", "CHANNELS"), shape, strict=True)),
        "TILES_LOG": chosen.tiles.bit_length() - 1,
        "STRIPS_LOG": chosen.strips.bit_length() - 1,
        **{name.upper(): value for name, value in with_halo._asdict().items()},
        **{f"PLAIN_{name.upper()}": value for name, value in plain._asdict().items()},
    }


def band_entries(kernel: jax.Array) -> jax.Array:
    """[C, k, 24, 2] bfloat16 pairs of neighbouring entries of the band matrices, along the input columns.

    The matrix of a kernel row has its taps at [n + dx, n], dx from 0 to 8. A thread needs its entries at (i, i + 1) for
    i from -7 to 14, counted from the diagonal; pair i stands at i + 8.

    Args:
      kernel: [k, k, C] taps.
    """
    k = kernel.shape[0]
    before = _STRIP + (_TAPS - k) // 2
    row = kernel.transpose(2, 0, 1).astype(jnp.bfloat16)
    row = jnp.pad(row, ((0, 0), (0, 0), (before, _ENTRIES + 1 - before - k)))
    return jnp.stack([row[..., :-1], row[..., 1:]], axis=-1)


class Bands(NamedTuple):
    """Where the band matrices of a k x k kernel stand.

    Attributes:
      entries: [C, R, 24, 2] pairs as `band_entries` describes them, of one kernel or of several.
      first: the first of its k rows.
      k: side of the kernel.
    """

    entries: jax.Array
    first: int
    k: int


class Bias(NamedTuple):
    """Where the bias [C] of a convolution stands: float32 values from `first` on."""

    values: jax.Array
    first: int


class Addends(NamedTuple):
    """What the gradient of one of four convolutions after each other is added to, see `convolve_and_add`.

    Attributes:
      map: [B, H, W, C] bfloat16.
      spatial, kernel: [B, H, W, 4] bfloat16 and [B, 4] float32, whose product is the map's weight.
      of_channel_means: [B, H, W, 4] bfloat16 gradient with respect to means over the channels.
      of_position_means: [B, 4, C] float32 gradient with respect to means over the positions.
    """

    map: jax.Array
    spatial: jax.Array
    kernel: jax.Array
    of_channel_means: jax.Array
    of_position_means: jax.Array


@functools.partial(jax.jit, static_argnames=("means",))
def convolve(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, means: bool = False
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Depthwise convolution at stride 1 with zeros around the image.

    Args:
      x: [B, H, W, C] bfloat16 features, C a multiple of 8.
      kernel: [k, k, C] weights, which are rounded to bfloat16, k 3, 5, 7 or 9.
      bias: [C] that is added before the result is rounded, or None.
      means: whether to give the result's means too.

    Returns:
      [B, H, W, C] bfloat16; sums are float32. A number that is not finite reaches the whole segments of eight columns
      that its taps reach, since their products with zeros count. With `means` (result, [B, H, W] float32 means over the
      channels, of the rounded values, [B, C] float32 means over the positions, of the values before they are rounded).
    """
    bands = Bands(band_entries(kernel), 0, kernel.shape[0])
    values = None if bias is None else Bias(bias.astype(jnp.float32), 0)
    if not means:
        return convolve_bands(x, bands, values)
    out, over_channels, over_positions = convolve_with_sums(x, bands, values)
    return out, over_channels.sum(1) / x.shape[3], over_positions.sum(1) / (x.shape[1] * x.shape[2])


def convolve_bands(x: jax.Array, bands: Bands, bias: Bias | None = None) -> jax.Array:
    """`convolve` with a kernel whose band matrices are there already, and a bias that may be part of an array."""
    return _convolve_biased("", x, bands, bias, ())[0]


def convolve_with_sums(x: jax.Array, bands: Bands, bias: Bias | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`convolve_bands`, and sums of which means follow, as the blocks of threads leave them.

    Returns:
      ([B, H, W, C] bfloat16, float32 [B, blocks, H, W], whose sums over the blocks are those of the rounded values over
      the channels, float32 [B, blocks, C], the same over the positions of values before they are rounded).
    """
    num_images, height, width, num_channels = x.shape
    channel_blocks = pl.cdiv(num_channels, _CHANNELS)
    column_blocks, row_blocks, _ = _blocks(x.shape, region(height, width))
    sums = (
        jax.ShapeDtypeStruct((num_images, channel_blocks, height, width), jnp.float32),
        jax.ShapeDtypeStruct((num_images, row_blocks * column_blocks, num_channels), jnp.float32),
    )
    out, over_channels, over_positions = _convolve_biased("_means", x, bands, bias, sums)
    return out, over_channels, over_positions


def _convolve_biased(kind, x, bands, bias, sums):
    # Without a bias the kernel reads none, and is still launched with an array in its place.
    values, first = (x, -1) if bias is None else bias
    return _launch(kind, x, bands, (values,), sums, FIRST_BIAS=first)


def convolve_and_add(x: jax.Array, bands: Bands, addends: Addends, which: int) -> jax.Array:
    """Depthwise convolution, and what else belongs to a gradient in a cascade of four convolutions.

    Args:
      x: [B, H, W, C] bfloat16, as for `convolve`.
      bands: of the kernel.
      addends: Addends.
      which: of the four convolutions, from 0 to 2.

    Returns:
      [B, H, W, C] bfloat16: the convolution, rounded, plus map * (spatial * kernel) of this convolution, plus the
      gradients of its means, each divided by how many values the mean is of. Rounded once after the convolution.
    """
    return _launch("_added", x, bands, addends, (), WHICH=which)[0]


def convolve_and_activate(x: jax.Array, bands: Bands, bias: Bias) -> tuple[jax.Array, jax.Array]:
    """Depthwise convolution 3 x 3, and the GELU of its result.

    Args:
      x: [B, H, W, C] bfloat16, as for `convolve`.
      bands: of the kernel.
      bias: Bias.

    Returns:
      ([B, H, W, C] bfloat16, its GELU, rounded).
    """
    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    out, activated = _launch("_gelu", x, bands, (bias.values,), (like_x,), FIRST_BIAS=bias.first)
    return out, activated


def convolve_through_gelu(x: jax.Array, bands: Bands, hidden: jax.Array) -> jax.Array:
    """Depthwise convolution 3 x 3 times the GELU's slope at `hidden` [B, H, W, C]: the gradient of `hidden`."""
    return _launch("_gelu_gradient", x, bands, (hidden,), ())[0]


def _launch(kind, x, bands, operands, sums, **numbers):
    """A convolution kernel's results: features like x, then `sums`."""
    _, height, width, num_channels = x.shape
    chosen = region(height, width)
    column_blocks, row_blocks, image_blocks = _blocks(x.shape, chosen)
    return ptx.call(
        "depthwise",
        f"depthwise_{bands.k}{kind}",
        (x, bands.entries, *operands),
        (jax.ShapeDtypeStruct(x.shape, x.dtype), *sums),
        grid=(pl.cdiv(num_channels, _CHANNELS) * column_blocks, row_blocks, image_blocks),
        threads=_THREADS,
        shared=layout(chosen, bands.k, halo=True).bytes,
        numbers={
            **_numbers(x.shape, bands.k, chosen),
            "BAND_ROWS": bands.entries.shape[1],
            "FIRST_BAND": bands.first,
            **numbers,
        },
    )


@functools.partial(jax.jit, static_argnames=("k",))
def weight_gradient(x: jax.Array, gradient: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Gradients of `convolve` with respect to its kernel and its bias.

    Every block of threads writes the sums of its own regions, and XLA adds them: no atomic additions, the same bits in
    every run.

    Args:
      x: [B, H, W, C] bfloat16 input of the convolution, C a multiple of 8.
      gradient: [B, H, W, C] gradient with respect to its output.
      k: side of the kernel, 3, 5, 7 or 9.

    Returns:
      ([k, k, C] float32, [C] float32 gradient with respect to the bias).
    """
    return _kernel_and_bias(_weight_gradient_sums(x, gradient, k).sum(0), k)


def _kernel_and_bias(rows, k):
    """([k, k, C], [C]) of rows [k^2 + 1, C]."""
    return rows[:-1].reshape(k, k, -1), rows[-1]


def _weight_gradient_sums(x, gradient, k):
    """[blocks, k^2 + 1, C] sums of the blocks of threads, the bias' behind those of the taps."""
    _, height, width, num_channels = x.shape
    chosen = region(height, width)
    channel_blocks = pl.cdiv(num_channels, _CHANNELS)
    shared = layout(chosen, k, halo=True).bytes + layout(chosen, k, halo=False).bytes
    regions = math.prod(_blocks(x.shape, chosen))

    def blocks_of(at_once):
        # Rounded down: a block beyond those that run at once begins when another has ended, with as many regions to do.
        return min(regions, max(1, at_once * ptx.MULTIPROCESSORS // channel_blocks))

    # Three on a multiprocessor are faster together, and each of them slower: that pays where each has three regions
    # (8 x 256 x 256 x 32 on an H200: 40 -> 33 microseconds). Many channels, 640 for instance, were not measured.
    few = num_channels <= 64
    by_three = k == 3 and few and 3 * (shared + 1024) <= _SHARED and regions > 2 * blocks_of(3)
    blocks = blocks_of(3 if by_three else 2)
    (sums,) = ptx.call(
        "depthwise",
        f"depthwise_{k}_weight_gradient{'_by_three' if by_three else ''}",
        (x, gradient),
        (jax.ShapeDtypeStruct((blocks, k * k + 1, num_channels), jnp.float32),),
        grid=(channel_blocks, blocks, 1),
        threads=_THREADS,
        shared=shared,
        numbers=_numbers(x.shape, k, chosen),
    )
    return sums


_KINDS = {_SIDES: "cascade", (3, 3): "pair"}  # of kernels that are prepared, and their gradients' sums added, together


def cascade_parameters(
    taps: Sequence[jax.Array], biases: Sequence[jax.Array], others: Sequence[jax.Array] = ()
) -> jax.Array:
    """Parameters of several convolutions, and others, as one array [N] (`ptx.joined`): taps, then biases, then others.

    Args:
      taps: kernels [k, k, C] with k 3, 5, 7 and 9, or two with 3.
      biases: as many [C].
      others: arrays.
    """
    return ptx.joined((*taps, *biases, *others))


def cascade_length(sides: Sequence[int], num_channels: int) -> int:
    """How many taps and biases kernels with these sides have: where others begin among their `cascade_parameters`."""
    return sum(k * k + 1 for k in sides) * num_channels


def bias_of_cascade(parameters: jax.Array, sides: Sequence[int], number: int, num_channels: int) -> Bias:
    """One bias among the `cascade_parameters` of kernels with these sides."""
    return Bias(parameters, (sum(k * k for k in sides) + number) * num_channels)


def cascade_bands(parameters: jax.Array, sides: Sequence[int], num_channels: int) -> jax.Array:
    """Band matrices of several kernels, as they are and turned by 180 degrees, in one launch.

    Args:
      parameters: `cascade_parameters` of kernels with these sides.
      sides: 3, 5, 7 and 9, or 3 and 3.
      num_channels: C.

    Returns:
      [C, R, 24, 2] bfloat16, of which `band_of_cascade` names parts.
    """
    rows = 2 * sum(sides)
    (entries,) = ptx.call(
        "depthwise",
        f"depthwise_{_KINDS[tuple(sides)]}_bands",
        (parameters,),
        (jax.ShapeDtypeStruct((num_channels, rows, _ENTRIES, 2), jnp.bfloat16),),
        grid=(pl.cdiv(num_channels * rows * _ENTRIES, _THREADS), 1, 1),
        threads=_THREADS,
        shared=0,
        numbers={"CHANNELS": num_channels},
    )
    return entries


def band_of_cascade(entries: jax.Array, sides: Sequence[int], number: int, *, turned: bool) -> Bands:
    """One kernel of `cascade_bands` of kernels with these sides, as it is or turned by 180 degrees."""
    return Bands(entries, turned * sum(sides) + sum(sides[:number]), sides[number])


def cascade_weight_gradients(
    inputs: Sequence[jax.Array], gradients: Sequence[jax.Array], sides: Sequence[int]
) -> jax.Array:
    """`weight_gradient` of several kernels, the sums of their blocks added in one launch.

    Args:
      inputs, gradients: as many arrays [B, H, W, C] bfloat16 as kernels.
      sides: 3, 5, 7 and 9, or 3 and 3.

    Returns:
      [R, C] float32, which `kernels_and_biases` takes apart.
    """
    sums = [_weight_gradient_sums(x, gradient, k) for x, gradient, k in zip(inputs, gradients, sides, strict=True)]
    num_channels = inputs[0].shape[3]
    lengths = [k * k + 1 for k in sides]
    (rows,) = ptx.call(
        "depthwise",
        f"depthwise_{_KINDS[tuple(sides)]}_sums",
        sums,
        (jax.ShapeDtypeStruct((sum(lengths), num_channels), jnp.float32),),
        grid=(pl.cdiv(sum(lengths) * num_channels, 32), 1, 1),
        threads=_THREADS,
        shared=4 * _THREADS,
        numbers={"CHANNELS": num_channels, "BLOCKS_OF_THREE": sums[0].shape[0], "BLOCKS": sums[-1].shape[0]},
    )
    return rows


def kernels_and_biases(rows: jax.Array, sides: Sequence[int]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Gradients [k, k, C] of several kernels and [C] of their biases, of what `cascade_weight_gradients` gives."""
    parts = jnp.split(rows, list(itertools.accumulate(k * k + 1 for k in sides[:-1])))
    kernels, biases = zip(*(_kernel_and_bias(part, k) for part, k in zip(parts, sides, strict=True)), strict=True)
    return list(kernels), list(biases)
