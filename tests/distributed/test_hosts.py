"""Meeting of several hosts: who is missing, who differs."""

import contextlib
import json
import resource
import socket
import threading
import time

import pytest
from training_runs import free_port

from haksnet_jax import files
from haksnet_jax.distributed import hosts, meeting, messages


def met(reports, num_hosts, timeout=5.0, port=None, token="job"):
    """Errors (or None) of hosts that meet, in threads. Args: reports, list of (host, facts) or (host, facts, token)."""
    coordinator = f"localhost:{port or free_port()}"
    errors = [None] * len(reports)

    def one(place, host, facts, token=token):
        try:
            membership = hosts.Membership(coordinator, num_hosts, host, token=token)
            for connection in meeting.meet(membership, facts, timeout=timeout)[0].values():
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
    assert met([(host, {"code": "a"}) for host in (2, 0, 1)], 3) == [None] * 3


def test_a_missing_host_is_named_to_all_that_are_there():
    for error in met([(0, {}), (2, {})], 4, timeout=2.0):
        assert "2 of 4 hosts joined within 2 s; missing: hosts 1, 3" in error


def test_a_host_that_runs_something_else_is_named_with_what_differs():
    errors = met([(0, {"config.seed": "0", "code": "a"}), (1, {"config.seed": "1", "code": "a"})], 2)
    for error in errors:
        assert (
            "config.seed is '1' on host 1" in error and "'0' on host 0" in error and "code" not in error.split("(")[0]
        )


def test_two_hosts_of_one_number_are_told():
    errors = met([(0, {}), (1, {}), (1, {})], 3, timeout=4.0)
    assert sum("both say that they are host 1" in error for error in errors) >= 2  # the second of them, and host 0
    assert "missing: host 2" in errors[0]


def test_a_host_that_was_told_of_another_number_of_hosts_is_told_at_once_and_ends_nobody_else():
    port = free_port()
    started = time.monotonic()
    errors = [None, None]

    def odd():
        with pytest.raises(hosts.HostsError) as raised:
            meeting.meet(hosts.Membership(f"localhost:{port}", 99, 1, token="job"), {}, timeout=20)
        errors[0] = str(raised.value)
        errors[1] = time.monotonic() - started

    thread = threading.Thread(target=odd)
    thread.start()
    assert "1 of 2 hosts joined within 6 s; missing: host 1" in met([(0, {})], 2, timeout=6.0, port=port)[0]
    thread.join(timeout=10)
    assert "was told of 99 hosts" in errors[0] and errors[1] < 5


def test_a_host_of_another_job_does_not_take_part():
    errors = met([(0, {}), (1, {}, "another job")], 2, timeout=2.0)
    assert "missing: host 1" in errors[0] and "were no hosts of this run" in errors[0]
    assert "another join token" in errors[1]


def test_the_token_is_never_sent(monkeypatch):
    sent = []
    kept = messages.signed
    monkeypatch.setattr(messages, "signed", lambda *arguments: sent.append(kept(*arguments)) or sent[-1])
    assert met([(0, {}), (1, {})], 2, token="a secret text") == [None, None]
    assert len(sent) == 2 and not any(b"a secret text" in line for line in sent)


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "77"}, "SLURM_JOB_ID=77"),
        ({"SLURM_JOB_ID": "77", "HAKSNET_JOIN_TOKEN": "chosen"}, "chosen"),
    ],
)
def test_the_token_is_what_was_chosen_else_the_number_of_the_job(monkeypatch, variables, token):
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PMIX_NAMESPACE", "HAKSNET_JOIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.find_membership("a:1", 2, 1).token == token
    assert hosts.find_membership("a:1", 2, 1, token="a flag").token == "a flag"


# ------------------------------------------------------------------------------------------------ strangers at the port


def _stranger(port, until=10.0):
    """A connection to host 0, once it listens."""
    end = time.monotonic() + until
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=2)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _with_strangers(port, act, timeout=20.0):
    """Starts host 0, lets strangers act, then starts host 1. Returns: (errors of both, seconds that host 1 took)."""
    errors, connections = [None], []
    first = threading.Thread(target=lambda: errors.extend(met([(0, {})], 2, timeout=timeout, port=port)))
    first.start()
    try:
        connections += act(lambda: _stranger(port))
        started = time.monotonic()
        errors[0] = met([(1, {})], 2, timeout=timeout, port=port)[0]
        seconds = time.monotonic() - started
        first.join(timeout=30)
    finally:
        for connection in connections:
            connection.close()
    return errors, seconds


