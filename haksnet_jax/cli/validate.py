"""Checks a data set before anything is trained on it: every problem with file and line, counted.

    haksnet validate --images=train/images --labels=train/labelTxt
    haksnet validate --images=train/images --labels=train/labelTxt --classes=classes.txt --sheet=sheet.png
    haksnet validate --images=images/train --labels=labels/train --format=yolo-obb

Exit status 1: something would be lost in training.
"""

import collections

from haksnet_jax.cli import terminal


def add_arguments(parser):
    """Adds the command's options. Args: parser, terminal.Parser."""
    from haksnet_jax.images import settings as image_settings

    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images")
    add("--labels", metavar="DIR", help="folder of label files of the same names, or one file; none: images alone")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add(
        "--classes",
        help="a published list's name such as dota10, or a file with one class a line; default: those found",
    )
    add(
        "--min-side",
        type=terminal.number(0),
        default=2.0,
        help="pixels: objects with a shorter side are named; default: %(default)s, as in training",
    )
    add("--fast", action="store_true", help="look at headers and ends of images without decoding them")
    image_settings.add_options(parser)
    add("--sheet", metavar="FILE.png", help="file for drawn samples")
    add(
        "--show",
        type=terminal.number(0, whole=True),
        default=20,
        help="problems printed of each kind; default: %(default)s",
    )


def run(arguments):
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.labels import classes
    from haksnet_jax.labels.problems import unknown_classes
    from haksnet_jax.preparation import validation, validation_report

    class_names = classes.read_class_names(arguments.classes) if arguments.classes else None
    report = validation.validate(
        arguments.images,
        arguments.labels,
        class_names,
        format=arguments.format,
        decode=not arguments.fast,
        min_side=arguments.min_side,
        settings=image_settings.of_options(arguments),
    )
    print(validation_report.describe(report))
    if arguments.sheet:
        validation_report.write_sheet(report, arguments.sheet)
        print(f"\ndrawn samples: {arguments.sheet}")
    if not report.problems:
        print("\nno problems")
        return 0
    print()
    shown = collections.Counter()
    for problem in report.problems:
        shown[problem.reason] += 1
        if shown[problem.reason] <= arguments.show:
            print(problem)
    unknown = unknown_classes(report.problems, sum(len(image.objects.labels) for image in report.images), allow=True)
    if unknown:
        print(f"\n{unknown}")
    num_problems = len(report.problems)
    print(f"\n{num_problems} problem{'' if num_problems == 1 else 's'}")
    lost = {problem.reason for problem in report.lost}
    for reason, count in shown.most_common():
        print(f"{count:7d}  {reason}{'  (something would be lost)' if reason in lost else ''}")
    return 1 if report.lost else 0
