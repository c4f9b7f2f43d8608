"""Builds a TFDS data set from folders in DOTA's format: tiles of DOTA itself, or images of one's own.

  python -m data.dota.build --source=tiles --classes=dota10 --output=records
  python -m data.dota.build --images=tiles/train/images --labels=tiles/train/labelTxt --split=train \\
      --classes=classes.txt --output=records
"""

import argparse
import functools
import pathlib
import sys

from data import builder
from data.dota import builder as dota
from haksnet_jax.labels import dota as labels

CONFIGS = {"dota10": "v1.0", "dota15": "v1.5", "dota20": "v2.0"}


def main(argv=None):
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data.dota.build",
        description=f"{__doc__}\n{dota.FOLDER_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", help="folder with one folder a split")
    parser.add_argument("--images", nargs="+", default=[], help="instead of --source: folders of images, one a split")
    parser.add_argument("--labels", nargs="+", default=[], help="folders of label files, one a split; none: no labels")
    parser.add_argument("--split", nargs="+", default=[], help="names of the splits of --images; default: train")
    parser.add_argument(
        "--classes", default="dota10", help="dota10, dota15, dota20 or another preset, or a file with one class a line"
    )
    builder.add_arguments(parser)
    args = parser.parse_args(argv)
    if bool(args.source) == bool(args.images):
        parser.error("expected either --source or --images")
    folders = None
    if args.images:
        splits = args.split or ["train"]
        if len(splits) != len(args.images) or (args.labels and len(args.labels) != len(args.images)):
            parser.error(
                f"expected as many --split and --labels as --images, got {len(splits)} splits, {len(args.labels)} "
                f"folders of labels and {len(args.images)} of images"
            )
        annotations = [pathlib.Path(folder) for folder in args.labels] or [None] * len(splits)
        images = [pathlib.Path(folder) for folder in args.images]
        folders = dict(zip(splits, zip(images, annotations, strict=True), strict=True))
    common = {"lossy": args.lossy, "folders": folders}
    try:
        if args.classes in CONFIGS:
            make_builder = functools.partial(dota.Dota, config=CONFIGS[args.classes], **common)
        else:
            class_names = labels.read_class_names(args.classes)
            make_builder = functools.partial(dota.Folder, class_names=class_names, **common)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return builder.report(make_builder, args.source or args.images[0], args.output, args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
