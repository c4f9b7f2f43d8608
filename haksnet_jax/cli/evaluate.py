"""Scores a detector, or predictions in files, against labels: average precision by exact polygon overlap.

    haksnet evaluate --checkpoint=runs/folder                        the split that the run was validated on
    haksnet evaluate --checkpoint=DIR --images=DIR --labels=DIR
    haksnet evaluate --checkpoint=DIR --dataset=PREPARED_DIR --split=val
    haksnet evaluate --predictions=found/detections.json --labels=DIR
    haksnet evaluate --checkpoint=SEGMENTER --images=DIR --masks=DIR
    haksnet evaluate --checkpoint=CLASSIFIER --images=DIR            with one folder of images a class

--json stores the numbers; --output adds curves, confusion matrix, errors by size and the worst images.
"""

import argparse

from haksnet_jax.cli import evaluation_options, terminal, view_options
from haksnet_jax.inference.view_settings import EVALUATION
from haksnet_jax.results.thresholds import SHOWN_SCORE


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    evaluation_options.add(parser, images="folder of images; beside --predictions only for drawing the worst ones")
    add(
        "--allow-unknown-classes",
        action="store_true",
        help="score although more than half of the labels are of classes that are not in the list",
    )
    add("--ignore-truncated", action="store_true", help="ignore objects of difficulty 2, truncated by tiling")
    add("--json", metavar="FILE", help="file for the numbers")
    add("--output", metavar="DIR", help="folder for curves, confusion matrix, worst images, a checkpoint's detections")
    add(
        "--worst",
        type=terminal.number(0, whole=True),
        default=8,
        help="images with most errors that are drawn; default: %(default)s",
    )
    add(
        "--score",
        type=terminal.number(0, 1, hint="0.3 for 30 %"),
        default=SHOWN_SCORE,
        help="lowest score in drawings and error counts; default: %(default)s",
    )
    view_options.add(
        parser,
        pad=EVALUATION.pad,
        scales=None,
        auto="fit, but tile for images of --images that are larger than the network's input",
        batch_size="images at a time on each device; default: 1, for windows on accelerators 8",
    )
    add(
        "--num-workers",
        type=terminal.number(0, whole=True),
        default=0,
        help="processes that read; default: threads of this one",
    )


# Options that say nothing to a model of a task.
_OF_DETECTORS = ("resize", "pad", "format", "ignore_truncated", "allow_unknown_classes", "bands", "limits", "nodata")
_OF_PIXELS = ("scales", "flip", "turns")
_NOT_OF_PIXELS = (*_OF_DETECTORS, "dataset", "num_workers")
_SAY_NOTHING = {
    "detection": _OF_PIXELS,
    "classification": (*_OF_DETECTORS, *_OF_PIXELS, "overlap"),
    "segmentation": _NOT_OF_PIXELS,
    "change": _NOT_OF_PIXELS,
}


def _refuse_what_says_nothing(arguments, task):
    options = terminal.Parser("evaluate")
    add_arguments(options)
    for name in _SAY_NOTHING[task]:
        if getattr(arguments, name) != options.get_default(name):
            option = name.replace("_", "-")
            raise terminal.UsageError(
                f"--{option} says nothing of a model of {task}, which {arguments.checkpoint} is: leave it out"
            )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    evaluation_options.settle(arguments)
    from haksnet_jax import files

    if arguments.json:
        files.require_writable(arguments.json, "--json")
    if arguments.output:
        files.output_folder(arguments.output)
    if arguments.checkpoint:
        from haksnet_jax.weights import model_folder

        task = model_folder.task_of(arguments.checkpoint)
        _refuse_what_says_nothing(arguments, task)
        if task == "classification":
            from haksnet_jax.cli import classification

            return classification.evaluate(arguments)
        if task in ("segmentation", "change"):
            from haksnet_jax.cli import dense_evaluation

            return dense_evaluation.run(arguments)
    if arguments.masks or arguments.before or arguments.after:
        raise terminal.UsageError(
            "--masks, --before and --after are of segmenters and change detectors; a detector is scored with --labels"
        )
    if arguments.images and arguments.split != "val":
        raise terminal.UsageError("--split belongs to --dataset and to the run's own data, not to --images")
    from haksnet_jax.cli import evaluation
    from haksnet_jax.images import settings as image_settings

    options = {}
    if arguments.checkpoint:
        names = ("dataset", "split", "resize", "pad", "overlap", "precision", "batch_size", "num_workers")
        options = {name: getattr(arguments, name) for name in names}
        options["given_settings"] = image_settings.of_options(arguments)
    return evaluation.evaluate(
        checkpoint=arguments.checkpoint,
        predicted=arguments.predictions,
        labels=arguments.labels,
        images=arguments.images,
        classes=arguments.classes,
        labels_format=arguments.format,
        allow_unknown_classes=arguments.allow_unknown_classes,
        ignore_truncated=arguments.ignore_truncated,
        json_file=arguments.json,
        output=arguments.output,
        worst=arguments.worst,
        score=arguments.score,
        **options,
    )
