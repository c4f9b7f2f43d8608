"""Cuts scenes and their labels into tiles, in worker processes; a run that was stopped goes on where it ended.

Windows, kept objects, their order and coordinates are those of the reference's splitter: see `results.tiles.windows`;
an object belongs to a tile that holds at least 0.7 of its area. Two things differ. An object gets difficulty 2
("truncated") only when a corner lies outside the tile, where the reference's rounding also marks complete objects; and
a label without difficulty gets 0, where the reference writes a line that it cannot read again.

The output folder holds
  images/             the tiles, named IMAGE__SIDE__X___Y; SIDE, X and Y in pixels of the image
  labelTxt/           a label file for each tile, empty where it has no objects; not for images without labels
  split.json          the parameters
  split_done.jsonl    one line for each finished image
  split_problems.txt  what was odd or left out, with file and line
"""

import concurrent.futures
import concurrent.futures.process
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from typing import NamedTuple

import cv2
import numpy as np
import shapely

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import geotiff, scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels import dota as labels
from haksnet_jax.labels.problems import losses
from haksnet_jax.results import tiles

PADDING = (124, 116, 104)  # the reference's; images that are not of three 8-bit channels are padded with zeros
# Bands of images whose tiles read the same from a PNG or JPEG as from a TIFF.
_JPEG_BANDS = (("grey",), ("",), ("red", "green", "blue"), ("", "", ""), ("grey", "", ""))
_PNG_BANDS = (*_JPEG_BANDS, ("red", "green", "blue", "alpha"))
PROTOCOLS = {"single_scale": (200, (1.0,)), "multi_scale": (500, (0.5, 1.0, 1.5))}  # overlap, rates
TRUNCATED = 2  # difficulty of an object that its tile cuts


class SplitError(UserError):
    """The run cannot begin or go on; the message says what is wrong and what to do."""


class Parameters(NamedTuple):
    """How to cut.

    Attributes:
      tile: side of a tile at rate 1, in pixels.
      overlap: pixels that neighbours share at rate 1.
      rates: one grid of windows each, with side int(tile / rate) and overlap int(overlap / rate).
      min_inside: share of an object's area that a tile must hold for the object to belong to it.
      min_image_rate: windows of which at most this share is image are left out, see tiles.windows.
      resize: True writes every tile with side `tile`; False keeps the windows' pixels, to be resized in training.
      extension: of the tiles: ".png", ".jpg" or ".tif".
      skip_blank: True leaves out windows of one single value that hold no object (no data).
      images: ImageSettings that are given. Tiles keep all bands and their samples; the settings are kept beside them.
    """

    tile: int = 1024
    overlap: int = 200
    rates: tuple[float, ...] = (1.0,)
    min_inside: float = 0.7
    min_image_rate: float = 0.6
    resize: bool = False
    extension: str = ".png"
    skip_blank: bool = False
    images: image_settings.ImageSettings = image_settings.DEFAULT


class Job(NamedTuple):
    """One image to cut: paths of the image and of its labels (None: without labels)."""

    image: str
    labels: str | None


class Result(NamedTuple):
    """What came of one image.

    Attributes:
      image: path of the image.
      tiles: names of the tiles, without extension.
      num_objects: objects in the label file.
      num_written: label lines written; an object in two tiles counts twice.
      num_truncated: of these, with difficulty 2 because the tile cuts the object.
      num_blank: windows of one single value.
      problems: list of labels.Problem.
      seconds: {"coding": decoding, encoding and writing images, "all": everything}.
      error: sentence that ends the whole run (disk full), or None.
      stopped: True when the run was stopped before this image was finished.
    """

    image: str
    tiles: list
    num_objects: int
    num_written: int
    num_truncated: int
    num_blank: int
    problems: list
    seconds: dict
    error: str | None = None
    stopped: bool = False


