"""Oriented R-CNN on HAKSNet: the whole detector. It never sees ground truth; training's wiring is in `losses.py`."""

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.geometry.anchors import anchor_grid
from haksnet_jax.models.backbones.haksnet import HAKSNet
from haksnet_jax.models.fpn import FPN
from haksnet_jax.models.roi_head import RotatedRoIHead, select_detections
from haksnet_jax.models.rpn import OrientedRPN, select_proposals

STRIDES = (4, 8, 16, 32, 64)
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, the ImageNet values that upstream trains with
PIXEL_STD = (58.395, 57.12, 57.375)


class OrientedRCNN(nnx.Module):
    """Backbone, pyramid, oriented RPN and rotated RoI head.

    Args:
      size: BackboneSize (`haksnet.SIZES["t"]`, `["s"]`, or any other).
      num_classes: K.
      channels: width of pyramid and RPN.
      hidden: width of the box head's layers.
      drop_path_rate: stochastic depth of the last block.
      pixel_mean, pixel_std: RGB normalisation of 0..255 pixels.
      dtype: dtype of the arithmetic. Parameters, statistics and boxes are float32 always.
      unroll, remat: see `HAKSNet`.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        size,
        num_classes,
        *,
        channels=256,
        hidden=1024,
        drop_path_rate=0.1,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        dtype=jnp.float32,
        unroll=None,
        remat=False,
        rngs,
    ):
        self.backbone = HAKSNet(size, drop_path_rate=drop_path_rate, dtype=dtype, unroll=unroll, remat=remat, rngs=rngs)
        self.fpn = FPN(size.channels, channels, dtype=dtype, rngs=rngs)
        self.rpn = OrientedRPN(channels, dtype=dtype, rngs=rngs)
        self.roi_head = RotatedRoIHead(num_classes, channels=channels, hidden=hidden, dtype=dtype, rngs=rngs)
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def normalize(self, images, image_size):
        """Pixels to network input.

        Args:
          images: [B, H, W, 3] RGB, 0..255, uint8 or float.
          image_size: [B, 2] rows and columns of content.

        Returns:
          [B, H, W, 3] float32, (pixel - mean) / std; exactly 0 in the padding, as upstream pads after normalising.
        """
        rows = jnp.arange(images.shape[1])[None, :, None, None] < image_size[:, 0, None, None, None]
        columns = jnp.arange(images.shape[2])[None, None, :, None] < image_size[:, 1, None, None, None]
        normalized = (images.astype(jnp.float32) - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)
        return jnp.where(rows & columns, normalized, 0.0)

    def features(self, images, image_size, *, train=False, key=None):
        """Args: images [B, H, W, 3], 0..255; image_size [B, 2]. Returns: p2..p6, five [B, H_l, W_l, C]."""
        with jax.named_scope("backbone"):
            maps = self.backbone(self.normalize(images, image_size), train=train, key=key)
        with jax.named_scope("fpn"):
            return self.fpn(maps)

    def anchors(self, image_shape):
        """Args: image_shape (H, W). Returns: [A, 4] axis-parallel anchors of all levels, pixels (a constant)."""
        return anchor_grid(tuple(image_shape), STRIDES)

    def proposals(self, logits, deltas, image_shape, **caps):
        """Best boxes of the RPN; `caps` as in `rpn.select_proposals`. Returns: Proposals."""
        with jax.named_scope("proposals"):
            return select_proposals(
                logits, deltas, self.anchors(image_shape), image_shape=tuple(image_shape), strides=STRIDES, **caps
            )

    def detect(self, images, image_size, scale=None, *, proposal_caps=None, detection_caps=None):
        """Oriented objects in images.

        Args:
          images: [B, H, W, 3] RGB, 0..255, H and W multiples of 32, padded at right and bottom.
          image_size: [B, 2] rows and columns of content.
          scale: [B, 2] factors of x and y by which the images were resized, or None where they were not.
          proposal_caps: keyword arguments of `rpn.select_proposals`.
          detection_caps: keyword arguments of `roi_head.select_detections`.

        Returns:
          Detections in pixels of the images before they were resized.
        """
        features = self.features(images, image_size)
        logits, deltas = self.rpn(features)
        proposals = self.proposals(logits, deltas, images.shape[1:3], **(proposal_caps or {}))
        logits, deltas = self.roi_head(features, proposals.boxes, proposals.valid)
        with jax.named_scope("detections"):
            return select_detections(logits, deltas, proposals, image_size, scale, **(detection_caps or {}))


def num_parameters(module):
    """Number of trained values in a module."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
