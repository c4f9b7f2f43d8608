"""Training's wiring: forward pass, matching, sampling and the four losses of Oriented R-CNN."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from haksnet_jax.geometry.anchors import inside_image
from haksnet_jax.geometry.box_coders import encode_delta_xywha, encode_midpoint_offset
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.geometry.matching import Samples, match_anchors, match_proposals, sample
from haksnet_jax.geometry.rotated_iou import rotated_iou_matrix
from haksnet_jax.models.oriented_rcnn import OrientedRCNN
from haksnet_jax.models.rpn import ProposalSettings
from haksnet_jax.structures import AnyArray, GroundTruth, Proposals
from haksnet_jax.target import over_mesh


class AnchorSampling(NamedTuple):
    """Which anchors the RPN learns from."""

    num_samples: int = 256  # anchors an image
    positive_fraction: float = 0.5  # of them at most
    positive_iou: float = 0.7  # from which an anchor is positive
    negative_iou: float = 0.3  # below which it is negative
    min_positive_iou: float = 0.3  # from which an object's best anchors are positive


class RoISampling(NamedTuple):
    """Which boxes the RoI head learns from."""

    num_samples: int = 512  # boxes an image
    positive_fraction: float = 0.25  # of them at most
    positive_iou: float = 0.5  # rotated IoU from which a proposal is positive; below it is negative


class LossSettings(NamedTuple):
    """What the four losses count, and from where the box losses are linear."""

    rpn_cls_weight: float = 1.0  # factors of the four losses
    rpn_box_weight: float = 1.0
    roi_cls_weight: float = 1.0
    roi_box_weight: float = 1.0
    rpn_beta: float = 1 / 9  # difference of a delta where smooth L1 turns from square to linear
    roi_beta: float = 1.0


def smooth_l1(difference: Float[AnyArray, "*n"], beta: float) -> Float[Array, "*n"]:
    """Args: difference, any shape; beta > 0, where it turns from square to linear. Returns: the same shape."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * jnp.square(size) / beta, size - 0.5 * beta)


def sigmoid_cross_entropy(logits: Float[AnyArray, "*n"], targets: Float[AnyArray, "*n"]) -> Float[Array, "*n"]:
    """Args: logits and targets (0 or 1) of one shape. Returns: cross-entropy of each, the same shape."""
    return jax.nn.softplus(-logits) * targets + jax.nn.softplus(logits) * (1.0 - targets)


def softmax_cross_entropy(logits: Float[AnyArray, "*n K"], labels: Int[AnyArray, "*n"]) -> Float[Array, "*n"]:
    """Args: logits [..., K]; labels [...] in 0..K - 1. Returns: [...] cross-entropy."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


def match_and_sample_anchors(
    key: jax.Array, anchors: Float[AnyArray, "A 4"], ground_truth: GroundTruth, settings: AnchorSampling
) -> tuple[Int[Array, "B A"], Samples]:
    """Chooses the anchors that the RPN learns from, in each image.

    Anchors are matched with the boxes that enclose the objects axis-parallel. Only anchors that lie wholly inside the
    image's content take part.

    Args:
      key: random key.
      anchors: [A, 4].
      ground_truth: GroundTruth [B, M, ...].
      settings: AnchorSampling.

    Returns:
      gt_index [B, A] int32 and Samples [B, settings.num_samples].
    """

    def one_image(boxes, valid, image_size, key):
        matches = match_anchors(
            anchors,
            boxes_to_hboxes(boxes),
            valid,
            inside_image(anchors, image_size),
            positive_iou=settings.positive_iou,
            negative_iou=settings.negative_iou,
            min_positive_iou=settings.min_positive_iou,
        )
        samples = sample(
            key,
            matches.positive,
            matches.negative,
            num_samples=settings.num_samples,
            positive_fraction=settings.positive_fraction,
        )
        return matches.gt_index, samples

    keys = jax.random.split(key, ground_truth.boxes.shape[0])
    return over_mesh(jax.vmap(one_image), ground_truth.boxes, ground_truth.valid, ground_truth.image_size, keys)


def rpn_losses(
    logits: Float[AnyArray, "B R"],
    deltas: Float[AnyArray, "B R 6"],
    anchors: Float[AnyArray, "A 4"],
    gt_index: Int[AnyArray, "B A"],
    samples: Samples,
    ground_truth: GroundTruth,
    *,
    beta: float,
    stds: Sequence[float],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Objectness and box losses of the RPN.

    Args:
      logits: [B, S] of the sampled anchors; deltas: [B, S, 6].
      anchors: [A, 4].
      gt_index: [B, A] the object that each anchor is matched with.
      samples: Samples [B, S].
      ground_truth: GroundTruth.
      beta: of the smooth L1 loss.
      stds: of the deltas, see `encode_midpoint_offset`.

    Returns:
      (classification, regression) scalars, each divided by the number of samples of the whole batch, of which
      each image counts at least one positive and one negative.
    """

    def one_image(logits, deltas, gt_index, samples, boxes):
        index = samples.index
        targets = encode_midpoint_offset(anchors[index], boxes[gt_index[index]], stds)
        classification = sigmoid_cross_entropy(logits, samples.positive.astype(jnp.float32))
        # where before the sum: the rows that do not count may hold a target that is far off
        difference = jnp.where(samples.positive[:, None], deltas - targets, 0.0)
        return jnp.where(samples.valid, classification, 0.0).sum(), smooth_l1(difference, beta).sum()

    classification, regression = jax.vmap(one_image)(logits, deltas, gt_index, samples, ground_truth.boxes)
    # As the reference counts: an image without positives, or without negatives, counts one all the same.
    num_positive = samples.positive.sum(axis=1)
    num_negative = samples.valid.sum(axis=1) - num_positive
    divisor = (jnp.maximum(num_positive, 1) + jnp.maximum(num_negative, 1)).sum()
    return classification.sum() / divisor, regression.sum() / divisor


