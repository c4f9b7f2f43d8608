"""Kernels written in CUDA C++, which XLA takes as PTX, for what Pallas cannot say: instructions of single warps.

The sources lie in `cuda/`, and beside each its PTX as `make ptx` compiles it, which is what a GPU's driver compiles for
its own machine when a program is loaded. PTX is NVIDIA's stable machine language: the text here runs on every GPU from
Ampere on, but for what uses instructions of Hopper alone (`on_hopper`). XLA embeds it through the custom call
`__gpu$xla.gpu.ptx` (in jaxlib 0.10 to 0.12 alike).

Numbers that a kernel needs to know, the shape of its features for one, are written into the text: names that begin with
HAKS_ in the sources. The driver then folds them like any other constant.
"""

import functools
import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import triton

_TARGET = "__gpu$xla.gpu.ptx"
# Bytes of shared memory that one block of threads can have, by compute capability (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"); what is not listed is taken for the least of them.
_SHARED_BYTES = {"8.0": 163 << 10, "8.7": 163 << 10, "9.0": 227 << 10, "10.0": 227 << 10, "10.3": 227 << 10}
_LEAST_SHARED_BYTES = 99 << 10
# Of an H100 and an H200: as many blocks, or a multiple, are launched where blocks stay and go from work to work.
MULTIPROCESSORS = 132


def shared_bytes() -> int:
    """Bytes of shared memory that a block can have on every CUDA device here; 0 where PTX does not run."""
    if not triton.on_ampere():
        return 0
    devices = jax.local_devices(backend="cuda")
    return min(_SHARED_BYTES.get(str(device.compute_capability), _LEAST_SHARED_BYTES) for device in devices)


def on_hopper() -> bool:
    """Whether there are CUDA devices in this process and all are Hopper GPUs, whose own instructions no other has."""
    return bool(shared_bytes()) and all(
        str(device.compute_capability) == "9.0" for device in jax.local_devices(backend="cuda")
    )


def call(
    source: str,
    kernel: str,
    operands: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    numbers: Mapping[str, int],
) -> list[jax.Array]:
    """Launches a kernel.

    Args:
      source: name of the file in `cuda/`, without its ending.
      kernel: name of the kernel in it.
      operands: arrays that it takes, before the results, as pointers.
      results: what it writes, all of it.
      grid: blocks in x, y and z.
      threads: of a block.
      shared: bytes of shared memory of a block.
      numbers: what HAKS_ names stand for, without the HAKS_.

    Returns:
      The results. Under `jax.vmap` the kernel is launched once for each element; it has no derivative of its own.
    """
    text = re.sub(r"HAKS_([A-Z_]+)_", lambda name: str(numbers[name[1]]), _text(source, kernel))
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\0A").replace("\t", "\\09")
    first = len(operands)
    settings = {
        "name": f'"{kernel}"',
        "kernel_type": '"ptx"',
        "kernel_data": f'"{escaped}"',
        **{f"grid_{axis}": f"{size} : i32" for axis, size in zip("xyz", grid, strict=True)},
        **{f"block_{axis}": f"{size} : i32" for axis, size in zip("xyz", (threads, 1, 1), strict=True)},
        "shared_mem_bytes": f"{shared} : i32",
        "output_indices": f"[{', '.join(f'{first + n} : i32' for n in range(len(results)))}]",
    }
    config = "{" + ", ".join(f"{name} = {value}" for name, value in settings.items()) + "}"
    run = jax.ffi.ffi_call(
        _TARGET,
        list(results),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=config,
    )
    return list(run(*operands))


def joined(arrays: Iterable[jax.Array]) -> jax.Array:
    """Arrays behind each other in one [N] float32, for a kernel that takes many parameters.

    A block's parameters are parts of larger arrays, all blocks' of a stage. What goes from there to a kernel of ours is
    copied by a launch of its own; many arrays are joined by a single one.
    """
    return jnp.concatenate([array.astype(jnp.float32).ravel() for array in arrays])


def over_problems(function: Callable[..., Any], *, common: int = 0) -> Callable[..., Any]:
    """Makes of a function of many problems at once one for a single problem, which `jax.vmap` leads back to the former.

    Args:
      function: of arrays [P, ...]; its results are [P, ...] too.
      common: how many of its arrays, the first ones, it also takes as [1, ...], the same for all problems.

    Returns:
      A function of the same arrays without their leading axis, and such results. Under `jax.vmap`, also of several axes
      inside each other, `function` is called once for all elements. What is not mapped is repeated for each of them,
      but for the arrays that may be common to all.
    """

    @jax.custom_batching.custom_vmap
    def run(*arrays):
        return function(*arrays)

    @run.def_vmap
    def run_mapped(size, mapped, *arrays):
        inner = max(array.shape[int(is_mapped)] for array, is_mapped in zip(arrays, mapped, strict=True))
        merged = []
        for number, (array, is_mapped) in enumerate(zip(arrays, mapped, strict=True)):
            if number >= common or is_mapped or array.shape[0] > 1:
                array = array if is_mapped else array[None]
                array = jnp.broadcast_to(array, (size, inner, *array.shape[2:])).reshape(-1, *array.shape[2:])
            merged.append(array)
        results = run(*merged)
        results = jax.tree.map(lambda result: result.reshape(size, inner, *result.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return lambda *arrays: jax.tree.map(lambda result: result[0], run(*(array[None] for array in arrays)))


@functools.cache
def _text(source, kernel):
    """The PTX of one kernel of a file: its head and what lies between this kernel's beginning and the next one's."""
    whole = importlib.resources.files("haksnet_jax.kernels").joinpath(f"cuda/{source}.ptx").read_text(encoding="ascii")
    head, *entries = re.split(r"(?=^\.visible \.entry )", whole, flags=re.MULTILINE)
    (entry,) = (entry for entry in entries if entry.startswith(f".visible .entry {kernel}("))
    return head + entry
