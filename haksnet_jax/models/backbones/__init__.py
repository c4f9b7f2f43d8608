"""Backbones: `channels`, `strides`, and a call that gives maps."""

from collections.abc import Sequence
from typing import Protocol

import jax


class Backbone(Protocol):
    """What every backbone is, beside an nnx.Module.

    Attributes:
      channels: of its maps, finest first.
      strides: pixels of the image between neighbouring positions of each map.
    """

    @property
    def channels(self) -> Sequence[int]: ...

    @property
    def strides(self) -> Sequence[int]: ...

    def __call__(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Args: images [B, H, W, bands], normalised; train; key, of stochastic depth. Returns: maps [B, H, W, C]."""
