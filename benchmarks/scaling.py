"""Images/s of the training step on 1, 2, 4, ... GPUs of this machine, with as many images on each.

    python benchmarks/scaling.py                                     everything: T and S, 8 and 16 images, all GPUs
    python benchmarks/scaling.py --size=t --batch=16 --devices=1,2 --rounds=6 --json=scaling.json

The steps are those of `haksnet benchmark` on meshes of as many devices, timed in turns, so that a card which slows
down does so for all of them. Then each is recorded once for the share of the devices' busy time that collectives take,
and the largest mesh is fed by the input pipeline, from this host's cores. NCCL's multicast over NVLink can be left off
by NCCL_NVLS_ENABLE=0.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.models.backbones.haksnet import SIZES
from haksnet_jax.tools.benchmark import fed, parts, profile, timing

_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "collective", "nccl")


def measure(size, batch, counts, *, image, rounds):
    """Rows of one model and batch: a dict for each number of devices."""
    steps, times = {}, {count: [] for count in counts}
    for count in counts:
        mesh = devices.data_mesh(jax.local_devices()[:count])
        with jax.set_mesh(mesh):
            part = parts.training(size, image, count * batch, jnp.bfloat16, mesh=mesh)
            compiled, seconds, memory = timing.compile_part(part)
        steps[count] = mesh, compiled, part.arguments
        print(f"{size}, {batch} images on {count}: compiled in {seconds:.1f} s, {memory:.2f} GiB each", flush=True)
    for _ in range(rounds):
        for count, (mesh, compiled, arguments) in steps.items():
            with jax.set_mesh(mesh):
                taken, arguments = timing.time_calls(compiled, arguments, state=True, seconds=2)
            steps[count] = mesh, compiled, arguments
            times[count].append(taken)
    rows = []
    for count, (mesh, compiled, arguments) in steps.items():
        with jax.set_mesh(mesh):
            kernels = profile.kernel_times(compiled, arguments, state=True)
        busy = sum(milliseconds for _, milliseconds in kernels.values())
        meeting = sum(ms for name, (_, ms) in kernels.items() if any(word in name for word in _COLLECTIVES))
        taken = statistics.median(times[count])
        speed = count * batch / taken
        first = rows[0]["images_per_second"] / counts[0] if rows else speed / count
        row = {"size": size, "batch": batch, "devices": count, "milliseconds": 1e3 * taken, "images_per_second": speed}
        row |= {"times_one": speed / first, "collectives": meeting / busy if busy else None}
        rows.append(row)
        share = f", {100 * meeting / busy:.1f} % of the busy time in collectives" if busy else ""
        print(
            f"{size}, {batch} images on {count}: {1e3 * taken:.2f} ms (rounds "
            f"{', '.join(f'{1e3 * t:.2f}' for t in times[count])}), {speed:.1f} images/s, "
            f"{speed / first:.3f} times one{share}",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", default="t,s", help=f"backbones, of {', '.join(sorted(SIZES))}; default: %(default)s")
    parser.add_argument("--batch", default="8,16", help="images on each device; default: %(default)s")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels; default: %(default)s")
    parser.add_argument("--devices", help="numbers of devices; default: 1, 2, 4, ... as many as there are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--num-workers", type=int, help="processes that feed the largest mesh; default: all cores but 2"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    options = parser.parse_args()
    here = len(jax.local_devices())
    if options.devices:
        counts = [int(count) for count in options.devices.split(",")]
    else:
        counts = [2**power for power in range(here.bit_length()) if 2**power <= here]
    if max(counts) > here:
        sys.exit(f"error: --devices={options.devices}: this process sees {here} devices")
    devices.enable_compilation_cache()
    sizes, batches = options.size.split(","), [int(batch) for batch in options.batch.split(",")]
    result = {"hardware": devices.hardware(), "jax": jax.__version__, "rows": []}
    for size in sizes:
        for batch in batches:
            result["rows"] += measure(size, batch, counts, image=options.image, rounds=options.rounds)
            if options.json:  # after each, so that a run that is ended keeps what it has
                files.write_text(options.json, json.dumps(result, indent=2) + "\n")
    mesh = devices.data_mesh(jax.local_devices()[: max(counts)])
    num_images = max(counts) * batches[-1]
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        part = parts.training(sizes[0], options.image, num_images, jnp.bfloat16, mesh=mesh)
        num_workers = options.num_workers or max(1, (os.cpu_count() or 3) - 2)
        row = fed.measure_end_to_end(part, pathlib.Path(folder), options.image, num_images, num_workers, mesh=mesh)
    print(
        f"{sizes[0]} on {max(counts)} fed by {num_workers} processes: {row.milliseconds:.2f} ms, "
        f"{row.images_per_second:.1f} images/s"
    )
    if options.json:
        result["fed"] = {"milliseconds": row.milliseconds, "images_per_second": row.images_per_second}
        files.write_text(options.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
