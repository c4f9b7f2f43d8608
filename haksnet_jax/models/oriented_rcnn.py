"""Oriented R-CNN: the whole detector. It never sees ground truth; training's wiring is in `detection_loss.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.geometry.anchors import anchor_grid
from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.models.backbones import Backbone
from haksnet_jax.models.fpn import FPN
from haksnet_jax.models.roi_head import DetectionSettings, RotatedRoIHead, select_detections
from haksnet_jax.models.rpn import OrientedRPN, ProposalSettings, select_proposals
from haksnet_jax.structures import AnyArray, PaddedDetections, Proposals

# Layers whose kernels every computation rounds to the type of the arithmetic before anything else.
ROUNDED_LAYERS = (("fpn", "outputs"), ("roi_head", "fc_1"), ("roi_head", "fc_2"))


class BoxSettings(NamedTuple):
    """How boxes are told to the network; kept with the model, since its weights mean nothing without them."""

    anchor_scale: float = 8.0  # side of a square anchor in strides of its level
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # heights of a place's anchors divided by their widths
    rpn_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)  # the six deltas of the RPN are divided by these
    roi_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 0.1)  # the five deltas of the RoI head


class OrientedRCNN(nnx.Module):
    """Backbone, pyramid, oriented RPN and rotated RoI head.

    Args:
      backbone: module with `channels` and `strides`, whose call gives four maps.
      num_classes: K.
      channels: width of pyramid and RPN.
      hidden: width of the box head's layers.
      boxes: BoxSettings.
      pixel_mean, pixel_std: normalisation of 0..255 pixels, one number a band.
      dtype: dtype of the arithmetic. Parameters, statistics and boxes are float32 always.
      rngs: source of the initial parameters.

    Attributes:
      strides: of the levels of the pyramid.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        channels: int = 256,
        hidden: int = 1024,
        boxes: BoxSettings = BoxSettings(),  # noqa: B008 (a tuple: nobody can change it)
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = backbone
        self.strides = (*backbone.strides, 2 * backbone.strides[-1])
        self.boxes = boxes
        self.fpn = FPN(backbone.channels, channels, dtype=dtype, rngs=rngs)
        self.rpn = OrientedRPN(channels, len(boxes.anchor_ratios), dtype=dtype, rngs=rngs)
        self.roi_head = RotatedRoIHead(
            num_classes, channels=channels, hidden=hidden, strides=backbone.strides, dtype=dtype, rngs=rngs
        )
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)

    def normalize(self, images: AnyArray, image_size: AnyArray) -> jax.Array:
        """Pixels to network input.

        Args:
          images: [B, H, W, bands] (RGB where there are three), 0..255, uint8 or float.
          image_size: [B, 2] rows and columns of content.

        Returns:
          [B, H, W, bands] float32, (pixel - mean) / std; exactly 0 in the padding, as upstream pads after normalising.
        """
        rows = jnp.arange(images.shape[1])[None, :, None, None] < image_size[:, 0, None, None, None]
        columns = jnp.arange(images.shape[2])[None, None, :, None] < image_size[:, 1, None, None, None]
        normalized = (images.astype(jnp.float32) - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)
        return jnp.where(rows & columns, normalized, 0.0)

    def features(
        self, images: AnyArray, image_size: AnyArray, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Args: images [B, H, W, 3], 0..255; image_size [B, 2]. Returns: p2..p6, five [B, H_l, W_l, C]."""
        with jax.named_scope("backbone"):
            maps = self.backbone(self.normalize(images, image_size), train=train, key=key)
        with jax.named_scope("fpn"):
            return self.fpn(maps)

    def anchors(self, image_shape: Sequence[int]) -> np.ndarray:
        """Args: image_shape (H, W). Returns: [A, 4] axis-parallel anchors of all levels, pixels (a constant)."""
        return anchor_grid(
            tuple(image_shape), self.strides, scale=self.boxes.anchor_scale, ratios=self.boxes.anchor_ratios
        )

    def proposals(
        self, logits: jax.Array, deltas: jax.Array, image_shape: Sequence[int], settings: ProposalSettings
    ) -> Proposals:
        """Best boxes of the RPN. Args: as of `rpn.select_proposals`. Returns: Proposals."""
        with jax.named_scope("proposals"):
            return select_proposals(
                logits,
                deltas,
                self.anchors(image_shape),
                image_shape=tuple(image_shape),
                strides=self.strides,
                anchors_per_cell=len(self.boxes.anchor_ratios),
                stds=self.boxes.rpn_stds,
                settings=settings,
            )

    def detect(
        self,
        images: AnyArray,
        image_size: AnyArray,
        scale: AnyArray | None = None,
        *,
        proposal_settings: ProposalSettings = ProposalSettings(),  # noqa: B008 (tuples: nobody can change them)
        detection_settings: DetectionSettings = DetectionSettings(),  # noqa: B008
    ) -> PaddedDetections:
        """Oriented objects in images.

        Args:
          images: [B, H, W, 3] RGB, 0..255, H and W multiples of 32, padded at right and bottom.
          image_size: [B, 2] rows and columns of content.
          scale: [B, 2] factors of x and y by which the images were resized, or None where they were not.
          proposal_settings: rpn.ProposalSettings.
          detection_settings: roi_head.DetectionSettings.

        Returns:
          PaddedDetections in pixels of the images before they were resized.
        """
        features = self.features(images, image_size)
        logits, deltas = self.rpn(features)
        proposals = self.proposals(logits, deltas, images.shape[1:3], proposal_settings)
        logits, deltas = self.roi_head(features, proposals.boxes, proposals.valid)
        with jax.named_scope("detections"):
            return select_detections(
                logits, deltas, proposals, image_size, scale, stds=self.boxes.roi_stds, settings=detection_settings
            )


def build(
    backbone: Backbone,
    architecture: dict[str, Any],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
) -> OrientedRCNN:
    """The detector of an architecture, see `architecture.build`."""
    return OrientedRCNN(
        backbone,
        architecture["num_classes"],
        channels=architecture["fpn_channels"],
        hidden=architecture["hidden"],
        boxes=box_settings(architecture),
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        dtype=dtype,
        rngs=rngs,
    )


def box_settings(values: Mapping[str, Any]) -> BoxSettings:
    """BoxSettings of a dict; what it lacks is as published. Args: values, of an architecture or a configuration."""
    given: dict[str, Any] = {name: values[name] for name in BoxSettings._fields if name in values}
    given = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in given.items()}
    return BoxSettings(**given)


def num_parameters(module: nnx.Module) -> int:
    """Number of trained values in a module."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
