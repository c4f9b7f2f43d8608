"""Meeting of several hosts: who is missing, who differs; and a run of two processes on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from haksnet_jax import files, hosts

ROOT = pathlib.Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def meeting(reports, num_hosts, timeout=5.0):
    """Errors (or None) of hosts that meet, in threads. Args: reports, list of (host, facts)."""
    coordinator = f"localhost:{free_port()}"
    errors = [None] * len(reports)

    def one(place, host, facts):
        try:
            for connection in hosts.meet(
                hosts.Membership(coordinator, num_hosts, host), facts, timeout=timeout
            ).values():
                connection.close()
        except hosts.HostsError as error:
            errors[place] = str(error)

    threads = [threading.Thread(target=one, args=(place, *report)) for place, report in enumerate(reports)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return errors


def test_hosts_that_are_all_there_and_agree_go_on():
    assert meeting([(host, {"code": "a"}) for host in (2, 0, 1)], 3) == [None] * 3


def test_a_missing_host_is_named_to_all_that_are_there():
    for error in meeting([(0, {}), (2, {})], 4, timeout=2.0):
        assert "2 of 4 hosts joined within 2 s; missing: hosts 1, 3" in error


def test_a_host_that_runs_something_else_is_named_with_what_differs():
    errors = meeting([(0, {"config.seed": "0", "code": "a"}), (1, {"config.seed": "1", "code": "a"})], 2)
    for error in errors:
        assert (
            "config.seed is '1' on host 1" in error and "'0' on host 0" in error and "code" not in error.split("(")[0]
        )


def test_two_hosts_of_one_number_are_told():
    errors = meeting([(0, {}), (1, {}), (1, {})], 3, timeout=4.0)
    assert any(error and "both say that they are host 1" in error for error in errors)


def test_flags_that_do_not_make_a_run_are_refused(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    assert hosts.find_membership() is None and hosts.find_membership(num_hosts=1) is None
    assert hosts.find_membership("a:1", 2, 1) == hosts.Membership("a:1", 2, 1)
    with pytest.raises(hosts.HostsError, match=r"--host: not given"):
        hosts.find_membership("a:1", 2)
    with pytest.raises(hosts.HostsError, match=r"expected a number from 0 to 1 .* got 2"):
        hosts.find_membership("a:1", 2, 2)
    with pytest.raises(hosts.HostsError, match=r"expected ADDRESS:PORT"):
        hosts.find_membership("a", 2, 1)


def test_a_file_whose_writing_fails_stays_what_it_was(tmp_path):
    files.write_text(tmp_path / "card.txt", "old")
    with pytest.raises(RuntimeError), files.whole(tmp_path / "card.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "card.txt").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["card.txt"]
    assert files.join("data", "gs://bucket/a", "b") == "gs://bucket/a/b"


NARROW = [
    "--config.num_steps=3", "--config.eval_every=3", "--config.log_every=1", "--config.checkpoint_every=3",
    "--config.batch_size_per_device=2", "--config.evaluation.batch_size_per_device=2",
    "--config.model.channels=(4,4,8,8)", "--config.model.fpn_channels=8", "--config.model.hidden=16",
    "--config.data.image_size=(64,64)", "--config.data.max_boxes=8", "--config.data.train.size=64",
    "--config.data.train.num_scenes=12", "--config.data.val.size=64", "--config.data.val.num_scenes=5",
    "--config.rpn.num_samples=32", "--config.rpn.candidates_per_level=32", "--config.rpn.max_proposals=32",
    "--config.roi.num_samples=16", "--config.detection.max_candidates=64", "--config.detection.max_detections=32",
    "--config.evaluation.num_pictures=1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("num_hosts", [2, 4])
def test_several_processes_train_and_evaluate_as_one_with_as_many_devices(num_hosts, tmp_path):
    def start(workdir, num_devices, *flags):
        command = [sys.executable, "-m", "haksnet_jax.main", "--config=configs/demo.py", *NARROW, *flags]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        }
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    coordinator = f"localhost:{free_port()}"
    together = [
        start(tmp_path / "many", 1, f"--coordinator={coordinator}", f"--num_hosts={num_hosts}", f"--host={host}")
        for host in range(num_hosts)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in together]
    assert [process.returncode for process in together] == [0] * num_hosts, outputs
    assert f"{num_hosts} of {num_hosts} hosts joined" in outputs[0]
    alone = start(tmp_path / "one", num_hosts)
    assert alone.wait(timeout=500) == 0, alone.communicate()[0]

    def lines(name):
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    many, one = lines("many"), lines("one")
    assert len(many) == len(one) == 4  # three steps and an evaluation
    for ours, theirs in zip(many, one, strict=True):
        for name in set(ours) - {"images_per_second", "waited_for_data"}:
            # sums over the batch in another order, in float32
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    cards = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("many", "one")]
    assert [card["facts"]["global_batch"] for card in cards] == [2 * num_hosts] * 2
    gts = [sum(entry["num_gts"] for entry in card["classes"].values()) for card in cards]
    assert gts[0] == gts[1] > 0  # every validation image counted once
