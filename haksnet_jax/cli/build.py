"""Packs a data set for training: records with all images and labels, read as fast as the disk can.

    haksnet build --source=tiles --classes=dota10 --output=records
    haksnet build --images=tiles/train/images --labels=tiles/train/labelTxt --split=train --classes=classes.txt \\
        --output=records
    haksnet build ssdd --source=RBox_SSDD/voc_style --output=ssdd --as-dota

Without the name of a data set, folders in DOTA's format are packed: --source holds SPLIT/images and SPLIT/labelTxt for
each split. `haksnet build NAME` without --source tells where a data set's release comes from and how it lies.
"""

import importlib
import sys

from haksnet_jax.cli import terminal

DATA_SETS = ("dior_r", "fair1m", "hrsc2016", "hrsid", "ssdd")


def add_arguments(parser):
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("name", nargs="?", choices=DATA_SETS, metavar="NAME", help=f"{', '.join(DATA_SETS)}; none: folders as of DOTA")
    add("--source", metavar="DIR", help="folder of the unpacked download, or one with a folder for each split")
    terminal.add_list(parser, "--images", default=[], help="instead of --source: folders of images, one a split")
    terminal.add_list(parser, "--labels", default=[], help="folders of label files, one a split; none: no labels")
    terminal.add_list(parser, "--split", default=[], help="names of the splits of --images; default: train")
    add("--classes", default="dota10", help="a published list's name, or a file with one class a line; default: dota10")
    add("--output", metavar="DIR", help="folder to write to")
    add("--overwrite", action="store_true", help="build anew what is in the output folder already")
    add("--lossy", action="store_true", help="build although something has to be left out; it is named")
    add("--as-dota", action="store_true", help="of a named data set: write folders in DOTA's format instead of records")


def run(arguments):
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if arguments.name and not arguments.source:
        builder_class = _builder_class(arguments.name)
        print(f"{builder_class.DESCRIPTION}\n\n{builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}", file=sys.stderr)
        raise terminal.UsageError("expected --source: the folder of the unpacked download, as described above")
    if not arguments.output:
        raise terminal.UsageError("expected --output, the folder to write to")
    more = [f"--output={arguments.output}"]
    more += [f"--{name}" for name in ("overwrite", "lossy") if getattr(arguments, name)]
    if arguments.source:
        more.append(f"--source={arguments.source}")
    if arguments.name:
        from data import builder

        more += ["--as_dota"] if arguments.as_dota else []
        return builder.main(_builder_class(arguments.name), more)
    if arguments.as_dota:
        raise terminal.UsageError("--as-dota belongs to a named data set: folders in DOTA's format are that already")
    from data.dota import build

    for name in ("images", "labels", "split"):
        values = getattr(arguments, name)
        more += [f"--{name}", *values] if values else []
    return build.main([*more, f"--classes={arguments.classes}"])


def _builder_class(name):
    module = importlib.import_module(f"data.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and getattr(value, "DESCRIPTION", "")
    )