def inside_fractions(polygons, windows):
    """How much of each object's area each window holds.

    Args:
      polygons: [N, 4, 2] corner points in pixels.
      windows: [W, 4] windows (x1, y1, x2, y2), exclusive ends.

    Returns:
      [W, N] float64 in 0..1, exactly 1 where all corners lie inside or on the edge. Crossed polygons count by the two
      triangles that they enclose. A polygon without area counts as 0.
    """
    windows = np.asarray(windows, np.float64)
    fractions = np.zeros((len(windows), len(polygons)))
    if not len(polygons) or not len(windows):
        return fractions
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    starts, ends = windows[:, None, :2], windows[:, None, 2:]
    fractions[np.all((low >= starts) & (high <= ends), axis=-1)] = 1.0
    touched = np.all((low < ends) & (high > starts), axis=-1) & (fractions == 0)
    window_index, polygon_index = np.nonzero(touched)
    if len(window_index):
        shapes = shapely.polygons(polygons)
        crossed = ~shapely.is_valid(shapes)
        shapes[crossed] = shapely.make_valid(shapes[crossed])
        areas = shapely.area(shapes)
        parts = shapely.area(
            shapely.intersection(shapes[polygon_index], shapely.box(*windows[window_index].T, ccw=False))
        )
        fractions[window_index, polygon_index] = parts / np.where(areas > 0, areas, np.inf)[polygon_index]
    return fractions


def written_class_names(path):
    """Class names of a label file as they are written: the words between the coordinates and the difficulty."""
    names = {}
    for line in pathlib.Path(path).read_bytes().decode("utf-8-sig", errors="replace").splitlines():
        words = line.split()[8:]
        number = next((i for i, word in enumerate(words) if word.lstrip("-").isdigit()), len(words))
        if number:
            names.setdefault(" ".join(words[:number]))
    return tuple(names)


class _Cutter:
    """Tiles of one image: samples as they are, so that what reads them can choose bands and limits later.

    Args:
      image: images.reader.ImageFile.
      parameters: Parameters.

    Attributes:
      extension: of the tiles; `.tif` where PNG or JPEG cannot hold the samples.
    """

    def __init__(self, image, parameters):
        self._image, self._parameters = image, parameters
        colours = {".png": _PNG_BANDS, ".jpg": _JPEG_BANDS}.get(parameters.extension, ())
        kinds = {".png": (np.uint8, np.uint16), ".jpg": (np.uint8,)}.get(parameters.extension, ())
        fits = image.band_names in colours and image.dtype in kinds and not any(image.descriptions)
        self.extension = parameters.extension if fits else ".tif"
        self._nodata = image.nodata[0] if len(set(image.nodata)) == 1 else None

    def cut(self, window):
        """[side, side, C] samples of one window, padded at right and bottom and, if asked for, resized."""
        x1, y1, x2, y2 = window
        image, tile = self._image, self._parameters.tile
        bands = range(len(image.band_names))
        samples, empty = image.samples(x1, y1, min(x2, image.width), min(y2, image.height), bands)
        no_data = 0 if self._nodata is None or self.extension != ".tif" else self._nodata
        if empty is not None:
            samples = samples.copy()
            samples[empty] = no_data
        right, bottom = x2 - x1 - samples.shape[1], y2 - y1 - samples.shape[0]
        if right or bottom:
            is_colour = len(bands) == 3 and samples.dtype == np.uint8
            padded = np.empty((y2 - y1, x2 - x1, len(bands)), samples.dtype)
            padded[:] = PADDING if is_colour else no_data
            padded[: samples.shape[0], : samples.shape[1]] = samples
            samples = padded
        if self._parameters.resize and samples.shape[0] != tile:
            interpolation = cv2.INTER_AREA if samples.shape[0] > tile else cv2.INTER_LINEAR
            samples = cv2.resize(samples, (tile, tile), interpolation=interpolation)
            samples = samples if samples.ndim == 3 else samples[..., None]
        return samples

    def write(self, path, samples):
        """Encodes and writes one tile. Args: path, without extension."""
        if self.extension == ".tif":
            data = geotiff.encode(samples, self._image.band_names, self._image.descriptions, self._nodata)
        else:
            code = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(samples.shape[-1])
            data = cv2.imencode(self.extension, samples if code is None else cv2.cvtColor(samples, code))[1].tobytes()
        files.write_bytes(f"{path}{self.extension}", data, sync=False)


def _is_blank(pixels):
    first = pixels[0, 0]
    # Two corners first: they tell most windows apart without reading the other pixels.
    return bool((pixels[-1, -1] == first).all() and (pixels == first).all())


_stop = None  # in a worker process: the event that asks it to stop between two tiles


def _start_worker(stop):
    global _stop
    _stop = stop
    cv2.setNumThreads(1)  # one process a core already


