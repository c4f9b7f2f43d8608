"""The meeting of hosts before JAX connects them: all report to host 0 and get its answer.

Anybody may reach the port. So host 0 binds it to the coordinator's address, reads from all connections at once and
waits for none, drops what is not signed with the run's token, and what is not a whole report within seconds.
"""

import contextlib
import errno
import os
import resource
import secrets
import selectors
import socket
import time
from typing import Any

from absl import logging

from haksnet_jax.distributed import messages
from haksnet_jax.distributed.membership import HostsError, Membership

_SECONDS_FOR_A_REPORT = 10.0  # a host sends its own at once
_MAX_CONNECTIONS = 4096  # without a report yet; the oldest make room
_MAX_BUFFERED_BYTES = 32 << 20  # of all unfinished reports


def meet(
    membership: Membership, facts: dict[str, Any], *, timeout: float = 300, progress_every: float = 30
) -> tuple[dict[str, socket.socket], tuple[str, int] | None]:
    """All hosts report to host 0, and get its answer.

    Args:
      membership: Membership.
      facts: {name: text or number} that must be the same on all hosts.
      timeout: seconds until those that are there give up on the others.
      progress_every: seconds between lines of the log.

    Returns:
      ({host in words: socket}, the address that host 0 listened at or None): open connections, host 0's to all others,
      another's to host 0.

    Raises:
      HostsError: on all hosts that are there: which are missing, or differ.
    """
    deadline = time.monotonic() + timeout
    report = {"host": membership.host, "num_hosts": membership.num_hosts, "name": socket.gethostname(), "facts": facts}
    if membership.host:
        return _report(membership, report, deadline, timeout), None
    try:
        listener, bound = _listen(membership)
    except OSError as error:
        raise HostsError(
            f"host 0 cannot use the port of --coordinator={membership.coordinator}: {error.strerror or error}"
        ) from error
    with contextlib.closing(_Meeting(membership, report, listener)) as meeting:
        refused = meeting.wait(deadline, timeout, progress_every)
        return meeting.answer(refused), bound


def differences(facts_by_host: dict[str, dict[str, Any]]) -> str | None:
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
            differing = "; ".join(
                f"{messages.shown(name)} is {messages.shown(repr(facts.get(name, 'absent')))} on {host}, "
                f"{messages.shown(repr(expected.get(name, 'absent')))} on {first}"
                for name in names[:5]
            )
            more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
            return f"the hosts do not run the same: {differing}{more}. Start all with the same code, command and data"
    return None


# ------------------------------------------------------------------------------------------------------------- host 0


def _listen(membership):
    """Opens the port at the coordinator's address. Returns: (sockets, the address where there is just one, else None).

    Where that address is none of this machine (a cluster's own addresses, a translated one), or the machine's name
    stands for itself alone (127.0.1.1 in /etc/hosts), the others would not get through: then all addresses are open.
    """
    name, port = membership.address()
    found = []
    with contextlib.suppress(OSError):
        resolved = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys((family, place[0]) for family, _, _, _, place in resolved))
    local = name == "localhost" or name.startswith("127.") or name == "::1"
    if any(address.startswith("127.") or address == "::1" for _, address in found) and not local:
        found = []
    listeners = []
    for family, address in found:
        try:
            listeners.append(socket.create_server((address, port), family=family, backlog=1024))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for one in listeners:
                    one.close()
                raise
    if listeners:
        return listeners, found[0][1] if len(found) == 1 else None
    logging.warning("%s is no address of this machine: port %d is open at all of its addresses", name, port)
    try:
        return [socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)], None
    except (OSError, ValueError):  # no IPv6 here
        return [socket.create_server(("", port), backlog=1024)], None


class _Pending:
    """A connection without a report yet: what it sent, since when it is there, the challenge that it was given."""

    def __init__(self):
        self.reader = messages.LineReader()
        self.until = time.monotonic() + _SECONDS_FOR_A_REPORT
        self.challenge = secrets.token_hex(16)


