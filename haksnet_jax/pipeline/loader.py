"""Batches for training and evaluation, each process of a run reading its own part.

The order of training is one endless stream of examples: every epoch a new permutation of the source, drawn from the
seed, one after another. Global batch s is the s-th piece of the stream (N pieces, where a batch is made of N
micro-batches), and process p of P takes the p-th of P equal parts of each piece. What happens to example g of the
stream at random depends on the seed and g alone. So neither the number of workers nor of processes changes what is
trained on, and a position is one number: how many examples of the stream were given out.

A batch is a dict of numpy arrays:
  image        [B, H, W, C] uint8, RGB or the bands chosen, padded at the right and bottom (`transforms.pad`)
  boxes        [B, M, 5] float32 le90, in pixels of the resized image
  labels       [B, M] int32
  valid        [B, M] bool
  image_size   [B, 2] int32 rows and columns of the content
  image_index  [B] int32 index in the source; -1 for a row that only fills up the last batch
  num_cut      [B] int32 boxes beyond the cap M
  num_dropped  [B] int32 boxes left out: without area, too small, or turned out of the image
Evaluation adds
  scale          [B, 2] float32 factors of x and y that were applied to the original
  original_size  [B, 2] int32 rows and columns of the original
"""

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading

import cv2
import numpy as np
from absl import flags, logging

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.images.headers import ImageError
from haksnet_jax.pipeline import transforms

# Periods of waiting for one batch after which it is not waited for any more.
MAX_STALLED_PERIODS = 10
_MAX_REPLACEMENTS = 20  # examples that are tried in the place of one that cannot be read


class PipelineError(UserError):
    """Batches do not come any more; the message says why and what to do."""


