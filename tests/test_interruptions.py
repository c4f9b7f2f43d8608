"""Real runs that are killed at random moments and go on: they end with the weights of a run that was not."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from haksnet_jax import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEMPORARY_FAILURE = 75  # sysexits.h
NUM_STEPS = 36  # of interrupted_config.py


def _start(workdir, log):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device; what compiles quickly is quick enough
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    config = ROOT / "tests" / "interrupted_config.py"
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "haksnet_jax.main",
            f"--config={config}",
            f"--workdir={workdir}",
        ],
        env=environment,
        stdout=log,
        stderr=log,
        cwd=ROOT,
    )


def _run(workdir, *, kill=None, steps=1, wait=0.0):
    """Starts the run, sends a signal (if any) so long after a number of its own steps, and waits for its end.

    Returns:
      (exit status, what it printed).
    """
    path = workdir.parent / f"{workdir.name}.log"
    with open(path, "w") as log:
        process = _start(workdir, log)
        try:
            if kill is not None:
                until = time.monotonic() + 200
                while len(re.findall(r"^step ", path.read_text(), re.M)) < steps and process.poll() is None:
                    assert time.monotonic() < until, path.read_text()
                    time.sleep(0.005)
                time.sleep(wait)
                process.send_signal(kill)
            status = process.wait(timeout=200)
        finally:
            process.kill()
    return status, path.read_text()


def _last_weights(workdir):
    return checkpoint.flatten(checkpoint._restore_numpy(workdir / "checkpoints" / str(NUM_STEPS) / "state"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Last state of a run that is left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, printed = _run(workdir)
    assert status == 0, printed
    return _last_weights(workdir)


def _assert_undisturbed(workdir, undisturbed):
    found = _last_weights(workdir)
    assert found.keys() == undisturbed.keys() and len(found) > 300
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, NUM_STEPS + 1))
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"30", "33", "36"}  # checkpoints_kept, and nothing that a killed save left


def _kill(workdir, num_kills):
    """Starts the run and kills it, again and again, at moments that are others at each call of the tests."""
    most = (
        40 // num_kills
    )  # so that steps are left at the end; each third is saved, which takes as long as some of them
    for _ in range(num_kills):
        # Within a tenth of a second are all places of a step and of a save.
        status, printed = _run(workdir, kill=signal.SIGKILL, steps=random.randint(1, most), wait=random.uniform(0, 0.1))
        assert status == -signal.SIGKILL, printed


def test_a_folder_that_cannot_be_written_to_is_an_error_of_one_sentence(tmp_path):
    with open(tmp_path / "log", "w") as log:
        process = _start("/sys/run", log)  # where nobody makes folders, not even root
        assert process.wait(timeout=120) == 1
    printed = (tmp_path / "log").read_text()
    assert re.search(r"^error: .*/sys/run", printed, re.M) and "Traceback" not in printed, printed


def test_a_run_that_is_killed_and_stopped_ends_as_if_it_had_not_been(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    _kill(workdir, 3)
    status, printed = _run(workdir, kill=signal.SIGTERM)
    assert status == TEMPORARY_FAILURE, printed
    stopped = re.search(r"stopped at step (\d+) of 36, which is saved; the same command goes on from there", printed)
    status, printed = _run(workdir)
    assert status == 0, printed
    assert f"resuming at step {stopped[1]}, example {4 * int(stopped[1])}" in printed
    _assert_undisturbed(workdir, undisturbed)


@pytest.mark.slow  # as the test before, more often
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    _kill(workdir, 20)
    status, printed = _run(workdir)
    assert status == 0, printed
    _assert_undisturbed(workdir, undisturbed)
