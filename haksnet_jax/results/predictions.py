"""Predictions in files, in any form that commands take: Task-1 files, a detections.json, or a folder with one."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.labels.classes import CLASSES, read_class_names
from haksnet_jax.results import detections_json, dota, output, tiles
from haksnet_jax.results.thresholds import MERGE_IOU


class Predictions(NamedTuple):
    """What was found in many images.

    Attributes:
      by_image: dict from image name to {"boxes" or "polygons", "scores", "labels"} and perhaps "size".
      class_names: names of the classes, by label.
      problems: list of Problem; lines and files that were not read.
      listed: whether `class_names` is known to be the whole list that was predicted with, in its order.
    """

    by_image: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]
    problems: list
    listed: bool


def read(source: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Predictions:
    """Reads predictions.

    Args:
      source: folder of Task1_<class>.txt files, a detections.json, or the folder it lies in.
      class_names: the classes in the order of the label numbers to give; None takes those that the predictions bring:
        of a detections.json, of a `classes.txt` beside them, of the published list that Task-1 files are those of, else
        those that occur.

    Raises:
      UserError: the source has none of these forms, predict was stopped in its folder, or there are detections of other
        classes than given.
    """
    path = pathlib.Path(source)
    output.require_finished(path)
    if path.is_dir() and any(path.glob("Task1_*.txt")):
        return _read_task1(path, class_names)
    if path.is_dir() and (path / "detections.json").is_file():
        path = path / "detections.json"
    if not path.is_file():
        raise UserError(f"{source} is neither a detections.json nor a folder with one or with Task1_<class>.txt files")
    by_image, own, listed = detections_json.read(path)
    predictions = Predictions(by_image, own, [], listed)
    if class_names is None:
        class_names = None if listed else _listed_beside(path.parent)
    return predictions if class_names is None else with_classes(predictions, class_names, path)


def with_classes(predictions: Predictions, class_names: Sequence[str], source: str | os.PathLike[str]) -> Predictions:
    """The same predictions with another list of classes.

    Args:
      predictions: Predictions.
      class_names: the classes, in the order of the label numbers to give.
      source: where they come from, for the message.

    Raises:
      UserError: there are detections of classes that are not in the list.
    """
    known = {name: label for label, name in enumerate(class_names)}
    numbers = np.array([known.get(name, -1) for name in predictions.class_names] or [-1], np.int32)
    by_image: dict[str, dict] = {}
    unknown: dict[str, int] = {}
    for image, one in predictions.by_image.items():
        labels = numbers[np.asarray(one["labels"], np.int64)] if len(one["labels"]) else np.zeros(0, np.int32)
        for label in np.asarray(one["labels"])[labels < 0].tolist():
            name = predictions.class_names[label]
            unknown[name] = unknown.get(name, 0) + 1
        by_image[image] = {**one, "labels": labels}
    if unknown:
        counts = ", ".join(f"{count} of {name!r}" for name, count in sorted(unknown.items())[:10])
        raise UserError(
            f"{source} has detections of classes that are not among the {len(class_names)} given: {counts}: name the "
            "classes that were predicted with"
        )
    return Predictions(by_image, tuple(class_names), predictions.problems, True)


def _read_task1(folder, class_names):
    listed = True
    if class_names is None:
        class_names = _listed_beside(folder)
    if class_names is None:
        names = {file.name for file in folder.glob("Task1_*.txt")}
        published = (list_ for list_ in CLASSES.values() if {dota.task1_file_name(name) for name in list_} == names)
        class_names = next(published, None)
    if class_names is None:
        listed = False
        class_names = tuple(sorted(dota.task1_class_name(name) for name in names))
    by_image, problems = dota.read_task1(folder, class_names)
    beside = next((p for p in (folder / "detections.json", folder.parent / "detections.json") if p.is_file()), None)
    if beside is not None and any(map(tiles.is_tile_name, by_image)):  # it knows to what tiles were resized
        sizes = {name: one["size"] for name, one in detections_json.read(beside)[0].items()}
        by_image = {name: {**one, "size": sizes.get(name)} for name, one in by_image.items()}
    return Predictions(by_image, tuple(class_names), problems, listed)


def _listed_beside(folder):
    """The classes of a classes.txt in the folder or the one above, or None."""
    for beside in (folder / "classes.txt", folder.parent / "classes.txt"):
        if beside.is_file():
            return read_class_names(str(beside))
    return None


def original_images(names: Iterable[str]) -> set[str]:
    """Names of the images that tiles were cut from; names that are not those of tiles stay."""
    return {tiles.parse_tile_name(name).image if tiles.is_tile_name(name) else name for name in names}


def merge_if_tiles(
    by_image: Mapping[str, Mapping[str, Any]], iou_threshold: float = MERGE_IOU
) -> tuple[Mapping[str, Mapping[str, Any]], int, str]:
    """Predictions for tiles merged into predictions for images, others as they are.

    Args:
      by_image: as in `Predictions`.
      iou_threshold: overlap above which the lower score goes.

    Returns:
      (detections by image, number of merged tiles, a warning or "").
    """
    if not by_image or not all(map(tiles.is_tile_name, by_image)):
        return by_image, 0, ""
    windows = {tiles.parse_tile_name(name).scale for name in by_image}
    warning = ""
    if len(windows) > 1 and not any(one.get("size") for one in by_image.values()):
        warning = (
            f"tiles have windows of several sizes ({', '.join(map(str, sorted(windows)))}) and are taken as not "
            "resized; a detections.json beside Task-1 files would tell"
        )
    return tiles.merge_tiles(by_image, iou_threshold=iou_threshold), len(by_image), warning
