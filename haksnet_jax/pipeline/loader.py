"""Batches for training and evaluation, each process of a run reading its own part.

The order of training is one endless stream of examples: every epoch a new permutation of the source, drawn from the
seed, one after another. Global batch s is the s-th piece of the stream (N pieces, where a batch is made of N
micro-batches), and process p of P takes the p-th of P equal parts of each piece. What happens to example g of the
stream at random depends on the seed and g alone. So neither the number of workers nor of processes changes what is
trained on, and a position is one number: how many examples of the stream were given out.

What a row is made of is its own subject: `detection_rows`, `dense_transforms`, `classification_transforms`.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from haksnet_jax.errors import UserError
from haksnet_jax.images.headers import ImageError
from haksnet_jax.pipeline.batches import Batches, iterate

_MAX_REPLACEMENTS = 20  # examples that are tried in the place of one that cannot be read


def steps_per_epoch(num_examples: int, global_batch: int) -> int:
    """Steps that see every example at least once: num_examples / global_batch rounded up.

    The stream runs on across the end of an epoch, so no example is skipped; an "epoch" of steps may see a few examples
    of the next one.
    """
    return -(-num_examples // global_batch)


class _StreamRows:
    """Row i of this process's part of the endless stream; random access, for grain.

    Args:
      source: random-access examples.
      make: (example, np.random.Generator) -> dict of arrays of one row. Pickled for worker processes.
      first: position in the stream of the first row of process 0.
      length: rows in all.
      block: rows that this process takes of each piece of the stream.
      replace_bad: whether another example stands for one whose image cannot be read; else that is an error.
    """

    def __init__(self, source, make, *, seed, first, length, block, process_index, process_count, replace_bad=False):
        self.source = source
        self.make = make
        self.block = block
        self.seed = seed
        self.first = first
        self.length = length
        self.process_index, self.process_count = process_index, process_count
        self.replace_bad = replace_bad
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def __getstate__(self):
        state = dict(self.__dict__)
        del state["_order"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch):
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.source))

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        piece, row = divmod(int(row), self.block)
        position = self.first + (piece * self.process_count + self.process_index) * self.block + row
        epoch, place = divmod(position, len(self.source))
        index = int(self._order(epoch)[place])
        row, index, num_replaced = self._row(index, position)
        return row | {"image_index": np.int32(index), "num_replaced": np.int32(num_replaced)}

    def _row(self, index, position):
        """(row, index of its example, 1 where that stands for one whose image cannot be read, else 0)."""
        try:
            return self._made(index, position), index, 0
        except ImageError as error:
            if not self.replace_bad:
                raise
            logging.warning("%s; another image is taken in its place", error)
            first = error
        # Which one depends on the position alone, like everything that happens to an example.
        others = np.random.default_rng([self.seed, 2, position]).integers(len(self.source), size=_MAX_REPLACEMENTS)
        for other in others.tolist():
            with contextlib.suppress(ImageError):
                return self._made(other, position), other, 1
        raise first

    def _made(self, index, position):
        return self.make(self.source[index], np.random.default_rng([self.seed, 1, position]))


class _RowsInOrder:
    """Rows of this process's evaluation batches in the source's order, filled up at the end; for grain.

    Args:
      source: random-access examples.
      make: example -> dict of arrays of one row.
      filler: () -> such a dict for rows beyond the end, and for images that cannot be read.
    """

    def __init__(self, source, make, filler, *, first_batch, batch_size, process_index, process_count):
        self.source = source
        self.make, self.filler = make, filler
        self.first_batch = first_batch
        self.batch_size = batch_size
        self.process_index, self.process_count = process_index, process_count

    def __len__(self):
        num_batches = steps_per_epoch(len(self.source), self.batch_size * self.process_count)
        return (num_batches - self.first_batch) * self.batch_size

    def __getitem__(self, row):
        batch, row = divmod(int(row), self.batch_size)
        index = ((self.first_batch + batch) * self.process_count + self.process_index) * self.batch_size + row
        if index >= len(self.source):
            return self.filler() | {"image_index": np.int32(-1)}
        try:
            row = self.make(self.source[index])
        except ImageError as error:
            logging.warning("%s; nothing is found in it", error)
            row = self.filler()
        return row | {"image_index": np.int32(index)}


def _check_stream(source, batch_size, num_workers, process_index, process_count, stall_seconds):
    if batch_size < 1 or num_workers < 0:
        raise UserError(f"expected batch_size >= 1 and num_workers >= 0, found {batch_size} and {num_workers}")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index must be in 0 .. process_count - 1, found {process_index} of {process_count}")
    if stall_seconds is not None and not stall_seconds > 0:
        raise UserError(f"stall_seconds is a time above 0, or None, found {stall_seconds}")
    if not len(source):
        raise UserError("the source holds no example")


def stream_batches(
    source: Any,
    make: Callable[[Any, np.random.Generator], dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    first_example: int = 0,
    num_workers: int = 0,
    num_threads: int = 4,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    accumulate_steps: int = 1,
    stall_seconds: float | None = None,
    replace_bad: bool = False,
) -> Batches:
    """Batches of the endless stream in random order, whatever an example is.

    Args:
      source: random-access examples.
      make: (example, np.random.Generator) -> dict of arrays, one row; the same shapes each time. It travels to worker
        processes, so it can be pickled: a function of a module, or an object with `__call__`.
      batch_size: rows of each batch of this process; the global batch is batch_size * process_count.
      seed: of order and augmentation.
      num_epochs: ends after num_epochs * steps_per_epoch batches; None never ends.
      first_example: position in the stream to begin at, counted over all processes (steps done * global batch).
      num_workers: processes that read and augment; 0 does it in num_threads threads of this process. A script that
        uses processes must guard its start with `if __name__ == "__main__"`.
      num_threads: threads where num_workers is 0.
      prefetch: batches kept ready (by each worker).
      process_index: which of the processes of a run this is.
      process_count: how many there are.
      accumulate_steps: micro-batches that a batch is made of, one after another in its rows; the examples of each are
        then the same for any number of processes.
      stall_seconds: after that long a warning says that a batch is waited for, and again after each such period; after
        MAX_STALLED_PERIODS of them, or where a worker is dead, it is an error. None waits for ever.
      replace_bad: whether another example stands for one whose image cannot be read; else that is an error.

    Returns:
      Batches of the stacked rows, `image_index` and `num_replaced` (1 for a row that stands for another), an iterator
      with get_state, set_state and close.

    Raises:
      ValueError: an argument out of range. While iterating: what `source` and `make` raise.
      PipelineError: while iterating: a worker died, or nothing came for too long.
    """
    _check_stream(source, batch_size, num_workers, process_index, process_count, stall_seconds)
    if seed < 0 or first_example < 0:
        raise UserError(f"expected seed >= 0 and first_example >= 0, found {seed} and {first_example}")
    if accumulate_steps < 1 or batch_size % accumulate_steps:
        raise UserError(
            f"a batch of {batch_size} rows a process cannot be made of accumulate_steps={accumulate_steps} equal parts"
        )
    global_batch = batch_size * process_count

    def open_at(position, batches_left):
        # 2**40 rows: endless, and still a length that grain can count with
        length = 2**40 if batches_left is None else batches_left * batch_size
        rows = _StreamRows(
            source,
            make,
            seed=seed,
            first=position,
            length=length,
            block=batch_size // accumulate_steps,
            process_index=process_index,
            process_count=process_count,
            replace_bad=replace_bad,
        )
        return iterate(rows, batch_size, num_workers, num_threads, prefetch)

    num_batches = None if num_epochs is None else num_epochs * steps_per_epoch(len(source), global_batch)
    return Batches(
        open_at, global_batch, first_example, num_batches, stall_seconds=stall_seconds, what="a batch of training data"
    )


def ordered_batches(
    source: Any,
    make: Callable[[Any], dict[str, Any]],
    filler: Callable[[], dict[str, Any]],
    *,
    batch_size: int,
    num_workers: int = 0,
    num_threads: int = 4,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    stall_seconds: float | None = None,
) -> Batches:
    """Batches in the source's order, every example exactly once over all processes, whatever an example is.

    Every process gets the same number of batches; rows beyond the end are `filler()` with image_index -1.

    Args:
      source: random-access examples.
      make: example -> dict of arrays, one row; see `stream_batches`.
      filler: () -> such a dict.
      batch_size, num_workers, num_threads, prefetch, process_index, process_count, stall_seconds: as in
        `stream_batches`.

    Returns:
      Batches of the stacked rows and `image_index`, an iterator with a length.

    Raises:
      As `stream_batches`.
    """
    _check_stream(source, batch_size, num_workers, process_index, process_count, stall_seconds)
    global_batch = batch_size * process_count

    def open_at(position, batches_left):
        del batches_left  # the source's end is the end
        rows = _RowsInOrder(
            source,
            make,
            filler,
            first_batch=position // global_batch,
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
        )
        return iterate(rows, batch_size, num_workers, num_threads, prefetch)

    num_batches = steps_per_epoch(len(source), global_batch)
    return Batches(
        open_at, global_batch, 0, num_batches, stall_seconds=stall_seconds, what="a batch of evaluation data"
    )
