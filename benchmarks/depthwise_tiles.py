"""Which tiles of the depthwise kernels are fastest on this GPU, for the shapes of a backbone at 1024 pixels.

    python benchmarks/depthwise_tiles.py [--size=t] [--batch=8] [--sides=3,5,7,9] [--stages=1,2,3,4] [--json=FILE]

All tiles that fit the registers are compiled, side by side, and then timed one after another on random data. Printed
for each shape, convolution and weight gradient apart: the library's time, that of the tile that the package chooses,
and the five fastest ones. docs/performance.md holds what was learned from it.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax import files
from haksnet_jax.geometry.anchors import STRIDES
from haksnet_jax.kernels import depthwise, depthwise_triton
from haksnet_jax.kernels.depthwise_triton import Tile
from haksnet_jax.models.backbones.haksnet import SIZES
from haksnet_jax.tools.benchmark.timing import time_calls


def tiles(shape, k, gradient):
    """Tiles worth trying. Args: shape [B, H, W, C]; k; gradient, whether of the weight gradient. Returns: [Tile]."""
    _, height, width, num_channels = shape
    found = []
    for rows, columns, channels, num_warps, chunks, taps in itertools.product(
        (4, 8, 16),
        (4, 8, 16),
        (16, 32, 64),
        (1, 2, 4),
        (1, 2, 4, 8) if gradient else (1,),
        [taps for taps in range(1, k + 1, 2) if k % taps == 0] if gradient else (1,),
    ):
        each = columns * channels / (32 * num_warps)  # numbers of a row that a thread holds
        held = each * ((k * taps + rows) if gradient else rows)
        fits = num_channels % channels == 0 and columns <= width and rows * chunks <= height
        if fits and 2 <= each <= 8 and 24 <= held <= (100 if taps == 1 else 170):
            found.append(Tile(rows, columns, channels, num_warps, chunks, taps))
    return found


def compiled(function, *arguments):
    """A function, compiled for these arguments."""
    return jax.jit(function).lower(*arguments).compile()


def measure(shape, k, gradient, pool):
    """Times all tiles of one shape. Returns: {"library", "chosen", "tiles": [(milliseconds, tile)]}, fastest first."""
    x, y = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(2))
    kernel = jax.random.normal(jax.random.key(2), (k, k, shape[3]))
    if gradient:
        arguments, chosen = (x, y), depthwise_triton.weight_gradient_tile(shape, k)
        library = lambda x, y: depthwise.weight_gradient_library(x, y, k)  # noqa: E731
        make = lambda tile: lambda x, y: depthwise_triton.weight_gradient(x, y, k, tile=tile)[0]  # noqa: E731
    else:
        arguments, chosen = (x, kernel.astype(x.dtype)), depthwise_triton.convolve_tile(shape)
        library = depthwise.convolve_library
        make = lambda tile: lambda x, kernel: depthwise_triton.convolve(x, kernel, tile=tile)  # noqa: E731
    candidates = list(dict.fromkeys([chosen, *tiles(shape, k, gradient)]))
    futures = [(tile, pool.submit(compiled, make(tile), *arguments)) for tile in candidates]
    concurrent.futures.wait([future for _, future in futures])  # compiling beside it would delay what is timed
    timed = sorted((1e3 * time_calls(future.result(), arguments, seconds=0.03)[0], tile) for tile, future in futures)
    return {
        "library": 1e3 * time_calls(compiled(library, *arguments), arguments, seconds=0.03)[0],
        "chosen": next(milliseconds for milliseconds, tile in timed if tile == chosen),
        "tiles": timed,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=sorted(SIZES), default="t", help="backbone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sides", default="3,5,7,9", help="of the kernels")
    parser.add_argument("--stages", default="1,2,3,4")
    parser.add_argument("--json", type=pathlib.Path, help="file for all times")
    options = parser.parse_args()
    rows = []
    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 4)) as pool:
        for stage, k in itertools.product(map(int, options.stages.split(",")), map(int, options.sides.split(","))):
            side = 1024 // STRIDES[stage - 1]
            shape = (options.batch, side, side, SIZES[options.size].channels[stage - 1])
            for gradient in (True, False):
                found = measure(shape, k, gradient, pool)
                rows.append({"shape": shape, "k": k, "gradient": gradient} | found)
                best = ", ".join(f"{milliseconds:.4f} {tuple(tile)}" for milliseconds, tile in found["tiles"][:5])
                print(
                    f"{list(shape)} {k} x {k} {'weight gradient' if gradient else 'convolution'}: library "
                    f"{found['library']:.4f}, chosen {found['chosen']:.4f}, of {len(found['tiles'])}: {best}",
                    flush=True,
                )
                if options.json:
                    files.write_text(options.json, json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
