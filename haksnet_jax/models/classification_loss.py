"""Training of a classifier: random erasing, mixup or cutmix on the device, and cross-entropy with smoothed labels.

Random erasing: Zhong et al., 2017; mixup: Zhang et al., 2018; cutmix: Yun et al., 2019. Settings and the order of the
three are those of timm's recipes: images are normalised, parts erased, then the batch is mixed with itself reversed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, Int, Real

from haksnet_jax.models.classifier import Classifier
from haksnet_jax.structures import AnyArray

# Rectangles that are drawn for an image until one fits into it.
ERASING_ATTEMPTS = 10
_QUANTILES = 4096


class Mixing(NamedTuple):
    """What happens to a batch on the device."""

    mixup: float = 0.8  # alpha of mixup's Beta distribution; 0 for none
    cutmix: float = 1.0  # alpha of cutmix's; 0 for none. With both, each batch has one of them, half and half
    probability: float = 1.0  # of a batch to be mixed at all
    erasing: float = 0.25  # probability of an image to have a rectangle replaced by noise
    label_smoothing: float = 0.1  # share of the target that is spread over all classes


def smoothed(labels: Int[AnyArray, " B"], num_classes: int, smoothing: float) -> Float[Array, "B {num_classes}"]:
    """Target distributions. Args: labels [B]; K; share spread evenly. Returns: [B, K] float32, rows of sum 1."""
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def rectangle_mask(
    top: Int[AnyArray, "*n"],
    left: Int[AnyArray, "*n"],
    height: Int[AnyArray, "*n"],
    width: Int[AnyArray, "*n"],
    shape: Sequence[int],
) -> Bool[Array, "*n {shape[0]} {shape[1]}"]:
    """Which pixels lie in a rectangle.

    Args:
      top, left, height, width: [...] int32 pixels.
      shape: (H, W) of the image.

    Returns:
      [..., H, W] bool.
    """
    top, left, height, width = (x[..., None, None] for x in (top, left, height, width))
    rows = jnp.arange(shape[0])[:, None]
    columns = jnp.arange(shape[1])[None, :]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def erasing_masks(
    key: jax.Array, num_images: int, shape: Sequence[int], probability: float
) -> Bool[Array, "{num_images} {shape[0]} {shape[1]}"]:
    """Random rectangles of random erasing.

    A rectangle has 2 % to a third of the image's area and an aspect ratio between 0.3 and 1/0.3, its logarithm drawn
    evenly; the first of ten that fits is taken, none if none does.

    Args:
      key: random key.
      num_images: B.
      shape: (H, W).
      probability: of an image to have one.

    Returns:
      [B, H, W] bool, True where pixels are replaced.
    """
    height, width = shape
    keys = jax.random.split(key, 4)
    tries = (num_images, ERASING_ATTEMPTS)
    area = jax.random.uniform(keys[0], tries, minval=0.02, maxval=1 / 3) * (height * width)
    bound = math.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(keys[1], tries, minval=-bound, maxval=bound))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (heights, widths))
    place = jax.random.uniform(keys[2], (2, num_images))
    top = jnp.floor(place[0] * (height - h + 1)).astype(jnp.int32)
    left = jnp.floor(place[1] * (width - w + 1)).astype(jnp.int32)
    erased = jax.random.bernoulli(keys[3], probability, (num_images,)) & fits.any(axis=1)
    return rectangle_mask(top, left, h, w, shape) & erased[:, None, None]


def erase(images: Float[AnyArray, "B H W C"], key: jax.Array, probability: float) -> Float[Array, "B H W C"]:
    """Random erasing with normal noise in each pixel. Args: [B, H, W, C] normalised images; key; probability."""
    mask_key, noise_key = jax.random.split(key)
    mask = erasing_masks(mask_key, images.shape[0], images.shape[1:3], probability)
    # One sheet of noise, under which the rectangles lie at different places: 77 million numbers for a batch of 512
    # images of 224 pixels would take a noticeable part of the step.
    return jnp.where(mask[..., None], jax.random.normal(noise_key, images.shape[1:]), images)


def _symmetric_beta(key, alpha):
    """A draw from Beta(alpha, alpha), [] float32.

    By the inverse of its distribution function in a table: JAX's own draws again until one is accepted, a loop whose
    every round the host of a GPU has to wait for.
    """
    quantiles = scipy.special.betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _QUANTILES + 1)).astype(np.float32)
    place = jax.random.uniform(key) * _QUANTILES
    below = jnp.minimum(place.astype(jnp.int32), _QUANTILES - 1)
    low, high = jnp.asarray(quantiles)[below], jnp.asarray(quantiles)[below + 1]
    return low + (place - below) * (high - low)


def cutmix_rectangle(
    key: jax.Array, share: Float[AnyArray, ""], shape: Sequence[int]
) -> tuple[Bool[Array, "{shape[0]} {shape[1]}"], Float[Array, ""]]:
    """Cutmix's rectangle.

    Its centre is drawn evenly over the image, its sides are sqrt(1 - share) of the image's, and it is cut off at the
    image's edges.

    Args:
      key: random key.
      share: [] of the first image that should stay.
      shape: (H, W).

    Returns:
      ([H, W] bool mask of the pixels that come from the other image, [] share of the image that does stay).
    """
    height, width = shape
    side = jnp.sqrt(1.0 - share)
    cut_h, cut_w = jnp.floor(height * side).astype(jnp.int32), jnp.floor(width * side).astype(jnp.int32)
    place = jax.random.uniform(key, (2,))
    centre_y, centre_x = jnp.floor(place[0] * height), jnp.floor(place[1] * width)
    top = jnp.clip(centre_y.astype(jnp.int32) - cut_h // 2, 0, height)
    bottom = jnp.clip(centre_y.astype(jnp.int32) + cut_h // 2, 0, height)
    left = jnp.clip(centre_x.astype(jnp.int32) - cut_w // 2, 0, width)
    right = jnp.clip(centre_x.astype(jnp.int32) + cut_w // 2, 0, width)
    mask = rectangle_mask(top, left, bottom - top, right - left, shape)
    return mask, 1.0 - ((bottom - top) * (right - left)) / (height * width)


def mix(
    images: Float[AnyArray, "B H W C"], targets: Float[AnyArray, "B K"], key: jax.Array, settings: Mixing
) -> tuple[Float[AnyArray, "B H W C"], Float[AnyArray, "B K"]]:
    """Mixup or cutmix of a batch with itself in reverse.

    Args:
      images: [B, H, W, C] normalised.
      targets: [B, K] distributions.
      key: random key.
      settings: Mixing.

    Returns:
      (images, targets) of the same shapes; one share for the whole batch.
    """
    if not (settings.mixup or settings.cutmix) or not settings.probability:
        return images, targets
    keys = jax.random.split(key, 5)
    if settings.mixup and settings.cutmix:
        cutting = jax.random.bernoulli(keys[0])
    else:
        cutting = jnp.asarray(bool(settings.cutmix))
    blend = _symmetric_beta(keys[1], settings.mixup) if settings.mixup else jnp.float32(1.0)
    if settings.cutmix:
        share = _symmetric_beta(keys[2], settings.cutmix)
        mask, share = cutmix_rectangle(keys[3], share, images.shape[1:3])
    else:
        mask, share = jnp.zeros(images.shape[1:3], bool), jnp.float32(1.0)
    mixed = jax.random.bernoulli(keys[4], settings.probability)
    share = jnp.where(mixed, jnp.where(cutting, share, blend), 1.0)
    # One weight for each pixel covers both kinds: of a whole image for mixup, of a rectangle for cutmix.
    weight = jnp.where(mixed & cutting, 1.0 - mask, share)[None, :, :, None]
    images = images * weight + images[::-1] * (1.0 - weight)
    return images, targets * share + targets[::-1] * (1.0 - share)


def classification_loss(
    model: Classifier, images: Real[AnyArray, "B H W C"], labels: Int[AnyArray, " B"], key: jax.Array, *, mixing: Mixing
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of a batch against smoothed, mixed targets.

    Args:
      model: Classifier.
      images: [B, H, W, C], 0..255.
      labels: [B] int32 classes.
      key: random key for erasing, mixing and stochastic depth.
      mixing: Mixing.

    Returns:
      (loss [], {"loss", "top1"}): top1 is the share of images whose likeliest class is the one that its target gives
      the most to, which with mixing is a hint at best.
    """
    erase_key, mix_key, model_key = jax.random.split(key, 3)
    normalized: AnyArray = model.normalize(images)
    with jax.named_scope("mixing"):
        if mixing.erasing:
            normalized = erase(normalized, erase_key, mixing.erasing)
        targets: AnyArray = smoothed(labels, model.head.out_features, mixing.label_smoothing)
        normalized, targets = mix(normalized, targets, mix_key, mixing)
    logits = model.logits(jnp.asarray(normalized), train=True, key=model_key)
    loss = -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
    right = logits.argmax(axis=-1) == targets.argmax(axis=-1)
    return loss, {"loss": loss, "top1": right.mean(dtype=jnp.float32)}
