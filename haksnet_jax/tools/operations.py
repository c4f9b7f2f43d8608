"""How much a model computes for one image: multiplications with an addition, of convolutions and products of matrices.

They are counted in the traced program, before any compiler, so that it takes seconds and needs no device. What is left
out (normalisation, activations, sampling, suppression) is a few percent of it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.inference import detection_session
from haksnet_jax.models import architecture
from haksnet_jax.models.roi_head import DetectionSettings
from haksnet_jax.models.rpn import ProposalSettings


def of_model(info: dict[str, Any]) -> tuple[int, tuple[int, int]]:
    """Counts what a model computes for one image of its input size, or for one pair.

    Args:
      info: dict, as model.json holds it.

    Returns:
      (multiply-adds, (rows, columns)).
    """
    graph, params, stats = architecture.abstract(info)
    variables = {"params": params, "batch_stats": stats}
    rows, columns = (int(side) for side in info["input_size"])
    image = jax.ShapeDtypeStruct((1, rows, columns, len(info["pixel_mean"])), jnp.uint8)
    task = info.get("task") or "detection"
    mesh = devices.data_mesh(jax.devices("cpu")[:1])

    def call(method, *images):
        def function(variables, *images):
            model = nnx.merge(graph, variables["params"], variables["batch_stats"])
            return getattr(model, method)(*images)

        return jax.make_jaxpr(function)(variables, *images)

    with jax.set_mesh(mesh):
        if task == "detection":
            settings = {
                "proposal_settings": ProposalSettings(**info.get("proposals", {})),
                "detection_settings": DetectionSettings(**info.get("detections", {})),
            }
            step = detection_session.make_step(graph, mesh, **settings)
            size, scale = np.array([[rows, columns]], np.int32), np.ones((1, 2), np.float32)
            program = jax.make_jaxpr(step)(variables, image, size, scale, np.float32(0.05))
        elif task == "classification":
            program = call("classify", image)
        else:
            program = call("probabilities", *[image] * (2 if task == "change" else 1))
    return multiply_adds(program.jaxpr), (rows, columns)


def multiply_adds(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of convolutions and products in a traced program.

    Args:
      jaxpr: jax.extend.core.Jaxpr. A scanned body counts as often as it runs, of branches the most costly, and the body
        of a loop of unknown length once.

    Returns:
      Whole number.
    """
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * per_output
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "cond":
        return max(multiply_adds(branch.jaxpr) for branch in params["branches"])
    below = sum(multiply_adds(one) for value in params.values() for one in _programs(value))
    return below * params["length"] if name == "scan" else below


def _programs(value):
    """The traced programs among an equation's parameters."""
    for one in value if isinstance(value, tuple | list) else (value,):
        one = getattr(one, "jaxpr", one)
        if hasattr(one, "eqns"):
            yield one
