"""Gathers what a report shows: what the command `report` does."""

import argparse
import functools
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

from haksnet_jax import files, tasks
from haksnet_jax.cli import evaluation
from haksnet_jax.cli.checkpoint_evaluation import evaluate_checkpoint
from haksnet_jax.cli.file_evaluation import evaluated_files
from haksnet_jax.errors import UserError
from haksnet_jax.inference import precision as precisions
from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results import class_report, page, pixel_report, report
from haksnet_jax.results.pixel_errors import PixelErrors
from haksnet_jax.weights import model_folder
from haksnet_jax.wording import counted

_MOST_SCORES = 100  # classes of an image whose probabilities are kept, for precision over recall


def write(arguments: argparse.Namespace) -> int:
    """Evaluates one or two checkpoints, or predictions in files, and writes the report of them.

    Args:
      arguments: of the command `report`.

    Returns:
      Exit status: 1 where images could not be read.

    Raises:
      UserError: with one sentence.
    """
    sources = [source for source in (arguments.checkpoint or arguments.predictions, arguments.compare) if source]
    task = _task_of_all(sources) if arguments.checkpoint else "detection"
    files.require_writable(arguments.output, "--output")
    if task == "detection":
        return _write_detection(arguments, sources)
    _refuse(arguments, task)
    subject_of, module = (_of_images, class_report) if task == "classification" else (_of_pixels, pixel_report)
    subjects, unread = zip(*(subject_of(arguments, source) for source in sources), strict=True)
    size = module.write_report(arguments.output, _with_titles(subjects), num_images=arguments.num_images)
    _say_written(arguments.output, size)
    if not any(unread):
        return 0
    print(f"error: {counted(max(unread), 'image')} could not be read and not scored", file=sys.stderr)
    return 1


def _task_of_all(sources):
    found = [model_folder.task_of(source) for source in sources]
    if len(set(found)) > 1:
        raise UserError(
            f"{sources[0]} is a model of {found[0]}, {sources[1]} one of {found[1]}: expected two of one task"
        )
    return found[0]


def _refuse(arguments, task):
    """Raises UserError for options that belong to another task."""
    needed = {
        "segmentation": "--images=DIR and --masks=DIR",
        "change": "--before=DIR, --after=DIR and --masks=DIR",
        "classification": "--images=DIR with one folder a class",
    }[task]
    if arguments.labels:
        raise UserError(f"--labels: {arguments.checkpoint} is a model of {task}, whose examples are {needed}")
    if arguments.dataset and task != "classification":
        raise UserError(f"--dataset: {arguments.checkpoint} is a model of {task}, whose examples are {needed}")


def _say_written(output, size):
    print(f"{output} ({size / 1e6:.1f} MB)")


def _with_titles(subjects):
    titles = page.numbered([one.title for one in subjects])
    return [one._replace(title=title) for one, title in zip(subjects, titles, strict=True)]


# ------------------------------------------------------------------------------------------------------------ detection


def _write_detection(arguments, sources):
    options = {"labels": arguments.labels, "images": arguments.images, "labels_format": arguments.format}
    if arguments.masks or arguments.before or arguments.after:
        raise UserError("--masks, --before and --after belong to models of pixels; of a detector, give --labels=DIR")
    subjects, failed = [], {}
    for source in sources:
        if arguments.checkpoint:
            more = {"dataset": arguments.dataset, "split": arguments.split}
            found = evaluate_checkpoint(source, **options, **more)
        else:
            found = _files(source, classes=arguments.classes, **options)
        if not any(len(one["labels"]) for one in found.labels.values()):
            raise UserError(f"{source}: no object is labelled, so there is nothing to report")
        failed |= found.failed
        subjects.append(_subject(source, found, facts_of(source) if arguments.checkpoint else {}))
    size = report.write_report(
        arguments.output, _with_titles(subjects), score=arguments.score, num_images=arguments.num_images
    )
    _say_written(arguments.output, size)
    return evaluation.say_failed(failed)


def _files(source, *, labels, images=None, classes=None, labels_format="dota", allow_unknown_classes=False):
    return evaluated_files(source, labels, images, classes, labels_format, allow_unknown_classes)


def _subject(source, found, facts):
    warnings = list(found.warnings)
    warnings += _warnings_of(len(found.failed))
    return report.Subject(
        _title(source),
        found.class_names,
        found.detections,
        found.labels,
        found.picture,
        facts,
        history_of(source),
        warnings,
    )