def split_image(job, output, parameters, settings=image_settings.DEFAULT):
    """Cuts one image into the output folder.

    Args:
      job: a Job.
      output: the output folder, with its folders images and (for labels) labelTxt.
      parameters: Parameters.
      settings: ImageSettings.

    Returns:
      A Result. An image that cannot be used gives a problem and no tiles.
    """
    begin = time.perf_counter()
    output = pathlib.Path(output)
    names, problems, num_written, num_truncated, num_blank = [], [], 0, 0, 0
    coding, objects, error, stopped = 0.0, None, None, False
    try:
        class_names = ()
        if job.labels is not None:
            class_names = written_class_names(job.labels)  # whatever they are, they pass
            objects, problems = labels.read_labels(job.labels, class_names)
        started = time.perf_counter()
        with ImageFile(job.image, settings) as image:
            coding += time.perf_counter() - started
            cutter = _Cutter(image, parameters)
            windows = tiles.windows(
                image.width,
                image.height,
                [int(parameters.tile / rate) for rate in parameters.rates],
                [int(parameters.overlap / rate) for rate in parameters.rates],
                min_image_rate=parameters.min_image_rate,
            )
            fractions = inside_fractions(objects.polygons if objects else np.zeros((0, 4, 2)), windows)
            # 1e-6: an object of exactly min_inside stays, whichever way the division rounds
            kept = fractions >= parameters.min_inside - 1e-6
            for window, fraction, keep in zip(windows.tolist(), fractions, kept, strict=True):
                if _stop is not None and _stop.is_set():
                    stopped = True
                    break
                x1, y1, x2, _ = window
                name = tiles.format_tile_name(pathlib.Path(job.image).stem, x2 - x1, x1, y1)
                started = time.perf_counter()
                pixels = cutter.cut(window)
                coding += time.perf_counter() - started
                blank = _is_blank(pixels)
                num_blank += blank
                if blank and parameters.skip_blank and not keep.any():
                    continue
                if objects is not None:
                    scale = parameters.tile / (x2 - x1) if parameters.resize else 1.0
                    polygons = (objects.polygons[keep] - [x1, y1]) * scale
                    cut_off = fraction[keep] < 1
                    difficulties = np.where(cut_off, TRUNCATED, objects.difficulty[keep])
                    lines = [
                        labels.format_label_line(polygon, class_names[label], difficulty) + "\n"
                        for polygon, label, difficulty in zip(polygons, objects.labels[keep], difficulties, strict=True)
                    ]
                    files.write_text(output / "labelTxt" / f"{name}.txt", "".join(lines), sync=False)
                    num_written += len(lines)
                    num_truncated += int(cut_off.sum())
                started = time.perf_counter()
                cutter.write(output / "images" / name, pixels)
                coding += time.perf_counter() - started
                names.append(name)
        if objects is not None and not stopped:
            problems += [
                labels.Problem(job.labels, line, "in_no_tile", "no tile holds enough of this object")
                for line in objects.lines[~kept.any(axis=0)].tolist()
            ]
    except ImageError as problem:
        problems.append(labels.Problem(job.image, 0, problem.reason, problem.sentence))
    except cv2.error as problem:
        problems.append(labels.Problem(job.image, 0, "unencodable_tile", f"OpenCV cannot write it: {problem.err}"))
    except OSError as problem:
        if problem.filename is not None and str(problem.filename) in (job.image, job.labels):
            problems.append(labels.Problem(str(problem.filename), 0, "unreadable_file", str(problem.strerror)))
        else:
            where = f" ({problem.filename})" if problem.filename else ""
            error = f"Cannot write to {output}{where}: {problem.strerror or problem}"
    return Result(
        job.image,
        names,
        0 if objects is None else len(objects.labels),
        num_written,
        num_truncated,
        num_blank,
        problems,
        {"coding": coding, "all": time.perf_counter() - begin},
        error,
        stopped,
    )


def find_jobs(image_folders, label_folders):
    """Pairs images with label files.

    Args:
      image_folders: list of folders of images.
      label_folders: list of as many folders of label files, or [] for images without labels.

    Returns:
      (list of Job, list of labels.Problem: images and labels without partner).

    Raises:
      SplitError: a folder is missing or without images, or two images have one name.
    """
    if label_folders and len(label_folders) != len(image_folders):
        raise SplitError(f"Expected one --labels for each of {len(image_folders)} --images, got {len(label_folders)}.")
    jobs, problems, seen = [], [], {}
    for images, annotations in zip(image_folders, label_folders or [None] * len(image_folders), strict=True):
        if annotations and not os.path.isdir(annotations):
            raise SplitError(f"Expected a folder at {annotations}, found none.")
        paths = [str(path) for path in image_files.list_images(images)]
        unused = {}
        if annotations:
            unused = {
                name[:-4]: os.path.join(annotations, name)
                for name in os.listdir(annotations)
                if name[-4:].lower() == ".txt" and not name.startswith(".")
            }
        for path in paths:
            stem = pathlib.Path(path).stem
            if stem in seen:
                raise SplitError(f"{seen[stem]} and {path} would give tiles of the same names: rename one of them.")
            seen[stem] = path
            if annotations and stem not in unused:
                detail = f"expected {os.path.join(annotations, stem + '.txt')}, found none; the image is left out"
                problems.append(labels.Problem(path, 0, "image_without_labels", detail))
                continue
            jobs.append(Job(path, unused.pop(stem, None)))
        problems += [
            labels.Problem(path, 0, "labels_without_image", f"there is no image of this name in {images}")
            for path in sorted(unused.values())
        ]
    return jobs, problems


