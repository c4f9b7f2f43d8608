"""Training's wiring: forward pass, matching, sampling and the four losses of Oriented R-CNN."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from haksnet_jax.geometry.anchors import inside_image
from haksnet_jax.geometry.box_coders import encode_delta_xywha, encode_midpoint_offset
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.geometry.matching import match_anchors, match_proposals, sample
from haksnet_jax.geometry.rotated_iou import rotated_iou_matrix
from haksnet_jax.target import over_mesh


class LossSettings(NamedTuple):
    """What the four losses count, and from where the box losses are linear.

    Attributes:
      rpn_cls_weight, rpn_box_weight, roi_cls_weight, roi_box_weight: factors of the losses.
      rpn_beta, roi_beta: difference of a delta where smooth L1 turns from square to linear.
    """

    rpn_cls_weight: float = 1.0
    rpn_box_weight: float = 1.0
    roi_cls_weight: float = 1.0
    roi_box_weight: float = 1.0
    rpn_beta: float = 1 / 9
    roi_beta: float = 1.0


def smooth_l1(difference, beta):
    """Args: difference, any shape; beta > 0, where it turns from square to linear. Returns: the same shape."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * jnp.square(size) / beta, size - 0.5 * beta)


def sigmoid_cross_entropy(logits, targets):
    """Args: logits and targets (0 or 1) of one shape. Returns: cross-entropy of each, the same shape."""
    return jax.nn.softplus(-logits) * targets + jax.nn.softplus(logits) * (1.0 - targets)


def softmax_cross_entropy(logits, labels):
    """Args: logits [..., K]; labels [...] in 0..K - 1. Returns: [...] cross-entropy."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


def match_and_sample_anchors(key, anchors, ground_truth, *, num_samples=256, positive_fraction=0.5, **thresholds):
    """Chooses the anchors that the RPN learns from, in each image.

    Anchors are matched with the boxes that enclose the objects axis-parallel. Only anchors that lie wholly inside the
    image's content take part.

    Args:
      key: random key.
      anchors: [A, 4].
      ground_truth: GroundTruth [B, M, ...].
      num_samples: anchors an image.
      positive_fraction: share of them that may be positive.
      **thresholds: of `match_anchors`.

    Returns:
      gt_index [B, A] int32 and Samples [B, num_samples].
    """

    def one_image(boxes, valid, image_size, key):
        matches = match_anchors(anchors, boxes_to_hboxes(boxes), valid, inside_image(anchors, image_size), **thresholds)
        samples = sample(
            key, matches.positive, matches.negative, num_samples=num_samples, positive_fraction=positive_fraction
        )
        return matches.gt_index, samples

    keys = jax.random.split(key, ground_truth.boxes.shape[0])
    return over_mesh(jax.vmap(one_image), ground_truth.boxes, ground_truth.valid, ground_truth.image_size, keys)


def rpn_losses(
    logits, deltas, anchors, gt_index, samples, ground_truth, *, beta=1 / 9, stds=(1.0, 1.0, 1.0, 1.0, 0.5, 0.5)
):
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
    key, proposals, ground_truth, *, num_samples=512, positive_fraction=0.25, positive_iou=0.5
):
    """Chooses the boxes that the RoI head learns from: of the objects themselves and the RPN's proposals.

    Args:
      key: random key.
      proposals: Proposals [B, N, ...].
      ground_truth: GroundTruth [B, M, ...].
      num_samples: R, boxes an image.
      positive_fraction: share of them that may be positive.
      positive_iou: rotated IoU from which a proposal is positive; below it is negative.

    Returns:
      boxes [B, R, 5], gt_index [B, R] int32 and Samples [B, R] (its index counts objects first, then proposals).
    """

    def one_image(boxes, valid, gt_boxes, gt_valid, key):
        matches = match_proposals(rotated_iou_matrix(boxes, gt_boxes), valid, gt_valid, positive_iou=positive_iou)
        # An object is its own match, whatever rounding says of the IoU with itself.
        candidates = jnp.concatenate([gt_boxes, boxes])
        gt_index = jnp.concatenate([jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), matches.gt_index])
        positive = jnp.concatenate([gt_valid, matches.positive])
        negative = jnp.concatenate([jnp.zeros_like(gt_valid), matches.negative])
        samples = sample(key, positive, negative, num_samples=num_samples, positive_fraction=positive_fraction)
        return candidates[samples.index], gt_index[samples.index], samples

    keys = jax.random.split(key, ground_truth.boxes.shape[0])
    return over_mesh(
        jax.vmap(one_image), proposals.boxes, proposals.valid, ground_truth.boxes, ground_truth.valid, keys
    )


def roi_losses(logits, deltas, boxes, gt_index, samples, ground_truth, *, beta=1.0, stds=(0.1, 0.1, 0.2, 0.2, 0.1)):
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
    model,
    images,
    ground_truth,
    key,
    *,
    proposal_caps=None,
    rpn_sampling=None,
    roi_sampling=None,
    settings=LossSettings(),  # noqa: B008 (a tuple: nobody can change it)
):
    """The loss of one training step.

    Args:
      model: OrientedRCNN; its batch statistics are updated.
      images: [B, H, W, 3] RGB, 0..255.
      ground_truth: GroundTruth [B, M, ...], pixels of `images`.
      key: random key for stochastic depth and for both samplings.
      proposal_caps: keyword arguments of `rpn.select_proposals`.
      rpn_sampling: keyword arguments of `match_and_sample_anchors`.
      roi_sampling: keyword arguments of `match_and_sample_proposals`.
      settings: LossSettings.

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
        gt_index, anchor_samples = match_and_sample_anchors(anchor_key, anchors, ground_truth, **(rpn_sampling or {}))
    with jax.named_scope("rpn_losses"):
        rpn_classification, rpn_regression = rpn_losses(
            *model.rpn.at(features, anchor_samples.index),
            anchors,
            gt_index,
            anchor_samples,
            ground_truth,
            beta=settings.rpn_beta,
            stds=model.boxes.rpn_stds,
        )

    proposals = model.proposals(rpn_logits, rpn_deltas, images.shape[1:3], **(proposal_caps or {}))
    with jax.named_scope("match_proposals"):
        boxes, gt_index, roi_samples = match_and_sample_proposals(
            proposal_key, proposals, ground_truth, **(roi_sampling or {})
        )
    roi_logits, roi_deltas = model.roi_head(features, boxes, roi_samples.valid)
    with jax.named_scope("roi_losses"):
        roi_classification, roi_regression, accuracy = roi_losses(
            roi_logits,
            roi_deltas,
            boxes,
            gt_index,
            roi_samples,
            ground_truth,
            beta=settings.roi_beta,
            stds=model.boxes.roi_stds,
        )

    rpn_classification, rpn_regression, roi_classification, roi_regression = (
        weight * loss
        for weight, loss in zip(
            settings[:4], (rpn_classification, rpn_regression, roi_classification, roi_regression), strict=True
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
