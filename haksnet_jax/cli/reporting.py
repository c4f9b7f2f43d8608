"""Gathers what a report shows: what the command `report` does."""

import json
import pathlib

from haksnet_jax import files
from haksnet_jax.cli import evaluation
from haksnet_jax.errors import UserError
from haksnet_jax.results import report
from haksnet_jax.wording import counted


def write(output, *, checkpoints=(), predicted=(), score=0.3, num_images=4, **options):
    """Evaluates one or two checkpoints, or predictions in files, and writes the report of them.

    Args:
      output: of the HTML file.
      checkpoints: one or two of what `evaluate_checkpoint` takes; or
      predicted: one or two of what `evaluate_files` takes.
      score: lowest score of detections that count as errors.
      num_images: how many of the worst images are shown, and of the best.
      **options: of `evaluation.evaluate_checkpoint`, or labels, images, classes and labels_format.

    Returns:
      Exit status: 1 where images could not be read.

    Raises:
      UserError: with one sentence.
    """
    try:
        files.absolute(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    subjects, failed = [], {}
    for source in (*checkpoints, *predicted):
        found = evaluation.evaluate_checkpoint(source, **options) if checkpoints else _files(source, **options)
        if not any(len(one["labels"]) for one in found.labels.values()):
            raise UserError(f"{source}: no object is labelled, so there is nothing to report")
        failed |= found.failed
        subjects.append(_subject(source, found, facts_of(source) if checkpoints else {}))
    if len(subjects) == 2 and subjects[0].title == subjects[1].title:
        subjects = [one._replace(title=f"{one.title} ({number})") for number, one in enumerate(subjects, start=1)]
    size = report.write_report(output, subjects, score=score, num_images=num_images)
    print(f"{output} ({size / 1e6:.1f} MB)")
    return evaluation.say_failed(failed)


def _files(source, *, labels, images=None, classes=None, labels_format="dota", allow_unknown_classes=False):
    return evaluation.evaluated_files(source, labels, images, classes, labels_format, allow_unknown_classes)


def _subject(source, found, facts):
    folder = _run_folder(source)
    history = []
    if folder is not None and (folder / "metrics.jsonl").exists():
        history = report.read_history((folder / "metrics.jsonl").read_text().splitlines())
    warnings = list(found.warnings)
    if found.failed:
        warnings.append(f"{counted(len(found.failed), 'image')} could not be read and not scored")
    title = pathlib.PurePath(str(source)).name or str(source)
    return report.Subject(
        title, found.class_names, found.detections, found.labels, found.picture, facts, history, warnings
    )


def facts_of(checkpoint):
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
