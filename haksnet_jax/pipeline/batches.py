"""An iterator over batches: its position, worker processes behind it, and how long a batch may be waited for."""

import ctypes
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import cv2
import numpy as np
from absl import flags, logging

from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import shared_batches

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Periods of waiting for one batch after which it is not waited for any more.
MAX_STALLED_PERIODS = 10


class PipelineError(UserError):
    """Batches do not come any more; the message says why and what to do."""


_pieces: shared_batches.Pieces | None = None  # of a worker process


def _stack(rows):
    """A batch of rows: a dict of arrays, or in a worker process where they lie (`shared_batches.Sent`)."""
    if _pieces is not None:
        return _pieces.stack(rows)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def prepare_process() -> None:
    """Sets OpenCV and the C library up for a process that does nothing but make batches.

    By default glibc gives the memory of an image back to the system when it is freed, and takes new memory for the
    next one, page by page: 1,500 page faults for each image of 1024 x 1024 pixels, 6 of 12 ms that decoding it took on
    a virtual machine. Here up to 2 GB stay with the process, and its threads share them.
    """
    cv2.setNumThreads(0)  # processes are the parallelism, OpenCV's own threads would only get in their way
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # (other C libraries than glibc have none)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)


def _start_worker(worker_index, worker_count):
    """Runs in each worker process."""
    global _pieces
    del worker_index, worker_count
    prepare_process()
    _pieces = shared_batches.Pieces()
    # Schedulers and terminals send these to all processes of a run. The first process ends its step and saves it; it
    # needs batches until then, and ends its workers itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        _pieces.forget()
        os._exit(1)  # killed, it could not end its workers, which would wait for it for ever

    threading.Thread(target=end_with_parent, daemon=True).start()


def iterate(rows: Sequence[Any], batch_size: int, num_workers: int, num_threads: int, prefetch: int) -> Any:
    """An iterator over stacked rows, in order. Args: as of `loader.stream_batches`; rows, random access."""
    import grain  # here: grain imports JAX, which a process that only reads images has no use for

    dataset = grain.MapDataset.source(rows).batch(batch_size, drop_remainder=True, batch_fn=_stack)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which absl refuses outside of an absl program
        # Workers read it when they load numpy: else each starts a thread of OpenBLAS for every core, which waits busily
        # for an eighth of a second (16 cores, 12 workers: seconds of all cores at the start).
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # A worker makes whole batches, every num_workers-th; two threads overlap reading with decoding.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        dataset = dataset.to_iter_dataset(options).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch),
            worker_init_fn=_start_worker,
        )
        return _Received(iter(dataset))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return iter(dataset.to_iter_dataset(options))


class _Received:
    """Batches of grain's workers, in the shared memory of `shared_batches`."""

    def __init__(self, iterator):
        self._iterator = iterator
        self._received = shared_batches.Received()

    def __next__(self):
        return self._received.arrays(next(self._iterator))

    def close(self):
        self._iterator.close()


