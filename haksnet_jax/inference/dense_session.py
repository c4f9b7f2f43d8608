"""Classes of the pixels of images of any size: overlapping windows, blended, in memory that does not grow with rows.

A window is a square of the network's input. Probabilities of neighbouring windows fade into each other where they
overlap; the class of a pixel is that of the largest sum. A row of windows is held at a time, and rows of pixels that no
further window reaches leave at once.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.distributed import mesh as devices


class Settings(NamedTuple):
    """How images are looked at.

    Attributes:
      tile: side of the windows in pixels, a multiple of 32.
      overlap: pixels that neighbouring windows share at least.
      scales: factors by which the windows' content is resized besides; the probabilities of all are averaged.
      flip: looks at windows mirrored left to right too.
      turns: looks at windows turned by one, two and three quarters too.
    """

    tile: int
    overlap: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    turns: bool = False

    def views(self) -> list[tuple[float, int, bool]]:
        """[(scale, quarter turns, mirrored)]"""
        turns = range(4) if self.turns else (0,)
        mirrored = (False, True) if self.flip else (False,)
        return [(scale, turn, mirror) for scale in self.scales for turn in turns for mirror in mirrored]


class Session:
    """A model, ready: windows in, probabilities out.

    Args:
      graph: graph definition of a model with `probabilities(*images)`.
      mesh: of devices of this host; batches are split over it.
      batch_size: windows at a time, a multiple of the mesh's devices.
    """

    def __init__(self, graph: nnx.GraphDef, mesh: jax.sharding.Mesh, *, batch_size: int) -> None:
        self.graph = graph
        self.mesh = mesh
        self.batch_size = batch_size
        self._variables = None

        def probabilities(variables, images):
            return nnx.merge(graph, variables["params"], variables["batch_stats"]).probabilities(*images)

        self._step = jax.jit(probabilities, compiler_options=devices.detection_options())

    def set_variables(self, variables: Any) -> None:
        """Puts {"params", "batch_stats"} of arrays that this host has whole on its devices."""
        # (through the host: the arrays of a run lie on the mesh of all hosts)
        fetched = jax.tree.map(np.asarray, variables)
        self._variables = jax.device_put(fetched, devices.replicated(self.mesh))

    def __call__(self, images: Sequence[np.ndarray], settings: Settings) -> jax.Array:
        """Probabilities of windows, the mean over the settings' views.

        Args:
          images: tuple of [n, tile, tile, C], n at most the batch's size.
          settings: Settings.

        Returns:
          [batch, K, tile, tile] float32, on the devices and perhaps not there yet; rows from n on mean nothing.
        """
        missing = self.batch_size - len(images[0])
        if missing:
            images = tuple(np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in images)
        views = settings.views()
        total: Any = None
        with jax.set_mesh(self.mesh):
            for scale, turns, mirrored in views:
                side = scaled_side(settings.tile, scale)
                resized = images if side == settings.tile else tuple(_resized(x, side) for x in images)
                by_number = devices.place_batch(self.mesh, {str(i): x for i, x in enumerate(resized)})
                placed = tuple(by_number[str(i)] for i in range(len(images)))
                turned = _turn(placed, turns, mirrored) if turns or mirrored else placed
                found = self._step(self._variables, turned)
                if len(views) == 1:
                    return found
                total = _add_turned_back(total, found, turns, mirrored, settings.tile, 1 / len(views))
        return total


def scaled_side(tile: int, scale: float) -> int:
    """Side of a window's content at a scale, a multiple of 32."""
    return max(64, round(tile * scale / 32) * 32)


def _resized(images, side):
    return np.stack([_resize(image, side) for image in images])


