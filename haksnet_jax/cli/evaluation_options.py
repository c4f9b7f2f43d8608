"""The options of `evaluate` and `report` that say what is evaluated, and on what."""

import argparse

from haksnet_jax import demo
from haksnet_jax.cli import terminal


def add(parser: terminal.Parser, *, images: str) -> None:
    """Adds the options. Args: parser; images, help of --images."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a run's folder, one of its checkpoints, or a converted model")
    add("--predictions", metavar="PATH", help="folder of Task1_<class>.txt files, or a detections.json")
    add("--labels", metavar="DIR", help="folder of label files, or one file of labels")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add("--images", metavar="DIR", help=images)
    add("--masks", metavar="DIR", help="folder of masks, of a segmenter or a change detector")
    add("--before", metavar="DIR", help="folder of the earlier images, of a change detector")
    add("--after", metavar="DIR", help="folder of the later images, of a change detector")
    add("--dataset", metavar="DIR", help="data set prepared by `haksnet build`")
    add("--split", default="val", help="of --dataset, or of the run's own data; default: %(default)s")
    add(
        "--classes",
        help="of --predictions: a published list's name, or a file of names in order (one a line, data.yaml, JSON)",
    )


def settle(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, and puts what comes with the package where `demo` is named.

    Raises:
      terminal.UsageError: they do not.
    """
    if bool(arguments.checkpoint) == bool(arguments.predictions):
        raise terminal.UsageError("expected either --checkpoint=DIR or --predictions=PATH")
    if arguments.predictions and not arguments.labels:
        raise terminal.UsageError("--predictions needs --labels; unlabelled images are for `haksnet submit`")
    if arguments.predictions and arguments.dataset:
        raise terminal.UsageError("--dataset belongs to --checkpoint; --predictions are compared with --labels")
    if arguments.checkpoint and arguments.classes:
        raise terminal.UsageError("--classes belongs to --predictions; a checkpoint brings its own")
    if arguments.images:
        arguments.images = demo.or_path(arguments.images, demo.IMAGES)
    if arguments.labels:
        arguments.labels = demo.or_path(arguments.labels, demo.LABELS)