class _Watched:
    """An iterator whose elements are waited for with a limit, in a thread that may be left behind.

    Args:
      iterator: of batches.
      stall_seconds: of a period, at whose end a warning says what is waited for.
      what: what the elements are, for messages.
    """

    def __init__(self, iterator, stall_seconds, what):
        self._iterator = iterator
        self._stall_seconds = stall_seconds
        self._what = what
        self._workers = []
        self._gave_up = False
        self._asked = False  # for an element that was not taken yet
        self._wanted, self._given = queue.SimpleQueue(), queue.SimpleQueue()
        # A daemon, since an element that never comes must not keep the process from ending.
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        while self._wanted.get():
            try:
                self._given.put((next(self._iterator), None))
            except BaseException as error:  # handed on to who waits
                self._given.put((None, error))

    def ask(self):
        """Asks for the next element, without waiting for it."""
        if not self._asked:
            self._asked = True
            self._wanted.put(True)

    def __next__(self):
        self.ask()
        periods = 0
        while True:
            try:
                element, error = self._given.get(timeout=self._stall_seconds)
                self._asked = False
                break
            except queue.Empty:
                periods += 1
            self._require_workers()
            waited = f"{periods * self._stall_seconds:g} s"
            if periods >= MAX_STALLED_PERIODS:
                self._gave_up = True
                raise PipelineError(
                    f"waited {waited} for {self._what}, which did not come: see whether the data's disk or bucket "
                    "answers; data.stall_seconds says how long a period of waiting is, and this was the last of "
                    f"{MAX_STALLED_PERIODS}"
                )
            logging.warning("waiting for %s since %s", self._what, waited)
        if isinstance(error, RuntimeError):
            self._require_workers(error)  # grain says it at length
        if error is not None:
            raise error
        # (grain starts its workers, children of this process, with the first element)
        self._workers = self._workers or multiprocessing.active_children()
        return element

    def _require_workers(self, cause=None):
        # Of a dead child the list is not sure to tell; of one that is starting, only the list does.
        for worker in set(self._workers) | set(multiprocessing.active_children()):
            if worker.exitcode:
                how = f"signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit status {worker.exitcode}"
                raise PipelineError(
                    f"a process that makes {self._what} died ({how}; 9 is what the kernel sends where memory ran out): "
                    "start the same command again, with a smaller data.num_workers if memory is short"
                ) from cause

    def close(self):
        self._wanted.put(False)
        if self._asked and not self._gave_up:  # (what is being read cannot be interrupted)
            try:
                self._given.get(timeout=self._stall_seconds)
            except queue.Empty:
                self._gave_up = True
        if self._gave_up:
            # Grain would wait for the worker that hangs, for ever. It cannot be asked to end, and is not to outlive us.
            for worker in set(self._workers) | set(multiprocessing.active_children()):
                worker.kill()
        elif hasattr(self._iterator, "close"):
            self._iterator.close()


class Batches:
    """Iterator over batches, whose position can be saved and restored.

    Attributes:
      num_batches: how many there are in all, or None for an endless stream.
    """

    def __init__(
        self,
        open_at: Callable[[int, int | None], Any],
        examples_per_batch: int,
        first_example: int,
        num_batches: int | None,
        *,
        stall_seconds: float | None = None,
        what: str = "a batch",
    ) -> None:
        self._open_at = open_at  # function of (first example, batches left) that gives an iterator
        self._examples_per_batch = examples_per_batch
        self._position = first_example
        self._iterator: Any = None
        self._given = 0
        self._stall_seconds = stall_seconds
        self._what = what
        self.num_batches = num_batches

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("the stream of training batches has no end; give num_epochs for one that has")
        return self.num_batches

    def __next__(self) -> dict[str, np.ndarray]:
        if self.num_batches is not None and self._given >= self.num_batches:
            self.close()
            raise StopIteration
        self._open()
        batch = next(self._iterator)
        self._position += self._examples_per_batch
        self._given += 1
        return batch

    def _open(self):
        if self._iterator is None:
            left = None if self.num_batches is None else self.num_batches - self._given
            self._iterator = self._open_at(self._position, left)
            if self._stall_seconds is not None:
                self._iterator = _Watched(self._iterator, self._stall_seconds, self._what)

    def start(self) -> None:
        """Starts worker processes and the first batch, without waiting for them, where there is a `stall_seconds`."""
        self._open()
        if isinstance(self._iterator, _Watched):
            self._iterator.ask()

    def get_state(self) -> dict[str, int]:
        """{"next_example", "batches_given"}: plain numbers, the same in every process; `next_example` counts all."""
        return {"next_example": self._position, "batches_given": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was called, whatever the number of workers or processes was there."""
        self.close()
        self._position, self._given = int(state["next_example"]), int(state["batches_given"])

    def close(self) -> None:
        """Ends worker processes; the next batch starts them again."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None