def match_and_sample_proposals(
    key: jax.Array, proposals: Proposals, ground_truth: GroundTruth, settings: RoISampling
) -> tuple[Float[Array, "B {settings.num_samples} 5"], Int[Array, "B {settings.num_samples}"], Samples]:
    """Chooses the boxes that the RoI head learns from: of the objects themselves and the RPN's proposals.

    Args:
      key: random key.
      proposals: Proposals [B, N, ...].
      ground_truth: GroundTruth [B, M, ...].
      settings: RoISampling; R is its `num_samples`.

    Returns:
      boxes [B, R, 5], gt_index [B, R] int32 and Samples [B, R] (its index counts objects first, then proposals).
    """

    def one_image(boxes, valid, gt_boxes, gt_valid, key):
        overlaps = rotated_iou_matrix(boxes, gt_boxes)
        matches = match_proposals(overlaps, valid, gt_valid, positive_iou=settings.positive_iou)
        # An object is its own match, whatever rounding says of the IoU with itself.
        candidates = jnp.concatenate([gt_boxes, boxes])
        gt_index = jnp.concatenate([jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), matches.gt_index])
        positive = jnp.concatenate([gt_valid, matches.positive])
        negative = jnp.concatenate([jnp.zeros_like(gt_valid), matches.negative])
        samples = sample(
            key,
            positive,
            negative,
            num_samples=settings.num_samples,
            positive_fraction=settings.positive_fraction,
        )
        return candidates[samples.index], gt_index[samples.index], samples

    keys = jax.random.split(key, ground_truth.boxes.shape[0])
    return over_mesh(
        jax.vmap(one_image), proposals.boxes, proposals.valid, ground_truth.boxes, ground_truth.valid, keys
    )


