"""Change between two dates: one backbone for both, and one of two heads.

"difference"  the absolute difference of the four maps, through a decoder of segmentation.
"exchange"    ChangerEx: the dates exchange columns and channels inside the backbone; features of each are aligned by a
              learned flow before they are subtracted. Source: Fang et al. 2023, "Changer" (arXiv 2209.08290).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.kernels.depthwise import depthwise_conv
from haksnet_jax.models.backbones import Backbone
from haksnet_jax.models.dense_layers import Conv, ConvNorm, channel_dropout, enlarge, enlarge_class_maps
from haksnet_jax.models.initializers import normal
from haksnet_jax.models.layers import DepthwiseConv
from haksnet_jax.models.segmenter import Decoder, build_decoder, normalize

HEADS = ("difference", "exchange")


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Two dates [B, ...] as one batch [2 B, ...]: pair after pair, both dates on one device."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def dates(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two dates [B, ...] of an interleaved batch [2 B, ...]."""
    x = x.reshape(-1, 2, *x.shape[1:])
    return x[:, 0], x[:, 1]


def exchange_between_dates(x: jax.Array, stage: int) -> jax.Array:
    """What the dates exchange after a stage: every second column after stage 2, every second channel after 3 and 4.

    Args:
      x: [2 B, H, W, C] maps of both dates (`interleave`).
      stage: 1, 2, 3 or 4.

    Returns:
      [2 B, H, W, C].
    """
    if stage == 1:
        return x
    axis = 2 if stage == 2 else 3
    shape = [1] * 4
    shape[axis] = x.shape[axis]
    exchanged = (np.arange(x.shape[axis]) % 2 == 0).reshape(shape)
    first, second = dates(x)
    return interleave(jnp.where(exchanged, second, first), jnp.where(exchanged, first, second))


def warp(x: jax.Array, flow: jax.Array) -> jax.Array:
    """Looks a map up at positions moved by a flow, bilinearly; outside it is zero.

    Args:
      x: [B, H, W, C].
      flow: [B, H, W, 2] float32 (x, y) in positions: the result at (column, row) is the map's value at
        (column + x, row + y).

    Returns:
      [B, H, W, C] in the type of x.
    """
    batch, height, width, _ = x.shape
    columns = jnp.arange(width, dtype=jnp.float32) + flow[..., 0]
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] + flow[..., 1]
    left, top = jnp.floor(columns), jnp.floor(rows)
    images = jnp.arange(batch)[:, None, None]
    total: float | jax.Array = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            share = (1 - jnp.abs(columns - column)) * (1 - jnp.abs(rows - row))
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
            row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
            share = jnp.where(inside, share, 0.0)[..., None]
            total = total + x[images, row, column].astype(jnp.float32) * share
    return jnp.asarray(total).astype(x.dtype)


