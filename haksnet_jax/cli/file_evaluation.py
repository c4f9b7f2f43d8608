"""Predictions in files beside labels in files, as `evaluate --predictions` scores them."""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from haksnet_jax.cli.evaluated import Evaluated, num_objects
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels import problems as label_problems
from haksnet_jax.labels.classes import read_class_names
from haksnet_jax.labels.label_set import NEEDS_IMAGES, LabelSet
from haksnet_jax.labels.problems import Problem
from haksnet_jax.results import dota, predictions
from haksnet_jax.wording import counted


def read_label_folder(
    folder: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    labels_format: str = "dota",
    images: Mapping[str, pathlib.Path] | None = None,
) -> tuple[dict[str, dict[str, np.ndarray]], list[Problem]]:
    """Reads the labels of many images.

    Args:
      folder: label files, one for each image; or one file, in formats that are so.
      class_names: the classes, in the order of their labels.
      labels_format: one of `label_set.FORMATS`.
      images: dict from an image's name to its file, which some formats need.

    Returns:
      (dict from image name to {"polygons", "labels", "difficulty"}, list of Problem).

    Raises:
      UserError: there are no labels.
    """
    label_set = _label_set(folder, labels_format)
    if label_set.format in NEEDS_IMAGES and not images:
        raise UserError(f"labels in the format {label_set.format} need the images: name their folder with --images")
    by_image, problems = {}, list(label_set.problems)
    for name in label_set.files:
        objects, found = label_set.read(name, tuple(class_names), (images or {}).get(name))
        problems += found
        fields = {"polygons": objects.polygons, "labels": objects.labels, "difficulty": objects.difficulty}
        by_image[name] = fields
    label_problems.require_read(problems)
    return by_image, problems


def _label_set(folder, labels_format):
    label_set = LabelSet(folder, labels_format)
    if not label_set.files:
        raise UserError(f"{folder} holds no label file; expected one text file for each image")
    return label_set


def evaluate_files(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    labels_format: str = "dota",
    images: Mapping[str, pathlib.Path] | None = None,
) -> tuple[Mapping[str, Any], dict[str, Any], tuple[str, ...], list[Problem], list[str]]:
    """Predictions and labels in files, image by image.

    Args:
      source: folder of Task-1 files, a detections.json, or the folder it lies in. Predictions for tiles are merged
        where the labels are for whole images.
      labels: folder of label files.
      class_names: the classes, in the order of their labels; None takes the list that the predictions bring, and where
        they bring none, all that occur in predictions and labels.
      labels_format: as in `read_label_folder`.
      images: dict from an image's name to its file.

    Returns:
      (detections by image, labels by image, class names, list of Problem in the labels, warnings).

    Raises:
      UserError: something cannot be read completely, or there are predictions for images without a label file.
    """
    found = predictions.read(source, class_names)
    if not found.listed:
        found = _with_classes_of_labels(found, _label_set(labels, labels_format).found_class_names())
    detections, class_names, warnings = found.by_image, found.class_names, []
    labels_by_image, problems = read_label_folder(labels, class_names, labels_format=labels_format, images=images)
    missing = [problem for problem in found.problems if problem.reason == "missing_file"]
    wrong = [problem for problem in found.problems if problem.reason != "missing_file"]
    if wrong:
        raise UserError(f"{wrong[0]}; {counted(len(wrong), 'such problem')} in {source}")
    if missing:
        is_are = "class has" if len(missing) == 1 else "classes have"
        warnings.append(f"{len(missing)} {is_are} no Task-1 file: counted as without detections")
    if not set(detections) <= set(labels_by_image):
        detections, num_tiles, warning = predictions.merge_if_tiles(detections)
        warnings += [warning] if warning else []
        if num_tiles:
            num_images = counted(len(detections), "image")
            print(f"merged the predictions for {counted(num_tiles, 'tile')} into {num_images}", file=sys.stderr)
    unknown = sorted(set(detections) - set(labels_by_image))
    if unknown:
        raise UserError(
            f"{counted(len(unknown), 'image')} with predictions and no label file in {labels}, {unknown[0]} first; an "
            "image without objects has an empty one, and unlabelled images are for `haksnet submit`"
        )
    without = len(labels_by_image) - len(detections)
    if without:
        warnings.append(f"no predictions for {without} of {counted(len(labels_by_image), 'labelled image')}")
    return detections, labels_by_image, class_names, problems, warnings


def _with_classes_of_labels(found, names):
    """Predictions that bring no list of classes, with that of the labels and what occurs in them alone."""
    spelled = {dota.task1_file_name(name): name for name in names}  # a file's name does not tell blanks from hyphens
    own = tuple(name if name in names else spelled.get(dota.task1_file_name(name), name) for name in found.class_names)
    problems = [problem for problem in found.problems if problem.reason != "missing_file"]
    found = found._replace(class_names=own, problems=problems)
    return predictions.with_classes(found, tuple(dict.fromkeys((*names, *own))), "the predictions")


def _images_of(folder):
    """Dict from an image's name to its file."""
    return {dota.image_stem(path.name): path for path in image_files.list_images(folder)} if folder else {}


def _pictures_of(paths):
    """Function from an image's name to its pixels, or to None where there is no file of it."""

    def read(name):
        if name not in paths:
            return None
        with ImageFile(paths[name]) as image:
            return image.read(0, 0, image.width, image.height)

    return read


def evaluated_files(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    classes: str | None,
    labels_format: str,
    allow_unknown: bool,
) -> Evaluated:
    """Predictions and labels in files. Args: as `evaluate`. Returns: Evaluated."""
    paths = _images_of(images)
    names = read_class_names(classes) if classes else None
    detections, labels_by_image, names, problems, warnings = evaluate_files(
        source, labels, names, labels_format=labels_format, images=paths
    )
    if problems:
        print(f"labels: {label_problems.count_reasons(problems)}", file=sys.stderr)
    lost = label_problems.losses(problems)
    if lost:
        print(f"these do not count:\n{label_problems.listed(lost)}", file=sys.stderr)
    remedy = "name the predictions' classes with --classes, or allow it with --allow-unknown-classes"
    unknown = label_problems.unknown_classes(problems, num_objects(labels_by_image), allow=allow_unknown, remedy=remedy)
    warnings += [unknown] if unknown else []
    return Evaluated(detections, labels_by_image, names, _pictures_of(paths), {}, warnings)
