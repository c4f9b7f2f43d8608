"""The program: python -m haksnet_jax COMMAND."""

import importlib
import sys

COMMANDS = {
    "train": "haksnet_jax.main",
    "evaluate": "haksnet_jax.cli.evaluate",
    "predict": "haksnet_jax.cli.predict",
    "convert": "haksnet_jax.weights.convert",
    "submit": "haksnet_jax.cli.submit",
    "split": "haksnet_jax.preparation.splitting",
    "validate": "haksnet_jax.preparation.validation",
    "plan": "haksnet_jax.tools.plan",
    "benchmark": "haksnet_jax.tools.benchmark",
    "parity": "haksnet_jax.tools.parity.__main__",
}


def main(argv=None):
    """Runs a command. Args: argv, without the program's name. Returns: exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m haksnet_jax {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    module = importlib.import_module(COMMANDS[argv[0]])
    sys.argv = [f"haksnet {argv[0]}", *argv[1:]]
    return module.run() if hasattr(module, "run") else module.main()
