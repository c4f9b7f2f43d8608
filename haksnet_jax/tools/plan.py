"""What a run needs on devices that are not here: memory, operations, traffic, collectives and time of a training step.

    haksnet plan --config=dota_ms --topology=v5e:16x16 [--batch-per-device=N] [--images=N]

For a TPU slice the true training step is compiled by the TPU compiler (the package `libtpu`, on any x86 machine with
Linux). For GPUs, whose compiler needs the GPU, the step is compiled for this machine's processor where it has no GPU,
and the figures are an estimate. Exit status 1: does not fit, or a mistake of use.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from haksnet_jax.tools import compiled_step
from haksnet_jax.tools import topology as topologies
from haksnet_jax.tools.compiled_step import Step, gibibytes
from haksnet_jax.tools.topology import Topology

if TYPE_CHECKING:
    import ml_collections

    from haksnet_jax.tools import compiled_cost

_HOP = 1e-6  # seconds from one chip to the next: what an all-reduce of nothing costs, once a chip along each axis


def times(cost: "compiled_cost.Cost", topology: Topology) -> dict[str, float]:
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


def schedule(config: "ml_collections.ConfigDict", global_batch: int, num_images: int) -> dict[str, float]:
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


def figures(
    config: "ml_collections.ConfigDict",
    topology: Topology,
    step: Step,
    *,
    num_images: int = 0,
    is_largest: bool = False,
    is_estimate: bool = False,
) -> dict[str, Any]:
    """All numbers of a plan as one dict of plain values; the printed table says what they mean."""
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


def table(found: Mapping[str, Any]) -> str:
    """The numbers of a plan as lines of text. Args: found, from `figures`."""
    rows = [("config", found["config"]), ("devices", f"{found['topology']} ({found['num_devices']})")]
    largest = ", the most that fit" if found["is_largest"] else ""
    rows += [
        ("images a device", f"{found['batch_per_device']}{largest}"),
        ("images a step", f"{found['global_batch']}"),
        (
            "memory a device",
            f"{gibibytes(found['memory_bytes'])} of {gibibytes(found['available_bytes'])}, "
            f"{gibibytes(found['state_bytes'])} of it parameters and optimiser"
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


def make_plan(
    config: "ml_collections.ConfigDict", topology: Topology, *, batch_per_device: int = 0, num_images: int = 0
) -> dict[str, Any]:
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
    mesh = topologies.topology_mesh(topology, fsdp=config.mesh.fsdp)
    is_largest = False
    if batch_per_device:
        step = compiled_step.compile_step(config, mesh, batch_per_device, num_devices=topology.num_devices)
    else:
        step, is_largest = compiled_step.largest_fitting(
            lambda batch: compiled_step.compile_step(config, mesh, batch, num_devices=topology.num_devices),
            topology.chip.memory,
            config.batch_size_per_device,
        )
    is_estimate = not topology.is_tpu and mesh.devices.flat[0].platform != "gpu"
    return figures(config, topology, step, num_images=num_images, is_largest=is_largest, is_estimate=is_estimate)


def run(
    config: "ml_collections.ConfigDict", topology: str, *, batch_per_device: int = 0, num_images: int = 0
) -> dict[str, Any]:
    """What the command asks for: `make_plan` in a process that has not yet started JAX.

    Args:
      config, batch_per_device, num_images: see `make_plan`.
      topology: `v5e:16x16`, `h100:8`, see `topologies.parse_topology`.

    Returns:
      dict of `figures`.

    Raises:
      PlanError: with one sentence that says what to do.
    """
    # For TPUs, chips that are here are not needed and may be in use; for GPUs, those that are here are.
    has_gpus = not topology.startswith(topologies.TPUS) and os.path.exists("/dev/nvidia0")
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if has_gpus else "cpu")
    from haksnet_jax.distributed import mesh as devices

    topology = topologies.parse_topology(topology)
    if not topology.is_tpu:  # programs for chips that are not here are written to it and cannot be read back
        devices.enable_compilation_cache()
    return make_plan(config, topology, batch_per_device=batch_per_device, num_images=num_images)