def steps_per_epoch(num_examples, global_batch):
    """Steps that see every example at least once: num_examples / global_batch rounded up.

    The stream runs on across the end of an epoch, so no example is skipped; an "epoch" of steps may see a few examples
    of the next one.
    """
    return -(-num_examples // global_batch)


def _fit(image, boxes, image_size, resize, image_id):
    """(image, boxes, scale) that fit the canvas."""
    if resize == "fit":
        return transforms.resize_keep_ratio(image, boxes, image_size)
    if image.shape[0] > image_size[0] or image.shape[1] > image_size[1]:
        raise UserError(
            f"image {image_id} of {image.shape[0]} x {image.shape[1]} pixels does not fit the canvas of "
            f"{image_size[0]} x {image_size[1]}; cut it into tiles, or use resize='fit'"
        )
    return image, boxes, np.ones(2, np.float32)


def _padded_boxes(boxes, labels, max_boxes):
    """Boxes, labels and valid of fixed length; the first max_boxes in the file's order stay."""
    count = min(len(boxes), max_boxes)
    padded = np.zeros((max_boxes, 5), np.float32)
    padded[:count] = boxes[:count]
    padded_labels = np.zeros(max_boxes, np.int32)
    padded_labels[:count] = labels[:count]
    return {
        "boxes": padded,
        "labels": padded_labels,
        "valid": np.arange(max_boxes) < count,
        "num_cut": np.int32(len(boxes) - count),
    }


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


class _AugmentedDetections:
    """(example, rng) -> the row of training with augmented image and boxes."""

    def __init__(self, *, image_size, max_boxes, **augment):
        self.image_size = image_size
        self.max_boxes = max_boxes
        self.augment = augment

    def __call__(self, example, rng):
        settings = self.augment
        boxes, valid = polygons_to_boxes(example["polygons"])
        boxes, labels = boxes[valid], example["labels"][valid]
        image, scale_range = example["image"], settings["scale_range"]
        # A range without width draws nothing: what happens to an example without it stays what it was.
        if scale_range[0] < scale_range[1]:
            image, boxes = transforms.random_resize(image, boxes, rng, canvas=self.image_size, scale_range=scale_range)
        else:
            image, boxes, _ = _fit(image, boxes, self.image_size, settings["resize"], example["image_id"])
        image, boxes = transforms.random_flip_and_rotation(
            image,
            boxes,
            labels,
            rng,
            flip_probabilities=settings["flip_probabilities"],
            rotation_probability=settings["rotation_probability"],
            max_degrees=settings["max_degrees"],
            quarter_turn_labels=settings["quarter_turn_labels"],
        )
        if settings["gain_range"][0] < settings["gain_range"][1]:
            image = transforms.random_gain(image, rng, settings["gain_range"])
        keep = transforms.usable(
            boxes, image.shape[:2], min_side=settings["min_side"], drop_outside=settings["drop_outside"]
        )
        return {
            "image": transforms.pad(image, self.image_size),
            **_padded_boxes(boxes[keep], labels[keep], self.max_boxes),
            "image_size": np.array(image.shape[:2], np.int32),
            "num_dropped": np.int32(len(example["labels"]) - keep.sum()),
        }


class _FittedDetections:
    """example -> the row of evaluation; `filler` gives one without content."""

    def __init__(self, *, image_size, channels, max_boxes, resize):
        self.image_size = image_size
        self.channels = channels
        self.max_boxes = max_boxes
        self.resize = resize

    def filler(self):
        # The shape of an image, so that nothing downstream divides by zero; image_index says what it is.
        shape = (*self.image_size, self.channels)
        row = {
            "image": np.broadcast_to(np.uint8(transforms.padding_values(self.channels)), shape),
            "image_size": np.array(self.image_size, np.int32),
            "scale": np.ones(2, np.float32),
            "original_size": np.array(self.image_size, np.int32),
        }
        return row | self._boxes(np.zeros((0, 5), np.float32), np.zeros(0, np.int32), 0)

    def __call__(self, example):
        boxes, valid = polygons_to_boxes(example["polygons"])
        original_size = np.array(example["image"].shape[:2], np.int32)
        image, boxes, scale = _fit(example["image"], boxes[valid], self.image_size, self.resize, example["image_id"])
        return {
            "image": transforms.pad(image, self.image_size),
            "image_size": np.array(image.shape[:2], np.int32),
            "scale": scale,
            "original_size": original_size,
        } | self._boxes(boxes, example["labels"][valid], len(valid) - int(valid.sum()))

    def _boxes(self, boxes, labels, num_dropped):
        if self.max_boxes is None:
            return {}
        return {**_padded_boxes(boxes, labels, self.max_boxes), "num_dropped": np.int32(num_dropped)}


def _stack(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _start_worker(worker_index, worker_count):
    """Runs in each worker process."""
    del worker_index, worker_count
    cv2.setNumThreads(0)  # processes are the parallelism, OpenCV's own threads would only get in their way
    # Schedulers and terminals send these to all processes of a run. The first process ends its step and saves it; it
    # needs batches until then, and ends its workers itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # killed, it could not end its workers, which would wait for it for ever

    threading.Thread(target=end_with_parent, daemon=True).start()


def _batches(rows, batch_size, num_workers, num_threads, prefetch):
    """An iterator over stacked rows, in order."""
    import grain  # here: grain imports JAX, which a process that only reads images has no use for

    dataset = grain.MapDataset.source(rows).batch(batch_size, drop_remainder=True, batch_fn=_stack)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which absl refuses outside of an absl program
        # A worker makes whole batches, every num_workers-th; two threads overlap reading with decoding.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        dataset = dataset.to_iter_dataset(options).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch),
            worker_init_fn=_start_worker,
        )
        return _Nameless(iter(dataset))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return iter(dataset.to_iter_dataset(options))


class _Nameless:
    """Elements of grain's workers, whose shared memory has no name any more when they are given out.

    The memory stays as long as its arrays and goes with the process, however that ends. Grain would take the name away
    when an array is garbage, in a thread that nobody waits for at the end of a process: Python then warns of leaked
    shared memory, and a killed process leaves it to the machine.
    """

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self):
        element = next(self._iterator)
        for array in element.values():
            if getattr(array, "_unlink_on_del", False):
                array.shm.unlink()
                array._unlink_on_del = False
        return element

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
        self._wanted, self._given = queue.SimpleQueue(), queue.SimpleQueue()
        # A daemon, since an element that never comes must not keep the process from ending.
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        while self._wanted.get():
            try:
                self._given.put((next(self._iterator), None))
            except BaseException as error:  # handed on to who waits
                self._given.put((None, error))

    def __next__(self):
        self._wanted.put(True)
        periods = 0
        while True:
            try:
                element, error = self._given.get(timeout=self._stall_seconds)
                break
            except queue.Empty:
                periods += 1
            self._require_workers()
            waited = f"{periods * self._stall_seconds:g} s"
            if periods >= MAX_STALLED_PERIODS:
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
        if hasattr(self._iterator, "close"):
            self._iterator.close()


