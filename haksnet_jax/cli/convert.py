"""Converts PyTorch checkpoints to this format and back; no PyTorch is needed, and nothing in a file is executed.

    haksnet convert --input=epoch_12.pth --output=detector
    haksnet convert --input=backbone.pth.tar --output=backbone --report=report.txt
    haksnet convert --input=runs/folder --to=detector.safetensors

--input may be a checkpoint of this format too: --to writes it with upstream's names.
"""

import argparse
import os
import sys

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add(
        "--input",
        required=True,
        metavar="PATH",
        help="FILE.pth, .pth.tar, .pt, .safetensors, or a checkpoint folder",
    )
    add("--output", metavar="DIR", help="folder to write a checkpoint of this format to")
    add("--to", metavar="FILE", help="FILE.safetensors or FILE.pth to write with upstream's names")
    add("--ema", action="store_true", help="take the averaged weights (state_dict_ema, or mmcv's ema_* names)")
    add("--part", metavar="NAME", help="which model, where the file holds several: teacher or student")
    add("--allow-nonfinite", action="store_true", help="take weights that are NaN or infinite")
    add("--report", metavar="FILE", help="file to store the report in")
    terminal.add_list(parser, "--allow-missing", default=[], help="names that need no value, as patterns: 'roi_head.*'")
    terminal.add_list(parser, "--classes", help="class names, or the name of a published list such as dota10")
    add("--reinit-classifier", action="store_true", help="start the classifier anew")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if bool(arguments.output) == bool(arguments.to):
        raise terminal.UsageError("expected either --output=DIR or --to=FILE")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only bytes are moved; an accelerator may be in use
    from haksnet_jax.errors import UserError
    from haksnet_jax.weights import convert

    options = {
        "ema": arguments.ema,
        "part": arguments.part,
        "allow_nonfinite": arguments.allow_nonfinite,
        "allow_missing": arguments.allow_missing,
        "class_names": _class_names(arguments.classes),
        "reinitialize_classifier": arguments.reinit_classifier,
    }
    try:
        if arguments.output:
            model = convert.convert(arguments.input, arguments.output, **options)
        else:
            model = convert.export(arguments.input, arguments.to, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; nothing was written") from None
    except UserError as error:
        report = getattr(error, "report", None)
        if report:
            print(convert.printable(str(report)))
        if arguments.report:
            _write_report(arguments.report, (f"{report}\n" if report else "") + f"error: {error}\n")
        raise
    text = f"{model.text()}\nwritten: {arguments.output or arguments.to}\n"
    print(convert.printable(text), end="")
    if arguments.report:
        _write_report(arguments.report, text)
    return 0


def _class_names(names):
    """The classes that --classes names: a published list, or those given; None for those of the file."""
    if names is None:
        return None
    from haksnet_jax.labels.classes import CLASSES

    if len(names) == 1 and names[0] in CLASSES:
        return CLASSES[names[0]]
    if not names or len(set(names)) != len(names):
        raise terminal.UsageError("--classes: expected different names, separated by commas")
    return tuple(names)


def _write_report(path, text):
    from etils import epath

    from haksnet_jax import files
    from haksnet_jax.errors import UserError
    from haksnet_jax.weights import convert

    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, convert.printable(text))
    except OSError as error:
        print(text, file=sys.stderr)
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error
