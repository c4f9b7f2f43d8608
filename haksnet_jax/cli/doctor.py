"""What works on this machine, and what to do about what does not.

    haksnet doctor
    haksnet doctor --json --fast

Versions, devices and their memory, folders, limits, and for ten seconds how fast it computes, copies and decodes. Exit
status 1: there is a problem; each is named with its remedy. --json is what to add to a report of a fault.
"""

import argparse
import json

from haksnet_jax.cli import terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--fast", action="store_true", help="measure nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.tools import doctor

    rows = []
    for row in doctor.examine(measure=not arguments.fast):
        rows.append(row)
        if not arguments.json:  # as they come: starting JAX may take a while
            print(
                f"{row.name:24} {row.value}"
                + (f"\n{'':24} PROBLEM: {row.problem}: {row.remedy}" if row.problem else "")
            )
    problems = [row for row in rows if row.problem]
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        count = len(problems)
        print(f"{count} problem{'' if count == 1 else 's'}" if count else "no problems")
    return 1 if problems else 0
