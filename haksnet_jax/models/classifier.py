"""Classification of whole images: a backbone, the mean over its last map, and one linear layer, as upstream's.

Pre-training makes its backbone, which every other task takes; it never sees labels, training's wiring is in
`classification_loss.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.models.backbones import Backbone
from haksnet_jax.models.initializers import normal
from haksnet_jax.models.layers import OutputLinear
from haksnet_jax.structures import AnyArray


class Classifier(nnx.Module):
    """Backbone, global mean, linear.

    Args:
      backbone: module with `channels`, whose call gives feature maps, the last one the coarsest.
      num_classes: K.
      pixel_mean, pixel_std: normalisation of 0..255 pixels, one number a band.
      rngs: source of the initial weights of the linear layer (normal, std 0.02, as timm starts it).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = backbone
        self.head = OutputLinear(backbone.channels[-1], num_classes, kernel_init=normal(0.02), rngs=rngs)
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def normalize(self, images: AnyArray) -> jax.Array:
        """Pixels to network input. Args: images [B, H, W, C], 0..255. Returns: the same shape, float32."""
        return (jnp.asarray(images).astype(jnp.float32) - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)

    def logits(self, normalized: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Logits of normalised images.

        Args:
          normalized: [B, H, W, C], see `normalize`; any H and W.
          train: batch statistics instead of running ones.
          key: random key for stochastic depth, or None for none.

        Returns:
          [B, K] float32.
        """
        with jax.named_scope("backbone"):
            features = self.backbone(normalized, train=train, key=key)[-1]
        with jax.named_scope("head"):
            # float32: a mean over thousands of positions would lose its digits in bfloat16
            return self.head(features.mean((1, 2), dtype=jnp.float32))

    def classify(self, images: AnyArray, *, num_views: int = 1) -> jax.Array:
        """Class probabilities.

        Args:
          images: [B, H, W, C], 0..255; square for eight views.
          num_views: 1; 2, the image and its mirror image; or 8, both turned by 0, 90, 180 and 270 degrees, for images
            from above. The probabilities are means over the views.

        Returns:
          [B, K] float32, each row of sum 1.
        """
        normalized = self.normalize(images)
        views = [normalized] if num_views == 1 else [normalized, normalized[:, :, ::-1]]
        if num_views == 8:
            views = [jnp.rot90(view, turns, axes=(1, 2)) for view in views for turns in range(4)]
        scores = [jax.nn.softmax(self.logits(view)) for view in views]
        return sum(scores[1:], start=scores[0]) / len(scores)


def build(
    backbone: Backbone,
    architecture: dict[str, Any],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Classifier:
    """The classifier of an architecture, see `models.architecture`. Its head is float32 whatever the dtype."""
    del dtype
    return Classifier(backbone, architecture["num_classes"], pixel_mean=pixel_mean, pixel_std=pixel_std, rngs=rngs)
