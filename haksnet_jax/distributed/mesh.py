"""The devices of a run: compilation cache, mesh, and placement of batches and state on it.

A mesh has two axes. The batch is split over both; `fsdp` (1 unless asked for) also splits large arrays of the state, so
that the devices along it hold a part each instead of all of it.
"""

import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from haksnet_jax import target
from haksnet_jax.errors import UserError

# Smaller arrays stay whole on every device: a message of less costs its latency, and saves next to no memory.
MIN_SPLIT_SIZE = 2**16  # elements


class MeshSettings(NamedTuple):
    """How a run's devices are laid out."""

    fsdp: int = 1  # devices that share one copy of the large weights and of their optimiser state


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the same program is compiled once a machine and not once a run.

    The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) where it is given, else `~/.cache/haksnet_jax/xla`.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # (JAX adds it at run time)
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "haksnet_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def detection_options(mesh: jax.sharding.Mesh | None = None) -> dict[str, Any] | None:
    """Options of the compiler for programs without gradients, or None. Args: mesh; None: the ambient one.

    On a GPU, kernels that do not need each other run side by side: the hundreds of short kernels that one image takes
    leave most of an H100 idle one after another (backbone T 3.4 -> 2.8 ms, detection 5.9 -> 4.9 ms). A training step
    has so many of them that the host takes longer to launch such a graph than the GPU to run it (T on an H200: 32 to
    34 ms in place of 30), and would need a fifth more memory.
    """
    if _platform(mesh) != "gpu":
        return None
    return {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


def training_options(mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """Options of the compiler for the training step, or None. Args: mesh.

    Several GPUs of one host meet for each normalisation and have nothing else to do meanwhile: on a stream of their
    own, the 63 sums of T's step only start later (two H100, 8 images each: 53.1 ms, and 52.2 on the same stream).
    Several hosts are left alone, since there the exchange of the gradients takes longer and can overlap.
    """
    if _platform(mesh) != "gpu" or len({device.process_index for device in mesh.devices.flat}) > 1:
        return None
    return {"xla_gpu_disable_async_collectives": "ALLREDUCE"}


def _platform(mesh):
    return target.platform() if mesh is None else mesh.devices.flat[0].platform


def data_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> jax.sharding.Mesh:
    """A mesh over all devices of all hosts (or those given) with the axes `data` and `fsdp`.

    Args:
      devices: list of devices, or None for all.
      fsdp: devices that share one copy of the state's large arrays; 1 gives every device its own.

    Raises:
      ValueError: fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"mesh.fsdp: expected a divisor of the {len(devices)} devices of the run, got {fsdp}")
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: jax.sharding.Mesh, *, leading: int = 0) -> NamedSharding:
    """Sharding of arrays whose batch axis is split over all devices. Args: mesh; leading, axes before the batch's."""
    return NamedSharding(mesh, P(*(None,) * leading, mesh.axis_names))


def state_sharding(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Where the arrays of a state live: large ones in parts over the axis `fsdp`, the others whole on every device.

    An array of MIN_SPLIT_SIZE elements and more is split along its longest axis that `fsdp` divides. Parameters, their
    moments and their averages have the same shapes, and so lie in the same places.

    Args:
      mesh: of the run.
      tree: pytree of arrays or shapes.

    Returns:
      Pytree of NamedSharding.
    """
    fsdp = mesh.shape.get("fsdp", 1)

    def sharding(leaf):
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or math.prod(leaf.shape) < MIN_SPLIT_SIZE or not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every host has whole onto the devices of all hosts.

    Args:
      tree: pytree of arrays, the same on every host.
      shardings: pytree of shardings like it, or one for all.

    Returns:
      Pytree of global arrays.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(value, sharding):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, shardings)


def gather(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """The same arrays, whole on every device. All hosts take part in it. Args: mesh; tree of global arrays."""
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return _gathering(mesh)(tree)


@functools.cache
def _gathering(mesh):
    """One function for all calls, so that each evaluation need not compile its own."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def place_batch(
    mesh: jax.sharding.Mesh, batch: Mapping[str, np.ndarray], *, accumulate_steps: int = 1
) -> dict[str, jax.Array]:
    """Puts a batch on the devices, its images split over all of them.

    Args:
      mesh: of the run.
      batch: dict of numpy arrays [B / number of processes, ...], this process's part.
      accumulate_steps: N, micro-batches that the batch consists of, one after another.

    Returns:
      Dict of global arrays [B, ...], or [N, B / N, ...] where N is more than 1.
    """
    sharding = batch_sharding(mesh, leading=int(accumulate_steps > 1))

    def put(value):
        value = np.asarray(value)
        if accumulate_steps > 1:
            value = value.reshape(accumulate_steps, -1, *value.shape[1:])
        return jax.make_array_from_process_local_data(sharding, value)

    return {name: put(value) for name, value in batch.items()}


def hardware() -> str:
    """One line that names the devices, for logs and result cards."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"cpu, {os.cpu_count()} cores"
    return f"{len(devices)} x {kind}" + (f" on {jax.process_count()} hosts" if jax.process_count() > 1 else "")


def peak_memory_gib() -> float | None:
    """Largest device memory of this process so far in GiB over its devices, or None where the backend does not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return round(max(known) / 2**30, 2) if known and len(known) == len(peaks) else None
