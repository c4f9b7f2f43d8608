"""Finds objects in images and writes what it found: what the command `predict` does."""

import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time

import numpy as np
from etils import epath

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.images import scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.inference.images import find_images
from haksnet_jax.results import dota, geojson, visualize

UNFINISHED = ".unfinished"  # folder in the output: what a run has so far
_DRAWING_SIDE = 4096  # pixels: larger images are drawn reduced to this


class PredictError(UserError):
    """What stops the command before anything is found, in one sentence."""


def detection_lines(detections, class_names):
    """Yields the JSON text of each detection: label, score, box and polygon."""
    boxes = np.asarray(detections["boxes"], np.float64).reshape(-1, 5)
    polygons = boxes_to_corners(boxes).reshape(-1, 8).round(4).tolist()
    scores = np.asarray(detections["scores"], np.float64).round(7).tolist()
    boxes = np.concatenate([boxes[:, :4].round(4), boxes[:, 4:].round(7)], axis=1).tolist()
    names = [json.dumps(name, ensure_ascii=False) for name in class_names]
    for label, score, box, polygon in zip(detections["labels"].tolist(), scores, boxes, polygons, strict=True):
        yield f'{{"label": {names[label]}, "score": {score}, "box": {box}, "polygon": {polygon}}}'


def write_detections_json(path, entries, class_names):
    """Writes detections.json; the file appears whole or not at all.

    Args:
      path: where.
      entries: iterable of (image name, width, height, detections); one at a time is in memory.
      class_names: the classes, by label.
    """
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"images": [')
        for number, (name, width, height, detections) in enumerate(entries):
            head = json.dumps({"image": name, "width": width, "height": height}, ensure_ascii=False)
            file.write(f'{"," if number else ""}\n{head[:-1]}, "detections": [')
            for row, line in enumerate(detection_lines(detections, class_names)):
                file.write(f"{',' if row else ''}\n  {line}")
            file.write("]}")
        file.write("\n]}\n")


class _Results:
    """The output folder: results of each image as they come, and what is made of all of them at the end.

    Args:
      folder: the output folder.
      class_names: of the model.
      wanted: labels that are kept, or None for all.
      drawings, drawing_score, geojson: what is written for each image.
    """

    def __init__(self, folder, class_names, wanted, *, drawings, drawing_score, geojson):
        self.folder = folder
        self.class_names = class_names
        self.wanted = wanted
        self.drawings, self.drawing_score, self.geojson = drawings, drawing_score, geojson
        self.without_geojson = collections.Counter()
        self._parts = folder / UNFINISHED

    def resume(self, run):
        """Begins, or goes on with a run of the same settings. Args: run, a JSON text that says what is done."""
        record = self._parts / "run.json"
        if not (record.is_file() and record.read_text(encoding="utf-8") == run):
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir(parents=True)
            files.write_text(record, run)

    def _part(self, path):
        return self._parts / f"{dota.image_stem(path.name)}.npz"

    def has(self, path):
        """Whether an image was finished before, and its file is the same."""
        try:
            with np.load(self._part(path)) as part:
                return tuple(part["identity"].tolist()) == _identity(path)
        except (OSError, ValueError, KeyError):
            return False

    def add(self, path, image, detections):
        """Writes what belongs to one image. Args: path; image, open, is closed; detections, merged."""
        try:
            if self.wanted is not None:
                keep = np.isin(detections["labels"], self.wanted)
                detections = {name: values[keep] for name, values in detections.items()}
            name = dota.image_stem(path.name)
            if self.drawings:
                pixels, factor = image.thumbnail(_DRAWING_SIDE)
                shown = detections["scores"] >= self.drawing_score
                boxes, scores, labels = (detections[key][shown] for key in ("boxes", "scores", "labels"))
                boxes = boxes * np.array([factor] * 4 + [1], np.float32)
                drawing = visualize.draw_detections(pixels, boxes, scores, labels, self.class_names, legend=True)
                (self.folder / "drawings").mkdir(exist_ok=True)
                visualize.write_image(self.folder / "drawings" / f"{name}.jpg", drawing)
            if self.geojson:
                self._write_geojson(path, name, detections)
            part = self._part(path)
            with files.whole(part) as temporary:
                np.savez(temporary, **detections, size=(image.width, image.height), identity=_identity(path))
        finally:
            image.close()

    def _write_geojson(self, path, name, detections):
        georeference, reason = geojson.read_georeference(path)
        if georeference is None:
            if path.suffix.lower() in (".tif", ".tiff"):  # nobody expects it of the others
                self.without_geojson[reason] += 1
            return
        folder = self.folder / "geojson"
        folder.mkdir(exist_ok=True)
        collection = geojson.feature_collection(detections, self.class_names, georeference, image=name)
        geojson.write_geojson(folder / f"{name}.geojson", collection)
        try:
            collection = geojson.feature_collection(detections, self.class_names, georeference, wgs84=True, image=name)
        except ValueError as error:
            self.without_geojson[f"in WGS84, {error}"] += 1
        else:
            geojson.write_geojson(folder / f"{name}.wgs84.geojson", collection)

    def _read(self, path):
        with np.load(self._part(path)) as part:
            detections = {name: part[name] for name in ("boxes", "scores", "labels")}
            return (path.name, *part["size"].tolist(), detections)

    def finish(self, paths, *, task1):
        """Writes what is made of all images. Args: paths of those that are done. Returns: number of detections."""
        files.write_text(self.folder / "classes.txt", "".join(f"{name}\n" for name in self.class_names))
        if task1:
            by_image = {dota.image_stem(path.name): self._read(path)[3] for path in paths}
            dota.write_task1(self.folder / "task1", by_image, self.class_names)
        counts = []

        def entries():
            for path in paths:
                entry = self._read(path)
                counts.append(len(entry[3]["scores"]))
                yield entry

        write_detections_json(self.folder / "detections.json", entries(), self.class_names)
        shutil.rmtree(self._parts)
        return sum(counts)


def _identity(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Progress:
    """One line on the terminal that renews itself; elsewhere a line every half minute."""

    def __init__(self, num_images):
        self._num_images = num_images
        self._begin = self._last = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._shown = False
        self.num_done = 0

    def __call__(self, num_seen, num_planned):
        now = time.monotonic()
        if now - self._last < (0.2 if self._is_terminal else 30):
            return
        self._last = now
        rate = num_seen / max(now - self._begin, 1e-9)
        line = f"{self.num_done} of {self._num_images} images, view {num_seen} of {num_planned} ({rate:.1f}/s)"
        if self._is_terminal:
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
            self._shown = True
        else:
            print(line, file=sys.stderr, flush=True)

    def say(self, text):
        """Prints a line, without leaving half of the progress behind it."""
        if self._shown:
            print(f"\r{'':<78}\r", end="", file=sys.stderr)
            self._shown = False
        print(text, file=sys.stderr, flush=True)


def _prepare_output(folder):
    """Makes the output folder and finds out whether it can be written to, before any work is done."""
    if files.is_bucket(folder):
        raise PredictError(f"--output={folder} is in a bucket: name a folder on a disk, and copy it from there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PredictError(f"cannot write to --output={folder}: {error.strerror}") from error


def _image_settings(arguments, paths, of_model):
    """ImageSettings by which all images are read: the options', then the model's, then what the images need."""
    given = image_settings.merged(image_settings.of_options(arguments), of_model)
    if given.num_channels != of_model.num_channels:
        raise PredictError(
            f"--bands names {given.num_channels} bands and the model was trained on {of_model.num_channels} "
            f"({image_settings.told(of_model)})"
        )
    settings = scaling.for_images(paths, given)
    if settings.limits != given.limits:
        low, high = settings.limits
        print(
            f"values from {low:g} to {high:g} of images of more than 8 bits become 0 to 255 (--limits states others)",
            file=sys.stderr,
        )
    for remark in scaling.remarks(paths):
        print(remark, file=sys.stderr)
    return settings


def predict(arguments):
    """Runs the command. Args: arguments, parsed. Returns: exit status.

    Raises:
      PredictError and what loading a checkpoint raises: nothing was done.
      OSError: results cannot be written.
    """
    started = time.monotonic()
    paths, num_others = find_images(arguments.images)
    _prepare_output(epath.Path(arguments.output))
    folder = pathlib.Path(arguments.output)
    if num_others:
        print(f"{num_others} files that do not end like an image are left out", file=sys.stderr)

    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import predictor as detectors  # (arguments are checked before JAX is loaded)
    from haksnet_jax.inference import views
    from haksnet_jax.version import __version__

    devices.enable_compilation_cache()
    detector = detectors.load(arguments.checkpoint, precision=arguments.precision, batch_size=arguments.batch_size)
    settings = detectors.Settings(
        resize=arguments.resize,
        score=arguments.score,
        overlap=arguments.overlap,
        tile=arguments.tile,
        scales=arguments.scales,
        flip=arguments.flip,
        pad=arguments.pad,
        iou_threshold=arguments.iou,
    )
    views.check(settings, detector.input_size)
    detector.image_settings = _image_settings(arguments, paths, detector.image_settings)
    wanted = _wanted_labels(arguments.classes, detector.class_names)
    results = _Results(
        folder,
        detector.class_names,
        wanted,
        drawings=arguments.drawings,
        drawing_score=arguments.drawing_score,
        geojson=arguments.geojson,
    )
    ignored = ("images", "output", "task1", "batch_size")  # they change nothing in the results of an image
    options = {name: value for name, value in vars(arguments).items() if name not in ignored}
    options["image_settings"] = image_settings.to_json(detector.image_settings)
    results.resume(json.dumps({"version": __version__, "weights": _digest(detector), **options}, indent=1) + "\n")
    remaining = [path for path in paths if not results.has(path)]
    if len(remaining) < len(paths):
        print(f"{len(paths) - len(remaining)} of {len(paths)} images are done already", file=sys.stderr)

    failed = {}
    counts = collections.Counter()
    progress = _Progress(len(paths))
    progress.num_done = len(paths) - len(remaining)

    def finish(found):
        results.add(remaining[found.index], found.image, detectors.merge(found, settings))

    # Merging and writing go on beside the device, two images at most, so that memory stays bounded.
    writer = concurrent.futures.ThreadPoolExecutor(1)
    writing = collections.deque()
    try:
        for found in detector.look(remaining, settings, on_progress=progress):
            counts["views"] += found.num_views
            counts["skipped"] += found.num_skipped
            counts["cut"] += found.num_cut
            if found.error is not None:
                path = remaining[found.index]
                failed[path] = _sentence(path, found.error)
                progress.say(f"error: {failed[path]}")
                continue
            writing.append(writer.submit(finish, found))
            while len(writing) > 1:
                writing.popleft().result()
                progress.num_done += 1
        for written in writing:
            written.result()
        done = [path for path in paths if path not in failed]
        num_detections = results.finish(done, task1=arguments.task1)
    except KeyboardInterrupt:
        writer.shutdown(wait=True)
        num_done = sum(map(results.has, paths))
        progress.say(f"Stopped: {num_done} of {len(paths)} images are done; the same command goes on with the others.")
        return 130
    finally:
        writer.shutdown(wait=True, cancel_futures=True)

    progress.say(
        f"{len(done)} images, {counts['views']} views of them"
        + (f" ({counts['skipped']} windows of a single colour skipped)" if counts["skipped"] else "")
        + f", {num_detections} detections in {time.monotonic() - started:.1f} s"
    )
    if counts["cut"]:
        print(
            f"{counts['cut']} detections beyond the best {detector.max_detections} of a view were left out",
            file=sys.stderr,
        )
    for reason, count in results.without_geojson.items():
        print(f"no GeoJSON for {count} images: {reason}", file=sys.stderr)
    print(folder / "detections.json")
    if failed:
        shown = ", ".join(str(path) for path in list(failed)[:10]) + (", ..." if len(failed) > 10 else "")
        print(f"error: {len(failed)} of {len(paths)} images could not be used: {shown}", file=sys.stderr)
        return 1
    return 0


def _wanted_labels(names, class_names):
    """Labels of the classes named, or None for all."""
    if names is None:
        return None
    unknown = [name for name in names if name not in class_names]
    if unknown or not names:
        raise PredictError(
            f"--classes: {', '.join(unknown) or 'nothing'} is not among the model's classes: {', '.join(class_names)}"
        )
    return [class_names.index(name) for name in names]


def _digest(detector):
    """Text that tells one set of weights from another."""
    digest = hashlib.blake2b(json.dumps(detector.model_info, sort_keys=True).encode(), digest_size=16)
    for value in detector.session.arrays().values():
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def _sentence(path, error):
    """An error's text, beginning with the file."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text if text.startswith(str(path)) else f"{path}: {text or type(error).__name__}"
