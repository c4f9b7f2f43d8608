"""The connections of the meeting stay open while a run goes on: where one ends, a host is gone."""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time

from haksnet_jax.distributed import messages

# Where several hosts end for the same reason, each has time to say it itself before it repeats what another one said.
GRACE_SECONDS = 5.0

# A host whose machine is lost closes nothing. Asked after 30 s of silence, every 10 s, it is gone after three answers
# that do not come: a minute, less than the 100 s after which JAX ends a process with a stack trace.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Watch:
    """Ends this process with a sentence when another host is gone. Host 0 sees all others, and tells them.

    Args:
      host: number of this one.
      connections: {host in words: socket}, those of the meeting.
    """

    def __init__(self, host: int, connections: dict[str, socket.socket]) -> None:
        self._host = host
        self._connections = dict(connections)
        self._leaving = False
        for connection in self._connections.values():
            connection.settimeout(GRACE_SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # (macOS has other names)
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._listen, daemon=True, name="watch over the other hosts").start()

    def _listen(self):
        selector = selectors.DefaultSelector()
        for host, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, (host, messages.LineReader()))
        while selector.get_map():
            for key, _ in selector.select():
                host, reader = key.data
                line = reader.read(key.fileobj)
                if line is None:
                    continue
                selector.unregister(key.fileobj)
                message = messages.parsed(line) if line else None
                if self._leaving or message == {"end": None}:
                    continue
                if not messages.is_end(message):  # the connection ended without a word
                    lost = f"{host} is gone (killed, or its machine or network lost)"
                    message = {"end": f"{lost}; the same command on all hosts goes on from the newest checkpoint"}
                self._tell(message)
                # Told of an error, this host may be about to meet the same one, and to say so itself.
                time.sleep(min(message.get("grace", 0.0), GRACE_SECONDS))
                reason = messages.shown(message["end"], 20_000)
                print(f"host {self._host}: error: this host ends because {reason}", file=sys.stderr, flush=True)
                os._exit(1)  # the other threads wait for that host, and an orderly end would too

    def leave(self, error: str | None) -> None:
        """See `hosts.leave`."""
        self._leaving = True
        if error is None:
            self._tell({"end": None})
        else:
            name = f"host {self._host} ({socket.gethostname()})"
            self._tell({"end": f"{name} ended with an error: {error[:10_000]}", "grace": GRACE_SECONDS})

    def _tell(self, message):
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")