class FlowAlignment(nnx.Module):
    """Two flows from both dates' features; each date is moved by its own, and the other is subtracted."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.depthwise = nnx.Param(normal(0.2)(rngs.params(), (5, 5, 2 * channels)))
        # Small at first: a flow of whole positions would scatter what the backbone has placed.
        self.flow = nnx.Param(normal(1e-3)(rngs.params(), (2 * channels, 4)))
        self.dtype = dtype

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:  # two [B, H, W, C] -> [B, H, W, 2 C]
        both = jnp.concatenate([first, second], axis=-1)
        x = depthwise_conv(both.astype(self.dtype), self.depthwise[...]).astype(jnp.float32)
        mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        x = jax.nn.gelu((x - mean) * jax.lax.rsqrt(var + 1e-5), approximate=False)
        flows = jnp.dot(x.astype(self.dtype), self.flow[...].astype(self.dtype), preferred_element_type=jnp.float32)
        moved_first = warp(first, flows[..., :2]) - second
        moved_second = warp(second, flows[..., 2:]) - first
        return jnp.concatenate([moved_first, moved_second], axis=-1)


class MixedMLP(nnx.Module):
    """1 x 1 convolution, depthwise 3 x 3, GELU, 1 x 1 convolution, added to the input."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.expand = Conv(channels, channels, use_bias=True, dtype=dtype, rngs=rngs)
        self.depthwise = DepthwiseConv(channels, 3, dtype=dtype, rngs=rngs)
        self.contract = Conv(channels, channels, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        return x + self.contract(jax.nn.gelu(self.depthwise(self.expand(x)), approximate=False))


class ChangerHead(nnx.Module):
    """Features of each date fused over the stages, aligned, subtracted and classified.

    Args:
      backbone_channels: of the four maps.
      num_classes: K.
      channels: of each stage's features; half as many are left for a date.
      dropout: of channels before the logits.
      dtype: of the arithmetic; logits are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        backbone_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 128,
        dropout: float = 0.1,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.laterals = nnx.List([ConvNorm(width, channels, 1, **settings) for width in backbone_channels])
        self.fuse = ConvNorm(4 * channels, channels // 2, 1, **settings)
        self.align = FlowAlignment(channels // 2, **settings)
        self.mix = MixedMLP(channels, **settings)
        self.logits = Conv(channels, num_classes, use_bias=True, dtype=jnp.float32, rngs=rngs)
        self.dropout = dropout

    def __call__(self, maps: Sequence[jax.Array], *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Args: maps, four [2 B, ...] of both dates (`interleave`); train; key. Returns: logits [B, H/4, W/4, K]."""
        levels = [jax.nn.relu(lateral(x, train=train)) for lateral, x in zip(self.laterals, maps, strict=True)]
        levels = [enlarge(x, 2**i) for i, x in enumerate(levels)]
        fused = jax.nn.relu(self.fuse(jnp.concatenate(levels, axis=-1), train=train))
        x = self.mix(self.align(*dates(fused)))
        return self.logits(channel_dropout(x, self.dropout, key))


class ChangeDetector(nnx.Module):
    """Classes of change (0: none, 1: changed) from two images of one place.

    Args:
      backbone: module with `channels`; maps at strides 4, 8, 16 and 32. Both dates go through it as one batch.
      head: ChangerHead, with which the dates exchange features inside the backbone; or a decoder of segmentation,
        which gets the absolute differences of the maps.
      pixel_mean, pixel_std: normalisation of the channels' values.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ChangerHead | Decoder,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def __call__(
        self, before: jax.Array, after: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits on the head's grid.

        Args:
          before, after: [B, H, W, C] pixel values of the two dates; H and W multiples of 32, at least 64.
          train: batch statistics, and the auxiliary logits.
          key: random key of stochastic depth and dropout, or None for none.

        Returns:
          (logits [B, H / 4, W / 4, 2] float32, auxiliary logits or None).
        """
        keys = (None, None) if key is None else jax.random.split(key)
        both = normalize(interleave(before, after), self.pixel_mean, self.pixel_std)
        with jax.named_scope("backbone"):
            exchange = {"after_stage": exchange_between_dates} if isinstance(self.head, ChangerHead) else {}
            maps = self.backbone(both, train=train, key=keys[0], **exchange)
        with jax.named_scope("head"):
            if isinstance(self.head, ChangerHead):
                return self.head(maps, train=train, key=keys[1]), None
            differences = [jnp.abs(first - second) for first, second in map(dates, maps)]
            return self.head(differences, train=train, key=keys[1])

    def probabilities(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """Args: before, after [B, H, W, C] pixel values. Returns: [B, 2, H, W] float32, sum 1 over the classes."""
        logits, _ = self(before, after)
        return jax.nn.softmax(enlarge_class_maps(logits, 4), axis=1)


def build(
    backbone: Backbone,
    architecture: dict[str, Any],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> ChangeDetector:
    """The change detector of an architecture, see `models.architecture`.

    Args:
      backbone: module with `channels`; for the head "exchange" its call takes `after_stage`.
      architecture: dict with `head`, `num_classes`, and `head_channels` or what `segmenter.build_decoder` needs.
      pixel_mean, pixel_std, dropout, dtype, rngs: as of `segmenter.build`.

    Raises:
      UserError: no such head or decoder.
    """
    if architecture["head"] not in HEADS:
        raise UserError(f"model.head: expected one of {', '.join(HEADS)}, got {architecture['head']!r}")
    settings: dict[str, Any] = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
    if architecture["head"] == "exchange":
        width = architecture["head_channels"]
        head: ChangerHead | Decoder = ChangerHead(
            backbone.channels, architecture["num_classes"], channels=width, **settings
        )
    else:
        head = build_decoder(backbone, architecture, **settings)
    return ChangeDetector(backbone, head, pixel_mean=pixel_mean, pixel_std=pixel_std)
