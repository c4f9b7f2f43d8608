"""Scores a detector, or predictions in files, against labels: what the command `evaluate` does."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from haksnet_jax import files
from haksnet_jax.cli.checkpoint_evaluation import evaluate_checkpoint
from haksnet_jax.cli.evaluated import has_objects
from haksnet_jax.cli.file_evaluation import evaluated_files
from haksnet_jax.errors import UserError
from haksnet_jax.labels import name_lists
from haksnet_jax.results import detection_errors, detections_json, diagrams, dota, visualize
from haksnet_jax.results.mean_ap import MeanAveragePrecision, mean_average_precision
from haksnet_jax.results.thresholds import SHOWN_SCORE
from haksnet_jax.wording import counted

_PICTURE_SIDE = 2048  # pixels: larger images are drawn reduced to this
_MANY_TIES = 0.1  # share of the detections that have the score of another one, from which on it is said
_SHOWN = 10  # images that could not be used and are named


def evaluate(
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    predicted: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    classes: str | None = None,
    labels_format: str = "dota",
    allow_unknown_classes: bool = False,
    ignore_truncated: bool = False,
    json_file: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    worst: int = 8,
    score: float = SHOWN_SCORE,
    **options: Any,
) -> int:
    """Scores a checkpoint or predictions, says the result on the terminal and writes what is asked for.

    Args:
      checkpoint: see `evaluate_checkpoint`; or
      predicted: see `evaluate_files`.
      labels, images: folders; see the two.
      classes: of `predicted`: a published list's name, or a file of names; None for those that it brings.
      labels_format: of `labels`.
      allow_unknown_classes: scores although most labels are of classes that are not in the list.
      ignore_truncated: ignores objects of difficulty 2.
      json_file: file for the metrics, or None.
      output: folder for curves, confusion matrix, worst images and a checkpoint's detections, or None.
      worst: images with most errors that are drawn.
      score: lowest score in drawings and error counts.
      **options: of `evaluate_checkpoint`.

    Returns:
      Exit status: 0; 1 where images could not be read, which are named and not scored.

    Raises:
      UserError, OSError: with one sentence.
    """
    if predicted and labels:
        found = evaluated_files(predicted, labels, images, classes, labels_format, allow_unknown_classes)
    elif checkpoint:
        found = evaluate_checkpoint(
            checkpoint,
            images=images,
            labels=labels,
            labels_format=labels_format,
            allow_unknown_classes=allow_unknown_classes,
            without_labels=bool(output),
            **options,
        )
    else:
        raise UserError("expected a checkpoint, or predictions and labels")
    if not has_objects(found.labels):
        if predicted or not output:
            raise UserError(
                "no object is labelled, so there is nothing to score; predictions on unlabelled images are for "
                "`haksnet submit`"
            )
        write_predictions(output, found.detections, found.class_names)
        print(
            f"No object is labelled, so there is no score. The predictions are in {output}:\n"
            f"  haksnet submit --predictions={output} --classes={output}/classes.txt --output=submission.zip"
        )
        return say_failed(found.failed)
    result = mean_average_precision(
        found.detections, found.labels, found.class_names, ignore_truncated=ignore_truncated
    )
    print(result.table())
    if json_file:
        files.write_text(json_file, json.dumps(result.to_json(), indent=2) + "\n")
        print(json_file)
    warnings = list(found.warnings)
    if output:
        warnings += _write_output(output, found, result, ignore_truncated, score, worst, with_detections=not predicted)
    warnings += _many_ties(result)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return say_failed(found.failed)


def _many_ties(result):
    """A warning, in a list, where many detections of a class have equal scores."""
    num_tied, total = result.num_tied(), int(result.num_detections.sum())
    if not total or num_tied <= _MANY_TIES * total:
        return []
    return [
        f"{num_tied} of {counted(total, 'detection')} share their score with another one of their class: equal scores "
        "count together, which scores with more digits would not"
    ]


def say_failed(failed: Mapping[str, str]) -> int:
    """Names images that could not be read. Args: failed, see `Evaluated`. Returns: exit status."""
    if not failed:
        return 0
    for name, reason in list(failed.items())[:_SHOWN]:
        print(f"{name}: {reason}", file=sys.stderr)
    shown = ", ".join(list(failed)[:_SHOWN]) + (", ..." if len(failed) > _SHOWN else "")
    print(f"error: {counted(len(failed), 'image')} could not be read and not scored: {shown}", file=sys.stderr)
    return 1


def _write_output(output, found, result, ignore_truncated, score, worst, *, with_detections):
    """Writes the folder. Returns: warnings."""
    labels = found.labels
    if ignore_truncated:  # what is drawn knows one kind of ignored objects
        labels = {
            name: {**one, "difficulty": np.where(one["difficulty"] == 2, 1, one["difficulty"])}
            for name, one in labels.items()
        }
    missing = write_report(
        output, result, found.detections, labels, found.class_names, found.picture, score=score, num_worst=worst
    )
    if with_detections:
        write_predictions(output, found.detections, found.class_names)
    print(output)
    if not missing:
        return []
    return [f"{len(missing)} of the worst images are not drawn: give their folder with --images"]


def write_report(
    folder: str | os.PathLike[str],
    result: MeanAveragePrecision,
    detections: Mapping[str, Any],
    labels_by_image: Mapping[str, Any],
    class_names: Sequence[str],
    picture: Callable[[str], np.ndarray | None],
    *,
    score: float,
    num_worst: int,
) -> list[str]:
    """Draws where the errors are.

    Args:
      folder: gets `precision_recall.png`, `confusion_matrix.png`, `errors_by_size.png`, and `worst/`: the images with
        most errors, drawn.
      result: MeanAveragePrecision.
      detections, labels_by_image: dicts by image; difficulty 1 is ignored.
      class_names: the classes.
      picture: function from an image's name to its pixels, or None.
      score: lowest score of the detections that are looked at.
      num_worst: images drawn at most.

    Returns:
      Names of the worst images that were not drawn for want of their pixels.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    diagrams.save_figure(diagrams.precision_recall_figure(result), folder / "precision_recall.png")
    errors = detection_errors.analyse_errors(detections, labels_by_image, class_names, score_threshold=score)
    figure = diagrams.confusion_matrix_figure(errors.confusion_matrix(), class_names)
    diagrams.save_figure(figure, folder / "confusion_matrix.png")
    diagrams.save_figure(diagrams.errors_by_size_figure(errors.by_size()), folder / "errors_by_size.png")
    missing = []
    for rank, (name, count) in enumerate(errors.worst_images(num_worst), start=1):
        pixels = picture(name)
        if pixels is None:
            missing.append(name)
            continue
        (folder / "worst").mkdir(exist_ok=True)
        one = detections.get(name, {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "labels": np.zeros(0, int)})
        side = min(_PICTURE_SIDE, max(pixels.shape[:2]))
        truth = labels_by_image[name]
        drawing = visualize.draw_comparison(pixels, one, truth, class_names, score_threshold=score, side=side)
        visualize.write_image(folder / "worst" / f"{rank:02d}_{name.replace('/', '_')}_{count}_errors.jpg", drawing)
    return missing


def write_predictions(
    folder: str | os.PathLike[str], detections: Mapping[str, Any], class_names: Sequence[str]
) -> None:
    """Writes detections.json, classes.txt and task1/ as `predict` does. Args: folder; detections by image; classes."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "classes.txt", name_lists.as_text(class_names))
    dota.write_task1(folder / "task1", detections, class_names)
    entries = ((name, *one["size"], one) for name, one in detections.items())
    detections_json.write(folder / "detections.json", entries, class_names)
