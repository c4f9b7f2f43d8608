"""Times the parts of a model on this machine, beside the floors of its hardware.

    haksnet benchmark --list
    haksnet benchmark --only='detect_t/*,train_t/*' --json=times.json

The first run of a part compiles it, which is timed apart.
"""

import argparse

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    terminal.add_list(parser, "--only", default=["*"], help="parts to measure: patterns as of file names")
    add("--list", action="store_true", help="name the parts and stop")
    add(
        "--image",
        type=terminal.number(64, whole=True),
        help="side in pixels; default: 1024, of pre-training 224; on CPUs less",
    )
    add(
        "--batch",
        type=terminal.number(1, whole=True),
        help="images of the large batches; default: 8, of pre-training 512; on CPUs 2",
    )
    add("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16, on CPUs float32")
    add(
        "--workers",
        type=terminal.number(0, whole=True),
        default=8,
        help="processes that feed the end-to-end run; default: %(default)s",
    )
    add("--profile", action="store_true", help="print where each part's time goes instead of the table")
    add("--cached", action="store_true", help="use the persistent compilation cache")
    add("--json", metavar="FILE", help="file for the numbers")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.tools.benchmark import command

    return command.run(arguments)
