"""Starting a run on several hosts: who takes part, whether all are there, and whether all do the same.

JAX ends a process with a stack trace where a host is missing, and does not say which. So the hosts meet once before JAX
is asked to connect them: on the port that JAX's coordinator will use, each tells host 0 its number, its name and what
it is about to run; when all are there, or the time is up, host 0 answers all of them. What can only be compared later
(the working directory, the data) goes over the devices themselves, with `require_same`.

The connections of the meeting stay open while the run goes on: where one ends, a host is gone, and the others end too,
with a sentence, instead of waiting for it in a sum over all devices.
"""

import contextlib
import json
import os
import re
import secrets
import select
import socket
import sys
import threading
import time
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

import haksnet_jax
from haksnet_jax import files
from haksnet_jax.results.card import code_version

_LARGEST_MESSAGE = 2**20  # bytes: a configuration has a few thousand

# Where several hosts end for the same reason, each has time to say it itself before it repeats what another one said.
_GRACE_SECONDS = 5.0

# A host whose machine is lost closes nothing. Asked after 30 s of silence, every 10 s, it is gone after three answers
# that do not come: a minute, less than the 100 s after which JAX ends a process with a stack trace.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

_watch = None  # of this process's run


class HostsError(RuntimeError):
    """Hosts that are missing or differ; the message says which."""


class Membership(NamedTuple):
    """This process's place in the run.

    Attributes:
      coordinator: "ADDRESS:PORT" of host 0.
      num_hosts: processes of the run. (A host may run several, for example one for each GPU.)
      host: number of this one, from 0.
      local_device_ids: devices of the machine that are this process's, or None for all.
    """

    coordinator: str
    num_hosts: int
    host: int
    local_device_ids: tuple | None = None


