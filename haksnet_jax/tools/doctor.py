"""What works on this machine, and what to do about what does not: the rows that the command `doctor` prints."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from haksnet_jax.version import __version__

# Releases that the tests were seen passing with; pyproject.toml says why.
SUPPORTED = {"jax": ((0, 10), (0, 13)), "flax": ((0, 12), (0, 13)), "orbax-checkpoint": ((0, 11), (0, 13))}
_OTHERS = ("jaxlib", "optax", "grain", "numpy", "opencv-python-headless", "shapely")
# What is not there is no problem, but something cannot be done without it.
_OPTIONAL = {
    "rasterio": ("large TIFFs, bands and GeoJSON", "pip install rasterio"),
    "pyogrio": ("GeoPackage files", "pip install pyogrio"),
    "tensorflow-datasets": ("records of data sets", "pip install tensorflow-datasets importlib_resources"),
    "libtpu": ("`haksnet plan` for TPU slices, and TPUs", "pip install 'jax[tpu]'"),
    "gcsfs": ("folders in buckets, gs://", "pip install gcsfs google-cloud-storage google-cloud-storage-control"),
}
_SECONDS = 2.0  # that each of the three measurements takes about


class Row(NamedTuple):
    """One thing that was looked at.

    Attributes:
      name: what it is.
      value: what was found, a text.
      problem: what is wrong with it, or "".
      remedy: what to do about it, or "".
    """

    name: str
    value: str
    problem: str = ""
    remedy: str = ""


def examine(*, measure: bool = True) -> Iterator[Row]:
    """Looks at everything.

    Args:
      measure: whether to compute, copy and decode for some seconds.

    Yields:
      Row.
    """
    yield from versions()
    yield from machine()
    yield from devices()
    yield from folders()
    if measure:
        yield from speed()


def versions() -> Iterator[Row]:
    """Yields rows of Python, the package and the packages it runs on."""
    yield Row("haksnet_jax", f"{__version__} in {pathlib.Path(__file__).parents[1]}")
    wrong = sys.version_info < (3, 11)
    yield Row("python", platform.python_version(), *(("too old", "install 3.11 or later") if wrong else ()))
    for name in (*SUPPORTED, *_OTHERS):
        yield _version(name)
    for name, (purpose, remedy) in _OPTIONAL.items():
        found = _installed(name)
        yield Row(name, found or f"not installed, and needed only for {purpose}: {remedy}")


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name):
    found = _installed(name)
    if found is None:
        return Row(name, "not installed", "it is needed", "pip install haksnet_jax again, without --no-deps")
    if name in SUPPORTED:
        (low, high), numbers = SUPPORTED[name], tuple(int(part) for part in found.split(".")[:2])
        if not low <= numbers < high:
            asked = f"{name}>={low[0]}.{low[1]},<{high[0]}.{high[1]}"
            return Row(name, found, "this release was not tried", f"pip install '{asked}'")
    return Row(name, found)


def machine() -> Iterator[Row]:
    """Yields rows of cores, memory, shared memory and open files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row("cores", f"{cores} of {platform.machine()}, {platform.system()} {platform.release()}")
    memory = _memory_gib()
    if memory is not None:
        short = ("little for training", "fewer data.num_workers, smaller batches") if memory < 4 else ()
        yield Row("memory", f"{memory:.1f} GiB free", *short)
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free / 2**30
        small = ("little for worker processes", "docker run --shm-size=8g, or data.num_workers=0") if free < 0.5 else ()
        yield Row("shared memory", f"{free:.1f} GiB free in /dev/shm", *small)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = ("few for many workers", "ulimit -n 65536") if limit < 1024 else ()
    yield Row("open files", f"{limit} at most", *few)


def _memory_gib():
    """Memory that is free in GiB, within the limit of a container; None where the system does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.split()[1:]}
    free = kib.get("MemAvailable", 0) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return free / 2**30


def devices() -> Iterator[Row]:
    """Yields rows of what JAX sees, and of accelerators that are there and not seen."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen:
        yield Row("JAX_PLATFORMS", chosen)
    driver = _nvidia_driver()
    if driver:
        yield Row("NVIDIA driver", driver)
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # whatever keeps JAX from starting is what is to be told
        first = (str(error).splitlines() or [type(error).__name__])[0]
        yield Row("devices", "none", f"JAX does not start: {first[:300]}", "JAX_PLATFORMS=cpu uses the processor alone")
        return
    kinds = {device.device_kind for device in found}
    platform_name = found[0].platform
    what = f"{len(found)} x {', '.join(sorted(kinds))} ({platform_name})"
    yield Row("devices", what, *_unseen(platform_name, driver))
    for device in found if platform_name != "cpu" else ():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            limit, used = stats["bytes_limit"] / 2**30, stats.get("bytes_in_use", 0) / 2**30
            yield Row(f"memory of device {device.id}", f"{limit:.1f} GiB for JAX, {used:.1f} GiB in use")


