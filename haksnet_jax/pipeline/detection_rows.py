"""An image with its oriented boxes as a row of a batch: augmented for training, fitted for evaluation.

A batch is a dict of numpy arrays:
  image        [B, H, W, C] uint8, RGB or the bands chosen, padded at the right and bottom (`transforms.pad`)
  boxes        [B, M, 5] float32 le90, in pixels of the resized image
  labels       [B, M] int32
  valid        [B, M] bool
  image_size   [B, 2] int32 rows and columns of the content
  image_index  [B] int32 index in the source; -1 for a row that only fills up the last batch
  num_cut      [B] int32 boxes beyond the cap M
  num_dropped  [B] int32 boxes left out: without area, too small, or turned out of the image
Training adds, where the device turns the pixels
  turn         [B, 2, 3] float32 matrices from places of the turned image to places of this one (columns, rows)
Evaluation adds
  scale          [B, 2] float32 factors of x and y that were applied to the original
  original_size  [B, 2] int32 rows and columns of the original
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.pipeline import transforms


class Augment(NamedTuple):
    """What happens to images and boxes of training at random, and which boxes are left out."""

    flip_probabilities: tuple[float, float, float] = (0.25, 0.25, 0.25)  # horizontal, vertical, diagonal; else none
    rotation_probability: float = 0.5
    rotate_on: str = "host"  # what moves the pixels: "host", or "device" where the host's cores are too few
    quarter_turn_classes: tuple[str | int, ...] = ()  # tiles with these turn by 90 degrees only
    scale_range: tuple[float, float] = (1.0, 1.0)  # random factor of size, what is too large is cut; upstream: none
    gain_range: tuple[float, float] = (1.0, 1.0)  # random factor of all pixels; upstream: none
    min_side: float = 5.0  # pixels: boxes with a shorter side are left out of training, as upstream; counted


class TrainingRow:
    """(example, rng) -> the row of training. An image that is left without boxes stays, as one of background.

    Args:
      image_size: (rows, columns) of the canvas.
      max_boxes: M; further boxes of an image are cut off and counted in num_cut.
      class_names: names of the labels.
      augment: Augment; its `quarter_turn_classes` are names or labels, its `scale_range` is beside the factor that fits
        the canvas. Boxes whose centre leaves the image are left out.
      resize: "fit" resizes images to fit the canvas, smaller ones too; "none" pads only, and refuses larger ones.

    Raises:
      UserError: an argument out of range.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        max_boxes: int,
        class_names: Sequence[str],
        augment: Any,
        resize: str = "fit",
    ) -> None:
        _check(image_size, max_boxes, resize)
        _check_augment(augment, resize)
        self.image_size, self.max_boxes, self.resize = (image_size[0], image_size[1]), max_boxes, resize
        self.augment = augment
        self.quarter_turn_labels = _labels_of(augment.quarter_turn_classes, class_names)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        augment = self.augment
        boxes, valid = polygons_to_boxes(example["polygons"])
        boxes, labels = boxes[valid], example["labels"][valid]
        image, scale_range = example["image"], augment.scale_range
        # A range without width draws nothing: what happens to an example without it stays what it was.
        if scale_range[0] < scale_range[1]:
            image, boxes = transforms.random_resize(image, boxes, rng, canvas=self.image_size, scale_range=scale_range)
        else:
            image, boxes, _ = _fit(image, boxes, self.image_size, self.resize, example["image_id"])
        matrix = np.eye(2, 3)

        def leave_to_device(image, boxes, direction, degrees):
            nonlocal matrix
            matrix = cv2.invertAffineTransform(transforms.move_matrix(image.shape[:2], direction, degrees))
            return image, transforms.move_boxes(boxes, image.shape[:2], direction, degrees)

        image, boxes = transforms.random_flip_and_rotation(
            image,
            boxes,
            labels,
            rng,
            flip_probabilities=augment.flip_probabilities,
            rotation_probability=augment.rotation_probability,
            quarter_turn_labels=self.quarter_turn_labels,
            move=transforms.move if augment.rotate_on == "host" else leave_to_device,
        )
        if augment.gain_range[0] < augment.gain_range[1]:
            image = transforms.random_gain(image, rng, augment.gain_range)
        keep = transforms.usable(boxes, image.shape[:2], min_side=augment.min_side, drop_outside=True)
        row = {
            "image": transforms.pad(image, self.image_size),
            **_padded_boxes(boxes[keep], labels[keep], self.max_boxes),
            "image_size": np.array(image.shape[:2], np.int32),
            "num_dropped": np.int32(len(example["labels"]) - keep.sum()),
        }
        return row | ({"turn": matrix.astype(np.float32)} if augment.rotate_on == "device" else {})


