"""Checks a data set before anything is trained on it: every problem with file and line, counted.

    haksnet validate --images=train/images --labels=train/labelTxt
    haksnet validate --images=train/images --labels=train/labelTxt --classes=classes.txt --sheet=sheet.png
    haksnet validate --images=images/train --labels=labels/train --format=yolo-obb
    haksnet validate --images=train/images --masks=train/masks
    haksnet validate --before=train/A --after=train/B --masks=train/label
    haksnet validate --class-folders train val                        one folder of images for each class

Exit status 1: something would be lost in training.
"""

import argparse
import collections

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    from haksnet_jax.images import settings as image_settings

    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of images")
    add("--masks", metavar="DIR", help="folder of masks of the same names, of segmentation or of change")
    add("--palette", metavar="FILE", help="colours of the masks' classes; default: palette.txt beside the folders")
    add("--before", metavar="DIR", help="folder of the earlier images of pairs, for change")
    add("--after", metavar="DIR", help="folder of the later images of pairs, for change")
    add("--labels", metavar="DIR", help="folder of label files of the same names, or one file; none: images alone")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add(
        "--classes",
        help="a published list's name such as dota10, or a file of names (one a line, data.yaml, JSON); "
        "default: those found",
    )
    add(
        "--min-side",
        type=terminal.number(0),
        default=2.0,
        help="pixels: objects with a shorter side are named; default: %(default)s, as in training",
    )
    terminal.add_list(parser, "--class-folders", help="folders of splits, each with one folder of images a class")
    add("--fast", action="store_true", help="look at headers and ends of images without decoding them")
    image_settings.add_options(parser)
    add(
        "--keep",
        action="store_true",
        help=f"measure the bands of --images and keep bands, limits, means and deviations beside them in "
        f"{image_settings.FILE}, where training finds them",
    )
    add("--sheet", metavar="FILE.png", help="file for drawn samples")
    add(
        "--show",
        type=terminal.number(0, whole=True),
        default=20,
        help="problems printed of each kind; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.labels import classes
    from haksnet_jax.labels.problems import Reason, unknown_classes
    from haksnet_jax.preparation import validation, validation_report

    if arguments.class_folders:
        others = ("images", "masks", "before", "after", "labels", "keep", "sheet")
        given = [f"--{name}" for name in others if getattr(arguments, name)]
        if given:
            raise terminal.UsageError(
                f"--class-folders and {given[0]}: expected one of them; classes are the folders' names, and training "
                "measures the bands of their images itself"
            )
        return _run_class_folders(arguments)
    class_names = classes.read_class_names(arguments.classes) if arguments.classes else None
    if arguments.sheet:
        _require_picture(arguments.sheet)
    if arguments.masks and arguments.labels:
        raise terminal.UsageError("--labels and --masks: expected one of them, objects or classes of pixels")
    if arguments.masks:
        return _run_masks(arguments, class_names)
    if not arguments.images or arguments.before or arguments.after:
        raise terminal.UsageError("expected --images=DIR, or --before=DIR, --after=DIR and --masks=DIR")
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
    if arguments.keep:
        _keep(arguments)
    if arguments.sheet:
        validation_report.write_sheet(report, arguments.sheet)
        print(f"\ndrawn samples: {arguments.sheet}")
    if not report.problems:
        print("\nno problems")
        return 0
    print()
    shown: collections.Counter[str] = collections.Counter()
    for problem in report.problems:
        shown[problem.reason] += 1
        # Labels in another format are so in every file, and the answer is one.
        if shown[problem.reason] <= min(arguments.show, 2 if problem.reason == Reason.OTHER_FORMAT else arguments.show):
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


def _require_picture(path):
    """Finds out before the work whether the sheet can be written."""
    from haksnet_jax import files
    from haksnet_jax.errors import UserError

    if not path.lower().endswith((".png", ".jpg", ".jpeg")):
        raise UserError(f"--sheet={path}: expected a name that ends in .png or .jpg")
    files.require_writable(path, "--sheet")


def _keep(arguments):
    """Measures the images' bands and keeps what was found beside them."""
    from haksnet_jax.images import scaling
    from haksnet_jax.images import settings as image_settings

    settings, mean, std = scaling.keep(arguments.images, image_settings.of_options(arguments))
    for name, values in (("means", mean), ("deviations", std)):
        print(f"{name} of the bands: {', '.join(f'{value:.1f}' for value in values)}")
    print(f"kept in {arguments.images}/{image_settings.FILE} ({image_settings.told(settings)})")


def _run_masks(arguments, class_names):
    """Checks masks of segmentation or of change. Returns: exit status."""
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.labels.problems import losses
    from haksnet_jax.preparation import dense_validation

    more = {"settings": image_settings.of_options(arguments), "decode": not arguments.fast}
    if arguments.before or arguments.after:
        if not (arguments.before and arguments.after) or arguments.images:
            raise terminal.UsageError("pairs are --before=DIR, --after=DIR and --masks=DIR")
        report = dense_validation.validate_pairs(arguments.before, arguments.after, arguments.masks, **more)
    elif not arguments.images:
        raise terminal.UsageError("--masks needs --images=DIR, or --before=DIR and --after=DIR")
    else:
        names, legend = dense_validation.legend_of(arguments.images, class_names, arguments.palette)
        report = dense_validation.validate_masks(arguments.images, arguments.masks, names, legend, **more)
    print(report.describe())
    if arguments.keep and arguments.images:
        _keep(arguments)
    shown = collections.Counter()
    for problem in report.problems:
        shown[problem.reason] += 1
        if shown[problem.reason] <= arguments.show:
            print(problem)
    lost = collections.Counter(problem.reason for problem in losses(report.problems))
    print("\nno problems" if not report.problems else f"\n{len(report.problems)} problems")
    for reason, count in shown.most_common():
        print(f"{count:7d}  {reason}{'  (something would be lost)' if reason in lost else ''}")
    return 1 if lost else 0


def _run_class_folders(arguments):
    """Checks splits of images with one folder a class. Returns: exit status."""
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.preparation import class_validation

    report = class_validation.validate_class_folders(
        arguments.class_folders, settings=image_settings.of_options(arguments)
    )
    print(report.describe())
    print("\nno problems" if not report.problems else "")
    shown = collections.Counter()
    for problem in report.problems:
        shown[problem.reason] += 1
        if shown[problem.reason] <= arguments.show:
            print(problem)
    lost = {problem.reason for problem in report.lost}
    for reason, count in shown.most_common():
        print(f"{count:7d}  {reason}{'  (something would be lost)' if reason in lost else ''}")
    return 1 if lost else 0
