"""The devices of a run: compilation cache, mesh, and placement of batches and state on it."""

import os
import pathlib

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def enable_compilation_cache():
    """Keeps compiled programs on disk, so that the same program is compiled once a machine and not once a run.

    The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) where it is given, else `~/.cache/haksnet_jax/xla`.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "haksnet_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def data_mesh(devices=None):
    """A mesh over all devices (or those given) with the one axis `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh):
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def place_batch(mesh, batch):
    """Puts a batch on the devices, its first axis split over them.

    Args:
      mesh: a mesh with the axis `data`.
      batch: dict of numpy arrays [B / number of processes, ...], this process's part.

    Returns:
      Dict of global arrays [B, ...].
    """
    sharding = NamedSharding(mesh, P("data"))
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(value)) for name, value in batch.items()}


def hardware():
    """One line that names the devices, for logs and result cards."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"cpu, {os.cpu_count()} cores"
    return f"{len(devices)} x {kind}" + (f" on {jax.process_count()} hosts" if jax.process_count() > 1 else "")


def peak_memory_gib():
    """Largest device memory of this process so far in GiB over its devices, or None where the backend does not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return round(max(peaks) / 2**30, 2) if peaks and None not in peaks else None
