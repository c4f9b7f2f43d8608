"""What travels between the parts: boxes in fixed-size arrays with their validity masks.

Axis letters, everywhere in this project:
  B batch, H W rows and columns, C channels, A anchors, N boxes, M ground-truth boxes (padded), R sampled RoIs,
  K classes.

A list of boxes has a fixed size; which rows count is said by `valid`. Zeros never mean absence.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

AnyArray = jax.Array | np.ndarray  # functions of JAX arrays take both


class GroundTruth(NamedTuple):
    """Labelled objects of a batch.

    Attributes:
      boxes: [B, M, 5] float32 le90 boxes in pixels of the network's input.
      labels: [B, M] int32 classes, 0-based.
      valid: [B, M] bool, which rows are objects.
      image_size: [B, 2] int32 rows and columns of the image's content, without its padding at right and bottom.
    """

    boxes: Float[AnyArray, "B M 5"]
    labels: Int[AnyArray, "B M"]
    valid: Bool[AnyArray, "B M"]
    image_size: Int[AnyArray, "B 2"]


class Proposals(NamedTuple):
    """Class-agnostic candidate boxes from the RPN.

    Attributes:
      boxes: [B, N, 5] float32 le90 boxes in pixels of the network's input, best first.
      scores: [B, N] float32 objectness in 0..1; 0 where not valid.
      valid: [B, N] bool.
    """

    boxes: Float[AnyArray, "B N 5"]
    scores: Float[AnyArray, "B N"]
    valid: Bool[AnyArray, "B N"]


class PaddedDetections(NamedTuple):
    """Classified boxes of a batch on the devices, after suppression, padded to a fixed number.

    What a user gets of one image, without padding, is `results.detections.Detections`.

    Attributes:
      boxes: [B, N, 5] float32 boxes in pixels of the image, its resizing undone, best first; le90, but that factors of
        x and y that differ can leave what is almost square a little higher than wide.
      scores: [B, N] float32 probabilities in 0..1; 0 where not valid.
      labels: [B, N] int32 classes, 0-based; 0 where not valid.
      valid: [B, N] bool.
      num_cut: [B] int32 candidates above the score threshold that a cap left out (before or after suppression).
    """

    boxes: Float[AnyArray, "B N 5"]
    scores: Float[AnyArray, "B N"]
    labels: Int[AnyArray, "B N"]
    valid: Bool[AnyArray, "B N"]
    num_cut: Int[AnyArray, " B"]