def roi_losses(
    logits: Float[AnyArray, "B R K1"],
    deltas: Float[AnyArray, "B R 5"],
    boxes: Float[AnyArray, "B R 5"],
    gt_index: Int[AnyArray, "B R"],
    samples: Samples,
    ground_truth: GroundTruth,
    *,
    beta: float,
    stds: Sequence[float],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Classification and box losses of the RoI head.

    Args:
      logits: [B, R, K + 1], the background last; deltas: [B, R, 5].
      boxes: [B, R, 5] the sampled boxes.
      gt_index: [B, R] the object that each is matched with.
      samples: Samples [B, R].
      ground_truth: GroundTruth.
      beta: of the smooth L1 loss.
      stds: of the deltas, see `encode_delta_xywha`.

    Returns:
      (classification, regression, accuracy) scalars; the losses divided by the number of samples of the whole batch.
    """
    background = logits.shape[-1] - 1
    matched_boxes = jnp.take_along_axis(ground_truth.boxes, gt_index[..., None], axis=1)
    matched_labels = jnp.take_along_axis(ground_truth.labels, gt_index, axis=1)
    labels = jnp.where(samples.positive, matched_labels, background)
    classification = jnp.where(samples.valid, softmax_cross_entropy(logits, labels), 0.0)
    targets = encode_delta_xywha(boxes, matched_boxes, stds)
    difference = jnp.where(samples.positive[..., None], deltas - targets, 0.0)
    divisor = jnp.maximum(samples.valid.sum(), 1)
    correct = (logits.argmax(-1) == labels) & samples.valid
    return classification.sum() / divisor, smooth_l1(difference, beta).sum() / divisor, correct.sum() / divisor


def detection_loss(
    model: OrientedRCNN,
    images: Real[AnyArray, "B H W C"],
    ground_truth: GroundTruth,
    key: jax.Array,
    *,
    proposal_settings: ProposalSettings,
    anchor_sampling: AnchorSampling,
    roi_sampling: RoISampling,
    loss_settings: LossSettings,
) -> tuple[Float[Array, ""], dict[str, Real[Array, ""]]]:
    """The loss of one training step.

    Args:
      model: OrientedRCNN; its batch statistics are updated.
      images: [B, H, W, 3] RGB, 0..255.
      ground_truth: GroundTruth [B, M, ...], pixels of `images`.
      key: random key for stochastic depth and for both samplings.
      proposal_settings: rpn.ProposalSettings.
      anchor_sampling: AnchorSampling.
      roi_sampling: RoISampling.
      loss_settings: LossSettings.

    Returns:
      (loss, metrics): the sum of the four losses, each times its weight, and a dict of scalars: these losses, and means
      over the images of what was sampled.
    """
    drop_key, anchor_key, proposal_key = jax.random.split(key, 3)
    features = model.features(images, ground_truth.image_size, train=True, key=drop_key)
    # All anchors, to propose; no gradient flows through proposals, so this is the forward pass alone.
    rpn_logits, rpn_deltas = jax.lax.stop_gradient(model.rpn(features, rounded=True))

    anchors = jnp.asarray(model.anchors(images.shape[1:3]))
    with jax.named_scope("match_anchors"):
        gt_index, anchor_samples = match_and_sample_anchors(anchor_key, anchors, ground_truth, anchor_sampling)
    with jax.named_scope("rpn_losses"):
        rpn_classification, rpn_regression = rpn_losses(
            *model.rpn.at(features, anchor_samples.index),
            anchors,
            gt_index,
            anchor_samples,
            ground_truth,
            beta=loss_settings.rpn_beta,
            stds=model.boxes.rpn_stds,
        )

    proposals = model.proposals(rpn_logits, rpn_deltas, images.shape[1:3], proposal_settings)
    with jax.named_scope("match_proposals"):
        boxes, gt_index, roi_samples = match_and_sample_proposals(proposal_key, proposals, ground_truth, roi_sampling)
    roi_logits, roi_deltas = model.roi_head(features, boxes, roi_samples.valid)
    with jax.named_scope("roi_losses"):
        roi_classification, roi_regression, accuracy = roi_losses(
            roi_logits,
            roi_deltas,
            boxes,
            gt_index,
            roi_samples,
            ground_truth,
            beta=loss_settings.roi_beta,
            stds=model.boxes.roi_stds,
        )

    rpn_classification, rpn_regression, roi_classification, roi_regression = (
        weight * loss
        for weight, loss in zip(
            loss_settings[:4], (rpn_classification, rpn_regression, roi_classification, roi_regression), strict=True
        )
    )
    loss = rpn_classification + rpn_regression + roi_classification + roi_regression
    num_images = images.shape[0]
    metrics = {
        "loss": loss,
        "loss_rpn_cls": rpn_classification,
        "loss_rpn_box": rpn_regression,
        "loss_roi_cls": roi_classification,
        "loss_roi_box": roi_regression,
        "roi_accuracy": accuracy,
        "objects_per_image": ground_truth.valid.sum() / num_images,
        "positive_anchors": anchor_samples.positive.sum() / num_images,
        "positive_rois": roi_samples.positive.sum() / num_images,
        "proposals": proposals.valid.sum() / num_images,
    }
    return loss, metrics