def _warnings_of(num_unread):
    return [f"{counted(num_unread, 'image')} could not be read and not scored"] if num_unread else []


# --------------------------------------------------------------------------------------------------------- other tasks


def _of_pixels(arguments, checkpoint):
    """(pixel_report.Subject of a segmenter or change detector, number of images that cannot be read)."""
    from haksnet_jax.cli import dense_evaluation
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import dense_predictor
    from haksnet_jax.inference.dense_evaluator import DenseEvaluator

    devices.enable_compilation_cache()
    predictor = dense_predictor.load(checkpoint)
    source, left_out, settings = dense_evaluation.open_source(arguments, checkpoint, predictor)
    print(source.summary(), file=sys.stderr)
    errors = PixelErrors(source.class_names, (1,) if predictor.task == "change" else None)
    evaluator = DenseEvaluator(predictor.session, source, settings, left_out=left_out, num_pictures=0, errors=errors)
    with precisions.arithmetic(predictor.precision):
        result = evaluator(None)
    position = {name: index for index, name in enumerate(source.image_ids)}

    def pixels(name):
        example = source[position[name]]
        images = {one: example[one] for one in source.image_names}
        mask = np.where(example["mask"] < len(source.class_names), example["mask"], IGNORED)
        return pixel_report.Pixels(images, mask, predictor.labels(*images.values(), settings=settings))

    subject = pixel_report.Subject(
        _title(checkpoint),
        result,
        errors,
        pixels,
        predictor.colours,
        facts_of(checkpoint),
        history_of(checkpoint),
        tasks.of({"task": predictor.task}).CURVES,
        _warnings_of(evaluator.num_unread),
    )
    return subject, evaluator.num_unread


def _of_images(arguments, checkpoint):
    """(class_report.Subject of a classifier, number of images that cannot be read)."""
    import jax

    from haksnet_jax.cli import classification
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.images import reader
    from haksnet_jax.inference import classification_predictor

    if arguments.masks or arguments.before or arguments.after:
        raise UserError("a classifier's labels are the folders of its images: --images=DIR with one folder a class")
    devices.enable_compilation_cache()
    classifier = classification_predictor.load(checkpoint)
    source = classification.open_source(arguments, checkpoint, classifier)
    print(source.summary(), file=sys.stderr)
    evaluator = classification.evaluator_of(classifier, source, num_best=_MOST_SCORES)
    with jax.set_mesh(classifier.mesh):
        placed = devices.place(classifier.variables, devices.replicated(classifier.mesh))
        labels, scores, classes = evaluator.predictions(placed)
    read = np.flatnonzero(labels >= 0)  # (a warning names the others)
    if not len(read):
        raise UserError(f"none of {counted(len(labels), 'image')} could be read, so there is nothing to report")
    num_unread = len(labels) - len(read)
    subject = class_report.Subject(
        _title(checkpoint),
        tuple(source.class_names),
        [source.image_ids[index] for index in read],
        labels[read],
        scores[read],
        classes[read],
        functools.cache(lambda index: reader.picture(source[int(read[index])]["image"].pixels())),
        facts_of(checkpoint),
        history_of(checkpoint),
        tasks.of({"task": "classification"}).CURVES,
        _warnings_of(num_unread),
    )
    return subject, num_unread


# -------------------------------------------------------------------------------------------------------------- the run


def _title(source):
    return pathlib.PurePath(str(source)).name or str(source)


def history_of(checkpoint: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Records of the training of a checkpoint; [] for what belongs to no run. Args: checkpoint, of it."""
    folder = _run_folder(checkpoint)
    if folder is None or not (folder / "metrics.jsonl").exists():
        return []
    return page.read_history((folder / "metrics.jsonl").read_bytes().decode(errors="replace").splitlines())


def facts_of(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run's card says of it, without the metrics; {} for what is no run. Args: checkpoint, of it."""
    folder = _run_folder(checkpoint)
    if folder is None or not (folder / "result.json").exists():
        return {}
    try:
        facts = json.loads((folder / "result.json").read_text())["facts"]
        return {str(name): value for name, value in facts.items() if not isinstance(value, (dict, list))}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder / 'result.json'} is damaged: remove it, or train on to have it written anew"
        ) from None


def _run_folder(source):
    """The run's folder that something belongs to, or None."""
    folder = files.absolute(source)
    places = (folder, folder.parent, folder.parent.parent)
    return next((place for place in places if (place / "config.json").exists()), None)
