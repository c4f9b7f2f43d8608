"""A trained or converted detector, ready to use on images of any size.

    detector = haksnet_jax.load("CHECKPOINT_FOLDER")
    detections = detector("harbour.tif")  # or a uint8 array [H, W, 3], RGB
    detections["boxes"], detections["scores"], detections["labels"]

Images no larger than the network's input are resized to fit it, as upstream's test pipeline does; larger ones are cut
into overlapping windows at their own scale, and what is found in the windows is merged over the whole image.
"""

import collections
import contextlib
import functools
import math
import pathlib
import queue
import threading
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.geometry.boxes import boxes_to_corners, to_le90
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.models.backbones.haksnet import BackboneSize
from haksnet_jax.models.oriented_rcnn import OrientedRCNN
from haksnet_jax.pipeline import transforms
from haksnet_jax.results import tiles
from haksnet_jax.training import checkpoint

PRECISIONS = ("float32", "bfloat16")
RESIZES = ("auto", "fit", "tile")
PADDINGS = ("least", "full")
_EDGE = 2.0  # pixels from a window's edge within which a box counts as cut off there
# Candidates of an image in the first attempt. Where there are more, that image is done again with all of them.
_MAX_CANDIDATES = 4096
# Upstream's, for models that do not say.
_PROPOSALS = {"candidates_per_level": 2000, "max_proposals": 2000, "iou_threshold": 0.8}
_DETECTIONS = {"iou_threshold": 0.1, "max_detections": 2000}
_QUEUED = 3  # batches that wait for the device


class DetectionError(ValueError):
    """A setting or an image that cannot be used, told in one sentence."""


class ImageArray:
    """An image in memory with the interface of ImageFile. Args: pixels [H, W, 3] or [H, W], uint8, RGB."""

    def __init__(self, pixels):
        pixels = np.asarray(pixels)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
            raise DetectionError(
                f"expected an image [H, W, 3] of uint8 in the order R, G, B, got {pixels.dtype} {list(pixels.shape)}"
            )
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x1, y1, x2, y2):
        """[y2 - y1, x2 - x1, 3] uint8 RGB of a window inside the image."""
        return self._pixels[y1:y2, x1:x2]

    def close(self):
        """Nothing to close."""


class Settings(NamedTuple):
    """How images are looked at.

    Attributes:
      resize: "fit" (the whole image at the size of the network's input), "tile" (windows at the image's own scale), or
        "auto": fit where the image is no larger than the input, else tile.
      score: lowest score of a detection.
      overlap: pixels that neighbouring windows share, at scale 1; None for 200, or a quarter of a small window.
      tile: side of a window in pixels, a multiple of 32; None for the network's input.
      scales: factors by which images (or the content of windows) are resized besides; more than one are merged.
      flip: looks at every image (or window) mirrored left to right too, and merges.
      pad: "least" pads a fitted image up to the next multiple of 32, as upstream: one compilation for every such
        size; "full" always pads to the whole input: one compilation in all, results differ a little.
      iou_threshold: overlap above which merging drops the lower score.
    """

    resize: str = "auto"
    score: float = 0.05
    overlap: int | None = None
    tile: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    pad: str = "least"
    iou_threshold: float = 0.1


class Found(NamedTuple):
    """What the network found in one image, not yet merged.

    Attributes:
      index: of the image in the sequence.
      image: ImageFile or ImageArray, open; None where it could not be opened.
      detections: {"boxes": [n, 5] float32, "scores": [n] float32, "labels": [n] int32} in pixels of the image.
      num_views: how many windows (or whole images) went through the network.
      num_skipped: windows of a single colour, such as those without data, that did not.
      num_cut: detections beyond the most that a view can have (`Detector.max_detections`), which are not here.
      error: None, or why the image cannot be read.
    """

    index: int
    image: Any
    detections: dict | None
    num_views: int
    num_skipped: int
    num_cut: int
    error: Exception | None


class _View(NamedTuple):
    """One row of a batch: where its pixels lie in which image."""

    index: int
    offset: tuple[int, int]  # x, y of its top left pixel
    factors: tuple[float, float]  # x, y by which its pixels were resized
    mirrored_width: int | None  # columns of the content, where it is mirrored
    grid: Any  # (side, x of windows, y of windows, image width, image height), or None for a whole image