def _nvidia_driver():
    """The NVIDIA driver's version, or None where there is none."""
    try:
        return pathlib.Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("Module")[-1].split()[0]
    except (OSError, IndexError):
        return None


def _unseen(platform_name, driver):
    """(problem, remedy) where there is an accelerator that JAX does not use, else ()."""
    if platform_name != "cpu":
        return ()
    plugins = [version for version in (12, 13) if importlib.util.find_spec(f"jax_cuda{version}_plugin")]
    if driver and not plugins:
        return "there is an NVIDIA GPU, and JAX was installed without CUDA", "pip install 'jax[cuda13]'"
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return ()  # as was asked for
    if driver:
        return (
            f"there is an NVIDIA GPU, and JAX with CUDA {plugins[-1]} does not use it",
            f"CUDA 13 needs driver 580 or later, CUDA 12 driver 525; this one is {driver}",
        )
    if list(pathlib.Path("/dev").glob("accel*")) and importlib.util.find_spec("libtpu") is None:
        return "there are TPU chips, and libtpu is not installed", "pip install 'jax[tpu]'"
    return ()


def folders() -> Iterator[Row]:
    """Yields rows of the compilation cache and of the folders that are written to."""
    from haksnet_jax.distributed import mesh

    try:
        import jax

        mesh.enable_compilation_cache()
        cache = pathlib.Path(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e6
        yield _writable("compilation cache", cache, f"{size:.0f} MB", "JAX_COMPILATION_CACHE_DIR=DIR names another")
    except OSError as error:
        yield Row("compilation cache", "cannot be read", str(error), "JAX_COMPILATION_CACHE_DIR=DIR names another")
    yield _writable("current folder", pathlib.Path.cwd(), "", "name another with --workdir or --output")
    yield _writable("temporary folder", pathlib.Path(os.environ.get("TMPDIR", "/tmp")), "", "TMPDIR=DIR names another")


def _writable(name, folder, more, remedy):
    existing = next((place for place in (folder, *folder.parents) if place.is_dir()), pathlib.Path("/"))
    free = shutil.disk_usage(existing).free / 2**30
    value = f"{folder}, " + (f"{more}, " if more else "") + f"{free:.1f} GiB free"
    if not os.access(existing, os.W_OK):
        return Row(name, value, "cannot be written to", remedy)
    if free < 2:
        return Row(name, value, "little room", f"make room, or {remedy}")
    return Row(name, value)


def speed() -> Iterator[Row]:
    """Yields rows of a matrix product, a copy and decoding, each measured for two seconds, beside an H100's numbers."""
    import cv2
    import jax
    import jax.numpy as jnp
    import numpy as np

    on_cpu = jax.default_backend() == "cpu"
    side, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    matrix = jnp.ones((side, side), dtype)
    seconds = _seconds(jax.jit(lambda x: x @ x), matrix)
    tera = 2 * side**3 / seconds / 1e12
    yield Row("matrix product", f"{tera:.3g} TFLOP/s in {jnp.dtype(dtype).name} (H100: 790 in bfloat16)")
    array = jnp.ones((1 << 24 if on_cpu else 1 << 28,), jnp.float32)
    seconds = _seconds(jax.jit(lambda x: x + 1), array)
    yield Row("copy", f"{2 * array.nbytes / seconds / 1e9:.4g} GB/s of memory (H100: 3,000)")
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (64, 64, 3), np.uint8), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", image)[1]
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        count += 1
    rate = count / (time.perf_counter() - began)
    yield Row("decoding", f"{rate:.0f} JPEG images of 1024 x 1024 pixels a second and process")


def _seconds(function, argument):
    """Median seconds of a compiled function of one array, over about two seconds."""
    import jax

    jax.block_until_ready(function(argument))
    samples, until = [], time.perf_counter() + _SECONDS
    while len(samples) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        jax.block_until_ready(function(argument))
        samples.append(time.perf_counter() - began)
    return sorted(samples)[len(samples) // 2]
