"""What a run needs on devices that are not here: memory, operations, traffic and time of a training step.

    haksnet plan --config=dota_ms --topology=v5e:16x16
    haksnet plan --config=ssdd --topology=h100:8 --images=814 --json=plan.json

For a TPU slice the true training step is compiled by the TPU compiler (`pip install 'jax[tpu]'`, on any x86
machine with Linux). For GPUs, whose compiler needs the GPU, the step is compiled for this machine's processor where it
has no GPU, and the numbers are an estimate. Exit status 1: it does not fit.
"""

import argparse

from haksnet_jax.cli import configuration, terminal


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    configuration.add_arguments(parser)
    add = parser.add_argument
    add("--topology", metavar="CHIP:SIDES", help="TPU slice as v5e:16x16, v5p:4x4x4 or v6e:16x16, or GPUs as h100:8")
    add(
        "--batch-per-device",
        type=terminal.number(0, whole=True),
        default=0,
        help="images a device and step; default: the most that fit, found with a few compilations",
    )
    add(
        "--images",
        type=terminal.number(0, whole=True),
        default=0,
        help="number of training images, for the time of an epoch",
    )
    add("--json", metavar="FILE", help="file that the numbers are written to as well")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if not arguments.topology:
        raise terminal.UsageError(
            "expected --topology: a TPU slice such as v5e:16x16, v5p:4x4x4 or v6e:8x8, or GPUs such as h100:8"
        )
    config = configuration.of(arguments)
    import json

    from haksnet_jax import files
    from haksnet_jax.tools import plan

    found = plan.run(
        config, arguments.topology, batch_per_device=arguments.batch_per_device, num_images=arguments.images
    )
    if arguments.json:
        files.write_text(arguments.json, json.dumps(found, indent=2) + "\n")
    print(plan.table(found))
    return 0 if found["fits"] else 1
