"""A backbone and a decoder: classes of pixels. It never sees labels; training's wiring is in `dense_loss.py`."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.models.backbones import Backbone
from haksnet_jax.models.dense_layers import enlarge_class_maps
from haksnet_jax.models.unetformer import UNetFormer
from haksnet_jax.models.upernet import UPerNet

DECODERS: dict[str, type[UNetFormer] | type[UPerNet]] = {"unetformer": UNetFormer, "upernet": UPerNet}


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(pixels - mean) / std by channel. Args: images [..., C]; mean, std of C numbers. Returns: float32."""
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


class Decoder(Protocol):
    """What every decoder is, beside an nnx.Module. Attribute stride: pixels of the image per position of its logits."""

    stride: int

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Args: maps of a backbone; train; key, of dropout. Returns: (logits [B, h, w, K], auxiliary ones or None)."""


class Segmenter(nnx.Module):
    """Semantic segmentation.

    Args:
      backbone: module with `channels`; maps at strides 4, 8, 16 and 32.
      decoder: UNetFormer or UPerNet.
      pixel_mean, pixel_std: normalisation of the channels' values.
    """

    def __init__(
        self, backbone: Backbone, decoder: Decoder, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        self.backbone = backbone
        self.decoder = decoder
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def __call__(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits on the decoder's grid.

        Args:
          images: [B, H, W, C] pixel values; H and W multiples of 32, at least 64.
          train: batch statistics, and the auxiliary logits.
          key: random key of stochastic depth and dropout, or None for none.

        Returns:
          (logits [B, H / 4, W / 4, K] float32, auxiliary logits or None).
        """
        keys = (None, None) if key is None else jax.random.split(key)
        with jax.named_scope("backbone"):
            maps = self.backbone(normalize(images, self.pixel_mean, self.pixel_std), train=train, key=keys[0])
        with jax.named_scope("decoder"):
            return self.decoder(maps, train=train, key=keys[1])

    def probabilities(self, images: jax.Array) -> jax.Array:
        """Args: images [B, H, W, C] pixel values. Returns: [B, K, H, W] float32, sum 1 over the classes."""
        logits, _ = self(images)
        return jax.nn.softmax(enlarge_class_maps(logits, self.decoder.stride), axis=1)


def build_decoder(
    backbone: Backbone, architecture: dict[str, Any], *, dropout: float, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
) -> Decoder:
    """The decoder that an architecture names. Args: as `build`. Raises: UserError, there is none that fits."""
    if architecture["decoder"] not in DECODERS:
        raise UserError(f"model.decoder: expected one of {', '.join(DECODERS)}, got {architecture['decoder']!r}")
    if len(backbone.channels) != 4:
        raise UserError(f"model.backbone: dense decoders take four maps, this one gives {len(backbone.channels)}")
    return DECODERS[architecture["decoder"]](
        backbone.channels,
        architecture["num_classes"],
        channels=architecture["decoder_channels"],
        dropout=dropout,
        dtype=dtype,
        rngs=rngs,
    )


def build(
    backbone: Backbone,
    architecture: dict[str, Any],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Segmenter:
    """The segmenter of an architecture, see `models.architecture`.

    Args:
      backbone: module with `channels`.
      architecture: dict with `decoder`, `decoder_channels` and `num_classes`.
      pixel_mean, pixel_std: normalisation, one number a band.
      dropout: of channels before the logits, in training.
      dtype: of the arithmetic.
      rngs: source of the initial parameters.

    Raises:
      UserError: no such decoder.
    """
    decoder = build_decoder(backbone, architecture, dropout=dropout, dtype=dtype, rngs=rngs)
    return Segmenter(backbone, decoder, pixel_mean=pixel_mean, pixel_std=pixel_std)
