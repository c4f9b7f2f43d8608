"""Many images through a network: a thread reads ahead of the devices, results come in the order of the images.

Nothing here knows what the network looks for: a caller says how an image is opened, which views of it there are, how a
batch is started on the devices, and how it is unpacked.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np

_QUEUED = 3  # batches that wait for the device
# Images that may be open while one before them waits for its windows to fill a batch.
_HELD = 16


class Batch(NamedTuple):
    """Views that go through the network together.

    Attributes:
      images: [B, H, W, C] uint8, padded with zeros.
      image_size: [B, 2] int32 rows and columns of content.
      scale: [B, 2] float32 factors of x and y by which the content was resized.
      views: list of View, at most B; rows beyond them show nothing.
      spread: whether it is one of many windows, to be spread over all devices.
      num_seen: views read so far in all, those skipped too.
      num_planned: views of the images opened so far.
    """

    images: np.ndarray
    image_size: np.ndarray
    scale: np.ndarray
    views: list
    spread: bool
    num_seen: int
    num_planned: int


class Seen(NamedTuple):
    """An image that went through the network.

    Attributes:
      index: of the image in the sequence.
      image: as it was opened, still open; None where it could not be read.
      parts: what the caller's `unpack` gave for each of its views, in the order in which they were read.
      num_skipped: windows of a single colour, which did not go through the network.
      error: None, or why the image cannot be read.
    """

    index: int  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    image: Any
    parts: list
    num_skipped: int
    error: Exception | None


class _Opened(NamedTuple):
    index: int  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    image: Any


class _Ended(NamedTuple):
    index: int  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    num_views: int
    num_skipped: int
    error: Exception | None


class _End(NamedTuple):
    error: BaseException | None


class _Stopped(Exception):
    """The consumer is gone."""


def ahead(produce: Callable[[Callable[[Any], None]], None], *, size: int = _QUEUED) -> Generator[Any, None, None]:
    """Runs a producer in a thread, at most `size` items ahead of the consumer.

    Args:
      produce: function that is given a function `put` and calls it for each item.
      size: items that wait at most.

    Yields:
      The items, in order. An error of the producer is raised here.
    """
    items: queue.Queue[Any] = queue.Queue(size)
    stopped = threading.Event()

    def put(item):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=0.2)
                return
        raise _Stopped

    def run():
        error = None
        try:
            produce(put)
        except _Stopped:
            return
        except BaseException as raised:  # whatever it is, the consumer must not wait for ever
            error = raised
        with contextlib.suppress(_Stopped):
            put(_End(error))

    reader = threading.Thread(target=run, name="haksnet-reader", daemon=True)
    reader.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        reader.join()


def look(
    images: Iterable[Any],
    *,
    open_image: Callable[[Any], Any],
    views_of: Callable[..., Any],
    count: Callable[[Any], int],
    canvas: tuple[int, int],
    batch_size: int,
    start: Callable[..., Any],
    unpack: Callable[..., Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> Generator[Any, None, None]:
    """Looks at many images, reading ahead of the devices.

    Args:
      images: an iterable of whatever `open_image` takes; an iterator is not asked for more than is needed.
      open_image: function from one of them to an image with `close()`. What it and reading raise of OSError, ValueError
        and MemoryError ends this image alone.
      views_of: function of (index, image) that yields (content, View, canvas or None), see `views.views_of`; None for a
        view that is left out.
      count: function from an image to its number of views, mirror images not counted.
      canvas: (rows, columns) that views without a canvas of their own are padded to.
      batch_size: rows of the batches of such views; a view with its own canvas is a batch of one row.
      start: function from a Batch to an output, which need not be there yet.
      unpack: function of (Batch, output) to a list with a part for each of its views.
      on_progress: function of (views so far, views of the images opened so far), called for each batch.

    Yields:
      Seen, one for each image, in the order of the images. Its image is open: close it.
    """
    read = _Reader(images, open_image, views_of, count, canvas, batch_size)
    order = _InOrder()
    pending = None
    events = ahead(read)
    try:
        for event in events:
            if isinstance(event, Batch):
                output = start(event)
                if pending is not None:  # the device works on the new one while the one before is unpacked
                    order.add(pending[0].views, unpack(*pending))
                pending = (event, output)
            elif isinstance(event, _Opened):
                order.images[event.index] = event.image
            else:
                order.ended[event.index] = event
            yield from order.ready()
            if isinstance(event, Batch) and on_progress is not None:
                on_progress(event.num_seen, event.num_planned)
        if pending is not None:
            order.add(pending[0].views, unpack(*pending))
        yield from order.ready()
    finally:
        events.close()
        for image in order.images.values():
            image.close()


class _InOrder:
    """What is known of the images that are not handed on yet."""

    def __init__(self):
        self.images, self.ended, self._parts = {}, {}, {}
        self._next = 0

    def add(self, views, parts):
        for view, part in zip(views, parts, strict=True):
            if view.index >= self._next:  # else its image could not be read to its end
                self._parts.setdefault(view.index, []).append(part)

    def ready(self):
        """Yields Seen of the images that are complete and come next."""
        while (end := self.ended.get(self._next)) is not None:
            parts = self._parts.get(self._next, [])
            if end.error is None and len(parts) < end.num_views:
                return
            index, self._next = self._next, self._next + 1
            del self.ended[index]
            self._parts.pop(index, None)
            image = self.images.pop(index, None)
            if end.error is not None and image is not None:
                image.close()
                image = None
            yield Seen(index, image, [] if end.error else parts, end.num_skipped, end.error)


class _Reader:
    """Opens images one after another and puts batches of their views; runs in the reading thread."""

    def __init__(self, images, open_image, views_of, count, canvas, batch_size):
        self._images, self._open_image, self._views_of, self._count = images, open_image, views_of, count
        self._canvas, self._batch_size = canvas, batch_size
        self._waiting = []  # (content, View) of windows that do not fill a batch yet
        self._seen = self._planned = 0

    def __call__(self, put):
        for index, source in enumerate(self._images):
            num_views = num_skipped = 0
            error = None
            if self._waiting and index - self._waiting[0][1].index > _HELD:
                self._flush(put)
            try:
                image = self._open_image(source)
                put(_Opened(index, image))
                self._planned += self._count(image)
                for found in self._views_of(index, image):
                    if found is None:
                        self._seen += 1
                        num_skipped += 1
                        continue
                    content, view, canvas = found
                    self._seen += view.mirrored_width is None
                    num_views += 1
                    if canvas is not None:
                        put(self._batch([(content, view)], canvas, 1, spread=False))
                        continue
                    self._waiting.append((content, view))
                    if len(self._waiting) == self._batch_size:
                        self._flush(put)
            except (OSError, ValueError, MemoryError, cv2.error) as caught:
                error = caught
                # Views of this image that still wait would be of no use.
                self._waiting = [entry for entry in self._waiting if entry[1].index != index]
            put(_Ended(index, num_views, num_skipped, error))
        self._flush(put)

    def _flush(self, put):
        if self._waiting:  # the batch keeps its shape: rows that are left show nothing
            put(self._batch(self._waiting, self._canvas, self._batch_size, spread=True))
            self._waiting = []

    def _batch(self, entries, canvas, batch_size, *, spread):
        pixels = np.zeros((batch_size, *canvas, entries[0][0].shape[-1]), np.uint8)
        image_size = np.tile(np.array(canvas, np.int32), (batch_size, 1))
        scale = np.ones((batch_size, 2), np.float32)
        for row, (content, view) in enumerate(entries):
            pixels[row, : content.shape[0], : content.shape[1]] = content
            image_size[row] = content.shape[:2]
            scale[row] = view.factors
        views = [view for _, view in entries]
        return Batch(pixels, image_size, scale, views, spread, self._seen, self._planned)
