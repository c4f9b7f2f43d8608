"""Compares every part with recorded inputs and outputs of the PyTorch code.

    haksnet parity --goldens=DIR --json=parity.json
    haksnet parity --goldens=DIR --only='inference_*' --dtype=bfloat16 --platform=cuda

Exit status 1: a row is not within its tolerance.
"""

import argparse

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--goldens", required=True, metavar="DIR", help="folder of recorded outputs")
    add("--json", metavar="FILE", help="file for the rows as JSON")
    add("--markdown", metavar="FILE", help="file for the table as Markdown")
    terminal.add_list(
        parser, "--only", default=["*"], help="recordings to compare: patterns of names, such as 'inference_*'"
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 compares whole inference, with tolerances for it; default: %(default)s",
    )
    add("--platform", choices=("cpu", "cuda", "tpu"), default="cpu", help="where to compute; default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.tools.parity import command

    return command.run(arguments)