class _Batch(NamedTuple):
    images: np.ndarray  # [B, H, W, 3] uint8
    image_size: np.ndarray  # [B, 2] int32
    scale: np.ndarray  # [B, 2] float32
    views: list  # of _View, at most B
    spread: bool  # over all devices
    num_seen: int  # views so far in all, those skipped too
    num_planned: int  # views of the images opened so far


class _Opened(NamedTuple):
    index: int
    image: Any


class _Ended(NamedTuple):
    index: int
    num_views: int
    num_skipped: int
    error: Exception | None


def load(directory, **options):
    """Loads a detector.

    Args:
      directory: a converted model, a run's folder (its best evaluation), or one checkpoint of a run.
      **options: of `Detector`.

    Returns:
      Detector.

    Raises:
      checkpoint.CheckpointError: nothing usable is there.
    """
    arrays, model_info = checkpoint.load_model(directory)
    try:
        return Detector(arrays, model_info, **options)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{directory}: {error}") from error


def make_step(graph, mesh, *, proposal_caps, detection_caps):
    """Compiles (at its first call, and for each new shape) the detector.

    Args:
      graph: graph definition of the model.
      mesh: the batch is split over its axis `data`.
      proposal_caps, detection_caps: see `OrientedRCNN.detect`.

    Returns:
      (variables, images [B, H, W, 3], image_size [B, 2], scale [B, 2], score) -> Detections. The lowest score comes
      from outside, so that another one is not another program to compile.
    """

    def detect(variables, images, image_size, scale, score):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return model.detect(
            images,
            image_size,
            scale,
            proposal_caps=proposal_caps,
            detection_caps={**detection_caps, "score_threshold": score},
        )

    return jax.jit(detect, out_shardings=devices.replicated(mesh), compiler_options=devices.detection_options())