def _signature(job):
    """Size and time of an image and its labels: a finished image is done again when these change."""
    parts = []
    for path in filter(None, job):
        stat = os.stat(path)
        parts.append(f"{stat.st_size}-{stat.st_mtime_ns}")
    return "+".join(parts)


def _check_manifest(output, settings):
    """Writes the parameters into a fresh output folder, or refuses a folder that was made with others."""
    path = output / "split.json"
    try:
        for folder in ["images"] + (["labelTxt"] if settings["labels"] else []):
            (output / folder).mkdir(parents=True, exist_ok=True)
            for left in (output / folder).glob(".*.tmp"):  # of a run that was killed
                left.unlink()
    except OSError as error:
        raise SplitError(f"Cannot make the output folder {output}: {error.strerror} ({error.filename}).") from None
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise SplitError(f"{path} is damaged: remove {output}, or name another --output.") from None
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            differences = ", ".join(f"{key} was {before.get(key)}, is {settings[key]}" for key in changed)
            raise SplitError(
                f"{output} was begun with other parameters ({differences}): repeat those, or name another --output."
            )
        return
    if any((output / "images").iterdir()):
        raise SplitError(f"{output / 'images'} holds files that are not of this tool: name another --output.")
    _write_or_refuse(path, (json.dumps(settings, indent=1) + "\n").encode())


def _image_settings(folder, paths, given):
    """The settings for all images of this run and those before, kept beside the tiles where they say something."""
    before, _ = image_settings.read_folder(folder)
    settings = scaling.for_images(paths, given) if paths else image_settings.merged(given, before)
    if given.limits is None and settings.limits and before.limits:
        settings = settings._replace(limits=max(settings.limits, before.limits))
    elif settings.limits is None:
        settings = settings._replace(limits=before.limits)
    if settings != before:
        try:
            image_settings.write_folder(folder, settings)
        except OSError as error:
            raise SplitError(f"Cannot write {folder / image_settings.FILE}: {error.strerror}.") from None
    return settings


def _write_or_refuse(path, data):
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise SplitError(f"Cannot write {path}: {error.strerror}.") from None


def _read_done(path):
    """dict from image name to its line of split_done.jsonl; a line cut short by a crash is as if it were not there."""
    done = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
                done[entry["image"]] = entry
            except (ValueError, KeyError):
                continue
    return done


class Summary(NamedTuple):
    """What a run did.

    Attributes:
      num_images: finished images, those of earlier runs included.
      num_tiles: their tiles.
      num_objects: their objects.
      num_written: their label lines.
      num_truncated: of these, truncated by the tile.
      num_blank: windows of one single value.
      problems: list of labels.Problem, those of earlier runs included.
      coding_share: share of this run's working time that went into reading, decoding, encoding and writing images.
      seconds: wall time of this run.
    """

    num_images: int
    num_tiles: int
    num_objects: int
    num_written: int
    num_truncated: int
    num_blank: int
    problems: list
    coding_share: float
    seconds: float

    @property
    def lost(self):
        """The problems by which an image or an object is missing in the output."""
        return losses(self.problems)


