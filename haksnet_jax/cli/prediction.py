"""Finds objects in images and writes what it found: what the command `predict` does."""

import collections
import concurrent.futures
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.inference import view_settings
from haksnet_jax.inference.images import find_images
from haksnet_jax.results import dota, formats, output
from haksnet_jax.results.detections import labels_of
from haksnet_jax.results.thresholds import SHOWN_SCORE
from haksnet_jax.wording import counted

_SHOWN = 10  # images that could not be used and are named once more at the end


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
        images = counted(self._num_images, "image")
        line = f"{self.num_done} of {images}, view {num_seen} of {num_planned} ({rate:.1f}/s)"
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


def predict(
    *,
    checkpoint: str | os.PathLike[str],
    images: Sequence[str],
    output_folder: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    drawings: bool = True,
    drawing_score: float = SHOWN_SCORE,
    formats_out: Sequence[str] = formats.DEFAULT,
    given_settings: image_settings.ImageSettings = image_settings.DEFAULT,
    **settings: Any,
) -> int:
    """Finds objects in images and writes what it found.

    Args:
      checkpoint: a converted model, a run's folder, or one of its checkpoints.
      images: list of files, folders and patterns.
      output_folder: folder to write to.
      classes: names of the classes that are wanted; None for all.
      precision: "float32" or "bfloat16".
      batch_size: windows at a time on each device; None for 8, on CPUs 1.
      drawings: whether images are drawn.
      drawing_score: lowest score that is drawn.
      formats_out: names of `formats.FORMATS`, besides detections.json.
      given_settings: ImageSettings that replace those of the model.
      **settings: of `view_settings.Settings`.

    Returns:
      Exit status: 0; 1 where images could not be used, which are named; 130 stopped.

    Raises:
      UserError: nothing was done: the sentence says what is to be mended.
      OSError: results cannot be written.
    """
    started = time.monotonic()
    settings = view_settings.settings_of(settings)
    view_settings.check(settings)
    formats_out = formats.checked(formats_out)
    paths, num_others = find_images(images)
    folder = output.prepare(output_folder)
    if num_others:
        print(f"left out: {counted(num_others, 'file')} not named like an image", file=sys.stderr)

    # (What can be said without JAX is said before it is loaded.)
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import detection_predictor

    devices.enable_compilation_cache()
    with files.held(folder):
        detector = detection_predictor.load(checkpoint, precision=precision, batch_size=batch_size)
        view_settings.check(settings, detector.input_size)
        if "task1" in formats_out:
            dota.check_file_names(detector.class_names)
        detector.image_settings = _image_settings(given_settings, paths, detector.image_settings)
        wanted = None if classes is None else labels_of(classes, detector.class_names)
        results = output.OutputFolder(
            folder,
            detector.class_names,
            wanted,
            drawings=drawings,
            drawing_score=drawing_score,
            formats=formats_out,
        )
        results.resume(_what(detector, settings, classes, precision, drawings, drawing_score))
        return _run(detector, settings, paths, results, started)


def _image_settings(given, paths, of_model):
    """ImageSettings by which all images are read: those given, then the model's, then what the images need."""
    given = image_settings.merged(given, of_model)
    if given.num_channels != of_model.num_channels:
        raise UserError(
            f"--bands names {counted(given.num_channels, 'band')} and the model was trained on {of_model.num_channels} "
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


def _run(detector, settings, paths, results, started):
    """Looks at the images that are not done yet, and writes everything. Returns: exit status."""
    from haksnet_jax.inference.detection_predictor import merge

    remaining = [path for path in paths if not results.has(path)]
    if results.num_damaged:
        damaged = counted(results.num_damaged, "damaged result")
        print(f"{damaged} of a stopped run: their images are done again", file=sys.stderr)
    if len(remaining) < len(paths):
        print(f"{len(paths) - len(remaining)} of {counted(len(paths), 'image')} done already", file=sys.stderr)
    failed = {}
    counts = collections.Counter()
    progress = _Progress(len(paths))
    progress.num_done = len(paths) - len(remaining)

    def finish(found):
        results.add(remaining[found.index], found.image, merge(found, settings))

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
        if not done:
            raise UserError(f"none of {counted(len(paths), 'image')} could be used, so there is no result")
        num_detections = results.finish(done)
    except KeyboardInterrupt:
        writer.shutdown(wait=True)
        num_done = sum(map(results.has, paths))
        progress.say(
            f"Stopped: {num_done} of {counted(len(paths), 'image')} done; the same command goes on with the others."
        )
        return 130
    finally:
        writer.shutdown(wait=True, cancel_futures=True)
    _say_what_was_done(progress, detector, results, counts, len(done), num_detections, started)
    if failed:
        shown = ", ".join(str(path) for path in list(failed)[:_SHOWN]) + (", ..." if len(failed) > _SHOWN else "")
        print(f"error: {len(failed)} of {counted(len(paths), 'image')} could not be used: {shown}", file=sys.stderr)
        return 1
    return 0


def _say_what_was_done(progress, detector, results, counts, num_done, num_detections, started):
    skipped = f" ({counted(counts['skipped'], 'window')} of a single colour skipped)" if counts["skipped"] else ""
    progress.say(
        f"{counted(num_done, 'image')} in {counted(counts['views'], 'view')}{skipped}, "
        f"{counted(num_detections, 'detection')} in {time.monotonic() - started:.1f} s"
    )
    if counts["cut"]:
        what = counted(counts["cut"], "detection")
        print(f"{what} beyond the best {detector.max_detections} of a view left out", file=sys.stderr)
    for reason, count in results.left_out.items():
        print(f"left out of a format: {counted(count, 'image')}: {reason}", file=sys.stderr)
    if results.removed:
        shown = ", ".join(results.removed[:3]) + (", ..." if len(results.removed) > 3 else "")
        what = counted(len(results.removed), "file")
        print(f"removed {what} that an earlier run had left here: {shown}", file=sys.stderr)
    print(results.folder / "detections.json")


def _what(detector, settings, classes, precision, drawings, drawing_score):
    """JSON text of everything that decides about the results of an image."""
    from haksnet_jax.version import __version__

    digest = hashlib.blake2b(json.dumps(detector.model_info, sort_keys=True).encode(), digest_size=16)
    for value in detector.session.arrays().values():
        digest.update(np.ascontiguousarray(value))
    read_by = image_settings.to_json(detector.image_settings)
    options = {
        "classes": classes,
        "image_settings": read_by,
        "precision": precision,
        "drawings": drawings,
        "drawing_score": drawing_score,
    }
    return output.describe({"version": __version__, "weights": digest.hexdigest(), **settings._asdict(), **options})


def _sentence(path, error):
    """An error's text, beginning with the file."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text if text.startswith(str(path)) else f"{path}: {text or type(error).__name__}"
