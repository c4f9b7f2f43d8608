"""UPerNet's decoder: a pyramid of pooled means on the coarsest map, a feature pyramid, and all levels fused.

Source: Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.models.dense_layers import ConvNorm, enlarge, interpolation_matrix, resample
from haksnet_jax.models.unetformer import ClassMap

POOL_SCALES = (1, 2, 3, 6)


def pooling_matrix(size: int, num_bins: int) -> np.ndarray:
    """[num_bins, size] float32 matrix of means: bin i spans floor(i * size / n) up to ceil((i + 1) * size / n)."""
    matrix = np.zeros((num_bins, size), np.float32)
    for i in range(num_bins):
        first, last = i * size // num_bins, math.ceil((i + 1) * size / num_bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


class PooledPyramid(nnx.Module):
    """Means over grids of several sizes, each through a 1 x 1 convolution, beside the map itself."""

    def __init__(self, channels_in: int, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.levels = nnx.List([ConvNorm(channels_in, channels, 1, dtype=dtype, rngs=rngs) for _ in POOL_SCALES])
        self.fuse = ConvNorm(channels_in + len(POOL_SCALES) * channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C']
        _, height, width, _ = x.shape
        parts = [x]
        for level, scale in zip(self.levels, POOL_SCALES, strict=True):
            pooled = resample(x.astype(jnp.float32), pooling_matrix(height, scale), pooling_matrix(width, scale))
            pooled = jax.nn.relu(level(pooled.astype(x.dtype), train=train)).astype(jnp.float32)
            wide = resample(pooled, interpolation_matrix(scale, height), interpolation_matrix(scale, width))
            parts.append(wide.astype(x.dtype))
        return jax.nn.relu(self.fuse(jnp.concatenate(parts, axis=-1), train=train))


class UPerNet(nnx.Module):
    """The decoder.

    Args:
      backbone_channels: of the four maps at strides 4, 8, 16 and 32.
      num_classes: K.
      channels: of the decoder.
      dropout: of channels before the logits.
      auxiliary: whether training has the auxiliary head, on the map of stride 16.
      dtype: of the arithmetic; parameters, statistics and logits are float32.
      rngs: source of the initial parameters.
    """

    stride = 4  # of the logits
    auxiliary_stride = 16

    def __init__(
        self,
        backbone_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        dropout: float = 0.1,
        auxiliary: bool = True,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        *finer, coarsest = backbone_channels
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.laterals = nnx.List([ConvNorm(width, channels, 1, **settings) for width in finer])
        self.pooled = PooledPyramid(coarsest, channels, **settings)
        self.smooth = nnx.List([ConvNorm(channels, channels, 3, **settings) for _ in finer])
        classes: dict[str, Any] = {"dropout": dropout, "activation": jax.nn.relu, **settings}
        self.head = ClassMap(4 * channels, channels, num_classes, **classes)
        self.auxiliary_head = ClassMap(finer[-1], channels // 2, num_classes, **classes) if auxiliary else None

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decodes. Args and Returns: as `UNetFormer`; the auxiliary logits have stride 16."""
        keys = (None, None) if key is None else jax.random.split(key)
        levels = [jax.nn.relu(lateral(x, train=train)) for lateral, x in zip(self.laterals, maps[:3], strict=True)]
        levels.append(self.pooled(maps[3], train=train))
        for i in (2, 1, 0):
            levels[i] = levels[i] + enlarge(levels[i + 1], 2)
        smoothed = [jax.nn.relu(smooth(x, train=train)) for smooth, x in zip(self.smooth, levels[:3], strict=True)]
        fused = [enlarge(x, 2**i) for i, x in enumerate([*smoothed, levels[3]])]
        logits = self.head(jnp.concatenate(fused, axis=-1), train=train, key=keys[0])
        auxiliary = None
        if train and self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head(maps[2], train=train, key=keys[1])
        return logits, auxiliary
