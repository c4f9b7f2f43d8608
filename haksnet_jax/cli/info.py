"""Says what a file or folder is, and what it holds.

    haksnet info runs/mine
    haksnet info epoch_12.pth
    haksnet info scene.tif train/labelTxt --json

Checkpoints, runs, .pth and .safetensors files, images, folders of images or labels, and records.
"""

import argparse
import json

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files and folders")
    parser.add_argument("--json", action="store_true", help="as JSON, one object for each path")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command. Args: arguments, parsed."""
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only looked at; an accelerator may be in use
    from haksnet_jax.tools import info

    for number, path in enumerate(arguments.paths):
        facts = info.describe(path)
        if arguments.json:
            print(json.dumps({"path": path, **facts}, indent=1))
        else:
            print(("\n" if number else "") + (f"{path}\n" if len(arguments.paths) > 1 else "") + info.table(facts))
