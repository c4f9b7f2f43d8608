"""What a run needs on devices that are not here: memory, operations, traffic, collectives and time of a training step.

    haksnet plan --config=dota_ms --topology=v5e:16x16 [--batch-per-device=N] [--images=N]

For a TPU slice the true training step is compiled by the TPU compiler (the package `libtpu`, on any x86 machine with
Linux). For GPUs, whose compiler needs the GPU, the step is compiled for this machine's processor where it has no GPU,
and the figures are an estimate. Exit status 1: does not fit, or a mistake of use.
"""

import math
import os
import re
import time
from typing import NamedTuple

from absl import logging

from haksnet_jax.errors import UserError


class Chip(NamedTuple):
    """A device as its vendor describes it.

    Attributes:
      memory: bytes that a program may use: for TPUs what the compiler grants, a little less than the chip's.
      bandwidth: bytes a second to and from that memory.
      matrix_rate: operations a second of the matrix units in bfloat16.
      vector_rate: operations a second elementwise, float32.
      link_rate: bytes a second that one chip can send to its neighbours over all links together.
      clock: cycles a second, for the compiler's own estimates; 0 where it makes none.
    """

    memory: float
    bandwidth: float
    matrix_rate: float
    vector_rate: float
    link_rate: float
    clock: float


# cloud.google.com/tpu/docs/v5e, v5p-training and v6e (2026): peaks, memory bandwidths and links, of which the
# documents state both directions together. The memory is what the compiler's refusals name as the limit. The clock is
# the peak divided by the products of all matrix units in a cycle; elementwise, a core does 8 x 128 x 4 in a cycle.
# GPUs: NVIDIA's data sheets of the SXM modules without sparsity, links of NVLink in one direction; a run gets 0.9 of
# their memory (JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more).
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 819e9, 197e12, 6.1e12, 200e9, 1.5e9),
    "v5p": Chip(95.73 * 2**30, 2765e9, 459e12, 14.3e12, 600e9, 1.75e9),
    "v6e": Chip(31.24 * 2**30, 1640e9, 918e12, 7.2e12, 400e9, 1.75e9),
    "a100": Chip(0.9 * 80e9, 2039e9, 312e12, 19.5e12, 300e9, 0),
    "h100": Chip(0.9 * 80e9, 3350e9, 989e12, 67e12, 450e9, 0),
    "h200": Chip(0.9 * 141e9, 4800e9, 989e12, 67e12, 450e9, 0),
}
_TPUS = ("v5e", "v5p", "v6e")
_HOP = 1e-6  # seconds from one chip to the next: what an all-reduce of nothing costs, once a chip along each axis
_MAX_COMPILATIONS = 5


class PlanError(UserError):
    """A plan that cannot be made; the message says why and what to do."""


