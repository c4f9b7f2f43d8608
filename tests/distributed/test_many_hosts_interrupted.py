"""Runs of two processes that are stopped, killed, or do not see the same checkpoints."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import training_runs

# Three hosts that have met and are connected by JAX, and do nothing. {end}: how host 2 ends.
IDLE = """
import os, sys, time
from haksnet_jax.distributed import hosts
host = int(sys.argv[2])
hosts.join(hosts.Membership(sys.argv[1], 3, host), {}, timeout=120)
print("joined", flush=True)
if host == 2 and sys.argv[3] == "error":
    hosts.leave("no data")
    os._exit(1)
time.sleep(1 if sys.argv[3] == "leave" else 120)
hosts.leave()
"""


class Idle:
    """Three processes that have joined, and what they print at their end."""

    def __init__(self, how):
        coordinator = f"localhost:{training_runs.free_port()}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", IDLE, coordinator, str(host), how],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=training_runs.ROOT,
            )
            for host in range(3)
        ]
        for process in self.processes:
            assert process.stdout.readline() == "joined\n", process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_is_killed_ends_the_others_within_seconds_with_a_sentence(victim):
    with Idle("kill") as idle:
        killed = time.monotonic()
        idle.processes[victim].kill()
        for host in {0, 1, 2} - {victim}:
            _, printed = idle.processes[host].communicate(timeout=30)
            assert time.monotonic() - killed < 20  # seen: at once; the rest is for a busy machine
            assert idle.processes[host].returncode == 1, printed
            assert (
                f"host {host}: error: this host ends because host {victim} ({socket.gethostname()}) is gone (killed, "
                "or its machine or network lost); the same command on all hosts goes on from the newest checkpoint"
            ) in printed, printed


def test_a_host_that_ends_with_an_error_ends_the_others_with_what_it_was():
    with Idle("error") as idle:
        for host in (0, 1):
            _, printed = idle.processes[host].communicate(timeout=60)
            assert idle.processes[host].returncode == 1
            assert (
                f"host {host}: error: this host ends because host 2 ({socket.gethostname()}) ended with an error: "
                "no data" in printed
            ), printed


def test_hosts_that_leave_at_the_end_of_a_run_end_well():
    with Idle("leave") as idle:
        for process in idle.processes:
            _, printed = process.communicate(timeout=90)
            assert process.returncode == 0 and "error" not in printed, printed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a run of two processes that is left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    statuses, printed = training_runs.run(workdir, num_hosts=2)
    assert statuses == [0, 0], printed
    return workdir


def _assert_goes_on_to_the_same_end(workdir, undisturbed):
    statuses, printed = training_runs.run(workdir, num_hosts=2)
    assert statuses == [0, 0], printed
    assert "resuming at step" in printed[0]
    training_runs.assert_same_state(workdir, undisturbed, training_runs.NUM_STEPS)


@pytest.mark.slow
def test_two_hosts_stop_together_whichever_is_asked_and_go_on_bit_for_bit(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    for victims in [(1,), (0, 1)]:
        statuses, printed = training_runs.run(workdir, num_hosts=2, kill=signal.SIGTERM, steps=3, victims=victims)
        assert statuses == [training_runs.TEMPORARY_FAILURE] * 2, printed
        assert "of 20, which is saved; the same command goes on from there" in printed[0]
    _assert_goes_on_to_the_same_end(workdir, undisturbed)


@pytest.mark.slow
def test_two_hosts_of_which_one_is_killed_both_end_and_go_on_bit_for_bit(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    for victim in (1, 0):
        statuses, printed = training_runs.run(
            workdir, num_hosts=2, kill=signal.SIGKILL, steps=5, wait=0.1, victims=(victim,)
        )
        assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1, printed
        assert f"this host ends because host {victim} ({socket.gethostname()}) is gone" in printed[1 - victim]
    _assert_goes_on_to_the_same_end(workdir, undisturbed)


@pytest.mark.slow
def test_hosts_that_see_other_checkpoints_say_so(tmp_path, undisturbed):
    # A link that leads each process to a folder of its own, like a disk that one machine has not mounted.
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        (folder / "checkpoints").mkdir(parents=True)
    for step in ("18", "20"):
        (folders[0] / "checkpoints" / step).symlink_to(undisturbed / "checkpoints" / step)
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(pathlib.Path("/proc/self/cwd/checkpoints"))
    statuses, printed = training_runs.run(workdir, num_hosts=2, folders=folders)
    assert statuses == [1, 1], printed
    for text in printed:
        assert f"checkpoints in {workdir}/checkpoints is 'none' on host 1" in text and "'18, 20' on host 0" in text, (
            text
        )
