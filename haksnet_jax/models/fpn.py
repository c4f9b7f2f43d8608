"""Feature pyramid: the backbone's maps at one width, each with what the coarser ones know."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.kernels.lateral import lateral_sum
from haksnet_jax.models.initializers import xavier_uniform
from haksnet_jax.models.layers import OutputLinear


class FPN(nnx.Module):
    """Feature pyramid network with a fifth level subsampled from the fourth.

    Args:
      channels_in: widths of the backbone's maps.
      channels: width of the pyramid.
      dtype: dtype of the results and of the factors of products; what is added over levels is float32.
      rngs: source of the initial parameters (Xavier uniform).
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        channels: int = 256,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.laterals = nnx.List(
            [OutputLinear(c, channels, kernel_init=xavier_uniform, rngs=rngs) for c in channels_in]
        )
        self.outputs = nnx.List(
            [
                nnx.Conv(channels, channels, (3, 3), padding=1, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
                for _ in channels_in
            ]
        )
        self.dtype = dtype

    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Args: maps, four [B, H_s, W_s, C_s], finest first. Returns: p2..p6, five [B, H_s, W_s, C]."""
        maps = [x.astype(self.dtype) for x in maps]
        top = self.laterals[-1](maps[-1])
        levels, coarser = [top.astype(self.dtype)], top
        for i in reversed(range(len(maps) - 1)):
            lateral = self.laterals[i]
            assert lateral.bias is not None and coarser is not None
            # Exact sums are for the next finer level, and the finest has none.
            level, coarser = lateral_sum(maps[i], lateral.kernel[...], lateral.bias[...], coarser, exact=i > 0)
            levels.insert(0, level)
        levels = [output(x) for output, x in zip(self.outputs, levels, strict=True)]
        return (*levels, levels[-1][:, ::2, ::2])
