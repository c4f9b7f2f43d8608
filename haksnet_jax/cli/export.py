"""Writes a detector as StableHLO: one file with the weights that runs without this package, on CPUs, GPUs and TPUs.

    haksnet export --checkpoint=demo --output=demo.stablehlo
    haksnet export --checkpoint=runs/mine --output=mine.stablehlo --size=1024 --batch=4

The file takes images of a fixed size and gives boxes, scores, labels, polygons and which of them are valid, decoded and
suppressed; FILE.json beside it says in which order. Before the command says done, the file is run on generated images
and compared with the live model. examples/load_stablehlo.py shows how it is used, with JAX alone.
"""

from haksnet_jax.cli import terminal


def add_arguments(parser):
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's folder, one of its checkpoints, a converted model")
    add("--output", required=True, metavar="FILE", help="file to write")
    add("--to", choices=("stablehlo",), default="stablehlo", help="form of the file; default: %(default)s")
    terminal.add_list(
        parser, "--size", kind=int, help="rows and columns of images, or one number; default: the model's"
    )
    add("--batch", type=terminal.number(1, whole=True), default=1, help="images at a time; default: %(default)s")


def run(arguments):
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if arguments.size and len(arguments.size) > 2:
        raise terminal.UsageError("--size: expected one number, or rows and columns such as 608,1024")
    from haksnet_jax.errors import UserError
    from haksnet_jax.tools import export

    size = (arguments.size * 2)[:2] if arguments.size else None
    exported = export.export(arguments.checkpoint, size=size, batch=arguments.batch)
    num_compared, different = export.compare(exported)
    if different:
        raise UserError(
            f"nothing was written: {len(different)} of {num_compared} detections differ between the exported program "
            f"and the live model, {different[0]} first"
        )
    facts = export.write(exported, arguments.output)
    print(f"{arguments.output}, {len(exported.data) / 1e6:.1f} MB, and {facts}")
    print(f"compared with the live model: {num_compared} detections in generated images, each has its counterpart")
    return 0
