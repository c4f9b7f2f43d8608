"""Packs predictions for DOTA's evaluation server (Task 1), and checks the zip.

    haksnet submit --predictions=found --output=submission.zip --classes=dota10 --images=test/images

Predictions for tiles (P0706__1024__0___824, resized or not) are merged into predictions for images first. Detections
without area are left out and counted. No file is written if the server would refuse it; the exit status is 1 then.
"""

import argparse

from haksnet_jax.cli import terminal
from haksnet_jax.results.thresholds import MERGE_IOU


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add(
        "--predictions",
        required=True,
        metavar="PATH",
        help="folder of Task1_<class>.txt files, or a detections.json, or the folder it lies in",
    )
    add("--output", required=True, metavar="FILE.zip", help="the zip to write")
    add(
        "--classes",
        default="dota10",
        help="a published list's name, or a file of names in order (one a line, data.yaml, JSON); default: %(default)s",
    )
    add("--images", metavar="DIR", help="folder of the test images: every name is checked against it")
    add("--image-list", metavar="FILE", help="text file with the test images' names, one a line")
    add(
        "--train-images",
        metavar="PATH",
        help="folder or list of the images (or their tiles) trained on: those in both are warned of",
    )
    add(
        "--iou",
        type=terminal.number(0, 1),
        default=MERGE_IOU,
        help="where predictions are for tiles: overlap above which merging drops the lower score; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if arguments.images and arguments.image_list:
        raise terminal.UsageError("expected --images or --image-list, not both")
    from haksnet_jax.cli import submission
    from haksnet_jax.labels.classes import read_class_names

    tested, trained = arguments.images or arguments.image_list, arguments.train_images
    written = submission.submit(
        arguments.predictions,
        arguments.output,
        read_class_names(arguments.classes),
        test_images=submission.image_names(tested) if tested else None,
        train_images=submission.image_names(trained) if trained else None,
        iou_threshold=arguments.iou,
    )
    return 0 if written else 1
