"""Ending a run before its time: on a signal, with all it has done saved."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Self

import jax

from haksnet_jax.distributed import hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which a signal is the first one's echo: `timeout`, and schedulers, send one to a process and another to
# its group.
_ECHO = 0.5


class Stopped(Exception):
    """A run that was asked to end before its time, and did so with all it had done saved."""


class StopRequest:
    """Remembers the first SIGTERM or SIGINT and says so at once; one that comes half a second later ends the process.

    While a program compiles, which can take minutes, no signal handler of Python runs in the main thread. Signals
    therefore also go to a thread, through the pipe that Python writes their numbers into as they come. They reach a
    program's main thread alone, so a run in another thread is not asked.

    Attributes:
      signal: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.signal = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        for number in _SIGNALS:
            self._former[number] = signal.signal(number, self._remember)
        self._former_pipe = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _remember(self, number, _):
        self.signal = self.signal or number

    def _watch(self):
        first: float | None = None
        while received := self._read.recv(64):
            for number in received:
                if number not in _SIGNALS:  # (others that have a handler)
                    continue
                self._remember(number, None)
                name = signal.Signals(number).name
                if first is None:
                    first = time.monotonic()
                    _tell(f"{name}: stopping after this step, which is then saved; once more ends at once")
                elif time.monotonic() - first > _ECHO:
                    _tell(f"{name} again: ended at once, steps since the last checkpoint are lost")
                    os._exit(128 + number)

    def __exit__(self, *_: Any) -> None:
        if not self._former:
            return
        signal.set_wakeup_fd(self._former_pipe)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
        self._write.close()  # ends the watcher
        self._watcher.join()
        self._read.close()

    def agreed(self, at_line: bool) -> bool:
        """Whether the run ends at this step. Several hosts agree on it when they write a line of the log.

        Args:
          at_line: whether this step writes one.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return at_line and hosts.any_host(self.signal is not None)


def _tell(text):
    with contextlib.suppress(OSError):  # nobody listens any more
        print(text, file=sys.stderr, flush=True)
