"""Writes a model as a file that runs without this package: StableHLO, ONNX, or a SavedModel of TensorFlow.

    haksnet export --checkpoint=demo --output=demo.onnx
    haksnet export --checkpoint=runs/mine --output=mine.stablehlo --size=1024 --batch=4
    haksnet export --checkpoint=runs/mine --output=mine_tf --to=savedmodel

The file takes images of a fixed size. A detector gives boxes, scores, labels, polygons and which of them are valid,
decoded and suppressed; a classifier probabilities; segmentation and change detection a map of labels and probabilities.
FILE.json beside it says in which shapes. Before the command says done, the file is run on generated images by its own
runtime and compared with the live model. examples/ has a script for each form.
"""

import argparse

from haksnet_jax.cli import terminal

_FORMS = ("stablehlo", "onnx", "savedmodel")  # (named here, so that help needs no JAX)


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's folder, one of its checkpoints, a converted model")
    add("--output", required=True, metavar="FILE", help="file to write; a folder for a SavedModel")
    add(
        "--to", choices=_FORMS, help="form of the file; default: as its ending .stablehlo or .onnx says, else stablehlo"
    )
    terminal.add_list(
        parser, "--size", kind=int, help="rows and columns of images, or one number; default: the model's"
    )
    add("--batch", type=terminal.number(1, whole=True), default=1, help="images at a time; default: %(default)s")
    add("--opset", type=terminal.number(18, 21, whole=True), help="version of ONNX' operators, 18 to 21; default: 18")
    add(
        "--compare",
        type=terminal.number(1, whole=True),
        default=4,
        help="generated images on which file and live model are compared; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    if arguments.size and len(arguments.size) > 2:
        raise terminal.UsageError("--size: expected one number, or rows and columns such as 608,1024")
    from haksnet_jax.errors import UserError
    from haksnet_jax.tools.export import comparison, forms, programs

    form = forms.form_of(arguments.output, arguments.to)
    if arguments.opset and form != "onnx":
        raise UserError(f"--opset: only --to=onnx has operators by version, got --to={form}; leave it out")
    forms.check_installed(form)
    size = (arguments.size * 2)[:2] if arguments.size else None
    program = programs.open_program(arguments.checkpoint, size=size, batch=arguments.batch)
    with forms.made(program, form, opset=arguments.opset) as result:
        told, different = comparison.compare(program, result.call, num_images=arguments.compare)
        if different:
            raise UserError(
                f"nothing was written: the exported program and the live model differ in {len(different)} places, "
                f"{different[0]} first ({told})"
            )
        facts = forms.write(program, result, arguments.output)
    print(f"{arguments.output}, {result.size / 1e6:.1f} MB, and {facts}")
    print(f"compared with the live model: {told}")
    return 0