def find_membership(coordinator=None, num_hosts=None, host=None, *, timeout=300):
    """Finds out which part of which run this process is, without touching a device.

    What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; then from the cluster,
    as JAX recognises it: Cloud TPU, Slurm, Kubernetes (with the package `kubernetes`), Open MPI.

    Args:
      coordinator: "ADDRESS:PORT" of host 0, or None.
      num_hosts: processes of the run, or None; 1 for a run of this process alone, whatever the cluster says.
      host: number of this process, or None.
      timeout: seconds that asking the cluster may take.

    Returns:
      Membership, or None for a run of one process.

    Raises:
      HostsError: some of the three are known and others are not, or they do not fit together.
    """
    if num_hosts == 1:
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_hosts = _number("JAX_NUM_PROCESSES") if num_hosts is None else num_hosts
    host = _number("JAX_PROCESS_ID") if host is None else host
    local_device_ids = None
    if None in (coordinator, num_hosts, host):
        coordinator, num_hosts, host, local_device_ids = _ask_the_cluster(coordinator, num_hosts, host, timeout)
        if _alone_on_its_machine():  # JAX would give this process one device, and leave the others idle
            local_device_ids = None
    known = {"--coordinator": coordinator, "--num_hosts": num_hosts, "--host": host}
    missing = [flag for flag, value in known.items() if value is None]
    if len(missing) == len(known) or num_hosts == 1:
        return None
    if missing:
        raise HostsError(
            f"{' and '.join(missing)}: not given, and no cluster was recognised that tells; a run of several hosts "
            "needs --coordinator=ADDRESS:PORT of host 0, --num_hosts=N and --host=0..N-1"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise HostsError(f"--coordinator: expected ADDRESS:PORT of host 0, got {coordinator!r}")
    if not 0 <= host < num_hosts:
        raise HostsError(f"--host: expected a number from 0 to {num_hosts - 1} (--num_hosts={num_hosts}), got {host}")
    return Membership(coordinator, num_hosts, host, local_device_ids and tuple(local_device_ids))


def _number(variable):
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit():
        raise HostsError(f"{variable}: expected a number, got {text!r}")
    return int(text)


def _ask_the_cluster(coordinator, num_hosts, host, timeout):
    """(coordinator, num_hosts, host, local_device_ids), None where nothing tells."""
    try:
        # There is no public way to ask without connecting at once, which aborts the process where a host is missing.
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        logging.warning(
            "this version of JAX does not say which cluster it runs in: several hosts need --coordinator, --num_hosts "
            "and --host"
        )
        return coordinator, num_hosts, host, None
    return detect(coordinator, num_hosts, host, None, None, timeout)


def _alone_on_its_machine():
    """Whether Slurm or Open MPI started one process on each machine (which then has all devices of it)."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    return (tasks is not None and re.fullmatch(r"1(\(x\d+\))?", tasks) is not None) or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE"
    ) == "1"


def join(membership, facts, *, timeout=300):
    """Waits for all hosts, compares what they are about to run, and connects them. To be called before any device.

    From then on the end of one host ends the others with a sentence and status 1, unless it took its leave before.

    Args:
      membership: Membership; with None there is nothing to do.
      facts: {name: text or number} that must be the same on all hosts.
      timeout: seconds until those that are there give up on the others.

    Raises:
      HostsError: on all hosts that are there: which are missing, or differ.
    """
    if membership is None:
        return
    global _watch
    _watch = _Watch(membership.host, meet(membership, facts, timeout=timeout))
    jax.distributed.initialize(
        membership.coordinator,
        membership.num_hosts,
        membership.host,
        local_device_ids=membership.local_device_ids,
        cluster_detection_method="deactivate",  # all is known
        initialization_timeout=max(60, round(timeout)),
        shutdown_timeout_seconds=60,  # a host that ends early does not wait long for those that still compute
    )


def facts_of(config, workdir):
    """What all hosts of a run have to agree on before it starts. Args: config; workdir. Returns: {name: text}."""

    def flat(value, prefix):
        for name, entry in value.items():
            if hasattr(entry, "items"):
                yield from flat(entry, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", str(entry)

    return {
        "code": code_version(),
        "haksnet_jax": haksnet_jax.__version__,
        "jax": jax.__version__,
        "--workdir": str(workdir),
        **dict(flat(config, "config")),
    }


def leave(error=None):
    """Tells the other hosts that this process is about to end. Without it, its end is one that ends theirs.

    Args:
      error: what went wrong, a sentence that the others repeat; None where the run ends here as it should.
    """
    if _watch is not None:
        _watch.leave(error)


def wait_for_news():
    """Waits as long as the loss of another host takes to be noticed, which ends this process with a sentence.

    For errors that may be no more than what such a loss looks like to JAX.
    """
    if _watch is not None:
        time.sleep(2 * _GRACE_SECONDS)


class _Watch:
    """Ends this process with a sentence when another host is gone. Host 0 sees all others, and tells them.

    Args:
      host: number of this one.
      connections: {host in words: socket}, those of the meeting.
    """

    def __init__(self, host, connections):
        self._host = host
        self._connections = dict(connections)
        self._leaving = False
        for connection in self._connections.values():
            connection.settimeout(_GRACE_SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # (macOS has other names)
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._listen, daemon=True, name="watch over the other hosts").start()

    def _listen(self):
        watched = dict(self._connections)
        while watched:
            ready, _, _ = select.select(list(watched.values()), [], [])
            for host in [host for host, connection in watched.items() if connection in ready]:
                message = _receive(watched.pop(host))
                if self._leaving or message == {"end": None}:
                    continue
                if message is None:  # the connection ended without a word
                    lost = f"{host} is gone (killed, or its machine or network lost)"
                    message = {"end": f"{lost}; the same command on all hosts goes on from the newest checkpoint"}
                self._tell(message)
                # Told of an error, this host may be about to meet the same one, and to say so itself.
                time.sleep(message.get("grace", 0.0))
                print(f"host {self._host}: error: this host ends because {message['end']}", file=sys.stderr, flush=True)
                os._exit(1)  # the other threads wait for that host, and an orderly end would too

    def leave(self, error):
        """See `hosts.leave`."""
        self._leaving = True
        if error is None:
            self._tell({"end": None})
        else:
            name = f"host {self._host} ({socket.gethostname()})"
            self._tell({"end": f"{name} ended with an error: {error}", "grace": _GRACE_SECONDS})

    def _tell(self, message):
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")


def meet(membership, facts, *, timeout=300, progress_every=30):
    """The part of `join` before JAX: all hosts report to host 0, and get its answer. Args and errors as there.

    Returns:
      {host in words: socket}, open connections: host 0's to all others, another's to host 0.
    """
    deadline = time.monotonic() + timeout
    report = {"host": membership.host, "num_hosts": membership.num_hosts, "name": socket.gethostname(), "facts": facts}
    if membership.host == 0:
        error, connections = _wait_for_reports(membership, report, deadline, timeout, progress_every)
    else:
        error, connections = _report(membership, report, deadline, timeout)
    if error:
        raise HostsError(error)
    return connections


def _listen(port):
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except (OSError, ValueError):  # no IPv6 here
        return socket.create_server(("", port), backlog=1024)


def _wait_for_reports(membership, own_report, deadline, timeout, progress_every):
    """Host 0: collects reports, answers them. Returns: (a sentence, {}), or (None, connections) where all is well."""
    port = int(membership.coordinator.rsplit(":", 1)[1])
    try:
        listener = _listen(port)
    except OSError as error:
        return f"host 0 cannot use port {port} of --coordinator={membership.coordinator}: {error.strerror}", {}
    reports, connections, waiting = {0: own_report}, {}, set()
    said = time.monotonic()
    error, kept = None, {}

    def missing():
        names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        named = len(names) == membership.num_hosts
        absent = [host for host in range(membership.num_hosts) if host not in reports]
        shown = [f"{host} ({names[host]})" if named else str(host) for host in absent[:20]]
        return f"host{'s' * (len(absent) > 1)} {', '.join(shown)}" + ", ..." * (len(absent) > 20)

    try:
        with listener:
            while len(reports) < membership.num_hosts and error is None:
                for host in [host for host, one in connections.items() if not _is_open(one)]:
                    connections.pop(host).close()  # it went away again; restarted, it reports anew
                    del reports[host]
                now = time.monotonic()
                if now >= deadline:
                    error = (
                        f"{len(reports)} of {membership.num_hosts} hosts joined within {timeout:g} s; missing: "
                        f"{missing()}. Look at their logs: not started, or no way to {membership.coordinator}"
                    )
                    break
                if now - said >= progress_every:
                    said = now
                    logging.info("%d of %d hosts joined; waiting for %s", len(reports), membership.num_hosts, missing())
                ready, _, _ = select.select([listener, *waiting], [], [], min(1.0, deadline - now))
                for connection in ready:
                    if connection is listener:
                        waiting.add(listener.accept()[0])
                        continue
                    waiting.discard(connection)
                    report = _receive(connection)
                    if not _is_report(report):  # a probe of the port, not one of ours
                        connection.close()
                        continue
                    error = _refusal(report, own_report, reports)
                    if error:
                        waiting.add(connection)
                        break
                    connections[report["host"]] = connection
                    reports[report["host"]] = report
        if error is None:
            logging.info("%d of %d hosts joined", len(reports), membership.num_hosts)
            error = differences({f"host {host} ({r['name']})": r["facts"] for host, r in sorted(reports.items())})
        # The port is free by now: JAX's coordinator is about to take it.
        answer = json.dumps({"error": error, "name": own_report["name"]}).encode() + b"\n"
        for connection in (*connections.values(), *waiting):
            with contextlib.suppress(OSError):
                connection.sendall(answer)
        if error is None:
            kept = {f"host {host} ({reports[host]['name']})": one for host, one in connections.items()}
    finally:
        for connection in (*connections.values(), *waiting):
            if connection not in kept.values():
                connection.close()
    return error, kept


def _is_report(report):
    return isinstance(report, dict) and {"host", "num_hosts", "name", "facts"} <= set(report)


def _refusal(report, own_report, reports):
    """A sentence where a report does not fit the others, else None."""
    host, name = report["host"], report["name"]
    if report["num_hosts"] != own_report["num_hosts"] or not 0 <= host < own_report["num_hosts"]:
        return (
            f"host {host} ({name}) was told of {report['num_hosts']} hosts, host 0 ({own_report['name']}) of "
            f"{own_report['num_hosts']}: start all with the same --num_hosts"
        )
    if host in reports:
        return f"{reports[host]['name']} and {name} both say that they are host {host}: --host must be another on each"
    return None


def _is_open(connection):
    connection.setblocking(False)  # with a timeout, nothing to read would look like an end
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(10.0)


def _receive(connection, seconds=10.0):
    """The JSON line that a connection sends, or None."""
    until = time.monotonic() + seconds
    data = b""
    try:
        while not data.endswith(b"\n"):
            connection.settimeout(max(0.01, until - time.monotonic()))
            part = connection.recv(65536)
            data += part
            if not part or len(data) > _LARGEST_MESSAGE:
                return None
        return json.loads(data.splitlines()[0])  # (of two, the first says why)
    except (OSError, ValueError):
        return None


def _report(membership, report, deadline, timeout):
    """Another host: tells host 0, and waits for its answer. Returns: as `_wait_for_reports`."""
    address, port = membership.coordinator.rsplit(":", 1)
    reached = False
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with contextlib.ExitStack() as closing:
                connection = socket.create_connection((address.strip("[]"), int(port)), timeout=5)
                closing.enter_context(connection)
                connection.sendall(json.dumps(report).encode() + b"\n")
                reached = True
                # Host 0 may have started later, and gives up later.
                answer = _receive(connection, seconds=max(0.0, deadline - time.monotonic()) + timeout)
                if isinstance(answer, dict) and "error" in answer:
                    if answer["error"]:
                        return answer["error"], {}
                    closing.pop_all()  # it stays open
                    return None, {f"host 0 ({answer['name']})": connection}
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.5)
    if reached:
        return f"host 0 at {membership.coordinator} went away before all hosts had joined: look at its log", {}
    return (
        f"host {membership.host} did not reach host 0 at {membership.coordinator} within {timeout:g} s ({reason}): "
        "is host 0 running, and is the port open?"
    ), {}


def differences(facts_by_host):
    """Compares what hosts say with what the first of them says.

    Args:
      facts_by_host: {host in words: {name: value}}.

    Returns:
      A sentence that names a host and what differs there, or None where all are the same.
    """
    (first, expected), *others = facts_by_host.items()
    for host, facts in others:
        names = [name for name in {**expected, **facts} if facts.get(name) != expected.get(name)]
        if names:
            shown = "; ".join(
                f"{name} is {facts.get(name, 'absent')!r} on {host}, {expected.get(name, 'absent')!r} on {first}"
                for name in names[:5]
            )
            more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
            return f"the hosts do not run the same: {shown}{more}. Start all hosts with the same code, command and data"
    return None


def _exchange(record):
    """Every host's record, in their order. Args: record, a dict that JSON can hold. Returns: list of dicts."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    length = int(multihost_utils.process_allgather(np.int32(len(data))).max())
    rows = multihost_utils.process_allgather(np.pad(data, (0, length - len(data)), constant_values=ord(" ")))
    return [json.loads(row.tobytes()) for row in np.asarray(rows).reshape(jax.process_count(), length)]


def require_same(facts):
    """Compares facts over all hosts that JAX has connected.

    Args:
      facts: {name: text or number}.

    Raises:
      HostsError: on all of them: which host differs, and in what.
    """
    if jax.process_count() == 1:
        return
    records = _exchange({"name": socket.gethostname(), "facts": facts})
    error = differences({f"host {host} ({r['name']})": r["facts"] for host, r in enumerate(records)})
    if error:
        raise HostsError(error)


def any_host(flag):
    """Whether the flag is set on any host. All take part. Args: flag, bool. Returns: bool, the same on all."""
    if jax.process_count() == 1:
        return bool(flag)
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))


