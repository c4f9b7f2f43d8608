"""A configuration's training step, traced and compiled for devices that need not be here: its memory and its cost."""

import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import logging

if TYPE_CHECKING:
    import jax
    import ml_collections

    from haksnet_jax.tools import compiled_cost

_MAX_COMPILATIONS = 5


class Lowered(NamedTuple):
    """A traced training step (`program`, jax.stages.Lowered) and the bytes of its whole state and of its parameters."""

    program: Any
    state: float
    params: float


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
      batch_per_device: images a device.
      memory: bytes a device; more than it has where the step does not fit.
      state: bytes of them for parameters, statistics and optimiser.
      params: bytes of the parameters alone.
      cost: compiled_cost.Cost of one device, or None where the step does not fit.
      cost_analysis: the compiler's own {"flops", "bytes accessed"}, which count the body of a loop once.
      seconds: spent compiling.
    """

    batch_per_device: int
    memory: float
    state: float
    params: float
    cost: "compiled_cost.Cost | None"
    cost_analysis: dict
    seconds: float


def lower_step(config: "ml_collections.ConfigDict", mesh: "jax.sharding.Mesh", batch_per_device: int) -> Lowered:
    """The training step of a configuration, traced for a mesh and not compiled.

    Args:
      config: the experiment, with class names.
      mesh: of devices that need not be here.
      batch_per_device: images a device.

    Returns:
      Lowered.
    """
    import jax
    import jax.numpy as jnp

    from haksnet_jax import tasks
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.training import optimizer
    from haksnet_jax.training.state import abstract_state
    from haksnet_jax.training.step import abstract_batch, make_train_step

    task = tasks.of(config)
    tx = optimizer.of_config(config)
    graph, state = abstract_state(
        lambda rngs: task.build_model(config, rngs=rngs), tx, mesh, seed=config.seed, ema=bool(config.ema_decay)
    )
    accumulate_steps = config.accumulate_steps
    with jax.set_mesh(mesh):
        num_images = batch_per_device * mesh.devices.size
        batch = abstract_batch(task.batch_arrays(config), mesh, num_images, accumulate_steps=accumulate_steps)
        learning_rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=devices.replicated(mesh))
        step = make_train_step(
            graph, tx, mesh, task.loss(config), ema_decay=config.ema_decay, accumulate_steps=accumulate_steps
        )
        lowered = step.lower(state, batch, learning_rate)
    return Lowered(lowered, _num_bytes(state), _num_bytes(state.params))


def _num_bytes(tree):
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_lowered(program: Any) -> "tuple[float, compiled_cost.Cost | None, dict[str, float]]":
    """Compiles a traced step.

    Args:
      program: jax.stages.Lowered.

    Returns:
      (bytes of memory a device, compiled_cost.Cost, {"flops", "bytes accessed"}); for a program that the TPU compiler
      refuses because it does not fit, (bytes that it would need, None, {}).
    """
    from haksnet_jax.tools import compiled_cost

    try:
        compiled = program.compile()
    except Exception as error:  # (its type is private to JAX)
        needed = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds available HBM)", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
            raise
        return float(needed.group(1)) * 2 ** (10 * (1 + "KMGT".index(needed.group(2)))), None, {}
    memory = compiled.memory_analysis()
    num_bytes = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    analysis = compiled.cost_analysis() or {}
    return (
        num_bytes,
        compiled_cost.program_cost(compiled.as_text()),
        {name: analysis[name] for name in ("flops", "bytes accessed") if name in analysis},
    )


def compile_step(
    config: "ml_collections.ConfigDict",
    mesh: "jax.sharding.Mesh",
    batch_per_device: int,
    *,
    num_devices: int | None = None,
) -> Step:
    """Traces and compiles the training step.

    Args:
      config, mesh, batch_per_device: as of `lower_step`.
      num_devices: of the run, where the mesh has fewer: the exchange of the gradients is then added.

    Returns:
      Step.
    """
    from haksnet_jax.tools import compiled_cost

    began = time.monotonic()
    lowered = lower_step(config, mesh, batch_per_device)
    memory, cost, analysis = compile_lowered(lowered.program)
    if cost is not None and num_devices and num_devices > mesh.devices.size:
        exchange = compiled_cost.Collective("all-reduce", lowered.params, 1)
        cost = cost._replace(collectives=[*cost.collectives, exchange])
    return Step(batch_per_device, memory, lowered.state, lowered.params, cost, analysis, time.monotonic() - began)


def largest_fitting(compile_at: Callable[[int], Step], limit: float, first: int) -> tuple[Step, bool]:
    """The largest batch that fits, from few compilations: memory is close to affine in the batch.

    Args:
      compile_at: function from a batch to Step.
      limit: bytes that a device has.
      first: batch to begin with.

    Returns:
      (Step of the largest batch that was seen fitting, or the smallest that did not; whether the next larger batch was
      shown not to fit, by compiling it or by what the line through the others says).
    """
    steps: dict[int, Step] = {}

    def fits(step):
        return step.cost is not None and step.memory <= limit

    batch = first
    while len(steps) < _MAX_COMPILATIONS:
        step = steps[batch] = compile_at(batch)
        logging.info(
            "%d images a device: %s of %s, compiled in %.0f s",
            batch, gibibytes(step.memory), gibibytes(limit), step.seconds,
        )  # fmt: skip
        fitting = [size for size, other in steps.items() if fits(other)]
        failing = [size for size, other in steps.items() if not fits(other)]
        low: int = max(fitting, default=0)
        high: float = min(failing, default=math.inf)
        if high == low + 1:
            return steps[low or low + 1], True
        # The line through the two nearest points, or through one and what the state takes alone.
        nearest = sorted(steps, key=lambda size: abs(steps[size].memory - limit))[:2]
        if len(nearest) == 2:
            (x1, y1), (x2, y2) = ((size, steps[size].memory) for size in nearest)
        else:
            (x1, y1), (x2, y2) = (0, step.state), (batch, step.memory)
        slope = max((y2 - y1) / (x2 - x1), 1.0)
        guess = math.floor(x2 + (limit - y2) / slope)
        if guess <= low and low:
            return steps[low], high == math.inf
        batch = int(min(max(guess, low + 1), high - 1))
    fitting = [size for size, step in steps.items() if fits(step)]
    return steps[max(fitting) if fitting else min(steps)], False


def gibibytes(num_bytes: float) -> str:
    """Args: num_bytes. Returns: text, in GiB."""
    return f"{num_bytes / 2**30:.2f} GiB"
