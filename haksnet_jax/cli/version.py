"""Versions of the package and of what it runs on.

    haksnet version
    haksnet version --json

For reports of a fault, `haksnet doctor` says more.
"""

import argparse
import importlib.metadata
import json
import platform

from haksnet_jax.cli import terminal
from haksnet_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str | None]:
    """{name: version} of the package, Python and the packages that matter most; None where one is not installed."""
    found: dict[str, str | None] = {"haksnet_jax": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command. Args: arguments, parsed."""
    found = versions()
    print(json.dumps(found) if arguments.json else "\n".join(f"{name} {version}" for name, version in found.items()))
