"""The second stage: features pooled along each oriented box, its class, and its correction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.geometry.box_coders import decode_delta_xywha
from haksnet_jax.geometry.nms import nms_rotated
from haksnet_jax.kernels.roi_align import roi_levels, rotated_roi_align
from haksnet_jax.kernels.selection import top_k
from haksnet_jax.models.initializers import xavier_normal
from haksnet_jax.models.layers import OutputLinear
from haksnet_jax.structures import AnyArray, PaddedDetections, Proposals
from haksnet_jax.target import over_mesh


class DetectionSettings(NamedTuple):
    """Which pairs of a proposal and a class become detections."""

    score_threshold: float = 0.05  # probability above which a pair is a candidate
    iou_threshold: float = 0.1  # rotated IoU above which the weaker of two candidates of one class goes
    max_candidates: int = 4096  # best pairs of an image that take part in the suppression; what is cut is counted
    max_detections: int = 2000  # detections of an image; upstream: max_per_img


class RotatedRoIHead(nnx.Module):
    """Two shared fully connected layers, a classifier and a class-agnostic box regressor.

    Args:
      num_classes: K; the background is the last logit.
      channels: width of the pyramid.
      hidden: width of the shared layers.
      pool_size: bins along each side of a box.
      strides: strides of the pyramid levels that are pooled.
      finest_scale: side in pixels, sqrt(w h), below twice of which a box is pooled on the finest level.
      dtype: dtype of the arithmetic; the outputs are float32.
      rngs: source of the initial parameters (Xavier normal, the outputs included).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 256,
        hidden: int = 1024,
        pool_size: int = 7,
        strides: Sequence[int] = (4, 8, 16, 32),
        finest_scale: float = 56.0,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        common: dict[str, Any] = {"kernel_init": xavier_normal, "rngs": rngs}
        self.fc_1 = nnx.Linear(pool_size * pool_size * channels, hidden, dtype=dtype, **common)
        self.fc_2 = nnx.Linear(hidden, hidden, dtype=dtype, **common)
        self.logits = OutputLinear(hidden, num_classes + 1, **common)
        self.deltas = OutputLinear(hidden, 5, **common)
        self.pool_size = pool_size
        self.strides = strides
        self.finest_scale = finest_scale

    @jax.named_scope("roi_align")
    def pool(self, features: Sequence[jax.Array], boxes: AnyArray, valid: AnyArray) -> jax.Array:
        """Args: features p2..p5 [B, H_l, W_l, C]; boxes [B, R, 5]; valid [B, R]. Returns: [B, R, 7, 7, C]."""

        def one_image(boxes, valid, *features):
            levels = roi_levels(boxes, num_levels=len(self.strides), finest_scale=self.finest_scale)
            return rotated_roi_align(
                features, boxes, levels, strides=self.strides, output_size=self.pool_size, valid=valid
            )

        return over_mesh(jax.vmap(one_image), boxes, valid, *features[: len(self.strides)])

    @jax.named_scope("roi_head")
    def __call__(self, features: Sequence[jax.Array], boxes: AnyArray, valid: AnyArray) -> tuple[jax.Array, jax.Array]:
        """Classifies and corrects boxes.

        Args:
          features: pyramid levels, each [B, H_l, W_l, C], finest first.
          boxes: [B, R, 5] le90 boxes, pixels of the network's input. No gradient flows to them.
          valid: [B, R] bool; the features of the other rows are 0.

        Returns:
          logits [B, R, K + 1] and deltas [B, R, 5], float32.
        """
        pooled = self.pool(features, jax.lax.stop_gradient(boxes), valid)
        x = pooled.reshape(*pooled.shape[:2], -1)  # [B, R, 7 * 7 * C]
        x = jax.nn.relu(self.fc_1(x))
        x = jax.nn.relu(self.fc_2(x))
        return self.logits(x), self.deltas(x)


def select_detections(
    logits: AnyArray,
    deltas: AnyArray,
    proposals: Proposals,
    image_size: AnyArray,
    scale: AnyArray | None = None,
    *,
    stds: Sequence[float],
    settings: DetectionSettings = DetectionSettings(),  # noqa: B008 (a tuple: nobody can change it)
) -> PaddedDetections:
    """Detections of a batch: decoded boxes above a score, after suppression within each class.

    Args:
      logits: [B, R, K + 1] classifier outputs.
      deltas: [B, R, 5] box corrections.
      proposals: Proposals [B, R, ...].
      image_size: [B, 2] rows and columns of content; centres are clipped to it.
      scale: [B, 2] factors of x and y by which the images were resized, or None for 1. Boxes are divided by them before
        the suppression, as in the reference: where the two differ, overlaps in the image are not those in its resized
        copy.
      stds: of the deltas, see `decode_delta_xywha`.
      settings: DetectionSettings.

    Returns:
      PaddedDetections [B, settings.max_detections, ...] in pixels of the image before its resizing, best first;
      `num_cut` counts what either cap left out.
    """

    def one_image(logits, deltas, boxes, valid, image_size, scale):
        num_classes = logits.shape[-1] - 1
        scores = jax.nn.softmax(logits)[:, :num_classes]  # [R, K]
        boxes = decode_delta_xywha(boxes, deltas, stds, image_size=image_size)
        boxes = boxes / jnp.concatenate([scale, scale, jnp.ones(1, scale.dtype)])
        candidates = jnp.where(valid[:, None] & (scores > settings.score_threshold), scores, 0.0).reshape(-1)
        count = min(settings.max_candidates, candidates.size)
        top, index = top_k(candidates, count)
        top_boxes = boxes[index // num_classes]
        labels = (index % num_classes).astype(jnp.int32)
        kept_index, kept, cut_after = nms_rotated(
            top_boxes,
            top,
            top > 0,
            iou_threshold=settings.iou_threshold,
            max_outputs=min(settings.max_detections, count),
            groups=labels,
            # One matrix of all pairs up to 4096 candidates (16 MiB an image): in blocks, and for several images at
            # once, the compiler was seen to take minutes.
            block_size=min(count, 4096),
        )
        padding = settings.max_detections - kept.shape[0]
        kept = jnp.pad(kept, (0, padding))
        kept_index = jnp.pad(kept_index, (0, padding))
        cut_before = (candidates > 0).sum() - (top > 0).sum()
        return PaddedDetections(
            boxes=top_boxes[kept_index],
            scores=jnp.where(kept, top[kept_index], 0.0),
            labels=jnp.where(kept, labels[kept_index], 0),
            valid=kept,
            num_cut=(cut_before + cut_after).astype(jnp.int32),
        )

    if scale is None:
        scale = jnp.ones((len(logits), 2), jnp.float32)
    # Each device for its own images: loops that end when all are done would make the devices wait for each other.
    return over_mesh(jax.vmap(one_image), logits, deltas, proposals.boxes, proposals.valid, image_size, scale)
