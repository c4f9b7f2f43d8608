"""Writes one HTML file that shows how good a model is, and where it errs: to be opened, mailed, kept.

    haksnet report --checkpoint=runs/folder --output=report.html     of any task, on what the run was validated on
    haksnet report --checkpoint=SEGMENTER --images=DIR --masks=DIR
    haksnet report --checkpoint=DETECTOR --images=DIR --labels=DIR
    haksnet report --checkpoint=runs/a --compare=runs/b --output=report.html
    haksnet report --predictions=found --labels=val/labelTxt --images=val/images --output=report.html

It holds the card of the run, its curves, the metrics by class, precision and recall, the confusion matrix, errors by
kind and size, the worst and the best images with labels beside predictions, and statistics of the labels.
"""

import argparse

from haksnet_jax import demo
from haksnet_jax.cli import terminal
from haksnet_jax.results.thresholds import SHOWN_SCORE


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a run's folder, one of its checkpoints, or a converted model")
    add("--predictions", metavar="PATH", help="folder of Task1_<class>.txt files, or a detections.json")
    add("--compare", metavar="PATH", help="a second checkpoint, or second predictions, to be shown beside the first")
    add("--output", metavar="FILE.html", default="report.html", help="the file to write; default: %(default)s")
    add("--labels", metavar="DIR", help="folder of label files, or one file of labels")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add("--images", metavar="DIR", help="folder of images; of a classifier with one folder a class")
    add("--masks", metavar="DIR", help="folder of masks, of a segmenter or a change detector")
    add("--before", metavar="DIR", help="folder of the earlier images, of a change detector")
    add("--after", metavar="DIR", help="folder of the later images, of a change detector")
    add("--dataset", metavar="DIR", help="data set prepared by `haksnet build`")
    add("--split", default="val", help="of --dataset, or of the run's own data; default: %(default)s")
    add("--classes", help="of --predictions: a published list's name, or a text file with one class a line, in order")
    add(
        "--score",
        type=terminal.number(0, 1, hint="0.3 for 30 %"),
        default=SHOWN_SCORE,
        help="of detectors: lowest score of detections that count as errors; default: %(default)s",
    )
    add(
        "--num-images",
        type=terminal.number(0, whole=True),
        default=4,
        help="how many of the worst images are shown, and of the best; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if bool(arguments.checkpoint) == bool(arguments.predictions):
        raise terminal.UsageError("expected either --checkpoint=DIR or --predictions=PATH")
    if arguments.predictions and not arguments.labels:
        raise terminal.UsageError("--predictions needs --labels")
    if arguments.checkpoint and arguments.classes:
        raise terminal.UsageError("--classes belongs to --predictions; a checkpoint brings its own")
    if arguments.images:
        arguments.images = demo.or_path(arguments.images, demo.IMAGES)
    if arguments.labels:
        arguments.labels = demo.or_path(arguments.labels, demo.LABELS)
    from haksnet_jax.cli import reporting

    return reporting.write(arguments)
