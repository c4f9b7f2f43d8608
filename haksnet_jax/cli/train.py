"""Trains a model, or goes on with the run that --workdir holds.

    haksnet train --config=demo
    haksnet train --config=folder --set data.root=mydata --workdir=runs/mine
    haksnet train --config=ssdd --set data.root=DIR optimizer.learning_rate=2e-4

The folder of the run gets checkpoints, curves, event files and a result card; the same command in the same folder goes
on where the run stopped. On several hosts the same command is started on each (docs/many_hosts.md). Exit status 75: the
run was asked to stop and has saved all it did.
"""

import argparse
import os

from haksnet_jax.cli import configuration, terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    configuration.add_arguments(parser)
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="folder of the run; a run that it holds is resumed; default: runs/NAME")
    add(
        "--resume",
        choices=("same", "anyway"),
        default="same",
        help="anyway: go on with a run although it was of other data, classes or model; default: %(default)s",
    )
    group = parser.add_argument_group("several hosts that no cluster describes")
    add = group.add_argument
    add("--coordinator", metavar="ADDRESS:PORT", help="of host 0")
    add("--num-hosts", type=terminal.number(1, whole=True), help="processes of the run; 1: this one alone")
    add("--host", type=terminal.number(0, whole=True), help="number of this process, from 0")
    add(
        "--join-timeout",
        type=terminal.number(1),
        default=300.0,
        help="seconds that hosts wait for each other at the start; default: %(default)g",
    )
    add(
        "--join-token",
        metavar="TEXT",
        help="a text that all hosts of this run share and nobody else knows; default: HAKSNET_JOIN_TOKEN, else the "
        "scheduler's number of the job",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    config = configuration.of(arguments)
    _require_data(config)
    _require_writable(arguments.workdir)
    from haksnet_jax import main

    return main.train(
        config,
        arguments.workdir,
        coordinator=arguments.coordinator,
        num_hosts=arguments.num_hosts,
        host=arguments.host,
        join_timeout=arguments.join_timeout,
        join_token=arguments.join_token,
        resume=arguments.resume,
    )


def _require_data(config):
    """Finds out before JAX is started whether there is the folder that `data.root` names."""
    from haksnet_jax import files
    from haksnet_jax.errors import UserError

    root = config.data.get("root", "") if "data" in config else ""
    if not root or config.data.get("kind") != "folder" or files.is_bucket(root) or os.path.isdir(root):
        return
    if os.path.exists(root):
        raise UserError(
            f"data.root={root}: is a file, expected the folder that holds the data: unpack an archive, and in place of "
            "a data.yaml name the folder it lies in, --set data.root=DIR data.format=yolo-obb"
        )
    raise UserError(
        f"data.root={root}: there is no such folder, looked for from {os.getcwd()}; name the folder that holds the "
        "data: --set data.root=DIR"
    )


def _require_writable(workdir):
    """Finds out before JAX is started whether the folder of the run can be made."""
    from haksnet_jax import files
    from haksnet_jax.errors import UserError

    if workdir and not files.is_bucket(workdir):
        try:
            os.makedirs(workdir, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--workdir={workdir} cannot be written to ({error.strerror}); name another folder"
            ) from error
