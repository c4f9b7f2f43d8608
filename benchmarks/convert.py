"""Time and memory of converting a file of HAKSNet-S with the optimiser's state: python benchmarks/convert.py

Writes such a file (generated weights, as large as a released training checkpoint), then runs the command. Both are
processes of their own. Prints the command's time and peak memory beside the limits of 10 s and 1 GiB; exit status 1 if
one is missed.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT_SECONDS, LIMIT_GIB = 10.0, 1.0


def write(path):
    """Writes the file to convert. Args: path."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "goldens")]
    from torch_files import make_weights, write_zip

    from haksnet_jax.labels.classes import CLASSES
    from haksnet_jax.models.backbones.haksnet import SIZES

    size = {name: list(values) for name, values in SIZES["s"]._asdict().items()}
    weights = make_weights({**size, "fpn_channels": 256, "hidden": 1024, "num_classes": 15}, "benchmark")
    moments = [{"exp_avg": np.zeros_like(value), "exp_avg_sq": np.zeros_like(value)} for value in weights.values()]
    content = {"meta": {"CLASSES": CLASSES["dota10"]}, "state_dict": weights, "optimizer": {"state": moments}}
    write_zip(pathlib.Path(path), content)


def main():
    """Runs the benchmark; returns the exit status."""
    if len(sys.argv) > 1:
        write(sys.argv[1])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "s.pth"
        # Not here: on Linux a process counts the memory of the one that started it as its own peak.
        subprocess.run([sys.executable, __file__, str(path)], check=True)
        print(f"{os.cpu_count()} CPU cores; a file of {path.stat().st_size / 2**20:.0f} MiB")
        command = [sys.executable, "-m", "haksnet_jax.convert", f"--input={path}", f"--output={folder}/out"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, gib = time.perf_counter() - begin, usage.ru_maxrss / 2**20
    if status:
        return 1
    print(f"convert HAKSNet-S    {seconds:5.1f} s    limit {LIMIT_SECONDS:g} s")
    print(f"peak memory          {gib:5.2f} GiB  limit {LIMIT_GIB:g} GiB")
    return int(seconds > LIMIT_SECONDS or gib > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
