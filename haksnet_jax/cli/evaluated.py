"""What evaluation found, beside what is labelled: what the commands score, draw and report."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Evaluated(NamedTuple):
    """What was found beside what is labelled.

    Attributes:
      detections: dict by image.
      labels: dict by image.
      class_names: the classes, by label.
      picture: function from an image's name to its pixels, or to None.
      failed: {image: why it could not be read}; it is in neither dict.
      warnings: sentences to be read beside the result.
    """

    detections: Mapping[str, Any]
    labels: Mapping[str, Any]
    class_names: tuple[str, ...]
    picture: Any
    failed: dict[str, str]
    warnings: list[str]


def num_objects(labels_by_image: Mapping[str, Any]) -> int:
    """Labelled objects of all images. Args: labels_by_image, see `Evaluated`."""
    return sum(len(one["labels"]) for one in labels_by_image.values())


def has_objects(labels_by_image: Mapping[str, Any]) -> bool:
    """Whether anything is labelled. Args: labels_by_image, see `Evaluated`."""
    return num_objects(labels_by_image) > 0
