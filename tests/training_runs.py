"""Runs of the training command in processes of their own, which tests stop, kill and start again."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from haksnet_jax.weights import model_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEMPORARY_FAILURE = 75  # sysexits.h
NUM_STEPS = 20  # of interrupted_config.py
_PATIENCE = 1200  # seconds; a first start compiles, on as many devices as there are, and other tests may run beside it


def free_port():
    """A port of this machine that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Run:
    """A run of a configuration of the tests; its processes are killed at the end of a `with` block, if they still run.

    Args:
      workdir: path of the run's folder; new or of a run that goes on.
      *flags: of the command.
      config: file of the tests.
      num_hosts: processes that make the run together.
      num_devices: virtual devices of each process.
      batch: images a step, over all devices.
      folders: working directory of each process, None for the repository.
      logs: what the processes print goes to LOGS.HOST.log; None for beside the run's folder.
    """

    def __init__(
        self,
        workdir,
        *flags,
        config="interrupted_config.py",
        num_hosts=1,
        num_devices=1,
        batch=4,
        folders=None,
        logs=None,
    ):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            # Those of all tests: what compiles quickly is quick enough.
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        }
        command = [
            sys.executable, "-m", "haksnet_jax.main", f"--config={ROOT / 'tests' / config}",
            f"--workdir={workdir}", f"--config.batch_size_per_device={batch // num_hosts // num_devices}", *flags,
        ]  # fmt: skip
        coordinator = f"localhost:{free_port()}"
        self._logs, self.processes = [], []
        for host in range(num_hosts):
            place = (f"--coordinator={coordinator}", f"--num_hosts={num_hosts}", f"--host={host}")
            self._logs.append(pathlib.Path(f"{logs or workdir}.{host}.log"))
            with open(self._logs[-1], "w") as log:
                process = subprocess.Popen(
                    [*command, *(place if num_hosts > 1 else ())],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    cwd=folders[host] if folders else ROOT,
                )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def printed(self, host=0):
        """What a process has printed so far."""
        return self._logs[host].read_text()

    def wait_for_steps(self, steps):
        """Waits until the run has taken so many steps of its own, or has ended."""
        until = time.monotonic() + _PATIENCE
        while len(re.findall(r"^step ", self.printed(), re.M)) < steps and self.processes[0].poll() is None:
            assert time.monotonic() < until, self.printed()
            time.sleep(0.005)

    def end(self, patience=_PATIENCE):
        """Waits for the end. Args: patience, seconds. Returns: the processes' exit statuses."""
        until = time.monotonic() + patience
        return [process.wait(timeout=max(0.0, until - time.monotonic())) for process in self.processes]


def run(workdir, *flags, kill=None, steps=1, wait=0.0, victims=(0,), **more):
    """A run from its start to its end, with or without a signal on the way.

    Args:
      workdir, *flags, **more: of `Run`.
      kill: signal, or None.
      steps, wait: it is sent so many seconds after so many steps of this start.
      victims: hosts that it is sent to.

    Returns:
      (exit statuses of the processes, what they printed, list of texts).
    """
    with Run(workdir, *flags, **more) as started:
        if kill is not None:
            started.wait_for_steps(steps)
            time.sleep(wait)
            for victim in victims:
                started.processes[victim].send_signal(kill)
        # A host that is gone ends the others at once; a minute is what a busy machine may need for it.
        statuses = started.end(60 if kill == signal.SIGKILL else _PATIENCE)
        return statuses, [started.printed(host) for host in range(len(statuses))]


def state_of(workdir, step):
    """{name: numpy array} of everything that a run's checkpoint holds of its state."""
    return model_folder.flatten(model_folder.restore_numpy(workdir / "checkpoints" / str(step) / "state"))


def assert_same_state(workdir, expected_workdir, step, *, more_than=300):
    """Every value of a run's checkpoint, `more_than` so many arrays, is that of another run's, bit for bit."""
    found, expected = state_of(workdir, step), state_of(expected_workdir, step)
    assert found.keys() == expected.keys() and len(found) > more_than
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
