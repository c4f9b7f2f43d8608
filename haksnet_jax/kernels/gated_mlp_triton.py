"""The block's MLP as two Pallas kernels for NVIDIA GPUs (Triton backend), in bfloat16.

The hidden maps, 4 to 8 times as wide as the input, never reach memory in the forward pass: a program takes some
positions, computes their hidden values a chunk at a time as products of the positions' neighbours with composed kernels
(see gated_mlp.py), and adds up the projections. The gradient computes the same chunk again and writes the one map that
further positions need, the gradient before the composed convolution, which two library convolutions finish.

Biases of the expansion meet zeros, not themselves, beyond the border. So the bias seen through each tap is a row of a
table, `edges`, multiplied with a matrix that says which taps lie inside: one more small product, whose transpose gives
the gradients of all biases.

Both kernels run under Pallas' interpreter on any machine, which is how they are tested without a GPU.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from haksnet_jax.kernels.triton import plgpu
from haksnet_jax.target import over_mesh

if TYPE_CHECKING:
    from haksnet_jax.kernels.gated_mlp import GatedMLPWeights  # which imports this module

_SIDE = 3  # of the depthwise kernel
EDGES = 16  # rows of `edges`: nine taps, one for what is always seen, and zeros, since products want sixteen
ALWAYS = _SIDE * _SIDE
_PROGRAMS = 264  # of the gradient's kernel, all chunks together: two for each multiprocessor of an H100


class Tile(NamedTuple):
    """What one program of a kernel owns: positions and hidden channels at a time, and the warps that share them.

    The gradient's kernel alone can keep the factors of all taps in shared memory (`keeps_taps`), which pays as long as
    two programs fit a multiprocessor.
    """

    rows: int
    hidden: int
    num_warps: int
    num_stages: int
    keeps_taps: bool = False


class Composed(NamedTuple):
    """The weights as the kernels take them, C channels and D hidden ones.

    Attributes:
      taps: [9, C, D] product of depthwise kernel and expansion, by row and column of the kernel.
      edges: [16, D] bias seen through each tap, then the depthwise convolution's own, then zeros.
      gate: [C, D]; gate_bias: [D].
      project: [D, C]; project_bias: [C].
    """

    taps: jax.Array
    edges: jax.Array
    gate: jax.Array
    gate_bias: jax.Array
    project: jax.Array
    project_bias: jax.Array


def suits(x: jax.Array, weights: "GatedMLPWeights") -> bool:
    """Whether the kernels can take these shapes and types."""
    channels, hidden = weights.project_kernel.shape[::-1]
    return (
        x.dtype == jnp.bfloat16
        and weights.depthwise_kernel.shape[0] == _SIDE
        and 16 <= channels <= 128
        and channels & (channels - 1) == 0
        and hidden % 64 == 0
        and hidden & (hidden - 1) == 0
    )


def compose(weights: "GatedMLPWeights") -> Composed:
    """GatedMLPWeights to Composed, in float32."""
    filter_kernel, gate = jnp.split(weights.expand_kernel, 2, axis=-1)
    filter_bias, gate_bias = jnp.split(weights.expand_bias, 2)
    by_tap = weights.depthwise_kernel.reshape(ALWAYS, -1)
    edges = jnp.concatenate([by_tap * filter_bias, weights.depthwise_bias[None]])
    return Composed(
        taps=by_tap[:, None, :] * filter_kernel,
        edges=jnp.pad(edges, ((0, EDGES - ALWAYS - 1), (0, 0))),
        gate=gate,
        gate_bias=gate_bias,
        project=weights.project_kernel,
        project_bias=weights.project_bias,
    )


def composed_convolution(x: jax.Array, taps: jax.Array) -> jax.Array:
    """The filtered half without its bias, [B, H, W, D]. Args: x [B, H, W, C]; taps [9, C, D], see `Composed`."""
    return jax.lax.conv_general_dilated(
        x,
        taps.reshape(_SIDE, _SIDE, *taps.shape[1:]),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class GradientSums(NamedTuple):
    """Gradients of the factors that kernels sum up, hidden channels as rows but for the taps.

    Attributes:
      taps: [9, C, D]; edges: [D, 16]; gate: [D, C]; gate_bias: [D]; project: [D, C].
    """

    taps: jax.Array
    edges: jax.Array
    gate: jax.Array
    gate_bias: jax.Array
    project: jax.Array


def gradients_of_parts(
    x: jax.Array,
    gradient: jax.Array,
    pull_back: Callable[[Composed], tuple["GatedMLPWeights"]],
    from_filter: jax.Array,
    from_gate: jax.Array,
    sums: GradientSums,
) -> tuple[jax.Array, "GatedMLPWeights"]:
    """The gradients of `gated_mlp` from those of its two halves and of its factors.

    Args:
      x: [B, H, W, C] input; gradient: [B, H, W, C] with respect to the output.
      pull_back: of `compose`, from `jax.vjp`.
      from_filter, from_gate: [B, H, W, C] gradients to x through the filtered half and through the gate.
      sums: GradientSums.

    Returns:
      (gradient to x, GatedMLPWeights of gradients).
    """
    (weight_gradients,) = pull_back(
        Composed(
            taps=sums.taps.astype(jnp.float32),
            edges=sums.edges.T,
            gate=sums.gate.T,
            gate_bias=sums.gate_bias,
            project=sums.project,
            project_bias=gradient.astype(jnp.float32).sum((0, 1, 2)),
        )
    )
    return (from_filter.astype(jnp.float32) + from_gate).astype(x.dtype), weight_gradients


def _rounded(composed, dtype):
    """Factors of products in the type of the features; biases that are added stay float32."""
    return Composed(*(leaf if leaf.ndim == 1 else leaf.astype(dtype) for leaf in composed))


class _Positions:
    """Some positions of all images, counted by image, row and column, and what lies around them."""

    def __init__(self, index, shape):
        num_images, self.height, self.width, _ = shape
        self.index = index
        self.known = index < num_images * self.height * self.width
        # lax.div and lax.rem: // and % ask for the signs, which are known here.
        row_of_all = jax.lax.div(index, jnp.full_like(index, self.width))
        self.row = jax.lax.rem(row_of_all, jnp.full_like(index, self.height))
        self.column = index - row_of_all * self.width

    def inside(self, down, right):
        """Whether the neighbour lies in the image; the offsets can be traced, or arrays that broadcast."""
        row, column = self.row[:, None] + down, self.column[:, None] + right
        in_image = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
        return in_image & self.known[:, None]

    def seen(self, dtype):
        """[n, 16] 1 where a tap lies inside, and in the column of what is always seen."""
        tap = jnp.arange(EDGES)[None, :]
        through = self.inside(*_offsets(tap)) & (tap < ALWAYS)
        return (through | (self.known[:, None] & (tap == ALWAYS))).astype(dtype)

    def load(self, ref, columns):
        """[n, columns] of a [positions, columns] array."""
        return plgpu.load(ref.at[self.index[:, None], columns[None, :]], mask=self.known[:, None], other=0.0)


def _offsets(tap):
    """Rows down and columns to the right of a tap, counted by row and column of the kernel."""
    row = jax.lax.div(tap, jnp.full_like(tap, _SIDE))
    return row - 1, tap - _SIDE * row - 1


def _load_tap(taps_ref, tap, channels, hidden):
    """[C, hidden] factors of one tap."""
    return plgpu.load(taps_ref.at[tap, channels[:, None], hidden[None, :]])


def _load_edges(edges_ref, hidden):
    """[16, hidden] biases by tap."""
    return plgpu.load(edges_ref.at[jnp.arange(EDGES)[:, None], hidden[None, :]])


def _neighbours(x_ref, positions, channels, tap):
    """[n, C] features that the positions see through a tap, zeros beyond the border."""
    down, right = _offsets(tap)
    place = positions.index + down * positions.width + right
    return plgpu.load(x_ref.at[place[:, None], channels[None, :]], mask=positions.inside(down, right), other=0.0)


def _filtered(x_ref, taps_ref, edges, positions, seen, channels, hidden):
    """[n, hidden] float32: expanded, filtered, biases included."""

    def add_tap(tap, total):
        factors = _load_tap(taps_ref, tap, channels, hidden)
        return total + plgpu.dot(_neighbours(x_ref, positions, channels, tap), factors)

    return jax.lax.fori_loop(0, ALWAYS, add_tap, plgpu.dot(seen, edges))


def _forward_kernel(
    x_ref, taps_ref, edges_ref, gate_ref, gate_bias_ref, project_ref, project_bias_ref, out_ref, *, shape, tile
):
    channels = jnp.arange(shape[3])
    positions = _Positions(pl.program_id(0) * tile.rows + jnp.arange(tile.rows), shape)
    seen = positions.seen(x_ref.dtype)
    x = positions.load(x_ref, channels)

    def add_chunk(chunk, total):
        hidden = chunk * tile.hidden + jnp.arange(tile.hidden)
        edges = _load_edges(edges_ref, hidden)
        filtered = _filtered(x_ref, taps_ref, edges, positions, seen, channels, hidden)
        gate = plgpu.dot(x, plgpu.load(gate_ref.at[channels[:, None], hidden[None, :]]))
        gated = filtered * (gate + plgpu.load(gate_bias_ref.at[hidden])[None, :])
        project = plgpu.load(project_ref.at[hidden[:, None], channels[None, :]])
        return total + plgpu.dot(gated.astype(x.dtype), project)

    total = jnp.zeros((tile.rows, shape[3]), jnp.float32)
    total = jax.lax.fori_loop(0, gate_bias_ref.shape[0] // tile.hidden, add_chunk, total)
    total += plgpu.load(project_bias_ref.at[channels])[None, :]
    index = out_ref.at[positions.index[:, None], channels[None, :]]
    plgpu.store(index, total.astype(out_ref.dtype), mask=positions.known[:, None])


def _gradient_kernel(
    x_ref, gradient_ref, taps_ref, edges_ref, gate_ref, gate_bias_ref, project_ref,
    filtered_out, x_out, edges_out, gate_out, gate_edges_out, project_out, *, shape, tile, num_tiles,
):  # fmt: skip
    channels, edge_rows = jnp.arange(shape[3]), jnp.arange(EDGES)
    chunk, program, num_programs = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    hidden = chunk * tile.hidden + jnp.arange(tile.hidden)
    gate_kernel = plgpu.load(gate_ref.at[channels[:, None], hidden[None, :]])
    gate_bias = plgpu.load(gate_bias_ref.at[hidden])[None, :]
    project = plgpu.load(project_ref.at[hidden[:, None], channels[None, :]])
    edges = _load_edges(edges_ref, hidden)
    taps = [_load_tap(taps_ref, tap, channels, hidden) for tap in range(ALWAYS)] if tile.keeps_taps else []

    def one_tile(i, sums):
        edges_sum, gate_sum, gate_edges_sum, project_sum = sums
        first = (program + i * num_programs) * tile.rows
        positions = _Positions(first + jnp.arange(tile.rows), shape)
        seen = positions.seen(x_ref.dtype)
        x = positions.load(x_ref, channels)
        gradient = positions.load(gradient_ref, channels)
        if taps:
            filtered = plgpu.dot(seen, edges)
            for tap, factors in enumerate(taps):
                neighbours = x if tap == ALWAYS // 2 else _neighbours(x_ref, positions, channels, tap)
                filtered += plgpu.dot(neighbours, factors)
        else:
            filtered = _filtered(x_ref, taps_ref, edges, positions, seen, channels, hidden)
        gate = plgpu.dot(x, gate_kernel) + gate_bias
        gated_gradient = plgpu.dot(gradient, project, trans_b=True)  # [rows, hidden]
        filtered_gradient = (gated_gradient * gate).astype(x.dtype)
        gate_gradient = (gated_gradient * filtered).astype(x.dtype)
        known = positions.known[:, None]
        plgpu.store(filtered_out.at[positions.index[:, None], hidden[None, :]], filtered_gradient, mask=known)
        x_gradient = plgpu.dot(gate_gradient, gate_kernel, trans_b=True)
        plgpu.store(
            x_out.at[positions.index[:, None], chunk, channels[None, :]], x_gradient.astype(x.dtype), mask=known
        )
        # The hidden channels as rows: there are 64 of them, as many as the fastest products take.
        return (
            edges_sum + plgpu.dot(filtered_gradient, seen, trans_a=True),
            gate_sum + plgpu.dot(gate_gradient, x, trans_a=True),
            gate_edges_sum + plgpu.dot(gate_gradient, seen, trans_a=True),
            project_sum + plgpu.dot((filtered * gate).astype(x.dtype), gradient, trans_a=True),
        )

    zeros = tuple(
        jnp.zeros(size, jnp.float32)
        for size in ((tile.hidden, EDGES), project.shape, (tile.hidden, EDGES), project.shape)
    )
    edges_sum, gate_sum, gate_edges_sum, project_sum = jax.lax.fori_loop(0, num_tiles, one_tile, zeros)
    for ref, columns, total in (
        (edges_out, edge_rows, edges_sum),
        (gate_out, channels, gate_sum),
        (gate_edges_out, edge_rows, gate_edges_sum),
        (project_out, channels, project_sum),
    ):
        plgpu.store(ref.at[program, hidden[:, None], columns[None, :]], total)


def forward_tile(channels: int) -> Tile:
    """Tile of the forward kernel: sums of a chunk, its gate and the projections fit the registers.

    On an H100, 8 images, against the composed form of XLA: 32 channels at 256 x 256 0.34 against 0.93 ms, 64 at
    256 x 256 0.89 against 2.04, 128 at 128 x 128 1.24 against 1.30; other tiles were slower by a tenth to a half.
    """
    return Tile(rows=128, hidden=128 if channels <= 64 else 64, num_warps=8, num_stages=3)


def gradient_tile(channels: int) -> Tile:
    """Tile of the gradient's kernel, which holds the weights' gradients of its chunk besides.

    On an H100, 8 images, the whole gradient, against 128 rows, 8 warps and one program for each multiprocessor: 32
    channels at 256 x 256 1.38 against 1.81 ms (1.61 without the taps in shared memory), 64 at 128 x 128 0.99 against
    1.13; three or four programs, more rows or fewer hidden channels were slower. 128 channels fill the shared memory.
    """
    if channels > 64:
        return Tile(rows=128, hidden=64, num_warps=8, num_stages=2)
    if channels > 32:
        return Tile(rows=64, hidden=64, num_warps=4, num_stages=2)
    return Tile(rows=64, hidden=64, num_warps=4, num_stages=1, keeps_taps=True)


def gated_mlp_triton(
    x: jax.Array, weights: "GatedMLPWeights", *, tile: Tile | None = None, interpret: bool = False
) -> jax.Array:
    """`gated_mlp` in one kernel.

    Args:
      x: [B, H, W, C] bfloat16, C a power of two from 16 to 128.
      weights: "GatedMLPWeights" with a 3 x 3 depthwise kernel and D a power of two from 64.
      tile: what one program owns; chosen by C if None.
      interpret: runs in Pallas' interpreter, on any machine.

    Returns:
      [B, H, W, C] in the type of x; sums are float32.
    """
    tile = tile or forward_tile(x.shape[3])
    tile = tile._replace(hidden=min(tile.hidden, weights.project_kernel.shape[0]))

    def run(x, composed):
        rows = x.reshape(-1, x.shape[3])
        out = pl.pallas_call(
            functools.partial(_forward_kernel, shape=x.shape, tile=tile),
            grid=(pl.cdiv(rows.shape[0], tile.rows),),
            out_shape=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
            compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
            interpret=interpret,
            name="gated_mlp",
        )(rows, *composed)
        return out.reshape(x.shape)

    return over_mesh(run, x, _rounded(compose(weights), x.dtype), split=1)


def gated_mlp_triton_gradients(
    x: jax.Array, weights: "GatedMLPWeights", gradient: jax.Array, *, tile: Tile | None = None, interpret: bool = False
) -> tuple[jax.Array, "GatedMLPWeights"]:
    """Gradients of `gated_mlp` with respect to x and the weights: one kernel and two convolutions.

    Args:
      x, weights, tile, interpret: as for `gated_mlp_triton`.
      gradient: [B, H, W, C] with respect to the output, in the type of x.

    Returns:
      (gradient to x, GatedMLPWeights of gradients).
    """
    num_channels, num_hidden = x.shape[3], weights.project_kernel.shape[0]
    tile = tile or gradient_tile(num_channels)
    tile = tile._replace(hidden=min(tile.hidden, num_hidden))
    num_chunks = num_hidden // tile.hidden
    composed, pull_back = jax.vjp(compose, weights)
    rounded = _rounded(composed, x.dtype)

    def run(x, gradient, *factors):
        num_rows = x.size // num_channels
        num_programs = min(max(_PROGRAMS // num_chunks, 1), pl.cdiv(num_rows, tile.rows))
        sums = (
            (num_programs, num_hidden, EDGES),
            (num_programs, num_hidden, num_channels),
            (num_programs, num_hidden, EDGES),
            (num_programs, num_hidden, num_channels),
        )
        filtered, from_gate, *sums = pl.pallas_call(
            functools.partial(
                _gradient_kernel,
                shape=x.shape,
                tile=tile,
                num_tiles=pl.cdiv(pl.cdiv(num_rows, tile.rows), num_programs),
            ),
            grid=(num_chunks, num_programs),
            out_shape=[
                jax.ShapeDtypeStruct((num_rows, num_hidden), x.dtype),
                jax.ShapeDtypeStruct((num_rows, num_chunks, num_channels), x.dtype),
                *(jax.ShapeDtypeStruct(size, jnp.float32) for size in sums),
            ],
            compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
            interpret=interpret,
            name="gated_mlp_gradient",
        )(x.reshape(-1, num_channels), gradient.reshape(-1, num_channels), *factors)
        from_gate = from_gate.astype(jnp.float32).sum(1).reshape(x.shape)
        return filtered.reshape(*x.shape[:3], num_hidden), from_gate, *sums

    # All results have a leading axis of images or of programs, which devices split; the sums over it follow here.
    filtered, from_gate, *sums = over_mesh(run, x, gradient, *rounded[:-1], split=2)
    edges, gate, gate_edges, project = (partial_sums.sum(0) for partial_sums in sums)
    from_filter, taps = jax.vjp(composed_convolution, x, rounded.taps)[1](filtered)
    sums = GradientSums(taps, edges, gate, gate_edges[:, ALWAYS], project)
    return gradients_of_parts(x, gradient, pull_back, from_filter, from_gate, sums)
