"""Batches on their way from worker processes to the trainer, in shared memory that is used again.

New shared memory costs a page fault for each 4 KB that are written, and the system's work to find and empty them:
3.4 ms for an image of 1024 x 1024 pixels on a virtual machine, as much as turning it takes. So a worker keeps the
pieces that it has made, and the trainer keeps them mapped. The byte behind a batch says whether somebody still reads
it; the worker sets it, and the trainer clears it when the last of the batch's arrays is garbage.
"""

import contextlib
import multiprocessing.util
import secrets
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

_ALIGNED = 64  # bytes: where JAX takes an array of the host as it is
# Bytes of arrays that the trainer copies: whoever keeps the names of a batch's images is not to keep its pixels.
_SMALL = 2**16


Layout = dict[str, tuple[int, tuple[int, ...], np.dtype]]  # of array names to (first byte, shape, dtype)


class Sent:
    """Where a batch lies: what travels to the trainer through a pipe, where an `Arrived` comes out.

    Attributes:
      name: of the shared memory.
      size: bytes of the batch; the byte behind them is 1 while somebody reads it.
      layout: Layout.
    """

    def __init__(self, name: str, size: int, layout: Layout) -> None:
        self.name, self.size, self.layout = name, size, layout

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.name, self.size, self.layout)


class Arrived(NamedTuple):
    """A batch in the trainer, see `Sent`; its memory is mapped, or None where it is there no more."""

    piece: SharedMemory | None
    size: int
    layout: Layout


_mapped: weakref.WeakValueDictionary[str, SharedMemory] = weakref.WeakValueDictionary()
_mapping = threading.Lock()


def _arrive(name, size, layout):
    """Maps a piece when its batch comes out of the pipe, perhaps long before somebody asks for the batch.

    A worker that has sent its last batch ends, and what has no reader then loses its name. It ends when the trainer has
    taken out of the pipe that this was the last. Where batches are not taken to the end, trainer and worker empty the
    pipe when that is so, and nobody asks for what they find.
    """
    with _mapping:
        piece = _mapped.get(name)
        if piece is None:
            try:
                piece = SharedMemory(name)
                piece.unlink()
            except FileNotFoundError:
                return Arrived(None, size, layout)
            _mapped[name] = piece
    return Arrived(piece, size, layout)


class Pieces:
    """The shared memory of a worker process: as many pieces as batches were on their way or read at a time."""

    def __init__(self) -> None:
        self._pieces: list[SharedMemory] = []
        self._lock = threading.Lock()  # (a worker makes more than one batch at a time)
        self._ended = False
        multiprocessing.util.Finalize(None, self.forget, exitpriority=0)

    def stack(self, rows: Sequence[dict[str, Any]]) -> Sent:
        """Stacks rows in a piece that is free, or a new one.

        Args:
          rows: of a batch, dicts of arrays or numbers of the same shapes and types.
        """
        layout, size = {}, 0
        for name, value in rows[0].items():
            first = np.asarray(value)
            layout[name] = (size, (len(rows), *first.shape), first.dtype)
            size += -(-first.nbytes * len(rows) // _ALIGNED) * _ALIGNED
        piece = self._take(size)
        try:
            for name, array in _arrays(np.ndarray(size, np.uint8, buffer=piece.buf), layout).items():
                np.stack([row[name] for row in rows], out=array, casting="no")
        except BaseException:
            _let_go(piece, size)
            raise
        return Sent(piece.name, size, layout)

    def _take(self, size):
        with self._lock:
            for piece in self._pieces:
                if piece.size > size and not piece.buf[size]:  # (all batches of a stream have the same size)
                    break
            else:
                # A longer name than the default: none may come twice, since the trainer knows pieces by it.
                piece = SharedMemory(f"hn_{secrets.token_hex(8)}", create=True, size=size + 1)
                self._pieces.append(piece)
                if self._ended:  # (threads go on while the process ends)
                    piece.unlink()
            piece.buf[size] = 1
            return piece

    def forget(self) -> None:
        """Takes the names away that no trainer took away, before this process ends."""
        with self._lock:
            self._ended = True
            for piece in self._pieces:
                with contextlib.suppress(FileNotFoundError):
                    piece.unlink()


class Received:
    """The trainer's side: arrays of batches that arrived. It keeps their pieces mapped, since they come again.

    A piece has no name any more once it is mapped: it goes with the processes that use it, however they end.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, SharedMemory] = {}

    def arrays(self, arrived: Arrived) -> dict[str, np.ndarray]:
        """The arrays of a batch. Large ones lie in the shared memory, which is theirs as long as one of them lives."""
        piece, size, layout = arrived
        if piece is None:
            raise RuntimeError("the memory of a batch is gone, and its worker process with it")
        self._pieces[piece.name] = piece
        # All large arrays are views of this one, so that it lives as long as they do. Its finalizer holds the piece,
        # which would else take the memory away from under arrays that outlive this object.
        whole = np.ndarray(size, np.uint8, buffer=piece.buf)
        weakref.finalize(whole, _let_go, piece, size).atexit = False
        return {
            name: array.copy() if array.nbytes < _SMALL else array for name, array in _arrays(whole, layout).items()
        }


def _arrays(whole, layout):
    """Views of a batch's memory."""
    views = {}
    for name, (start, shape, dtype) in layout.items():
        size = int(np.prod(shape)) * dtype.itemsize
        views[name] = whole[start : start + size].view(dtype).reshape(shape)
    return views


def _let_go(piece, size):
    piece.buf[size] = 0
