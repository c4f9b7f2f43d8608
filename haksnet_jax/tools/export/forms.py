"""The forms that a program is exported in: StableHLO by `jax.export`, ONNX, and TensorFlow's SavedModel by `jax2tf`."""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import core

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.inference.precision import arithmetic
from haksnet_jax.target import portable_mesh
from haksnet_jax.tools.export import onnx_graph
from haksnet_jax.tools.export.onnx_rules import RULES
from haksnet_jax.tools.export.programs import Program

PLATFORMS = ("cpu", "cuda", "tpu")
_ENDINGS = {".stablehlo": "stablehlo", ".onnx": "onnx"}
_OF_OTHERS = {  # endings that other programs write, and what they hold
    ".engine": "an engine of TensorRT",
    ".plan": "an engine of TensorRT",
    ".tflite": "a model of LiteRT",
    ".xml": "a model of OpenVINO",
    ".mlmodel": "a model of Core ML",
    ".mlpackage": "a model of Core ML",
    ".torchscript": "another program's model",
    ".pt": "another program's model",
}


class Made(NamedTuple):
    """An exported program, not yet where it was asked for.

    Attributes:
      call: (*inputs) -> {name: numpy array}, by the runtime that the form is for.
      write: function of the path.
      facts: of the form, beside those of the program.
      size: bytes.
    """

    call: Callable
    write: Callable
    facts: dict[str, Any]
    size: int


def form_of(output: str | os.PathLike[str], form: str | None = None) -> str:
    """The form that is meant, by the option and the name of the file.

    Args:
      output: path.
      form: one of FORMS, or None: as the ending says, else StableHLO.

    Raises:
      UserError: the ending is that of another form, or is not written, or something is there that must not be replaced.
    """
    output = pathlib.Path(output)
    ending = _ENDINGS.get(output.suffix.lower())
    if form and ending and ending != form:
        raise UserError(f"--output: {output} has the ending of --to={ending}, but --to={form} was given; name it anew")
    other = _OF_OTHERS.get(output.suffix.lower())
    if other and not form:
        raise UserError(
            f"--output={output}: {output.suffix} is not written; write .onnx, from which {other} can be made, or "
            ".stablehlo"
        )
    form = form or ending or "stablehlo"
    if form == "savedmodel" and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output: {output} exists; a SavedModel is a folder of its own: name a new one, or remove it")
    if form != "savedmodel" and output.is_dir():
        raise UserError(f"--output: expected a file for --to={form}, {output} is a folder; name a file in it")
    return form


@contextlib.contextmanager
def made(program: Program, form: str, *, opset: int | None = None) -> Iterator[Made]:
    """An exported program.

    Args:
      program: programs.Program.
      form: one of FORMS.
      opset: of ONNX; None: the lowest that is exported.

    Yields:
      Made.

    Raises:
      UserError: the form has no such operator.
    """
    with FORMS[form](program, **({"opset": opset} if opset else {})) as result:
        yield result


# Modules by form, and what installs them. (jax.export writes its files with flatbuffers.)
_NEEDED = {
    "stablehlo": (("flatbuffers",), "pip install 'haksnet_jax[export]', or flatbuffers"),
    "onnx": (("onnx", "onnxruntime"), "pip install 'haksnet_jax[onnx]', or onnx and onnxruntime"),
    "savedmodel": (("tensorflow",), "pip install 'haksnet_jax[savedmodel]', or tensorflow (600 MB)"),
}


def check_installed(form: str) -> None:
    """Raises UserError, with the command that installs it, where a package is missing that a form needs."""
    modules, command = _NEEDED[form]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to={form} needs {' and '.join(missing)}, which is not installed: {command}")


@contextlib.contextmanager
def _stablehlo(program):
    def function(*inputs):
        # Behind a barrier: the compiler would otherwise compute with the constants for minutes.
        return program.function(jax.lax.optimization_barrier(program.variables), *inputs)

    # A mesh of one CPU: the forms without kernels of one vendor, which every platform compiles.
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices("cpu")[:1])), arithmetic("float32"):
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*program.inputs.values())
    data = bytes(exported.serialize())
    compiled = jax.jit(jax_export.deserialize(bytearray(data)).call)
    facts = {"format": "StableHLO, serialized by jax.export", "platforms": list(PLATFORMS)}
    yield Made(
        lambda *inputs: jax.device_get(compiled(*inputs)), lambda path: files.write_bytes(path, data), facts, len(data)
    )


