"""What is meant by `python -m haksnet_jax.SOMETHING`, where that is no command."""

import difflib
import sys
from collections.abc import Sequence

from haksnet_jax.cli.program import COMMANDS, WRONG_USE

# What may be started so: the published names, and what writes files of a checkout.
_DOORS = ("main", "convert", "__main__", "cli.demo_files", "cli.reference")
_FORMER = {"detector": "predict", "splitting": "split", "validation": "validate", "loop": "train", "training": "train"}


def check(argv: Sequence[str]) -> None:
    """Ends the process with a sentence where a module that is no command is started as one.

    Python would run its definitions in silence, or say that there is no such module.

    Args:
      argv: sys.orig_argv of `python -m NAME ...`.
    """
    name = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
    if not name.startswith("haksnet_jax.") or name.removeprefix("haksnet_jax.") in _DOORS:
        return
    parts = name.split(".")[:0:-1]  # the last one first
    commands = [part if part in COMMANDS else _FORMER.get(part) for part in parts]
    commands += difflib.get_close_matches(parts[0], COMMANDS, n=1, cutoff=0.7)
    meant = next(filter(None, commands), None)
    hint = f"meant is `haksnet {meant}`?" if meant else "`haksnet --help` lists the commands"
    print(f"error: {name} is no command; {hint}", file=sys.stderr)
    raise SystemExit(WRONG_USE)