def require_same_folder(folder, *, patience=10.0):
    """Checks that all hosts see one folder: host 0 writes a file, all read it.

    Args:
      folder: path, may be a bucket; exists.
      patience: seconds that a network file system may take to show the file.

    Raises:
      HostsError: on all hosts: which do not see it.
    """
    if jax.process_count() == 1:
        return
    path = None
    try:
        problem = None
        if jax.process_index() == 0:
            path = folder / f"preflight-{secrets.token_hex(8)}"
            try:
                files.write_text(path, path.name)
            except OSError as error:
                problem = f"{folder} cannot be written to by host 0 ({socket.gethostname()}): {error.strerror or error}"
        first = _exchange({"file": path and path.name, "problem": problem})[0]
        if first["problem"]:
            raise HostsError(first["problem"])
        until = time.monotonic() + patience
        while not (seen := _reads(folder / first["file"], first["file"])) and time.monotonic() < until:
            time.sleep(0.2)
        records = _exchange({"name": socket.gethostname(), "seen": seen})
        blind = [f"host {host} ({r['name']})" for host, r in enumerate(records) if not r["seen"]]
        if blind:
            raise HostsError(
                f"{folder} is another folder on {', '.join(blind[:20])} than on host 0 ({records[0]['name']}): the "
                "hosts need one that all of them see, on a shared disk or in a bucket"
            )
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _reads(path, text):
    try:
        return path.read_text() == text
    except OSError:
        return False