class EvaluationRow:
    """example -> the row of evaluation, the image fitted into the canvas; `filler` gives one without content.

    Args:
      image_size: (rows, columns) of the canvas.
      channels: of the images.
      max_boxes: M, or None for rows without boxes, labels, valid, num_cut and num_dropped.

    Raises:
      UserError: an argument out of range.
    """

    def __init__(self, *, image_size: tuple[int, int], channels: int = 3, max_boxes: int | None = None) -> None:
        self.image_size = image_size[0], image_size[1]
        _check(self.image_size, max_boxes, "fit")
        self.channels = channels
        self.max_boxes = max_boxes

    def filler(self) -> dict[str, np.ndarray]:
        """A row that only fills up a batch, or stands for an image that cannot be read."""
        # The shape of an image, so that nothing downstream divides by zero; image_index says what it is.
        shape = (*self.image_size, self.channels)
        row = {
            "image": np.broadcast_to(np.array(transforms.padding_values(self.channels), np.uint8), shape),
            "image_size": np.array(self.image_size, np.int32),
            "scale": np.ones(2, np.float32),
            "original_size": np.array(self.image_size, np.int32),
        }
        return row | self._boxes(np.zeros((0, 5), np.float32), np.zeros(0, np.int32), 0)

    def __call__(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        boxes, valid = polygons_to_boxes(example["polygons"])
        original_size = np.array(example["image"].shape[:2], np.int32)
        image, boxes, scale = _fit(example["image"], boxes[valid], self.image_size, "fit", example["image_id"])
        return {
            "image": transforms.pad(image, self.image_size),
            "image_size": np.array(image.shape[:2], np.int32),
            "scale": scale,
            "original_size": original_size,
        } | self._boxes(boxes, example["labels"][valid], len(valid) - int(valid.sum()))

    def _boxes(self, boxes, labels, num_dropped):
        if self.max_boxes is None:
            return {}
        return {**_padded_boxes(boxes, labels, self.max_boxes), "num_dropped": np.int32(num_dropped)}


def _check(image_size, max_boxes, resize):
    if len(image_size) != 2 or min(image_size) < 1:
        raise UserError(f"image_size is (rows, columns) in pixels, found {image_size}")
    if max_boxes is not None and max_boxes < 1:
        raise UserError(f"expected max_boxes >= 1, found {max_boxes}")
    if resize not in ("fit", "none"):
        raise UserError(f"resize is 'fit' or 'none', found '{resize}'")


def _check_augment(augment, resize):
    probabilities = np.asarray(augment.flip_probabilities, np.float64)
    if probabilities.shape != (3,) or probabilities.min() < 0 or probabilities.sum() > 1 + 1e-9:
        raise UserError(
            f"flip_probabilities are three numbers (horizontal, vertical, diagonal) of sum <= 1, "
            f"found {augment.flip_probabilities}"
        )
    if augment.rotate_on not in ("host", "device"):
        raise UserError(f"augment.rotate_on: expected host or device, got {augment.rotate_on!r}")
    if not 0 <= augment.rotation_probability <= 1:
        raise UserError(f"rotation_probability is between 0 and 1, found {augment.rotation_probability}")
    for name in ("scale_range", "gain_range"):
        least, largest = getattr(augment, name)
        if not 0 < least <= largest or (least == largest != 1):
            raise UserError(
                f"{name} is (1, 1), or the least and the largest of the factors that are drawn, found "
                f"{(least, largest)}"
            )
    if resize == "none" and augment.scale_range[0] < augment.scale_range[1]:
        raise UserError(
            f"scale_range is a factor beside resize='fit', found resize='none' and {tuple(augment.scale_range)}"
        )


def _labels_of(classes, class_names):
    labels = []
    for entry in classes:
        label = class_names.index(entry) if entry in class_names else entry
        if isinstance(label, str) or not 0 <= label < len(class_names):
            raise UserError(f"quarter_turn_classes names '{entry}', which is not among {', '.join(class_names)}")
        labels.append(int(label))
    return tuple(labels)


def _fit(image, boxes, image_size, resize, image_id):
    """(image, boxes, scale) that fit the canvas."""
    if resize == "fit":
        return transforms.resize_keep_ratio(image, boxes, image_size)
    if image.shape[0] > image_size[0] or image.shape[1] > image_size[1]:
        raise UserError(
            f"image {image_id} of {image.shape[0]} x {image.shape[1]} pixels does not fit the canvas of "
            f"{image_size[0]} x {image_size[1]}; cut it into tiles, or use resize='fit'"
        )
    return image, boxes, np.ones(2, np.float32)


def _padded_boxes(boxes, labels, max_boxes):
    """Boxes, labels and valid of fixed length; the first max_boxes in the file's order stay."""
    count = min(len(boxes), max_boxes)
    padded = np.zeros((max_boxes, 5), np.float32)
    padded[:count] = boxes[:count]
    padded_labels = np.zeros(max_boxes, np.int32)
    padded_labels[:count] = labels[:count]
    return {
        "boxes": padded,
        "labels": padded_labels,
        "valid": np.arange(max_boxes) < count,
        "num_cut": np.int32(len(boxes) - count),
    }