class Topology(NamedTuple):
    """A set of devices: name as given, chip, sides of the grid, and whether the figures will be estimates."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    is_tpu: bool

    @property
    def num_devices(self):
        """Number of chips."""
        return math.prod(self.sides)


class Lowered(NamedTuple):
    """A traced training step (`program`, jax.stages.Lowered) and the bytes of its whole state and of its parameters."""

    program: object
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
    cost: object
    cost_analysis: dict
    seconds: float


def parse_topology(name):
    """Args: name, as "v5e:16x16" or "h100:8". Returns: Topology. Raises: PlanError: not such a name."""
    kind, _, shape = (name or "").partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise PlanError(
            f"--topology={name}: expected KIND:SHAPE with one of the kinds {', '.join(CHIPS)}, "
            "as v5e:16x16, v5p:4x4x4 or h100:8"
        )
    return Topology(name, CHIPS[kind], tuple(int(side) for side in shape.split("x")), kind in _TPUS)


def topology_mesh(topology, *, fsdp=1):
    """The mesh over the devices of a slice that is not here.

    For GPUs: over those of this machine where it has enough of them, else one device of this machine.

    Raises:
      PlanError: no TPU compiler, or it knows no such slice.
    """
    import jax

    from haksnet_jax.distributed import mesh as devices

    if not topology.is_tpu:
        here = jax.devices()
        enough = here[0].platform == "gpu" and len(here) >= topology.num_devices
        return devices.data_mesh(here[: topology.num_devices], fsdp=fsdp) if enough else devices.data_mesh(here[:1])
    # What the TPU runtime would ask the machine it expects to run on.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Compiling takes no chip: runs and other plans on this machine need not wait.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        import libtpu  # noqa: F401 (JAX's own message for its absence is about chips that are not found)
    except ImportError as error:
        raise PlanError(
            "planning for TPUs needs their compiler: install it with `pip install 'jax[tpu]'` (Linux on x86)"
        ) from error
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    except Exception as error:  # (its type is private to JAX)
        reason = str(error).splitlines()[0]
        raise PlanError(f"--topology={topology.name}: the TPU compiler knows no such slice: {reason}") from error
    return devices.data_mesh(description.devices, fsdp=fsdp)


def lower_step(config, mesh, batch_per_device):
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


def compile_lowered(program):
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


def compile_step(config, mesh, batch_per_device, *, num_devices=None):
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


def largest_fitting(compile_at, limit, first):
    """The largest batch that fits, from few compilations: memory is close to affine in the batch.

    Args:
      compile_at: function from a batch to Step.
      limit: bytes that a device has.
      first: batch to begin with.

    Returns:
      (Step of the largest batch that was seen fitting, or the smallest that did not; whether the next larger batch was
      shown not to fit, by compiling it or by what the line through the others says).
    """
    steps = {}

    def fits(step):
        return step.cost is not None and step.memory <= limit

    batch = first
    while len(steps) < _MAX_COMPILATIONS:
        step = steps[batch] = compile_at(batch)
        logging.info(
            "%d images a device: %s of %s, compiled in %.0f s",
            batch, _gibibytes(step.memory), _gibibytes(limit), step.seconds,
        )  # fmt: skip
        fitting = [size for size, other in steps.items() if fits(other)]
        failing = [size for size, other in steps.items() if not fits(other)]
        low, high = max(fitting, default=0), min(failing, default=math.inf)
        if high == low + 1:
            return steps[low or high], True
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


def times(cost, topology):
    """Seconds that a step needs each part of the device for.

    A step takes at least the longest of them, and about their sum where nothing overlaps.

    Args:
      cost: compiled_cost.Cost.
      topology: Topology.

    Returns:
      {"memory", "matrix", "vector", "links"} seconds, and "compiler" (the compiler's own cycle estimates of all
      instructions one after another) where it makes some.
    """
    chip = topology.chip
    hops = sum(side - 1 for side in topology.sides) * _HOP
    links = 0.0
    if topology.num_devices > 1:
        # Each byte is sent twice: once to be summed, once summed.
        share = 2 * (1 - 1 / topology.num_devices) / chip.link_rate
        links = sum(one.times * (one.num_bytes * share + 2 * hops) for one in cost.collectives)
    result = {
        "memory": cost.num_bytes / chip.bandwidth,
        "matrix": cost.matrix / chip.matrix_rate,
        "vector": cost.vector / chip.vector_rate,
        "links": links,
    }
    if chip.clock and cost.cycles:
        result["compiler"] = cost.cycles / chip.clock
    return result


def schedule(config, global_batch, num_images):
    """Learning rate, warm-up and steps that follow from the global batch, as training computes them.

    Args:
      config: the experiment.
      global_batch: images a step.
      num_images: training images, or 0 where that is unknown.

    Returns:
      dict: learning_rate, and where the length of the run is known num_steps, warmup_steps, and steps_per_epoch.
    """
    from haksnet_jax.training import optimizer

    length = optimizer.run_length(config, num_images, global_batch)
    result = {"learning_rate": length.peak}
    if num_images:
        result["steps_per_epoch"] = length.steps_per_epoch
    if length.num_steps:
        result |= {"num_steps": length.num_steps, "warmup_steps": length.warmup_steps}
    return result


def figures(config, topology, step, *, num_images=0, is_largest=False, is_estimate=False):
    """All figures of a plan as one dict of plain values (see the printed table for their meaning)."""
    limit = topology.chip.memory
    global_batch = step.batch_per_device * topology.num_devices * config.accumulate_steps
    result = {
        "config": config.name,
        "topology": topology.name,
        "num_devices": topology.num_devices,
        "estimate": is_estimate,
        "batch_per_device": step.batch_per_device,
        "is_largest": is_largest,
        "global_batch": global_batch,
        "fits": step.cost is not None and step.memory <= limit,
        "memory_bytes": step.memory,
        "state_bytes": step.state,
        "available_bytes": limit,
        "compile_seconds": round(step.seconds, 1),
    }
    if step.cost is not None:
        cost = step.cost
        seconds = times(cost, topology)
        longest = max(seconds.values())
        result |= {
            "matrix_operations": cost.matrix,
            "vector_operations": cost.vector,
            "traffic_bytes": cost.num_bytes,
            "num_collectives": sum(one.times for one in cost.collectives),
            "collective_bytes": sum(one.times * one.num_bytes for one in cost.collectives),
            "unknown_loops": cost.unknown_loops,
            "cost_analysis": step.cost_analysis,
            "seconds": seconds,
            "step_seconds_at_least": longest,
            "images_per_second_at_most": global_batch / longest,
        }
    result |= schedule(config, global_batch, num_images)
    if "steps_per_epoch" in result and "step_seconds_at_least" in result:
        result["epoch_seconds_at_least"] = result["steps_per_epoch"] * result["step_seconds_at_least"]
    return result


def _gibibytes(num_bytes):
    return f"{num_bytes / 2**30:.2f} GiB"


def table(found):
    """The figures of a plan as text. Args: found, from `figures`. Returns: lines."""
    rows = [("config", found["config"]), ("devices", f"{found['topology']} ({found['num_devices']})")]
    largest = ", the most that fit" if found["is_largest"] else ""
    rows += [
        ("images a device", f"{found['batch_per_device']}{largest}"),
        ("images a step", f"{found['global_batch']}"),
        (
            "memory a device",
            f"{_gibibytes(found['memory_bytes'])} of {_gibibytes(found['available_bytes'])}, "
            f"{_gibibytes(found['state_bytes'])} of it parameters and optimiser"
            + ("" if found["fits"] else ": DOES NOT FIT"),
        ),
    ]
    if "seconds" in found:
        seconds = found["seconds"]
        unknown = found["unknown_loops"]
        rows += [
            (
                "traffic a device",
                f"{found['traffic_bytes'] / 1e9:.1f} GB a step: {1e3 * seconds['memory']:.1f} ms"
                + (f" (loops of unknown length, {unknown} of them, counted once)" if unknown else ""),
            ),
            (
                "matrix operations",
                f"{found['matrix_operations'] / 1e12:.2f} T a step: {1e3 * seconds['matrix']:.1f} ms",
            ),
            (
                "other operations",
                f"{found['vector_operations'] / 1e12:.2f} T a step: {1e3 * seconds['vector']:.1f} ms",
            ),
            (
                "collectives",
                f"{found['num_collectives']} of together {found['collective_bytes'] / 1e6:.1f} MB a step: "
                f"{1e3 * seconds['links']:.1f} ms",
            ),
        ]
        if "compiler" in seconds:
            rows.append(("compiler's estimate", f"{1e3 * seconds['compiler']:.1f} ms, one instruction after another"))
        rows.append(
            (
                "step",
                f"at least {1e3 * found['step_seconds_at_least']:.1f} ms, "
                f"at most {found['images_per_second_at_most']:.0f} images/s",
            )
        )
    if "epoch_seconds_at_least" in found:
        rows.append(
            ("epoch", f"{found['steps_per_epoch']} steps, at least {found['epoch_seconds_at_least'] / 60:.1f} minutes")
        )
    else:
        rows.append(("epoch", "--images=N gives its figures" if not found.get("steps_per_epoch") else "-"))
    rows.append(("learning rate", f"{found['learning_rate']:.3g}"))
    if "warmup_steps" in found:
        rows.append(("warm-up", f"{found['warmup_steps']} of {found['num_steps']} steps"))
    rows.append(("compiled in", f"{found['compile_seconds']:.0f} s"))
    lines = [f"{name:<20} {value}" for name, value in rows]
    if found["estimate"]:
        lines.insert(0, "An ESTIMATE: compiled for this machine's processor, not for the GPUs.")
    return "\n".join(lines)


def make_plan(config, topology, *, batch_per_device=0, num_images=0):
    """Compiles and counts.

    Args:
      config: the experiment.
      topology: Topology.
      batch_per_device: images a device, or 0 for the most that fit.
      num_images: training images, or 0 where that is unknown.

    Returns:
      dict of `figures`.

    Raises:
      PlanError, UserError, ValueError: with one sentence that says what to do.
    """
    from haksnet_jax import tasks

    config = tasks.of(config).prepared(config)
    mesh = topology_mesh(topology, fsdp=config.mesh.fsdp)
    is_largest = False
    if batch_per_device:
        step = compile_step(config, mesh, batch_per_device, num_devices=topology.num_devices)
    else:
        step, is_largest = largest_fitting(
            lambda batch: compile_step(config, mesh, batch, num_devices=topology.num_devices),
            topology.chip.memory,
            config.batch_size_per_device,
        )
    is_estimate = not topology.is_tpu and mesh.devices.flat[0].platform != "gpu"
    return figures(config, topology, step, num_images=num_images, is_largest=is_largest, is_estimate=is_estimate)


def run(config, topology, *, batch_per_device=0, num_images=0):
    """What the command asks for: `make_plan` in a process that has not yet started JAX.

    Args:
      config, batch_per_device, num_images: see `make_plan`.
      topology: `v5e:16x16`, `h100:8`, see `parse_topology`.

    Returns:
      dict of `figures`.

    Raises:
      PlanError: with one sentence that says what to do.
    """
    # For TPUs, chips that are here are not needed and may be in use; for GPUs, those that are here are.
    has_gpus = not topology.startswith(_TPUS) and os.path.exists("/dev/nvidia0")
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if has_gpus else "cpu")
    from haksnet_jax.distributed import mesh as devices

    topology = parse_topology(topology)
    if not topology.is_tpu:  # programs for chips that are not here are written to it and cannot be read back
        devices.enable_compilation_cache()
    return make_plan(config, topology, batch_per_device=batch_per_device, num_images=num_images)
