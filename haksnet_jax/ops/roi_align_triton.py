"""Weighted sums of a table's rows as a Pallas kernel for NVIDIA GPUs (Triton backend).

This is RoIAlign's work once positions are weights (see roi_align.py). A program owns some sums: it reads each row's
number and weight once for all channels, and rows in wide loads, where XLA's own fusion reads a number and a weight for
every channel. The gradient stays XLA's scatter: Pallas has atomic additions, but each of them waits for all memory.

The kernel runs under Pallas' interpreter on any machine, which is how it is tested without a GPU.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.ops.triton import plgpu, power_of_two

_SUMS = 16  # of a program
_MOST_CHANNELS = 256  # of a program


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


def weighted_rows(table, index, weight, *, interpret=False):
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