def _resize(image, side):
    parts = [
        cv2.resize(np.ascontiguousarray(image[..., i : i + 4]), (side, side), interpolation=cv2.INTER_LINEAR)
        for i in range(0, image.shape[-1], 4)
    ]
    return np.concatenate([part.reshape(side, side, -1) for part in parts], axis=-1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _turn(images, turns, mirrored):
    """Images [B, S, S, C], mirrored and then turned."""
    images = tuple(x[:, :, ::-1] if mirrored else x for x in images)
    return tuple(jnp.rot90(x, turns, axes=(1, 2)) for x in images)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _add_turned_back(total, probabilities, turns, mirrored, side, share):
    """total + share * probabilities [B, K, S', S'] as they were before `_turn`, resized to the side S."""
    x = jnp.rot90(probabilities, -turns, axes=(2, 3))
    x = x[..., ::-1] if mirrored else x
    if x.shape[-1] != side:
        x = jax.image.resize(x, (*x.shape[:2], side, side), "linear", antialias=False)
    return share * x if total is None else total + share * x


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of windows on an axis, evenly spread; neighbours share `overlap` pixels or more. Returns: list."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def fade(tile: int, overlap: int) -> np.ndarray:
    """[tile] float32 weights of a window's positions: 1 in the middle, falling to almost 0 at its ends.

    The fall is half a wave of a cosine over the overlap, steepest in its middle: at a window's very end, where the
    network sees least of the surroundings, the neighbour decides.
    """
    position = np.minimum(np.arange(tile) + 0.5, tile - 0.5 - np.arange(tile))
    share = np.clip(position / max(overlap, 1), 0, 1)
    return np.maximum(0.5 - 0.5 * np.cos(np.pi * share), 1e-4).astype(np.float32)


class Job(NamedTuple):
    """What is looked at, and where the result goes.

    Attributes:
      images: tuple of one image, or two of the same size: `height`, `width`, and `read(x1, y1, x2, y2)` that gives
        [y2 - y1, x2 - x1, C].
      sink: function of (first row, labels [rows, width] uint8), called for all rows from the top downwards.
      tag: for the caller.
      sums: function of (first row, sums of probabilities [K, rows, width]) that is called like sink, or None.
    """

    images: tuple
    sink: Any
    tag: Any = None
    sums: Any = None


class _Blend:
    """The sums of one image's windows, a row of windows at a time."""

    def __init__(self, job, settings):
        image = job.images[0]
        self.job = job
        self._tile = settings.tile
        self._height, self._width = image.height, image.width
        self.rows = starts(image.height, settings.tile, settings.overlap)
        self.columns = starts(image.width, settings.tile, settings.overlap)
        ramp = fade(settings.tile, settings.overlap)
        self._weights = ramp[:, None] * ramp
        self._total = None  # [K, tile, width]
        self._row = self._in_row = 0

    def add(self, x, probabilities):
        """Adds the next window. Args: x, its column; probabilities [K, tile, tile]. Returns: if it was the last."""
        if self._total is None:
            width = max(self._width, self._tile)
            self._total = np.zeros((len(probabilities), self._tile, width), np.float32)
        for total, layer in zip(self._total, probabilities, strict=True):  # (a temporary of one class, not of all)
            total[:, x : x + self._tile] += layer * self._weights
        self._in_row += 1
        if self._in_row < len(self.columns):
            return False
        self._in_row = 0
        first = self.rows[self._row]
        self._row += 1
        ended = self._row == len(self.rows)
        # No further window reaches the rows above the next row of windows.
        finished = min(self._tile, self._height - first) if ended else self.rows[self._row] - first
        sums = self._total[:, :finished, : self._width]
        self.job.sink(first, largest(sums))
        if self.job.sums is not None:
            self.job.sums(first, sums)
        if not ended:
            for total in self._total:
                total[: self._tile - finished] = total[finished:].copy()
                total[self._tile - finished :] = 0
        return ended


def largest(total: np.ndarray) -> np.ndarray:
    """[H, W] uint8: which of the K layers of [K, H, W] has the largest value; of equal ones the first."""
    best, labels = total[0].copy(), np.zeros(total.shape[1:], np.uint8)
    for label in range(1, len(total)):
        better = total[label] > best
        labels[better] = label
        np.copyto(best, total[label], where=better)
    return labels


def read_window(image: Any, x: int, y: int, tile: int) -> np.ndarray:
    """A window of an image, continued by reflection where the image ends. Returns: [tile, tile, C]."""
    content = image.read(x, y, min(x + tile, image.width), min(y + tile, image.height))
    below, right = tile - content.shape[0], tile - content.shape[1]
    if not (below or right):
        return content
    # (global means of the network then are those of the content, which they would not be beside a constant)
    return np.pad(content, ((0, below), (0, right), (0, 0)), mode="symmetric")


def predict(
    session: Session, jobs: Iterable[Any], settings: Settings, *, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[Any]:
    """Looks at images, one after another, with full batches over their ends.

    Args:
      session: Session.
      jobs: iterable of Job; one is taken when the windows before it were read.
      settings: Settings.
      on_progress: function of (windows done, windows of the images taken so far), or None.

    Yields:
      Each Job when its sink has all rows.
    """
    waiting: list[Any] = []
    pending, done, planned = None, 0, 0

    def launch():
        blends, places, windows = zip(*waiting, strict=True)
        images = tuple(np.stack(one) for one in zip(*windows, strict=True))
        return blends, places, session(images, settings)

    def collect(blends, places, probabilities):
        for blend, x, window in zip(blends, places, np.asarray(probabilities)[: len(blends)], strict=True):
            if blend.add(x, window):
                yield blend.job

    def advance():
        nonlocal pending, done
        launched = launch() if waiting else None  # one batch ahead of the one that is added up
        if pending is not None:
            yield from collect(*pending)
            done += len(pending[0])
            if on_progress is not None:
                on_progress(done, planned)
        pending = launched
        waiting.clear()

    for job in jobs:
        blend = _Blend(job, settings)
        planned += len(blend.rows) * len(blend.columns)
        for y in blend.rows:
            for x in blend.columns:
                waiting.append((blend, x, tuple(read_window(image, x, y, settings.tile) for image in job.images)))
                if len(waiting) == session.batch_size:
                    yield from advance()
    while waiting or pending is not None:
        yield from advance()


class ArrayImage:
    """An image in memory as `predict` reads it. Args: pixels [H, W, C]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
        """[y2 - y1, x2 - x1, C] pixels of a window inside the image."""
        return self._pixels[y1:y2, x1:x2]


def fill_array(height: int, width: int) -> tuple[np.ndarray, Callable[..., None]]:
    """(labels [height, width] uint8, sink that fills it)."""
    labels = np.zeros((height, width), np.uint8)

    def sink(first, rows):
        labels[first : first + len(rows)] = rows

    return labels, sink