class Batches:
    """Iterator over batches, whose position can be saved and restored.

    Attributes:
      num_batches: how many there are in all, or None for an endless stream.
    """

    def __init__(self, open_at, examples_per_batch, first_example, num_batches, *, stall_seconds=None, what="a batch"):
        self._open_at = open_at  # function of (first example, batches left) that gives an iterator
        self._examples_per_batch = examples_per_batch
        self._position = first_example
        self._iterator = None
        self._given = 0
        self._stall_seconds = stall_seconds
        self._what = what
        self.num_batches = num_batches

    def __iter__(self):
        return self

    def __len__(self):
        if self.num_batches is None:
            raise TypeError("the stream of training batches has no end; give num_epochs for one that has")
        return self.num_batches

    def __next__(self):
        if self.num_batches is not None and self._given >= self.num_batches:
            self.close()
            raise StopIteration
        if self._iterator is None:
            left = None if self.num_batches is None else self.num_batches - self._given
            self._iterator = self._open_at(self._position, left)
            if self._stall_seconds is not None:
                self._iterator = _Watched(self._iterator, self._stall_seconds, self._what)
        batch = next(self._iterator)
        self._position += self._examples_per_batch
        self._given += 1
        return batch

    def get_state(self):
        """{"next_example", "batches_given"}: plain numbers, the same in every process; `next_example` counts all."""
        return {"next_example": self._position, "batches_given": self._given}

    def set_state(self, state):
        """Goes on where `get_state` was called, whatever the number of workers or processes was there."""
        self.close()
        self._position, self._given = int(state["next_example"]), int(state["batches_given"])

    def close(self):
        """Ends worker processes; the next batch starts them again."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


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
    source,
    make,
    *,
    batch_size,
    seed,
    num_epochs=None,
    first_example=0,
    num_workers=0,
    num_threads=4,
    prefetch=2,
    process_index=0,
    process_count=1,
    accumulate_steps=1,
    stall_seconds=None,
    replace_bad=False,
):
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
        return _batches(rows, batch_size, num_workers, num_threads, prefetch)

    num_batches = None if num_epochs is None else num_epochs * steps_per_epoch(len(source), global_batch)
    return Batches(
        open_at, global_batch, first_example, num_batches, stall_seconds=stall_seconds, what="a batch of training data"
    )


def ordered_batches(
    source,
    make,
    filler,
    *,
    batch_size,
    num_workers=0,
    num_threads=4,
    prefetch=2,
    process_index=0,
    process_count=1,
    stall_seconds=None,
):
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
        return _batches(rows, batch_size, num_workers, num_threads, prefetch)

    num_batches = steps_per_epoch(len(source), global_batch)
    return Batches(
        open_at, global_batch, 0, num_batches, stall_seconds=stall_seconds, what="a batch of evaluation data"
    )


def _check_detections(image_size, max_boxes, resize):
    if len(image_size) != 2 or min(image_size) < 1:
        raise UserError(f"image_size is (rows, columns) in pixels, found {image_size}")
    if max_boxes is not None and max_boxes < 1:
        raise UserError(f"expected max_boxes >= 1, found {max_boxes}")
    if resize not in ("fit", "none"):
        raise UserError(f"resize is 'fit' or 'none', found '{resize}'")


def train_batches(
    source,
    *,
    batch_size,
    image_size,
    max_boxes,
    seed,
    num_epochs=None,
    first_example=0,
    flip_probabilities=(0.25, 0.25, 0.25),
    rotation_probability=0.5,
    max_degrees=180.0,
    quarter_turn_classes=(),
    scale_range=(1.0, 1.0),
    gain_range=(1.0, 1.0),
    min_side=5.0,
    drop_outside=True,
    resize="fit",
    num_workers=0,
    num_threads=4,
    prefetch=2,
    process_index=0,
    process_count=1,
    accumulate_steps=1,
    stall_seconds=None,
    replace_bad=False,
):
    """Augmented batches in random order. An image that is left without boxes stays, as one of background.

    Args:
      source: random-access examples (`sources`).
      batch_size: rows of each batch of this process; the global batch is batch_size * process_count.
      image_size: (rows, columns) of the canvas.
      max_boxes: M; further boxes of an image are cut off and counted in num_cut.
      seed: of order and augmentation.
      num_epochs: ends after num_epochs * steps_per_epoch batches; None never ends.
      first_example: position in the stream to begin at, counted over all processes (steps done * global batch).
      flip_probabilities: of a horizontal, a vertical and a diagonal flip.
      rotation_probability, max_degrees: of and in a random rotation.
      quarter_turn_classes: images with one of these classes (labels, or names) turn by quarter turns only.
      scale_range: (least, largest) random factor of size beside that of fitting the canvas; what is then larger than
        the canvas is cut at random. (1, 1): none.
      gain_range: (least, largest) random factor of all pixels; (1, 1): none.
      min_side: boxes with a side of that many pixels or less, after resizing, are left out; 0 keeps all.
      drop_outside: leaves out boxes whose centre is outside the image.
      resize: "fit" resizes images to fit the canvas, smaller ones too; "none" pads only, and refuses larger ones.
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
      replace_bad: see `stream_batches`.

    Returns:
      Batches, an iterator with get_state, set_state and close.

    Raises:
      ValueError: an argument out of range. While iterating: an image that cannot be read, by its name.
      PipelineError: while iterating: a worker died, or nothing came for too long.
    """
    image_size = tuple(image_size)
    _check_detections(image_size, max_boxes, resize)
    probabilities = np.asarray(flip_probabilities, np.float64)
    if probabilities.shape != (3,) or probabilities.min() < 0 or probabilities.sum() > 1 + 1e-9:
        raise UserError(
            f"flip_probabilities are three numbers (horizontal, vertical, diagonal) of sum <= 1, "
            f"found {flip_probabilities}"
        )
    if not 0 <= rotation_probability <= 1:
        raise UserError(f"rotation_probability is between 0 and 1, found {rotation_probability}")
    for name, (least, largest) in (("scale_range", scale_range), ("gain_range", gain_range)):
        if not 0 < least <= largest or (least == largest != 1):
            raise UserError(
                f"{name} is (1, 1), or the least and the largest of the factors that are drawn, found "
                f"{(least, largest)}"
            )
    if resize == "none" and scale_range[0] < scale_range[1]:
        raise UserError(f"scale_range is a factor beside resize='fit', found resize='none' and {tuple(scale_range)}")
    quarter_turn_labels = _labels_of(quarter_turn_classes, source.class_names)
    augmented = _AugmentedDetections(
        image_size=image_size,
        max_boxes=max_boxes,
        flip_probabilities=tuple(flip_probabilities),
        rotation_probability=rotation_probability,
        max_degrees=max_degrees,
        quarter_turn_labels=quarter_turn_labels,
        scale_range=tuple(scale_range),
        gain_range=tuple(gain_range),
        min_side=min_side,
        drop_outside=drop_outside,
        resize=resize,
    )
    return stream_batches(
        source,
        augmented,
        batch_size=batch_size,
        seed=seed,
        num_epochs=num_epochs,
        first_example=first_example,
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
        process_index=process_index,
        process_count=process_count,
        accumulate_steps=accumulate_steps,
        stall_seconds=stall_seconds,
        replace_bad=replace_bad,
    )


def _labels_of(classes, class_names):
    labels = []
    for entry in classes:
        label = class_names.index(entry) if entry in class_names else entry
        if isinstance(label, str) or not 0 <= label < len(class_names):
            raise UserError(f"quarter_turn_classes names '{entry}', which is not among {', '.join(class_names)}")
        labels.append(int(label))
    return tuple(labels)


def evaluation_batches(
    source,
    *,
    batch_size,
    image_size,
    max_boxes=None,
    resize="fit",
    num_workers=0,
    num_threads=4,
    prefetch=2,
    process_index=0,
    process_count=1,
    stall_seconds=None,
):
    """Batches in the source's order, every image exactly once over all processes, all of one shape.

    Every process gets the same number of batches; rows beyond the end have image_index -1.

    Args:
      source: random-access examples (`sources`), with or without labels.
      batch_size: rows of each batch of this process.
      image_size: (rows, columns) of the canvas.
      max_boxes: M, or None for batches without boxes, labels, valid, num_cut and num_dropped.
      resize: "fit" resizes images to fit the canvas, smaller ones too; "none" pads only, and refuses larger ones.
      num_workers: processes that read; 0 reads in num_threads threads of this process.
      num_threads: threads where num_workers is 0.
      prefetch: batches kept ready (by each worker).
      process_index: which of the processes of a run this is.
      process_count: how many there are.
      stall_seconds: after that long a warning says that a batch is waited for, and again after each such period; after
        MAX_STALLED_PERIODS of them, or where a worker is dead, it is an error. None waits for ever.

    Returns:
      Batches, an iterator with a length.

    Raises:
      ValueError: an argument out of range. While iterating: an image that cannot be read, by its name.
      PipelineError: while iterating: a worker died, or nothing came for too long.
    """
    image_size = tuple(image_size)
    _check_detections(image_size, max_boxes, resize)
    channels = getattr(source, "num_channels", 3)
    fitted = _FittedDetections(image_size=image_size, channels=channels, max_boxes=max_boxes, resize=resize)
    return ordered_batches(
        source,
        fitted,
        fitted.filler,
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
        process_index=process_index,
        process_count=process_count,
        stall_seconds=stall_seconds,
    )
