"""Meeting of several hosts: who is missing, who differs."""

import threading

import pytest
from training_runs import free_port

from haksnet_jax import files
from haksnet_jax.distributed import hosts


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