class _Meeting:
    """Host 0's side. Args: membership; own_report; listeners, open sockets."""

    def __init__(self, membership, own_report, listeners):
        self._membership, self._own = membership, own_report
        self._reports = {0: own_report}
        self._joined = {}  # host: socket
        self._pending = {}  # socket: _Pending, oldest first
        self._listeners = listeners
        self._num_strangers = 0
        self._max_open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._refused = {}  # sentences, in the order of their arrival
        self._selector = selectors.DefaultSelector()
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def wait(self, deadline, timeout, progress_every):
        """Collects reports until all are there or the time is up. Returns: a sentence, or None where all is well."""
        said = time.monotonic()
        while len(self._reports) < self._membership.num_hosts:
            now = time.monotonic()
            if now >= deadline:
                return self._what_is_missing(timeout)
            if now - said >= progress_every:
                said = now
                logging.info(
                    "%d of %d hosts joined; waiting for %s",
                    len(self._reports),
                    self._membership.num_hosts,
                    self._missing(),
                )
            self._drop_the_slow(now)
            for key, _ in self._selector.select(min(0.5, deadline - now)):
                if key.fileobj in self._listeners:
                    self._accept(key.fileobj)
                elif key.fileobj in self._pending:
                    self._read(key.fileobj)
                elif key.fileobj in self._joined.values():
                    self._lose(key.fileobj)
        logging.info("%d of %d hosts joined", len(self._reports), self._membership.num_hosts)
        return differences({_in_words(host, one): one["facts"] for host, one in sorted(self._reports.items())})

    def answer(self, error):
        """Tells all hosts that joined how it ended. Returns: {host in words: socket}. Raises: HostsError(error)."""
        for listener in self._listeners:  # the port is free by now: JAX's coordinator is about to take it
            self._selector.unregister(listener)
            listener.close()
        self._listeners = []
        for host, connection in self._joined.items():
            self._send_answer(connection, self._reports[host], error)
        if error:
            raise HostsError(error)
        kept = {_in_words(host, self._reports[host]): one for host, one in self._joined.items()}
        for connection in kept.values():
            self._selector.unregister(connection)
        self._joined = {}
        return kept

    def close(self):
        for connection in (*self._pending, *self._joined.values(), *self._listeners):
            connection.close()
        self._selector.close()

    def _accept(self, listener):
        while True:
            try:
                connection = listener.accept()[0]
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._pending:
                    self._drop(next(iter(self._pending)))
                    continue
                if not isinstance(error, BlockingIOError):  # (else none is waiting any more)
                    time.sleep(0.05)  # the system is short of something: asked at once, it would be so again
                return
            if len(self._pending) >= min(_MAX_CONNECTIONS, self._max_open_files // 2):
                self._drop(next(iter(self._pending)))
            connection.setblocking(False)
            pending = self._pending[connection] = _Pending()
            self._selector.register(connection, selectors.EVENT_READ)
            try:
                connection.send(f'{{"challenge": "{pending.challenge}"}}\n'.encode())
            except OSError:
                self._drop(connection)

    def _drop(self, connection):
        """Ends a connection that is no host of this run, or not yet one."""
        self._selector.unregister(connection)
        del self._pending[connection]
        connection.close()
        self._num_strangers += 1

    def _drop_the_slow(self, now):
        for connection in [one for one, pending in self._pending.items() if pending.until < now]:
            self._drop(connection)
        while sum(len(pending.reader.data) for pending in self._pending.values()) > _MAX_BUFFERED_BYTES:
            self._drop(max(self._pending, key=lambda one: len(self._pending[one].reader.data)))

    def _read(self, connection):
        pending = self._pending[connection]
        line = pending.reader.read(connection)
        if line is None:
            return
        report = messages.verified(line, self._membership.token, pending.challenge) if line else None
        if not messages.is_report(report):  # a probe of the port, another run, or somebody else
            self._drop(connection)
            return
        refusal = self._refusal(report)
        if refusal:
            # It alone is told, and host 0 goes on waiting: whoever can speak must not be able to end the others' start.
            if refusal not in self._refused and len(self._refused) < 100:
                self._refused[refusal] = True
                logging.warning("%s", refusal)
            self._send_answer(connection, report, refusal)
            self._drop(connection)
            return
        del self._pending[connection]
        self._joined[report["host"]] = connection
        self._reports[report["host"]] = report

    def _lose(self, connection):
        """A host that had joined went away again, or speaks out of turn; restarted, it reports anew."""
        host = next(host for host, one in self._joined.items() if one is connection)
        self._selector.unregister(connection)
        self._joined.pop(host).close()
        del self._reports[host]

    def _refusal(self, report):
        """A sentence where a report does not fit the others, else None."""
        host, name, own = report["host"], messages.shown(report["name"]), self._own
        if report["num_hosts"] != own["num_hosts"] or not 0 <= host < own["num_hosts"]:
            return (
                f"host {host} ({name}) was told of {report['num_hosts']} hosts, host 0 ({own['name']}) of "
                f"{own['num_hosts']}: start all with the same --num_hosts"
            )
        if host in self._reports:
            first = messages.shown(self._reports[host]["name"])
            return f"{first} and {name} both say that they are host {host}: --host must be another on each"
        return None

    def _send_answer(self, connection, report, error):
        answer = {"error": error and error[:10_000], "name": self._own["name"]}
        with contextlib.suppress(OSError):
            connection.settimeout(5.0)  # an answer fits into what the system buffers
            connection.sendall(messages.signed(answer, self._membership.token, report["challenge"]))

    def _missing(self):
        names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        named = len(names) == self._membership.num_hosts
        absent = [host for host in range(self._membership.num_hosts) if host not in self._reports]
        shown = [f"{host} ({names[host]})" if named else str(host) for host in absent[:20]]
        return f"host{'s' * (len(absent) > 1)} {', '.join(shown)}" + ", ..." * (len(absent) > 20)

    def _what_is_missing(self, timeout):
        refused = "".join(f"; {sentence}" for sentence in list(self._refused)[:5])
        strangers = (
            f"; {self._num_strangers} connections were no hosts of this run (another token, or no host at all)"
            if self._num_strangers > len(self._refused)
            else ""
        )
        return (
            f"{len(self._reports)} of {self._membership.num_hosts} hosts joined within {timeout:g} s; missing: "
            f"{self._missing()}. Look at their logs: not started, or no way to "
            f"{self._membership.coordinator}{refused}{strangers}"
        )


def _in_words(host, report):
    return f"host {host} ({messages.shown(report['name'])})"


# -------------------------------------------------------------------------------------------------------- other hosts


def _report(membership, report, deadline, timeout):
    """Tells host 0, and waits for its answer. Returns: {host 0 in words: socket}. Raises: HostsError."""
    reached, reason = False, "no answer"
    while time.monotonic() < deadline:
        try:
            with contextlib.ExitStack() as closing:
                connection = socket.create_connection(membership.address(), timeout=5)
                closing.enter_context(connection)
                greeting = messages.parsed(_line(connection, time.monotonic() + 10) or b"")
                challenge = greeting.get("challenge") if isinstance(greeting, dict) else None
                if not messages.is_text(challenge, 100):
                    reason = "something else answers there"
                    time.sleep(0.5)
                    continue
                own_challenge = secrets.token_hex(16)
                connection.settimeout(10)
                connection.sendall(messages.signed({**report, "challenge": own_challenge}, membership.token, challenge))
                reached = True
                # Host 0 may have started later, and gives up later.
                line = _line(connection, deadline + timeout)
                answer = messages.verified(line, membership.token, own_challenge) if line else None
                if messages.is_answer(answer):
                    if answer["error"]:
                        raise HostsError(messages.shown(answer["error"], 10_000))
                    closing.pop_all()  # it stays open
                    return {f"host 0 ({messages.shown(answer['name'])})": connection}
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.5)
    if reached:
        raise HostsError(
            f"host 0 at {membership.coordinator} went away before all hosts had joined, or has another join token: "
            "look at its log"
        )
    raise HostsError(
        f"host {membership.host} did not reach host 0 at {membership.coordinator} within {timeout:g} s ({reason}): "
        "is host 0 running, and is the port open?"
    )


def _line(connection, until):
    """The next line of a connection, or b"" where none comes in time."""
    reader = messages.LineReader()
    while (now := time.monotonic()) < until:
        connection.settimeout(max(0.01, min(until - now, 3600.0)))
        line = reader.read(connection)
        if line is not None:
            return line
    return b""
