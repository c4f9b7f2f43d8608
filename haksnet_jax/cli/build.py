"""Packs a data set for training: records with all images and labels, read as fast as the disk can.

    haksnet build --source=tiles --classes=dota10 --output=records
    haksnet build --images=tiles/train/images --labels=tiles/train/labelTxt --split=train --classes=classes.txt \\
        --output=records
    haksnet build ssdd --source=RBox_SSDD/voc_style --output=ssdd --as-dota
    haksnet build --source=yolo --format=yolo-obb --output=records

Without the name of a data set, folders of one's own are packed: --source holds SPLIT/images and SPLIT/labelTxt (or
labels) for each split, or images/SPLIT and labels/SPLIT. `haksnet build NAME` without --source tells where a data set's
release comes from and how it lies.
"""

import argparse
import sys

from haksnet_jax.cli import terminal
from haksnet_jax.wording import counted

DATA_SETS = ("dior_r", "fair1m", "hrsc2016", "hrsid", "ssdd")


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("name", nargs="?", type=_data_set, metavar="NAME", help=f"{', '.join(DATA_SETS)}; none: one's own folders")
    add("--source", metavar="DIR", help="folder of the unpacked download, or one with a folder for each split")
    terminal.add_list(parser, "--images", default=[], help="instead of --source: folders of images, one a split")
    terminal.add_list(parser, "--labels", default=[], help="their labels, one a split; none: no labels")
    terminal.add_list(parser, "--split", default=[], help="names of the splits of --images; default: train")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add(
        "--classes",
        help="a published list's name, or a file of names (one a line, data.yaml, JSON); "
        "default: the one beside the labels, else dota10",
    )
    add("--output", metavar="DIR", help="folder to write to")
    add("--overwrite", action="store_true", help="build anew what is in the output folder already")
    add("--lossy", action="store_true", help="build although something has to be left out; it is named")
    from haksnet_jax.images import settings as image_settings

    image_settings.add_options(parser)
    add("--as-dota", action="store_true", help="write folders in DOTA's format instead of records")


def _data_set(name):
    if name in DATA_SETS:
        return name
    elsewhere = "DOTA is cut by `haksnet split`, and its tiles are built with --source; " if "dota" in name else ""
    raise argparse.ArgumentTypeError(
        f"expected one of {', '.join(DATA_SETS)}, got {name!r}; {elsewhere}other sets need no building, or are folders "
        "of one's own (docs/own_data.md)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.preparation import building, records

    if arguments.name and not arguments.source:
        builder_class = building.builder_class(arguments.name)
        print(f"{builder_class.DESCRIPTION}\n\n{builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}", file=sys.stderr)
        raise terminal.UsageError("expected --source: the folder of the unpacked download, as described above")
    if not arguments.output:
        raise terminal.UsageError("expected --output, the folder to write to")
    if not arguments.name and bool(arguments.source) == bool(arguments.images):
        raise terminal.UsageError("expected either --source or --images")
    make_builder, source = _chosen(arguments)
    try:
        if arguments.as_dota:
            builder = make_builder(data_dir=arguments.output)
            counts = building.write_dota(builder, source, arguments.output, overwrite=arguments.overwrite)
        else:
            builder = records.prepare_at(make_builder, source, arguments.output, arguments.overwrite)
            counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; nothing was written") from None
    except OSError as error:
        raise records.DataError(f"Cannot write {arguments.output}: {error.strerror or error}.") from error
    _tell(builder, counts, arguments.output)
    return 0


def _chosen(arguments):
    """(function that makes the builder, folder of the source)."""
    import functools

    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.preparation import building

    images = image_settings.of_options(arguments)
    if arguments.name:
        builder_class = building.builder_class(arguments.name)
        return functools.partial(builder_class, lossy=arguments.lossy, images=images), arguments.source
    splits = building.splits_of(arguments.source, arguments.images, arguments.labels, arguments.split)
    make = building.folder_builder(
        splits, arguments.classes, format=arguments.format, lossy=arguments.lossy, images=images
    )
    return make, arguments.source or arguments.images[0]


def _tell(builder, counts, output):
    """Prints what was odd and what was written."""
    from haksnet_jax.labels.problems import count_reasons, listed

    if builder.problems:
        print(f"{len(builder.problems)} problems: {count_reasons(builder.problems)}", file=sys.stderr)
        print(listed(builder.problems), file=sys.stderr)
    for split, count in counts.items():
        print(f"{split}: {counted(count, 'image')}")
    print(f"classes: {', '.join(builder.class_names)}")
    print(f"written to {output}")
