"""Losses of dense maps: cross-entropy with smoothed labels, Dice, and cross-entropy on hard pixels alone.

Logits are [B, K, H, W] float32 and labels [B, H, W] integers; every label outside 0 .. K - 1 is ignored. All sums are
over the whole batch, also where it is split over devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from haksnet_jax.models.dense_layers import enlarge_class_maps
from haksnet_jax.structures import AnyArray

HARD_PROBABILITY = 0.7  # of the true class, below which a pixel is hard
IGNORED = 255  # in masks


class LossSettings(NamedTuple):
    """What the parts of the loss count."""

    smoothing: float = 0.05  # of the labels, in both cross-entropies
    dice_weight: float = 1.0  # share of the Dice loss
    auxiliary_weight: float = 0.4  # share of the auxiliary head's cross-entropy
    hard_pixels: bool = False  # cross-entropy on pixels of a probability below 0.7 alone, without smoothing


def _one_hot(labels, num_classes):
    """[B, K, H, W] bool: which class each pixel has; none where the label is ignored."""
    return labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[:, None, None]


def pixel_cross_entropy(
    logits: Float[AnyArray, "B K H W"], labels: Int[AnyArray, "B H W"], *, smoothing: float = 0.0
) -> tuple[Float[Array, "B H W"], Bool[Array, "B H W"]]:
    """Cross-entropy of each pixel.

    Args:
      logits: [B, K, H, W] float32.
      labels: [B, H, W] integers.
      smoothing: share of the target that is spread over all K classes evenly.

    Returns:
      (losses [B, H, W], 0 where ignored; valid [B, H, W] bool).
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    one_hot = _one_hot(labels, logits.shape[1])
    valid = one_hot.any(axis=1)
    of_label = -jnp.where(one_hot, log_probabilities, 0.0).sum(axis=1)
    losses = (1 - smoothing) * of_label
    if smoothing:
        losses = losses - smoothing * log_probabilities.mean(axis=1)
    return jnp.where(valid, losses, 0.0), valid


def cross_entropy(
    logits: Float[AnyArray, "B K H W"], labels: Int[AnyArray, "B H W"], *, smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean of `pixel_cross_entropy` over the pixels that have a label; 0 where none has. Args: as there."""
    losses, valid = pixel_cross_entropy(logits, labels, smoothing=smoothing)
    return losses.sum() / jnp.maximum(valid.sum(), 1)


def hard_cross_entropy(
    logits: Float[AnyArray, "B K H W"], labels: Int[AnyArray, "B H W"], *, min_pixels: int = 100_000
) -> Float[Array, ""]:
    """Mean cross-entropy of the pixels that are hard.

    These are the pixels whose true class has a probability below HARD_PROBABILITY; where they are fewer than
    `min_pixels`, that many of the least probable ones.

    Args:
      logits: [B, K, H, W] float32.
      labels: [B, H, W] integers.
      min_pixels: pixels of the whole batch that count at least; at most all that have a label.

    Returns:
      Scalar; 0 where no pixel has a label.
    """
    losses, valid = pixel_cross_entropy(logits, labels)
    ranked = jnp.sort(jnp.where(valid, losses, -1.0).reshape(-1))  # ascending; ignored ones first
    smallest_kept = ranked[max(ranked.size - min_pixels, 0)]
    threshold = jnp.minimum(smallest_kept, -jnp.log(HARD_PROBABILITY))
    hard = jax.lax.stop_gradient(valid & (losses >= threshold))
    return jnp.where(hard, losses, 0.0).sum() / jnp.maximum(hard.sum(), 1)


def dice_loss(
    logits: Float[AnyArray, "B K H W"], labels: Int[AnyArray, "B H W"], *, smooth: float = 0.05
) -> Float[Array, ""]:
    """1 - the Dice coefficient of probabilities and labels, mean over the classes that the batch holds.

    Args:
      logits: [B, K, H, W] float32.
      labels: [B, H, W] integers; ignored pixels count nowhere.
      smooth: added to both parts of the fraction.

    Returns:
      Scalar; 0 where no pixel has a label.
    """
    one_hot = _one_hot(labels, logits.shape[1])
    valid = one_hot.any(axis=1, keepdims=True)
    probabilities = jnp.where(valid, jax.nn.softmax(logits, axis=1), 0.0)
    axes = (0, 2, 3)
    overlap = jnp.where(one_hot, probabilities, 0.0).sum(axes)
    pixels = one_hot.sum(axes, dtype=jnp.float32)
    coefficients = (2 * overlap + smooth) / (probabilities.sum(axes) + pixels + smooth)
    present = pixels > 0
    return jnp.where(present, 1 - coefficients, 0.0).sum() / jnp.maximum(present.sum(), 1)


def dense_loss(
    outputs: tuple[Float[Array, "B h w K"], Float[Array, "B h2 w2 K"] | None],
    labels: Int[AnyArray, "B H W"],
    *,
    strides: tuple[int, int | None],
    settings: LossSettings,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a segmenter or change detector.

    Args:
      outputs: (logits [B, h, w, K] on the decoder's grid, auxiliary logits or None).
      labels: [B, H, W] integers.
      strides: of the logits and of the auxiliary logits.
      settings: LossSettings.

    Returns:
      (loss, {name: scalar} of its parts: loss, loss_ce, loss_dice, loss_auxiliary where there is one; accuracy of the
      pixels with a label).
    """
    logits, auxiliary = outputs
    with jax.named_scope("loss"):
        logits = enlarge_class_maps(logits, strides[0])
        if settings.hard_pixels:
            parts = {"loss_ce": hard_cross_entropy(logits, labels)}
        else:
            parts = {"loss_ce": cross_entropy(logits, labels, smoothing=settings.smoothing)}
        loss = parts["loss_ce"]
        if settings.dice_weight:
            parts["loss_dice"] = dice_loss(logits, labels)
            loss = loss + settings.dice_weight * parts["loss_dice"]
        if auxiliary is not None and settings.auxiliary_weight:
            assert strides[1] is not None  # (with auxiliary logits)
            wide = enlarge_class_maps(auxiliary, strides[1])
            parts["loss_auxiliary"] = cross_entropy(wide, labels, smoothing=settings.smoothing)
            loss = loss + settings.auxiliary_weight * parts["loss_auxiliary"]
        valid = (labels >= 0) & (labels < logits.shape[1])
        right = (logits.argmax(axis=1) == labels) & valid
        parts["accuracy"] = right.sum(dtype=jnp.float32) / jnp.maximum(valid.sum(), 1)
    return loss, {"loss": loss, **parts}
