"""What XLA's GPU compiler makes of a training step, on a machine without a GPU: launches by kind, memory, the program.

    pip download --no-deps jax-cuda13-pjrt==0.11.2           # of the version of jax: 130 MB, neither CUDA nor a driver
    export JAX_PLATFORMS=cpu
    python benchmarks/gpu_program.py --plugin jax_cuda13_pjrt-0.11.2-*.whl --size=t --batch=8
    python benchmarks/gpu_program.py --plugin jax_cuda13_pjrt-0.11.2-*.whl --devices=2 --output=step.hlo.gz

It is the program of an H200 as far as nothing is timed: of every convolution and product the first variant is taken.
On two CPU cores T's step compiles in two minutes. So the launches, fusions and memory of a change can be seen before it
is timed.
"""

import argparse
import collections
import contextlib
import gzip
import pathlib
import re
import sys
import tempfile
import time
import zipfile

import jax

# What JAX knows of devices that are not here is private to it; made for jax 0.11 and 0.12.
from jax._src.lib import _jax, xla_client

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax import files, tasks
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.kernels import ptx, triton
from haksnet_jax.models.backbones.haksnet import SIZES
from haksnet_jax.tools import compiled_step
from haksnet_jax.tools.benchmark import parts

# An H200, in the words of XLA's GpuTargetConfigProto.
_H200 = """
gpu_device_info {
  name: "NVIDIA H200" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 } platform_version: "Compute Capability 9.0a" model_str: "sm_9.0a"
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 4800000000000 device_memory_size: 150000000000
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0" dnn_version: "9.12.0"
  device_interconnect_info { active_links: 18 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H200"
"""
_SHARED_BYTES = 227 << 10
_FREE = frozenset(["parameter", "constant", "get-tuple-element", "tuple", "bitcast"])  # instructions without a launch


@contextlib.contextmanager
def library(plugin):
    """The path of the compiler's library: `plugin`, or what lies in it where that is a wheel."""
    if not zipfile.is_zipfile(plugin):
        yield plugin
        return
    with zipfile.ZipFile(plugin) as wheel, tempfile.TemporaryDirectory() as folder:
        (name,) = (name for name in wheel.namelist() if name.endswith("xla_cuda_plugin.so"))
        yield pathlib.Path(wheel.extract(name, folder))


def gpus(plugin, count):
    """`count` H200s that are not here."""
    with library(plugin) as path:
        client = xla_client.load_pjrt_plugin_dynamically("cuda", str(path))
    xla_client.initialize_pjrt_plugin("cuda")
    topology = _jax.get_c_api_topology(client, "h200", {"target_config": _H200, "topology": f"1x1x{count}"})
    return topology._make_compile_only_devices()


def launches(text):
    """Counter of the launches of a compiled program, by kind, from its text."""
    kinds = collections.Counter()
    for line in text[text.index("\nENTRY ") :].splitlines():
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z\-]+)\(", line)
        if instruction and instruction[2] not in _FREE:
            named = instruction[2] in ("fusion", "custom-call")  # what is in it is in its name
            kinds[re.sub(r"[.\d]+$", "", instruction[1]) if named else instruction[2]] += 1
    return kinds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--plugin", type=pathlib.Path, required=True, help="wheel of jax-cuda13-pjrt, or its library")
    parser.add_argument("--size", default="t", choices=sorted(SIZES), help="backbone; default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="images on each device; default: %(default)s")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels; default: %(default)s")
    parser.add_argument("--devices", type=int, default=1, help="GPUs; default: %(default)s")
    parser.add_argument("--output", type=pathlib.Path, help="file for the program's text, compressed by gzip")
    options = parser.parse_args()
    if jax.__version_info__ < (0, 11):
        sys.exit(f"error: jax {jax.__version__} cannot write kernels of our own for other machines; 0.11 or 0.12 can")
    if not options.plugin.is_file():
        sys.exit(f"error: --plugin={options.plugin}: no such file, expected a wheel of jax-cuda13-pjrt or its library")
    mesh = devices.data_mesh(gpus(options.plugin, options.devices))
    # The kernels ask the devices of this process, which are not those that the program is for.
    triton.on_ampere = ptx.on_hopper = lambda: True
    ptx.shared_bytes = lambda: _SHARED_BYTES
    config = parts.training_config(options.size, options.image, jax.numpy.bfloat16)
    start = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = compiled_step.lower_step(tasks.of(config).prepared(config), mesh, options.batch).program
    compiled = lowered.compile({"xla_gpu_autotune_level": "0"})
    memory, text = compiled.memory_analysis(), compiled.as_text()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    kinds = launches(text)
    print(
        f"{options.size}, {options.batch} images on each of {options.devices}: {sum(kinds.values())} launches, "
        f"{(needed + memory.temp_size_in_bytes) / 2**30:.2f} GiB, compiled in {time.monotonic() - start:.0f} s"
    )
    for kind, count in kinds.most_common():
        print(f"{count:6d}  {kind}")
    if options.output:
        files.write_bytes(options.output, gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