@functools.lru_cache(maxsize=8)
def _abstract_model(size, num_classes, **options):
    """(graph definition, parameters, statistics) of a detector, by shapes alone; takes a second for each model."""
    model = nnx.eval_shape(lambda: OrientedRCNN(size, num_classes, **options, rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param, nnx.BatchStat)


class Detector:
    """Finds oriented objects in images of any size.

    Args:
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict, see `model.json`.
      precision: "float32" with exact products, or "bfloat16".
      accelerators: devices to use; None for all. Windows are spread over them; whole images use the first.
      batch_size: windows at a time on each device; None for 8, or 1 on CPUs.

    Attributes:
      class_names: names of the classes, by label.
      input_size: (rows, columns) of the network's input.
      proposal_caps, detection_caps: how many proposals and detections a view has at most, and above which overlap the
        network leaves them out; those of the model, else upstream's.
      model_info: as given.
      graph, variables: graph definition, and {"params", "batch_stats"} of numpy arrays.
      num_shapes: how many shapes of input were compiled so far.
    """

    def __init__(self, arrays, model_info, *, precision="float32", accelerators=None, batch_size=None):
        if precision not in PRECISIONS:
            raise DetectionError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model_info = model_info
        try:
            architecture = model_info["architecture"]
            self.class_names = tuple(model_info["class_names"])
            self.input_size = tuple(int(side) for side in model_info["input_size"])
            self._divisor = math.lcm(32, int(model_info["padding_divisor"]))
            self._keep_ratio = bool(model_info["keep_ratio"])
            self.proposal_caps = _PROPOSALS | model_info.get("proposals", {})
            self.detection_caps = _DETECTIONS | model_info.get("detections", {})
            unknown = [*(self.proposal_caps.keys() - _PROPOSALS), *(self.detection_caps.keys() - _DETECTIONS)]
            if unknown:
                raise checkpoint.CheckpointError(
                    f"model.json has settings that this version does not know: {', '.join(sorted(unknown))}"
                )
            wanting = model_info.get("without_value", ())
            if wanting and architecture["fpn_channels"] is not None:
                shown = ", ".join(wanting[:3]) + (f" and {len(wanting) - 3} more" if len(wanting) > 3 else "")
                raise checkpoint.CheckpointError(
                    f"{len(wanting)} of its parameters have no value (it was converted with --allow-missing): {shown}; "
                    "train it first, with --config.init"
                )
            if not architecture["num_classes"] or architecture["fpn_channels"] is None:
                raise checkpoint.CheckpointError(
                    "it holds a backbone without a detector's heads; convert or train a whole detector"
                )
            if len(self.class_names) != architecture["num_classes"]:
                raise checkpoint.CheckpointError(
                    f"model.json names {len(self.class_names)} classes, the model has {architecture['num_classes']}"
                )
            self.graph, params, stats = _abstract_model(
                BackboneSize(*(tuple(architecture[name]) for name in ("channels", "depths", "mlp_ratios"))),
                architecture["num_classes"],
                channels=architecture["fpn_channels"],
                hidden=architecture["hidden"],
                pixel_mean=tuple(model_info["pixel_mean"]),
                pixel_std=tuple(model_info["pixel_std"]),
                dtype=jnp.dtype(precision),
            )
        except (KeyError, TypeError) as error:
            raise checkpoint.CheckpointError(f"model.json does not describe a model: {error!r}") from error
        self.variables = {
            name: checkpoint.fill(nnx.as_pure(state), arrays, what="the checkpoint")
            for name, state in (("params", params), ("batch_stats", stats))
        }
        self._exact = precision == "float32"
        all_devices = jax.local_devices() if accelerators is None else list(accelerators)
        self._meshes = {False: devices.data_mesh(all_devices[:1]), True: devices.data_mesh(all_devices)}
        if batch_size is None:
            batch_size = 1 if all_devices[0].platform == "cpu" else 8
        if batch_size < 1:
            raise DetectionError(f"batch_size: expected at least 1, got {batch_size}")
        self._batch_size = batch_size * len(all_devices)
        self._placed, self._steps = {}, {}
        self._shapes = set()

    @property
    def num_shapes(self):
        return len(self._shapes)

    @property
    def max_detections(self):
        return self.detection_caps["max_detections"]

    def arrays(self):
        """{"a.b.c": numpy array} parameters and batch statistics, as given."""
        return checkpoint.flatten(self.variables["params"]) | checkpoint.flatten(self.variables["batch_stats"])

    def arithmetic(self):
        """Context in which products are as exact as `precision` says."""
        return jax.default_matmul_precision("highest") if self._exact else contextlib.nullcontext()

    def __call__(self, image, **settings):
        """Finds objects.

        Args:
          image: path of a file, or pixels [H, W, 3] uint8, RGB.
          **settings: of `Settings`.

        Returns:
          {"boxes": [n, 5] float32 (cx, cy, w, h, angle) in pixels of the image and radians, "scores": [n] float32,
          "labels": [n] int32}, best score first; `detector.class_names[label]` is a label's name.

        Raises:
          ValueError: the image, or a setting, cannot be used.
        """
        settings = Settings(**settings)
        for found in self.stream([image], settings):
            if found.error is not None:
                raise found.error
            found.image.close()
            return merge(found, settings)

    def check(self, settings):
        """Raises DetectionError, in one sentence, for settings out of range."""
        for name, allowed in (("resize", RESIZES), ("pad", PADDINGS)):
            if getattr(settings, name) not in allowed:
                raise DetectionError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(settings, name)!r}")
        if not 0 < settings.score <= 1 or not 0 <= settings.iou_threshold <= 1:
            raise DetectionError(
                f"expected 0 < score <= 1 and 0 <= iou_threshold <= 1, got {settings.score} and "
                f"{settings.iou_threshold}"
            )
        if not settings.scales or not all(0.05 <= scale <= 20 for scale in settings.scales):
            raise DetectionError(f"scales: expected numbers between 0.05 and 20, got {settings.scales}")
        side = self.tile_side(settings)
        if side < 32 or side % 32:
            raise DetectionError(f"tile: expected a multiple of 32, got {side}")
        if not 0 <= self.overlap(settings) < side:
            raise DetectionError(
                f"overlap: expected at least 0 and less than the tile of {side}, got {settings.overlap}"
            )

    def tile_side(self, settings):
        """Side of the windows in pixels of the network's input."""
        return settings.tile or max(32, min(self.input_size) // 32 * 32)

    def overlap(self, settings):
        """Pixels that neighbouring windows share, at scale 1."""
        return min(200, self.tile_side(settings) // 4) if settings.overlap is None else settings.overlap

    def fits(self, height, width):
        """Whether an image is no larger than the network's input, lying or standing."""
        return max(height, width) <= max(self.input_size) and min(height, width) <= min(self.input_size)

    def stream(self, images, settings=None, *, on_progress=None):
        """Looks at many images: they are read in a thread ahead of the devices, a few batches at most.

        Args:
          images: an iterable of paths or arrays; an iterator is not asked for more than is needed.
          settings: Settings.
          on_progress: function of (views done or skipped so far, views of the images opened so far), called for each
            batch.

        Yields:
          Found, one for each image, in the order in which they end. Its image is open: close it.

        Raises:
          DetectionError: a setting is out of range.
        """
        settings = settings or Settings()
        self.check(settings)
        events = queue.Queue(_QUEUED)
        stopped = threading.Event()

        def put(event):
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    events.put(event, timeout=0.2)
                    return
            raise _Stopped

        def read():
            try:
                self._read(images, settings, put)
                put(None)
            except _Stopped:
                pass
            except BaseException as error:  # whatever it is, the consumer must not wait for ever
                with contextlib.suppress(_Stopped):
                    put(error)

        reader = threading.Thread(target=read, name="haksnet-reader", daemon=True)
        reader.start()
        try:
            yield from self._consume(events, settings, on_progress)
        finally:
            stopped.set()
            reader.join()

    def _consume(self, events, settings, on_progress):
        """Sends batches to the devices, one ahead of the one that is unpacked."""
        images, parts, ended = {}, collections.defaultdict(list), {}
        pending = None

        def complete(index):
            end = ended.get(index)
            if end is None or (end.error is None and len(parts[index]) < end.num_views):
                return
            del ended[index]
            found = parts.pop(index, [])
            image = images.pop(index, None)
            if end.error is not None:
                if image is not None:
                    image.close()
                yield Found(index, None, None, 0, end.num_skipped, 0, end.error)
                return
            detections = _concatenate([part for part, _ in found])
            cut = sum(number for _, number in found)
            yield Found(index, image, detections, end.num_views, end.num_skipped, cut, None)

        def collect(batch, output):
            output = jax.device_get(output)
            for row, view in enumerate(batch.views):
                fields = (output.boxes[row], output.scores[row], output.labels[row], output.valid[row])
                cut = int(output.num_cut[row])
                if cut:
                    fields, cut = self._without_caps(batch, row, settings)
                if view.index in images:  # else it could not be read to its end
                    parts[view.index].append((_to_image(view, *fields), cut))
            yield from (found for index in {view.index for view in batch.views} for found in complete(index))

        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, _Batch):
                output = self._detect(event.images, event.image_size, event.scale, settings, spread=event.spread)
                if pending is not None:
                    yield from collect(*pending)
                pending = (event, output)
            elif isinstance(event, _Opened):
                images[event.index] = event.image
            elif isinstance(event, _Ended):
                ended[event.index] = event
                yield from complete(event.index)
            if event is None:
                if pending is not None:
                    yield from collect(*pending)
                return
            if isinstance(event, _Batch) and on_progress is not None:
                on_progress(event.num_seen, event.num_planned)

    def _detect(self, images, image_size, scale, settings, *, spread, all_candidates=False):
        """Detections of a batch, on the devices and perhaps not there yet."""
        mesh = self._meshes[spread]
        key = (mesh.devices.size, all_candidates)
        with jax.set_mesh(mesh), self.arithmetic():
            if mesh.devices.size not in self._placed:
                self._placed[mesh.devices.size] = jax.device_put(self.variables, devices.replicated(mesh))
            if key not in self._steps:
                every = self.proposal_caps["max_proposals"] * len(self.class_names)
                candidates = {"max_candidates": every if all_candidates else _MAX_CANDIDATES}
                self._steps[key] = make_step(
                    self.graph,
                    mesh,
                    proposal_caps=self.proposal_caps,
                    detection_caps={**self.detection_caps, **candidates},
                )
            self._shapes.add((key, images.shape))
            batch = devices.place_batch(mesh, {"images": images, "image_size": image_size, "scale": scale})
            variables, score = self._placed[mesh.devices.size], np.float32(settings.score)
            return self._steps[key](variables, batch["images"], batch["image_size"], batch["scale"], score)

    def _without_caps(self, batch, row, settings):
        """((boxes, scores, labels, valid), number cut) of a row in which candidates were left out: with all of them."""
        rows = slice(row, row + 1)
        arrays = (batch.images[rows], batch.image_size[rows], batch.scale[rows])
        output = self._detect(*arrays, settings, spread=False, all_candidates=True)
        output = jax.device_get(output)
        return (output.boxes[0], output.scores[0], output.labels[0], output.valid[0]), int(output.num_cut[0])

    # ---------------------------------------------------------------------- in the reading thread

    def _read(self, images, settings, put):
        """Opens images one after another and puts batches of their views."""
        side = self.tile_side(settings)
        waiting = []  # views of windows that do not fill a batch yet
        seen = planned = 0

        def put_batch(contents, views, canvas, batch_size, *, spread):
            pixels = np.zeros((batch_size, *canvas, 3), np.uint8)
            image_size = np.tile(np.array(canvas, np.int32), (batch_size, 1))
            scale = np.ones((batch_size, 2), np.float32)
            for row, (content, view) in enumerate(zip(contents, views, strict=True)):
                pixels[row, : content.shape[0], : content.shape[1]] = content
                image_size[row] = content.shape[:2]
                scale[row] = view.factors
            put(_Batch(pixels, image_size, scale, list(views), spread, seen, planned))

        def flush():
            if waiting:  # the batch keeps its shape: rows that are left show nothing
                put_batch(*zip(*waiting, strict=True), (side, side), self._batch_size, spread=True)
                waiting.clear()

        for index, source in enumerate(images):
            num_views = num_skipped = 0
            error = image = None
            try:
                image = ImageFile(source) if isinstance(source, (str, pathlib.PurePath)) else ImageArray(source)
                put(_Opened(index, image))
                fit = settings.resize == "fit" or (settings.resize == "auto" and self.fits(image.height, image.width))
                planned += len(settings.scales) if fit else sum(len(w) for _, w in self._grids(image, settings))
                for view in self._whole(index, image, settings) if fit else self._windows(index, image, settings):
                    seen += 1
                    if view is None:
                        num_skipped += 1
                        continue
                    for content, where, canvas in self._mirrored(*view, settings):
                        num_views += 1
                        if canvas is not None:
                            put_batch([content], [where], canvas, 1, spread=False)
                            continue
                        waiting.append((content, where))
                        if len(waiting) == self._batch_size:
                            flush()
            except (OSError, ValueError, MemoryError, cv2.error) as caught:
                error = caught
                # Views of this image that still wait would be of no use.
                waiting[:] = [entry for entry in waiting if entry[1].index != index]
            put(_Ended(index, num_views, num_skipped, error))
        flush()

    def _mirrored(self, content, view, canvas, settings):
        """A view, and its mirror image where that is asked for."""
        yield content, view, canvas
        if settings.flip:
            yield content[:, ::-1], view._replace(mirrored_width=content.shape[1]), canvas

    def _whole(self, index, image, settings):
        """Yields (content, view, canvas) of the whole image at each scale."""
        pixels = image.read(0, 0, image.width, image.height)
        for scale in settings.scales:
            short, long = sorted(max(self._divisor, round(side * scale)) for side in self.input_size)
            if not self._keep_ratio:
                rows, columns = (max(1, round(side * scale)) for side in self.input_size)
                full = (rows, columns)
            else:
                # The longer side of the image fits the longer side of the input, whichever way it lies: as upstream.
                full = (long, short) if image.height > image.width else (short, long)
                rows, columns = transforms.fitted_size(image.height, image.width, full)
            content = pixels
            if (rows, columns) != pixels.shape[:2]:
                content = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
            least = (rows, columns) if settings.pad == "least" else full
            canvas = tuple(-(-side // self._divisor) * self._divisor for side in least)
            factors = (columns / image.width, rows / image.height)
            yield content, _View(index, (0, 0), factors, None, None), canvas

    def _grids(self, image, settings):
        """[(side of the windows, [n, 4] windows)] of each scale, in pixels of the image."""
        side = self.tile_side(settings)
        grids = []
        for scale in settings.scales:
            window = max(1, round(side / scale))
            overlap = min(int(self.overlap(settings) / scale), window - 1)
            grids.append((window, tiles.windows(image.width, image.height, window, overlap, padding=False)))
        return grids

    def _windows(self, index, image, settings):
        """Yields (content, view, None) of each window at each scale, or None for a window of a single colour."""
        side = self.tile_side(settings)
        for window, windows in self._grids(image, settings):
            grid = (window, np.unique(windows[:, 0]), np.unique(windows[:, 1]), image.width, image.height)
            # Row after row: files hold their pixels in this order, and what was decoded for one window is still there
            # for its neighbours.
            for x1, y1, x2, y2 in windows[np.lexsort((windows[:, 0], windows[:, 1]))].tolist():
                content = image.read(x1, y1, x2, y2)
                if (content == content[0, 0]).all():
                    yield None
                    continue
                factors = (1.0, 1.0)
                if window != side:
                    rows, columns = (max(1, min(side, round(n * side / window))) for n in content.shape[:2])
                    factors = (columns / content.shape[1], rows / content.shape[0])
                    content = cv2.resize(content, (columns, rows), interpolation=cv2.INTER_LINEAR)
                yield content, _View(index, (x1, y1), factors, None, grid), None


class _Stopped(Exception):
    """The consumer is gone."""


def _concatenate(parts):
    empty = (np.zeros((0, 5), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    fields = zip(*[tuple(part[name] for name in ("boxes", "scores", "labels")) for part in parts], empty, strict=True)
    return dict(zip(("boxes", "scores", "labels"), map(np.concatenate, fields), strict=True))


def _to_image(view, boxes, scores, labels, valid):
    """Detections of one view in pixels of its image; those that a window's edge cuts off are left to its neighbour."""
    boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
    if view.mirrored_width is not None:
        boxes = boxes * np.array([-1, 1, 1, 1, -1], np.float32)
        boxes[:, 0] += (view.mirrored_width - 1) / view.factors[0]  # pixel x becomes W - 1 - x, as in training
        boxes = to_le90(boxes)
    upright = boxes[:, 3] > boxes[:, 2]  # factors of x and y that differ exchange the sides of what is almost square
    boxes[upright] = to_le90(boxes[upright])
    boxes[:, :2] += np.array(view.offset, np.float32)
    if view.grid is not None:
        keep = ~_cut_off(boxes, view)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    return {"boxes": boxes, "scores": scores, "labels": labels}


def _cut_off(boxes, view):
    """Which boxes reach an edge of their window, inside the image, while another window holds them whole.

    Such a box is often a piece of an object, too small a part of it for merging to see that both are one.

    Args:
      boxes: [n, 5] in pixels of the image.
      view: where they were found.

    Returns:
      [n] bool.
    """
    side, xs, ys, width, height = view.grid
    corners = boxes_to_corners(boxes.astype(np.float64))
    low, high = corners.min(axis=1), corners.max(axis=1)
    reaches = np.zeros(len(boxes), bool)
    elsewhere = np.ones(len(boxes), bool)
    for axis, (start, starts, length) in enumerate(zip(view.offset, (xs, ys), (width, height), strict=True)):

        def inside(first, axis=axis, length=length):
            """[n] or [n, windows] whether boxes stay clear of the edges of windows that begin at `first`."""
            lower, upper = low[:, axis], high[:, axis]
            if np.ndim(first):
                lower, upper = lower[:, None], upper[:, None]
            clear_low = (first <= 0) | (lower > first + _EDGE)
            return clear_low & ((first + side >= length) | (upper < first + side - _EDGE))

        reaches |= ~inside(start)
        elsewhere &= inside(starts).any(axis=-1)
    return reaches & elsewhere


def merge(found, settings):
    """Detections of one image, each object once.

    Args:
      found: Found, without an error.
      settings: those it was found with.

    Returns:
      {"boxes", "scores", "labels"} as from a Detector, best score first.
    """
    detections = found.detections
    if found.num_views > 1:
        kept = tiles.merge_detections(
            *(detections[name] for name in ("boxes", "scores", "labels")), iou_threshold=settings.iou_threshold
        )
    else:  # the network's own suppression has done it
        kept = np.argsort(-detections["scores"], kind="stable")
    return {name: values[kept] for name, values in detections.items()}
