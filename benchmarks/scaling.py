"""Images/s of the training step on 1, 2, ... GPUs of this machine, with as many images on each.

    python benchmarks/scaling.py [--size=t] [--batch=8] [--devices=1,2] [--rounds=3] [--json=FILE]

The steps are those of `haksnet_jax.benchmark` on meshes of as many devices, timed in turns, so that a card which slows
down does so for all of them. NCCL's multicast over NVLink can be left off by NCCL_NVLS_ENABLE=0.
"""

import argparse
import json
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.models.backbones.haksnet import SIZES
from haksnet_jax.tools import benchmark


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=sorted(SIZES), default="t", help="backbone")
    parser.add_argument("--batch", type=int, default=8, help="images on each device")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels")
    parser.add_argument("--devices", default="1,2", help="numbers of devices")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    options = parser.parse_args()
    counts = [int(count) for count in options.devices.split(",")]
    if max(counts) > len(jax.local_devices()):
        sys.exit(f"error: --devices={options.devices}: this process sees {len(jax.local_devices())} devices")
    devices.enable_compilation_cache()
    steps, times = {}, {count: [] for count in counts}
    for count in counts:
        mesh = devices.data_mesh(jax.local_devices()[:count])
        with jax.set_mesh(mesh):
            part = benchmark.training(options.size, options.image, count * options.batch, jnp.bfloat16, mesh=mesh)
            compiled, seconds, memory = benchmark.compile_part(part)
        steps[count] = mesh, compiled, part.arguments
        print(f"{count} devices: compiled in {seconds:.1f} s, {memory:.2f} GiB each", flush=True)
    for _ in range(options.rounds):
        for count, (mesh, compiled, arguments) in steps.items():
            with jax.set_mesh(mesh):
                taken, arguments = benchmark.time_calls(compiled, arguments, state=True, seconds=2)
            steps[count] = mesh, compiled, arguments
            times[count].append(taken)
    rows = []
    for count in counts:
        taken = statistics.median(times[count])
        rows.append({"devices": count, "milliseconds": 1e3 * taken, "images_per_second": count * options.batch / taken})
        share = rows[-1]["images_per_second"] / rows[0]["images_per_second"]
        print(
            f"{count} devices: {1e3 * taken:.2f} ms (rounds {', '.join(f'{1e3 * t:.2f}' for t in times[count])}), "
            f"{rows[-1]['images_per_second']:.1f} images/s, {share:.3f} times the first"
        )
    if options.json:
        facts = {"hardware": devices.hardware(), "jax": jax.__version__}
        files.write_text(options.json, json.dumps(facts | {"size": options.size, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
