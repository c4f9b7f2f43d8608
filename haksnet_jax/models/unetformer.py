"""The UNetFormer decoder: three fusions of a backbone's maps with global-local attention, and a refined output.

Source: Wang et al. 2022, "UNetFormer" (arXiv 2109.08937), as LSKNet's authors use it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.models.dense_layers import (
    Conv,
    ConvNorm,
    SeparableConvNorm,
    channel_dropout,
    enlarge,
    reflect_after,
    relu6,
)
from haksnet_jax.models.initializers import normal
from haksnet_jax.models.layers import BatchNorm, DepthwiseConv

WINDOW = 8
HEADS = 8


class GlobalLocalAttention(nnx.Module):
    """Attention within windows of 8 x 8 positions, beside convolutions; windows are joined by strips of means.

    Args:
      channels: C, a multiple of the heads.
      dtype: of the arithmetic; the softmax is float32.
      rngs: source of the initial parameters.
    """

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.qkv = Conv(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.position_bias = nnx.Param(normal(0.02)(rngs.params(), ((2 * WINDOW - 1) ** 2, HEADS)))
        self.local_3x3 = ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.local_1x1 = ConvNorm(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.project = SeparableConvNorm(channels, WINDOW, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        local = self.local_1x1(x, train=train) + self.local_3x3(x, train=train)
        return self.project(strip_means(self._windows(x)) + local, train=train)

    @jax.named_scope("window_attention")
    def _windows(self, x):
        batch, height, width, channels = x.shape
        x = reflect_after(x, -height % WINDOW, -width % WINDOW)
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        qkv = self.qkv(x).reshape(batch, rows, WINDOW, columns, WINDOW, 3, HEADS, channels // HEADS)
        # [3, B, rows, columns, heads, positions of a window, C / heads]
        qkv = qkv.transpose(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, batch, rows, columns, HEADS, WINDOW**2, channels // HEADS)
        bias = self.position_bias[...][_relative_positions()]  # [positions, positions, heads]
        logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * (channels // HEADS) ** -0.5 + jnp.moveaxis(bias, -1, 0))
        mixed = jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v)
        mixed = mixed.reshape(batch, rows, columns, HEADS, WINDOW, WINDOW, channels // HEADS)
        mixed = mixed.transpose(0, 1, 4, 2, 5, 3, 6).reshape(x.shape)
        return mixed[:, :height, :width]


def _relative_positions():
    """[64, 64] row of the position bias for each pair of positions of a window (query, key)."""
    y, x = np.divmod(np.arange(WINDOW**2), WINDOW)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + WINDOW - 1) * (2 * WINDOW - 1) + dx + WINDOW - 1


def strip_means(x: jax.Array) -> jax.Array:
    """The mean of eight positions above and below each, plus that of eight to its left and right.

    Along its axis the map is continued at its end by reflection (one position) and then on both sides by zeros (three),
    which count in the mean: position i has the mean of i - 3 .. i + 4.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H, W, C] in the type of x.
    """
    total: float | jax.Array = 0.0
    for axis in (1, 2):
        size = x.shape[axis]
        mirrored = jax.lax.slice_in_dim(x, size - 2, size - 1, axis=axis)
        margins = [(0, 0, 0)] * 4
        margins[axis] = (WINDOW // 2 - 1, WINDOW // 2 - 1, 0)
        padded = jax.lax.pad(jnp.concatenate([x, mirrored], axis), jnp.zeros((), x.dtype), margins)
        shifted = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(WINDOW))
        total = total + sum(part.astype(jnp.float32) for part in shifted) / WINDOW
    return jnp.asarray(total).astype(x.dtype)


class Block(nnx.Module):
    """Attention and a 1 x 1 MLP, each normalised and added to its input."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm1 = BatchNorm(channels, dtype=dtype)
        self.attention = GlobalLocalAttention(channels, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(channels, dtype=dtype)
        self.expand = Conv(channels, 4 * channels, use_bias=True, dtype=dtype, rngs=rngs)
        self.contract = Conv(4 * channels, channels, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        x = x + self.attention(self.norm1(x, train=train), train=train)
        return x + self.contract(relu6(self.expand(self.norm2(x, train=train))))


class Fusion(nnx.Module):
    """The deeper map enlarged twofold and a skip, in learned positive shares, through a 3 x 3 convolution.

    Args:
      skip_channels: of the backbone's map.
      channels: of the decoder.
      smoothed: whether the convolution follows here (the refinement head places it the same way).
    """

    def __init__(self, skip_channels: int, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.skip = Conv(skip_channels, channels, dtype=dtype, rngs=rngs)
        self.shares = nnx.Param(jnp.ones((2,), jnp.float32))
        self.smooth = ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(
        self, deep: jax.Array, skip: jax.Array, *, train: bool
    ) -> jax.Array:  # [B, H / 2, W / 2, C], [B, H, W, C'] -> [B, H, W, C]
        shares = jax.nn.relu(self.shares[...])
        shares = (shares / (shares.sum() + 1e-8)).astype(deep.dtype)
        mixed = shares[0] * self.skip(skip) + shares[1] * enlarge(deep, 2)
        return relu6(self.smooth(mixed, train=train))


class Refinement(nnx.Module):
    """Fusion with the finest map; then a gate for each position and one for each channel, side by side."""

    def __init__(self, skip_channels: int, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.fusion = Fusion(skip_channels, channels, dtype=dtype, rngs=rngs)
        self.position_gate = DepthwiseConv(channels, 3, dtype=dtype, rngs=rngs)
        hidden = max(1, channels // 16)
        self.squeeze = Conv(channels, hidden, dtype=jnp.float32, rngs=rngs)
        self.excite = Conv(hidden, channels, dtype=jnp.float32, rngs=rngs)
        self.project = SeparableConvNorm(channels, 3, dtype=dtype, rngs=rngs)
        self.shortcut = ConvNorm(channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self, deep: jax.Array, skip: jax.Array, *, train: bool
    ) -> jax.Array:  # [B, H / 2, W / 2, C], [B, H, W, C'] -> [B, H, W, C]
        x = self.fusion(deep, skip, train=train)
        means = x.mean((1, 2), dtype=jnp.float32, keepdims=True)
        channel_gate = jax.nn.sigmoid(self.excite(relu6(self.squeeze(means)))).astype(x.dtype)
        gated = (jax.nn.sigmoid(self.position_gate(x)) + channel_gate) * x
        return relu6(self.project(gated, train=train) + self.shortcut(x, train=train))


class ClassMap(nnx.Module):
    """3 x 3 convolution, channel dropout and a 1 x 1 convolution to float32 logits."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        activation: Callable[[jax.Array], jax.Array] = relu6,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = ConvNorm(channels_in, channels, 3, dtype=dtype, rngs=rngs)
        self.logits = Conv(channels, num_classes, use_bias=True, dtype=jnp.float32, rngs=rngs)
        self.dropout = dropout
        self.activation = activation

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:  # [B, H, W, C] -> [B, H, W, K] float32
        x = channel_dropout(self.activation(self.conv(x, train=train)), self.dropout, key)
        return self.logits(x)


class UNetFormer(nnx.Module):
    """The decoder.

    Args:
      backbone_channels: of the four maps at strides 4, 8, 16 and 32.
      num_classes: K.
      channels: of the decoder, a multiple of 8.
      dropout: of channels before the logits.
      auxiliary: whether training has the auxiliary head.
      dtype: of the arithmetic; parameters, statistics and logits are float32.
      rngs: source of the initial parameters.
    """

    stride = 4  # of the logits
    auxiliary_stride = 8

    def __init__(
        self,
        backbone_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 64,
        dropout: float = 0.1,
        auxiliary: bool = True,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        first, second, third, fourth = backbone_channels
        self.bottom = ConvNorm(fourth, channels, 1, dtype=dtype, rngs=rngs)
        self.block_4 = Block(channels, dtype=dtype, rngs=rngs)
        self.fusion_3 = Fusion(third, channels, dtype=dtype, rngs=rngs)
        self.block_3 = Block(channels, dtype=dtype, rngs=rngs)
        self.fusion_2 = Fusion(second, channels, dtype=dtype, rngs=rngs)
        self.block_2 = Block(channels, dtype=dtype, rngs=rngs)
        self.refinement = Refinement(first, channels, dtype=dtype, rngs=rngs)
        settings: dict[str, Any] = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        self.head = ClassMap(channels, channels, num_classes, **settings)
        self.auxiliary_head = ClassMap(channels, channels, num_classes, **settings) if auxiliary else None

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decodes.

        Args:
          maps: four maps [B, H / s, W / s, C_s] at strides s = 4, 8, 16, 32.
          train: batch statistics, and the auxiliary logits.
          key: random key of the dropout, or None for none.

        Returns:
          (logits [B, H / 4, W / 4, K] float32, auxiliary logits [B, H / 8, W / 8, K] or None).
        """
        keys = (None, None) if key is None else jax.random.split(key)
        first, second, third, fourth = maps
        x4 = self.block_4(self.bottom(fourth, train=train), train=train)
        x3 = self.block_3(self.fusion_3(x4, third, train=train), train=train)
        x2 = self.block_2(self.fusion_2(x3, second, train=train), train=train)
        auxiliary = None
        if train and self.auxiliary_head is not None:
            summed = enlarge(x4, 4) + enlarge(x3, 2) + x2
            auxiliary = self.auxiliary_head(summed, train=train, key=keys[1])
        x = self.refinement(x2, first, train=train)
        return self.head(x, train=train, key=keys[0]), auxiliary