REPORT = {"host": 1, "num_hosts": 2, "name": "stranger", "facts": {}, "challenge": "x"}
STRANGERS = {
    "a line of another version": json.dumps({"host": 1, "num_hosts": 99, "name": "stranger", "facts": {}}).encode(),
    "a host that is a text": json.dumps(REPORT | {"host": "a"}).encode(),
    "no token": messages.signed(REPORT, "", "x").rstrip(),
    "nested deeply": b"[" * 100_000,
    "no JSON": b"GET / HTTP/1.1\r\nHost: \x1b[31mred\r\n\r\n",
    "not UTF-8": b"\xff\xfe\x00",
    "a large number": b"9" * 10_000,
    "without an end": b"x" * (messages.MAX_BYTES + 10),
    "NaN": b'{"host": NaN}',
}


def test_whatever_strangers_send_is_left_aside(caplog):
    def act(connect):
        connections = []
        for data in STRANGERS.values():
            connections.append(connect())
            with contextlib.suppress(OSError):
                connections[-1].sendall(data + b"\n")
        for connection in connections:  # each is closed
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                while connection.recv(4096):
                    pass
        return connections

    errors, seconds = _with_strangers(free_port(), act)
    assert errors == [None, None] and seconds < 5
    assert caplog.text.isprintable() or "\x1b" not in caplog.text


def test_reports_of_other_kinds_are_none():
    assert messages.is_report(REPORT)
    for key, values in {
        "host": ("a", -1, True, 1.0, None, 1 << 40),
        "num_hosts": ("a", None),
        "name": (1, "x" * 301, None),
        "facts": ([], None, {"a": []}, {"a": {}}),
        "challenge": (None, 1),
    }.items():
        for value in values:
            assert not messages.is_report(REPORT | {key: value}), (key, value)
    assert not messages.is_report(REPORT | {"more": 1}) and not messages.is_report([REPORT])
    for message in ([], {"end": 5}, {"end": "x", "grace": "1"}, {"end": "x", "grace": -1}, {"end": None, "more": 1}):
        assert not messages.is_end(message)


def test_1100_idle_connections_and_six_slow_ones_delay_nobody():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4,096 open files: both ends are in this process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    stopped = threading.Event()

    def act(connect):
        connections = [connect() for _ in range(1106)]

        def drip():
            while not stopped.wait(0.2):
                for connection in connections[-6:]:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"{")

        threading.Thread(target=drip, daemon=True).start()
        return connections

    try:
        errors, seconds = _with_strangers(free_port(), act, timeout=60.0)
    finally:
        stopped.set()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert errors == [None, None] and seconds < 5


def test_few_open_files_keep_no_host_out(monkeypatch):
    """Connections that say nothing make room for those that come later."""
    monkeypatch.setattr(meeting, "_MAX_CONNECTIONS", 5)
    errors, seconds = _with_strangers(free_port(), lambda connect: [connect() for _ in range(20)])
    assert errors == [None, None] and seconds < 5


def test_an_unfinished_report_is_dropped_in_time(monkeypatch):
    monkeypatch.setattr(meeting, "_SECONDS_FOR_A_REPORT", 0.5)

    def act(connect):
        connection = connect()
        connection.sendall(b"{")
        connection.settimeout(5)
        while connection.recv(4096):  # the greeting, then the end
            pass
        return [connection]

    assert _with_strangers(free_port(), act)[0] == [None, None]


def test_the_port_is_bound_to_the_address_of_the_coordinator():
    def open_at(address, port):
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return False
        return True

    listeners, bound = meeting._listen(hosts.Membership(f"127.0.0.1:{free_port()}", 2, 0))
    try:
        port = listeners[0].getsockname()[1]
        assert bound == "127.0.0.1" and open_at("127.0.0.1", port) and not open_at("127.0.0.2", port)
    finally:
        for listener in listeners:
            listener.close()
    # An address that is none of this machine's (TEST-NET): the others come through a translation, so all are open.
    listeners, bound = meeting._listen(hosts.Membership(f"192.0.2.1:{free_port()}", 2, 0))
    try:
        assert bound is None and open_at("127.0.0.2", listeners[0].getsockname()[1])
    finally:
        for listener in listeners:
            listener.close()


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
