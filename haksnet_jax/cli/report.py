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

from haksnet_jax.cli import evaluation_options, terminal
from haksnet_jax.results.thresholds import SHOWN_SCORE


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    evaluation_options.add(parser, images="folder of images; of a classifier with one folder a class")
    add("--compare", metavar="PATH", help="a second checkpoint, or second predictions, to be shown beside the first")
    add("--output", metavar="FILE.html", default="report.html", help="the file to write; default: %(default)s")
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
    evaluation_options.settle(arguments)
    from haksnet_jax.cli import reporting

    return reporting.write(arguments)
