"""Speed of every part beside the limit of the hardware it runs on. A command:

    python -m haksnet_jax benchmark [--only=NAME*] [--image=1024] [--batch=8] [--json=FILE]
    python -m haksnet_jax benchmark --profile --only='train_t/8'        where the time of one part goes

The inputs are random; each part is compiled, run until warm, and timed many times with the devices synchronised; the
median counts. The floor of a part is the larger of two times, neither of which any form of it can beat: the bytes that
must pass through device memory over the bandwidth that a large copy reached, and the operations over the rates that a
large matrix product (convolutions, dense layers) and a chain of multiply-adds (everything else) reached, all measured
first in the same process. Only what no fusion can avoid is counted as bytes: inputs, outputs and weights of each block.
On CPUs without --image and --batch a small size is taken, to show that all parts run.
Exit status: 0 done; 1 not possible, with a sentence; 2 wrong use.
"""

import argparse
import fnmatch
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.results.card import code_version
from haksnet_jax.tools.benchmark import fed, parts, profile, timing
from haksnet_jax.tools.benchmark.timing import Ceilings, Row


def table(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """The rows as Markdown."""
    lines = [
        f"{devices.hardware()}, jax {jax.__version__}, code {code_version()}. Measured: copy "
        f"{ceilings.bandwidth / 1e12:.3g} TB/s, bfloat16 product {ceilings.matrix / 1e12:.3g} TFLOP/s, float32 "
        f"multiply-adds {ceilings.vector / 1e12:.3g} TFLOP/s.",
        "",
        "| part / images or boxes | ms | images/s | memory GiB | compile s | floor ms | times the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fields = [
            f"{row.milliseconds:.3g}", f"{row.images_per_second:.4g}", _text(row.memory_gib, ".2f"),
            _text(row.compile_seconds, ".1f"), _text(row.floor_milliseconds, ".3g"), _text(row.ratio, ".1f"),
        ]  # fmt: skip
        lines.append(f"| {row.part} | " + " | ".join(fields) + " |")
    return "\n".join(lines)


def _text(value, form):
    return "" if value is None else format(value, form)


def run(options: argparse.Namespace) -> int:
    """Runs the command. Args: options, of `cli.benchmark`. Returns: exit status."""
    small = jax.default_backend() == "cpu"
    image = options.image or (128 if small else 1024)
    batch = options.batch or (2 if small else 8)
    dtype = jnp.dtype(options.dtype or ("float32" if small else "bfloat16"))
    if image % 64 or image < 64:
        raise UserError(f"--image: expected a multiple of 64, got {image}")
    if options.cached:
        devices.enable_compilation_cache()

    end_to_end = f"end_to_end_train_t/{batch}"
    makers = parts.device_parts(
        image,
        batch,
        dtype,
        pretraining_image=options.image or (64 if small else 224),
        pretraining_batch=options.batch or (2 if small else 512),
    )
    names = [*makers, *fed.PIPELINES, end_to_end]
    # In the order of the patterns: a run that is cut off has measured first what was named first.
    chosen = list(dict.fromkeys(name for pattern in options.only for name in fnmatch.filter(names, pattern)))
    if options.list or not chosen:
        print("\n".join(names))
        if not options.list:
            raise UserError(f"--only={','.join(options.only)}: no part above matches")
        return 0
    with jax.set_mesh(parts.one_device()):
        if options.profile:
            for name in chosen:
                if name in makers:
                    profile.profile(makers[name]())
            return 0
        ceilings = timing.measure_ceilings()
        facts: dict[str, Any] = {"hardware": devices.hardware(), "jax": jax.__version__, "commit": code_version()}
        facts["ceilings"] = ceilings._asdict()
        rows = []
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                if name == end_to_end:
                    part = parts.training("t", image, batch, dtype)
                    row = fed.measure_end_to_end(part, pathlib.Path(folder), image, batch, options.workers)
                elif name in makers:
                    row = timing.measure(makers[name](), ceilings)
                else:
                    row = fed.measure_pipeline(name, pathlib.Path(folder), image, batch)
            rows.append(row)
            # As they come: a long run that is cut off has shown what it measured.
            print(
                f"{row.part}: {row.milliseconds:.3g} ms, {_text(row.memory_gib, '.2f')} GiB, "
                f"compiled in {_text(row.compile_seconds, '.1f')} s",
                flush=True,
            )
            if options.json:
                figures = facts | {"rows": [row._asdict() for row in rows]}
                files.write_text(options.json, json.dumps(figures, indent=2) + "\n")
    print("\n" + table(rows, ceilings))
    return 0
