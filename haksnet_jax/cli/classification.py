"""Classes of whole images: what the commands `predict` and `evaluate` do with classifiers."""

import argparse
import csv
import io
import json
import os
import pathlib
import sys
import time
from typing import Any

import ml_collections

from haksnet_jax import files, tasks
from haksnet_jax.cli.checkpoint_evaluation import run_settings
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.images.reader import read
from haksnet_jax.inference import classification_predictor
from haksnet_jax.inference.classification_evaluator import ClassificationEvaluator
from haksnet_jax.labels import name_lists
from haksnet_jax.pipeline import classification_sources as sources
from haksnet_jax.pipeline.classification_transforms import EvaluationRow
from haksnet_jax.results import visualize
from haksnet_jax.wording import counted

_SHEET = 40  # images on the drawn sheet


def predict(arguments: argparse.Namespace) -> int:
    """Writes the likeliest classes of images. Args: arguments, of `cli.predict`. Returns: exit status."""
    started = time.monotonic()
    from haksnet_jax.inference.images import find_images

    if not arguments.images or arguments.before or arguments.after:
        raise UserError(f"{arguments.checkpoint} classifies images: name them with --images=PATH")
    paths, _ = find_images(arguments.images)
    folder = files.output_folder(arguments.output)
    devices.enable_compilation_cache()
    classifier = classification_predictor.load(
        arguments.checkpoint, precision=arguments.precision, batch_size=arguments.batch_size
    )
    found, failed = [], []
    with files.held(folder):
        for one in classifier(paths):
            if isinstance(one, classification_predictor.Classified):
                found.append(one)
                continue
            path, error = one
            failed.append(path)
            text = str(error)
            print(f"error: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr, flush=True)
        if not found:
            raise UserError(f"none of {counted(len(paths), 'image')} could be used, so there is no result")
        _write(folder, found, classifier.class_names)
        if arguments.drawings and found:
            _draw(folder / "sheet.jpg", found[:_SHEET])
    counts = {name: sum(one.class_names[0] == name for one in found) for name in classifier.class_names}
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:10]:
        if count:
            print(f"{count:7d}  {name}", file=sys.stderr)
    seconds = time.monotonic() - started
    print(f"{len(found)} of {counted(len(paths), 'image')} classified in {seconds:.1f} s", file=sys.stderr)
    print(folder / "classes.csv")
    return 1 if failed else 0


def _write(folder, found, class_names):
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class", "score"])
    table.writerows([one.path, one.class_names[0], f"{one.scores[0]:.4f}"] for one in found)
    files.write_text(folder / "classes.csv", text.getvalue())
    entries = [
        {
            "image": str(one.path),
            "classes": [
                {"label": name, "score": round(score, 6)}
                for name, score in zip(one.class_names, one.scores, strict=True)
            ],
        }
        for one in found
    ]
    files.write_text(folder / "classes.json", json.dumps({"images": entries}, indent=1, ensure_ascii=False) + "\n")
    files.write_text(folder / "classes.txt", name_lists.as_text(class_names))


def _draw(path, found):
    images = [read(one.path) for one in found]
    captions = [f"{one.class_names[0]} {one.scores[0]:.2f}" for one in found]
    visualize.write_image(path, visualize.contact_sheet(images, captions, columns=8, cell=160))


def evaluate(arguments: argparse.Namespace) -> int:
    """Scores a classifier on labelled images. Args: arguments, of `cli.evaluate`. Returns: exit status."""
    if arguments.labels or arguments.predictions or arguments.masks or arguments.before or arguments.after:
        raise UserError("a classifier's labels are the folders of its images: --images=DIR with one folder a class")
    devices.enable_compilation_cache()
    classifier = classification_predictor.load(arguments.checkpoint, precision=arguments.precision)
    source = open_source(arguments, arguments.checkpoint, classifier)
    evaluator = evaluator_of(classifier, source, batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    print(source.summary(), file=sys.stderr)
    import jax

    folder = pathlib.Path(arguments.output) if arguments.output else None
    with jax.set_mesh(classifier.mesh):
        placed = devices.place(classifier.variables, devices.replicated(classifier.mesh))
        result = evaluator(placed, pictures=folder)
    print(result.table())
    if arguments.json:
        files.write_text(arguments.json, json.dumps(result.to_json(), indent=2) + "\n")
        print(arguments.json)
    if folder:
        print(folder)
    return 1 if evaluator.num_unread else 0


def evaluator_of(
    classifier: classification_predictor.ImageClassifier,
    source: Any,
    *,
    batch_size: int | None = None,
    num_workers: int = 0,
    **options: Any,
) -> ClassificationEvaluator:
    """ClassificationEvaluator of an ImageClassifier. Args: batch_size, None for 32; options, of the evaluator."""
    info = classifier.model_info
    row = EvaluationRow(size=info["input_size"], share=info.get("crop_share", 0.875), num_bands=len(info["pixel_mean"]))
    return ClassificationEvaluator(
        classifier.graph,
        source,
        classifier.mesh,
        row=row,
        batch_size=batch_size or 32,
        num_workers=num_workers,
        num_views=info.get("num_views", 1),
        **options,
    )


def open_source(
    arguments: argparse.Namespace,
    checkpoint: str | os.PathLike[str],
    classifier: classification_predictor.ImageClassifier,
) -> Any:
    """The labelled images that a command's arguments name. Args: arguments, with images, dataset and split; checkpoint.

    Raises:
      UserError: none are named.
    """
    if arguments.images:
        given = sources.image_settings_of(classifier.model_info)
        return sources.ClassFolderSource(arguments.images, classifier.class_names, settings=given)
    if arguments.dataset:
        return sources.TfdsClassificationSource(arguments.dataset, arguments.split, classifier.class_names)
    settings = run_settings(checkpoint)
    if settings is None:
        raise UserError(
            "this checkpoint does not say what it was validated on: give --images=DIR with one folder a class, or "
            "--dataset"
        )
    if arguments.split not in ("train", "val"):
        raise UserError(f"--split: a run has the splits train and val, got {arguments.split!r}")
    config = ml_collections.ConfigDict(settings)
    return tasks.of(config).open_source(config, arguments.split)