def split(image_folders, label_folders, output, parameters, *, num_workers=None, progress=None):
    """Cuts all images of some folders into tiles. A second call with the same arguments completes the first.

    Args:
      image_folders: list of folders of images.
      label_folders: list of as many folders of label files, or [] for images without labels.
      output: the output folder.
      parameters: Parameters.
      num_workers: worker processes; None: one a core; 0: work in this process. Scripts that call this need the usual
        `if __name__ == "__main__":`, since workers are spawned.
      progress: function of (images done, images in all, tiles), called after each image.

    Returns:
      A Summary.

    Raises:
      SplitError: nothing to do, other parameters than before, or writing failed.
      KeyboardInterrupt: stopped; what is finished is marked, and a second call goes on.
    """
    begin = time.perf_counter()
    output = pathlib.Path(output)
    jobs, problems = find_jobs(image_folders, label_folders)
    settings = {
        "images": [str(pathlib.Path(folder).resolve()) for folder in image_folders],
        "labels": [str(pathlib.Path(folder).resolve()) for folder in label_folders],
        **{name: value for name, value in parameters._asdict().items() if name != "images"},
        "rates": list(parameters.rates),
        "image_settings": image_settings.to_json(parameters.images),
    }
    _check_manifest(output, settings)
    done_path = output / "split_done.jsonl"
    done = _read_done(done_path)
    finished, waiting = [], []
    for job in jobs:
        entry = done.get(pathlib.Path(job.image).name)
        if entry is not None and entry["signature"] == _signature(job):
            finished.append(entry)
            continue
        for name in entry["tiles"] if entry else ():  # the image or its labels have changed since
            for old in [*(output / "images").glob(f"{name}.*"), output / "labelTxt" / f"{name}.txt"]:
                old.unlink(missing_ok=True)
        waiting.append(job)
    settings = _image_settings(output / "images", [job.image for job in waiting], parameters.images)
    num_workers = min(os.cpu_count() or 1 if num_workers is None else num_workers, len(waiting))
    # The largest first, so that no worker is left alone with a large image at the end.
    waiting.sort(key=lambda job: -os.path.getsize(job.image))
    times = {"coding": 0.0, "all": 0.0}

    def take(job, result, file):
        if result.error is not None:
            raise SplitError(
                f"{result.error}. {len(finished)} of {len(jobs)} images are finished; the same command goes on there."
            )
        for key in times:
            times[key] += result.seconds[key]
        if not result.tiles and not result.num_blank:  # not usable; named, and tried again by the next run
            problems.extend(result.problems)
            return
        entry = {
            "image": pathlib.Path(job.image).name,
            "signature": _signature(job),
            **{key: getattr(result, key) for key in ("num_objects", "num_written", "num_truncated", "num_blank")},
            "tiles": result.tiles,
            "problems": [list(problem) for problem in result.problems],
        }
        file.write(json.dumps(entry) + "\n")
        file.flush()
        finished.append(entry)
        if progress is not None:
            progress(len(finished), len(jobs), sum(len(entry["tiles"]) for entry in finished))

    try:
        with open(done_path, "a") as file:
            if file.tell() and not done_path.read_bytes().endswith(b"\n"):
                file.write("\n")  # the last run broke off inside a line
            if num_workers == 0:
                for job in waiting:
                    take(job, split_image(job, output, parameters, settings), file)
            else:
                arguments = (output, parameters, settings)
                _run_workers(waiting, arguments, num_workers, lambda job, result: take(job, result, file))
    except OSError as error:
        raise SplitError(f"Cannot write {done_path}: {error.strerror or error}.") from None
    problems += [labels.Problem(*problem) for entry in finished for problem in entry["problems"]]
    problems.sort(key=lambda problem: problem[:2])
    _write_or_refuse(output / "split_problems.txt", "".join(f"{problem}\n" for problem in problems).encode())
    total = {
        key: sum(entry[key] for entry in finished)
        for key in ("num_objects", "num_written", "num_truncated", "num_blank")
    }
    return Summary(
        num_images=len(finished),
        num_tiles=sum(len(entry["tiles"]) for entry in finished),
        problems=problems,
        coding_share=times["coding"] / max(times["all"], 1e-9),
        seconds=time.perf_counter() - begin,
        **total,
    )


def _run_workers(jobs, arguments, num_workers, take):
    """Runs split_image over worker processes; on Ctrl-C or an error they stop after the tile at hand."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of OpenCV, GDAL and JAX
    stop = context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,)
    )
    try:
        # Ctrl-C reaches every process of the terminal. Workers are born deaf to it, or one that is still importing
        # would die with a traceback; the parent decides, and workers finish the tile at hand.
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
        try:
            futures = {executor.submit(split_image, job, *arguments): job for job in jobs}
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, before)
        for future in concurrent.futures.as_completed(futures):
            take(futures[future], future.result())
    except concurrent.futures.process.BrokenProcessPool:
        raise SplitError(
            "A worker process died, most likely for want of memory: run the same command again with fewer --workers."
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