@contextlib.contextmanager
def _onnx(program, opset=onnx_graph.OPSETS[0]):
    import onnx
    import onnxruntime

    def function(*inputs):
        return program.function(program.variables, *inputs)

    with portable_mesh(), arithmetic("float32"):
        model = onnx_graph.lower(
            onnx, RULES, function, list(program.inputs.values()), input_names=list(program.inputs), opset=opset
        )
    size = model.ByteSize()
    if size >= 2**31:
        raise UserError(f"--to=onnx: the file would take {size:,} bytes, and ONNX allows 2 GiB; take --to=stablehlo")
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # (what it makes better in the graph is nobody's concern)
    runtime = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in runtime.get_outputs()]

    def call(*inputs):
        values = {name: np.asarray(x) for name, x in zip(program.inputs, inputs, strict=True)}
        return dict(zip(names, runtime.run(names, values), strict=True))

    facts = {"format": "ONNX", "opset": opset}
    yield Made(call, lambda path: files.write_bytes(path, data), facts, len(data))


@contextlib.contextmanager
def _saved_model(program):
    import tensorflow as tf
    from jax.experimental import jax2tf

    leaves, structure = jax.tree.flatten(program.variables)

    def function(leaves, *inputs):
        return program.function(structure.unflatten(leaves), *inputs)

    with portable_mesh(), arithmetic("float32"):
        closed, results = jax.make_jaxpr(function, return_shape=True)(leaves, *program.inputs.values())
        # TensorFlow's StableHLO is older than JAX's, and does not know its top_k.
        flat = core.jaxpr_as_fun(onnx_graph.inlined(closed, {"top_k": _top_k_by_sorting}))

    def by_name(leaves, *inputs):
        return dict(zip(sorted(results), flat(*leaves, *inputs), strict=True))

    converted = jax2tf.convert(by_name, native_serialization_platforms=PLATFORMS, with_gradient=False)
    module = tf.Module()
    module.weights = [tf.Variable(leaf) for leaf in leaves]
    signature = [tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in program.inputs.items()]
    module.serve = tf.function(
        lambda *inputs: converted(list(module.weights), *inputs), input_signature=signature, autograph=False
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.serve.get_concrete_function())
        serving = tf.saved_model.load(folder).signatures["serving_default"]

        def call(*inputs):
            values = {name: tf.constant(x) for name, x in zip(program.inputs, inputs, strict=True)}
            return {name: value.numpy() for name, value in serving(**values).items()}

        size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
        facts = {"format": "TensorFlow SavedModel, signature serving_default", "platforms": list(PLATFORMS)}
        yield Made(call, lambda path: _copy_folder(folder, path), facts, size)


def _top_k_by_sorting(x, *, k, axis, **_):
    places = jax.lax.broadcasted_iota(np.int32, x.shape, axis)
    values, places = jax.lax.sort((-x, places), dimension=axis, is_stable=True, num_keys=1)
    return [-jax.lax.slice_in_dim(values, 0, k, axis=axis), jax.lax.slice_in_dim(places, 0, k, axis=axis)]


def _copy_folder(source, target):
    """Copies a folder so that it is there whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(source, temporary)
        os.replace(temporary, target)  # (an empty folder of that name gives way)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


FORMS = {"stablehlo": _stablehlo, "onnx": _onnx, "savedmodel": _saved_model}


def write(program: Program, result: Made, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the file or folder, and the facts beside it as JSON.

    Args:
      program: programs.Program.
      result: Made.
      path: as asked for.

    Returns:
      Path of the facts.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.write(path)
    facts = path.with_name(f"{path.name}.json")
    files.write_text(facts, json.dumps(result.facts | program.facts, indent=1) + "\n")
    return facts
