"""Writes one HTML file that shows how good a detector is, and where it errs: to be opened, mailed, kept.

    haksnet report --checkpoint=runs/folder --output=report.html
    haksnet report --checkpoint=runs/a --compare=runs/b --output=report.html
    haksnet report --predictions=found --labels=val/labelTxt --images=val/images --output=report.html

It holds the card of the run, its curves, average precision by class, precision and recall, the confusion matrix, errors
by kind and size, the worst and the best images with labels beside detections, and statistics of the labels.
"""

from haksnet_jax import demo
from haksnet_jax.cli import terminal


def add_arguments(parser):
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a run's folder, one of its checkpoints, or a converted model")
    add("--predictions", metavar="PATH", help="folder of Task1_<class>.txt files, or a detections.json")
    add("--compare", metavar="PATH", help="a second checkpoint, or second predictions, to be shown beside the first")
    add("--output", metavar="FILE.html", default="report.html", help="the file to write; default: %(default)s")
    add("--labels", metavar="DIR", help="folder of label files, or one file of labels")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add("--images", metavar="DIR", help="folder of images")
    add("--dataset", metavar="DIR", help="data set prepared by `haksnet build`")
    add("--split", default="val", help="of --dataset, or of the run's own data; default: %(default)s")
    add("--classes", help="of --predictions: a published list's name, or a text file with one class a line, in order")
    add(
        "--score",
        type=terminal.number(0, 1, hint="0.3 for 30 %"),
        default=0.3,
        help="lowest score of detections that count as errors; default: %(default)s",
    )
    add(
        "--num-images",
        type=terminal.number(0, whole=True),
        default=4,
        help="how many of the worst images are shown, and of the best; default: %(default)s",
    )


def run(arguments):
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if bool(arguments.checkpoint) == bool(arguments.predictions):
        raise terminal.UsageError("expected either --checkpoint=DIR or --predictions=PATH")
    if arguments.predictions and not arguments.labels:
        raise terminal.UsageError("--predictions needs --labels")
    if arguments.checkpoint and arguments.classes:
        raise terminal.UsageError("--classes belongs to --predictions; a checkpoint brings its own")
    images = demo.or_path(arguments.images, demo.IMAGES) if arguments.images else None
    labels = demo.or_path(arguments.labels, demo.LABELS) if arguments.labels else None
    from haksnet_jax.cli import reporting

    sources = [source for source in (arguments.checkpoint or arguments.predictions, arguments.compare) if source]
    options = {"labels": labels, "images": images, "labels_format": arguments.format}
    if arguments.checkpoint:
        options |= {"dataset": arguments.dataset, "split": arguments.split}
    else:
        options |= {"classes": arguments.classes}
    return reporting.write(
        arguments.output,
        **{"checkpoints" if arguments.checkpoint else "predicted": sources},
        score=arguments.score,
        num_images=arguments.num_images,
        **options,
    )
