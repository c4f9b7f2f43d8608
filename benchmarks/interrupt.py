"""Kills a run at random moments, starts it again, and compares its last state with that of a run left alone.

    python benchmarks/interrupt.py --config=configs/demo.py --out=DIR [--kills=5] [--config.num_steps=60 ...]

What else is given goes to the training command; the run should be short, and save often (`--config.checkpoint_every`).
On NVIDIA GPUs, additions in an order that changes are switched off by XLA_FLAGS=--xla_gpu_deterministic_ops=true, and
both runs must execute the same programs: the compilation cache, which is on by default, sees to that.

Exit status: 0 every value of the state is the same, bit for bit; 1 a run failed or a value differs, which is named.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax.weights import model_folder


def start(workdir, arguments, log):
    """Starts the training command. Returns: subprocess.Popen."""
    search = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "haksnet_jax.main", *arguments, "--config.log_every=1", f"--workdir={workdir}"]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": search}, stdout=log, stderr=log)


def run(workdir, arguments, log_path, *, kill_after=None):
    """One start of the command, killed after (steps, seconds) if that is given. Returns: its exit status."""
    with open(log_path, "w") as log:
        process = start(workdir, arguments, log)
        if kill_after is not None:
            steps, seconds = kill_after
            while process.poll() is None and len(re.findall(r"^step ", log_path.read_text(), re.M)) < steps:
                time.sleep(0.002)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        return process.wait()


def last_state(workdir):
    """(step, {name: array}) of the newest checkpoint."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    state = model_folder.restore_numpy(workdir / "checkpoints" / str(step) / "state")
    return step, model_folder.flatten(state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="file of configs/")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="empty folder for the two runs and their logs")
    parser.add_argument("--kills", type=int, default=5)
    options, overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    arguments = [f"--config={options.config}", *overrides]
    killed, alone = options.out / "killed", options.out / "alone"
    if status := run(alone, arguments, options.out / "alone.log"):
        sys.exit(f"error: the run left alone ended with status {status}; see {options.out / 'alone.log'}")
    step, expected = last_state(alone)
    for i in range(options.kills):
        after = (random.randint(1, max(1, step // (options.kills + 1))), random.uniform(0, 0.2))
        status = run(killed, arguments, options.out / f"killed_{i}.log", kill_after=after)
        print(f"start {i + 1}: killed {after[1]:.3f} s after {after[0]} steps, status {status}", flush=True)
        if status != -signal.SIGKILL:
            sys.exit(f"error: it ended by itself; see {options.out / f'killed_{i}.log'}")
    log = options.out / "killed_last.log"
    if status := run(killed, arguments, log):
        sys.exit(f"error: the last start ended with status {status}; see {log}")
    resumed = re.search(r"resuming at step (\d+)", log.read_text())
    print(f"the last start went on from step {resumed[1] if resumed else 0} of {step}")
    found_step, found = last_state(killed)
    if found_step != step or found.keys() != expected.keys():
        sys.exit(f"error: expected a state of step {step}, found step {found_step}, or other names")
    different = [name for name, value in expected.items() if not np.array_equal(found[name], value, equal_nan=True)]
    if different:
        sys.exit(f"error: {len(different)} of {len(expected)} arrays differ: {', '.join(different[:5])}")
    print(f"all {len(expected)} arrays of step {step} are the same, bit for bit")


if __name__ == "__main__":
    main()
