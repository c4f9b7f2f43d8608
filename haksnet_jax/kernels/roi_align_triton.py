"""Weighted sums of a table's rows, and their transpose, as Pallas kernels for NVIDIA GPUs (Triton backend).

This is RoIAlign's work once positions are weights (see roi_align.py). A program owns some sums: it reads each row's
number and weight once for all channels, and rows in wide loads, where XLA's own fusion reads a number and a weight for
every channel.

The transpose adds many rows to each of the table's. Atomic additions would be the short way, but Pallas' wait for all
memory each, and what they add up depends on the order they happen to come in. So the terms are sorted by the row of
the table that they belong to, and a program sums those of one row: every row is written once, rounded once, and is the
same in every run. The table is a pyramid's levels one after another; each level's rows are written where they are asked
for, since cutting a table of their gradients would copy it.

The kernels run under Pallas' interpreter on any machine, which is how they are tested without a GPU.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels.triton import plgpu, power_of_two

_SUMS = 16  # of a program
_MOST_CHANNELS = 256  # of a program
_TERMS = 4  # of the transpose that a program reads at once


def _channel_block(num_channels):
    return min(_MOST_CHANNELS, power_of_two(num_channels))


def _sum_kernel(table_ref, index_ref, weight_ref, out_ref):
    num_rows, num_channels = table_ref.shape
    num_terms, num_sums = index_ref.shape
    block = _channel_block(num_channels)
    sums = pl.program_id(0) * _SUMS + jnp.arange(_SUMS)
    channels = pl.program_id(1) * block + jnp.arange(block)
    known, in_table = sums < num_sums, channels < num_channels
    total = jnp.zeros((_SUMS, channels.shape[0]), jnp.float32)
    for term in range(num_terms):
        index = plgpu.load(index_ref.at[term, sums], mask=known, other=num_rows)
        weight = plgpu.load(weight_ref.at[term, sums], mask=known, other=0.0)
        here = (index < num_rows)[:, None] & in_table[None, :]
        rows = plgpu.load(table_ref.at[index[:, None], channels[None, :]], mask=here, other=0.0)
        total += weight[:, None] * rows.astype(jnp.float32)
    plgpu.store(
        out_ref.at[sums[:, None], channels[None, :]],
        total.astype(out_ref.dtype),
        mask=known[:, None] & in_table[None, :],
    )


def weighted_rows(table: jax.Array, index: jax.Array, weight: jax.Array, *, interpret: bool = False) -> jax.Array:
    """[P, C] sums over k of weight[k, p] * table[index[k, p]], float32, rounded once.

    Args:
      table: [T, C] rows, float32 or bfloat16.
      index: [K, P] int32 rows; T and above count as zeros.
      weight: [K, P] float32.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      [P, C] in the table's dtype.
    """
    num_sums, num_channels = index.shape[1], table.shape[1]
    return pl.pallas_call(
        _sum_kernel,
        grid=(pl.cdiv(num_sums, _SUMS), pl.cdiv(num_channels, _channel_block(num_channels))),
        out_shape=jax.ShapeDtypeStruct((num_sums, num_channels), table.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="roi_align",
    )(table, index, weight)


def _spread_kernel(start_ref, term_ref, weight_ref, gradient_ref, *out_refs, sizes, num_terms):
    num_channels = gradient_ref.shape[1]
    num_rows = sum(sizes)
    image = jax.lax.div(pl.program_id(0), num_rows)
    row = pl.program_id(0) - image * num_rows
    key = image * (num_rows + 1) + row  # each image has one key more than rows
    first, end = start_ref[key], start_ref[key + 1]
    channels = pl.program_id(1) * _channel_block(num_channels) + jnp.arange(_channel_block(num_channels))
    known = channels < num_channels

    def add_terms(i, total):
        place = first + i * _TERMS + jnp.arange(_TERMS)
        inside = place < end
        term = plgpu.load(term_ref.at[place], mask=inside, other=0)
        weight = plgpu.load(weight_ref.at[term], mask=inside, other=0.0)
        source = jax.lax.div(term, jnp.full_like(term, num_terms))
        here = inside[:, None] & known[None, :]
        rows = plgpu.load(gradient_ref.at[source[:, None], channels[None, :]], mask=here, other=0.0)
        return total + jnp.sum(weight[:, None] * rows.astype(jnp.float32), axis=0)

    steps = jax.lax.div(end - first + (_TERMS - 1), _TERMS)
    total = jax.lax.fori_loop(0, steps, add_terms, jnp.zeros(channels.shape, jnp.float32))
    start = 0  # of the level
    for size, out_ref in zip(sizes, out_refs, strict=True):
        place = row - start
        mine = known & (place >= 0) & (place < size)
        place = image * size + jnp.clip(place, 0, size - 1)
        plgpu.store(out_ref.at[place, channels], total.astype(out_ref.dtype), mask=mine)
        start += size


def spread_rows(
    sizes: Sequence[int], index: jax.Array, weight: jax.Array, gradient: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """The transpose of `weighted_rows` for several images.

    out[b, t] = sum of weight[b, k, p] * gradient[b, p] over all k, p with index[b, k, p] = t, cut into levels

    Args:
      sizes: T_l of each level; T, their sum, is below 2^31 / B.
      index: [B, K, P] int32 rows; T counts for nothing.
      weight: [B, K, P] float32.
      gradient: [B, P, C] float32 or bfloat16.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      Tuple of [B, T_l, C] in the gradient's dtype; sums are float32, added up in the order of p and k.
    """
    num_images, num_terms, _ = index.shape
    num_channels, num_rows = gradient.shape[-1], sum(sizes)
    num_keys = num_rows + 1
    keys = index + num_keys * jnp.arange(num_images, dtype=jnp.int32)[:, None, None]
    # By p, then k: the terms of one p that meet in a row lie beside each other, and its gradient is read once. Unsigned
    # keys have no order but their bits', which is what XLA hands to a radix sort.
    keys, weight = (jnp.swapaxes(x, 1, 2).reshape(-1) for x in (keys.astype(jnp.uint32), weight))
    keys, terms = jax.lax.sort((keys, jnp.arange(keys.size, dtype=jnp.int32)), num_keys=1, is_stable=True)
    starts = jnp.searchsorted(keys, jnp.arange(num_images * num_keys + 1, dtype=jnp.uint32), method="scan_unrolled")
    levels = pl.pallas_call(
        functools.partial(_spread_kernel, sizes=sizes, num_terms=num_terms),
        grid=(num_images * num_rows, pl.cdiv(num_channels, _channel_block(num_channels))),
        out_shape=[jax.ShapeDtypeStruct((num_images * size, num_channels), gradient.dtype) for size in sizes],
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="roi_align_gradient",
    )(starts.astype(jnp.int32), terms, weight, gradient.reshape(-1, num_channels))
    return tuple(level.reshape(num_images, size, num_channels) for level, size in zip(levels, sizes, strict=True))
