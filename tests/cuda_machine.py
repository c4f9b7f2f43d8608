"""Answers `ptx.call` on machines without a GPU: compiles a source of haksnet_jax/kernels/cuda for cuda_emulation.h."""

import contextlib
import ctypes
import hashlib
import importlib.resources
import pathlib
import re
import shutil
import subprocess
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import ptx
from haksnet_jax.tools.benchmark import parts

SOURCES = pathlib.Path(str(importlib.resources.files("haksnet_jax.kernels") / "cuda"))

_BRIDGE = """
#define HAKS_EMULATION
#include "{source}.cu"

template <typename... Arguments, size_t... n>
std::function<void()> bound(void (*kernel)(Arguments...), void** p, std::index_sequence<n...>) {{
  return [=] {{ kernel(static_cast<Arguments>(p[n])...); }};
}}

template <typename... Arguments>
std::function<void()> bound(void (*kernel)(Arguments...), void** p) {{
  return bound(kernel, p, std::index_sequence_for<Arguments...>());
}}

extern "C" void set_number(const char* name, int value) {{ emulation::numbers()[name] = value; }}

extern "C" void launch(const char* kernel, int x, int y, int z, int threads, int bytes, void** pointers) {{
  const std::string name = kernel;
  const int grid[3] = {{x, y, z}};
  {launches}
}}
"""


def kernel_names(source):
    """Of the kernels in a source's PTX."""
    text = (SOURCES / f"{source}.ptx").read_text()
    return re.findall(r"^\.visible \.entry (\w+)\(", text, flags=re.MULTILINE)


def first_line(source):
    """The first line of the PTX that `make ptx` wrote: the sum of its sources and of the text behind that line."""
    text = (SOURCES / f"{source}.ptx").read_bytes()
    own = (SOURCES / f"{source}.cu").read_text()
    names = [f"{source}.cu", "target.h", *(["hopper.h"] if '#include "hopper.h"' in own else [])]
    parts = [*((SOURCES / name).read_bytes() for name in names), text.split(b"\n", 1)[1]]
    return f"// sources and text: sha256 {hashlib.sha256(b''.join(parts)).hexdigest()}"


def gpus(*shape):
    """Context in which computations are traced for NVIDIA GPUs: for one, or for a mesh whose devices share a batch."""
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.sharding.AbstractMesh(shape, ("data",)[: len(shape)], kinds, abstract_device=gpu)
    return jax.sharding.use_abstract_mesh(mesh)


@contextlib.contextmanager
def nvidia_gpu(kind):
    """What is traced here is made for an NVIDIA GPU: for this process's (kind "gpu"), or for one that is emulated."""
    if kind == "gpu":
        with jax.set_mesh(parts.one_device()):
            yield
        return
    with pytest.MonkeyPatch.context() as patch, gpus():
        patch.setattr(ptx, "shared_bytes", lambda: 163 << 10)  # an A100's
        yield


def _unlikely(dtype):
    """What results hold before a kernel writes them: numbers that none would."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.nan
    return True if dtype == np.dtype(bool) else np.iinfo(dtype).max


@contextlib.contextmanager
def machine(kind, source, folder):
    """The GPU of this process (kind "gpu") or the emulation of a source's kernels; skips where there is none.

    Inside the context of one source may be that of another.
    """
    if kind == "gpu":
        if "\n.target sm_90a\n" in (SOURCES / f"{source}.ptx").read_text():
            if not ptx.on_hopper():
                pytest.skip("no Hopper GPU")
        elif not ptx.shared_bytes():
            pytest.skip("no NVIDIA GPU from Ampere on")
        yield
        return
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) to emulate CUDA kernels with")
    bridge, library = folder / "bridge.cpp", folder / "bridge.so"
    launches = "\n  ".join(
        f'if (name == "{name}") emulation::launch(grid, threads, bytes, bound({name}, pointers));'
        for name in kernel_names(source)
    )
    bridge.write_text(_BRIDGE.format(source=source, launches=launches))
    here = pathlib.Path(__file__).parent
    options = ["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{here}"]
    subprocess.run([compiler, *options, "-o", library, bridge], check=True)
    loaded = ctypes.CDLL(str(library))
    others = ptx.call
    one_at_a_time = threading.Lock()  # a mesh's devices call from threads of their own; the emulation has one state

    def call(called, kernel, operands, results, *, grid, threads, shared, numbers):
        if called != source:
            return others(called, kernel, operands, results, grid=grid, threads=threads, shared=shared, numbers=numbers)

        def on_host(*arrays):
            written = [np.full(result.shape, _unlikely(result.dtype), result.dtype) for result in results]
            arrays = [np.ascontiguousarray(array) for array in arrays] + written
            pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            with one_at_a_time:
                for name, value in numbers.items():
                    loaded.set_number(name.encode(), value)
                loaded.launch(kernel.encode(), *grid, threads, shared, pointers)
            return written

        return jax.pure_callback(on_host, list(results), *operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptx, "call", call)
        yield
    jax.clear_caches()  # (of functions that were traced with the emulation)
