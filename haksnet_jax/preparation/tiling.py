"""Tiles of one image, with the objects that belong to each."""

import os
import pathlib
import time
from typing import Any, NamedTuple

import cv2
import numpy as np
import shapely

from haksnet_jax import files
from haksnet_jax.images import geotiff
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels import dota, name_lists
from haksnet_jax.labels.objects import Objects
from haksnet_jax.labels.problems import UNREAD, Problem, Reason
from haksnet_jax.results import geojson, tiles

PADDING = (124, 116, 104)  # the reference's; images that are not of three 8-bit channels are padded with zeros
# Bands of images whose tiles read the same from a PNG or JPEG as from a TIFF.
_JPEG_BANDS = (("grey",), ("",), ("red", "green", "blue"), ("", "", ""), ("grey", "", ""))
_PNG_BANDS = (*_JPEG_BANDS, ("red", "green", "blue", "alpha"))
TRUNCATED = 2  # difficulty of an object that its tile cuts


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
    """One image to cut.

    Attributes:
      image: path of the image.
      labels: path of the file with its labels, or None without labels.
      class_names: tuple of the classes that are known; others that the labels name pass too.
      given: (Objects, list of Problem) where the labels have been read already, else None: in DOTA's format.
    """

    image: str
    labels: str | None
    class_names: tuple = ()
    given: tuple[Objects, list] | None = None


class Result(NamedTuple):
    """What came of one image.

    Attributes:
      image: path of the image.
      tiles: names of the tiles, without extension.
      num_objects: objects in the label file.
      num_written: label lines written; an object in two tiles counts twice.
      num_truncated: of these, with difficulty 2 because the tile cuts the object.
      num_blank: windows of one single value.
      class_names: classes of the objects.
      place: {"transform": six numbers, "crs": text} of a georeferenced image, else None.
      problems: list of Problem.
      seconds: {"coding": decoding, encoding and writing images, "all": everything}.
      error: sentence that ends the whole run (disk full), or None.
      stopped: True when the run was stopped before this image was finished.
    """

    image: str
    tiles: tuple = ()
    num_objects: int = 0
    num_written: int = 0
    num_truncated: int = 0
    num_blank: int = 0
    class_names: tuple = ()
    place: dict | None = None
    problems: tuple = ()
    seconds: dict | None = None
    error: str | None = None
    stopped: bool = False


def cut_image(
    job: Job,
    output: str | os.PathLike[str],
    parameters: Parameters,
    settings: image_settings.ImageSettings = image_settings.DEFAULT,
    stop: Any = None,
) -> Result:
    """Cuts one image into the output folder.

    Args:
      job: a Job.
      output: the output folder, with its folders images and (for labels) labelTxt.
      parameters: Parameters.
      settings: ImageSettings.
      stop: event that asks to stop between two tiles, or None.

    Returns:
      A Result. An image that cannot be used gives a problem and no tiles.
    """
    begin = time.perf_counter()
    cut = _ImageCut(job, pathlib.Path(output), parameters)
    try:
        cut.run(settings, stop)
    except ImageError as problem:
        cut.problems.append(Problem(job.image, 0, problem.reason, problem.sentence))
    except cv2.error as problem:
        detail = f"OpenCV cannot write it: {problem.err}"
        cut.problems.append(Problem(job.image, 0, Reason.UNENCODABLE_TILE, detail))
    except OSError as problem:
        if problem.filename is not None and str(problem.filename) in (job.image, job.labels):
            reason = Reason.UNREADABLE_IMAGE if str(problem.filename) == job.image else Reason.UNREADABLE_LABELS
            cut.problems.append(Problem(str(problem.filename), 0, reason, str(problem.strerror)))
        else:
            where = f" ({problem.filename})" if problem.filename else ""
            error = f"Cannot write to {output}{where}: {problem.strerror or problem}"
            return cut.result(begin)._replace(error=error)
    return cut.result(begin)


def read_any_labels(path: pathlib.Path, class_names: tuple[str, ...]) -> tuple[Objects, list[Problem], tuple[str, ...]]:
    """The objects of a label file in DOTA's format, whatever their classes are.

    Args:
      path: the file.
      class_names: tuple of the classes that are known.

    Returns:
      (Objects, list of Problem, tuple of class names: the known ones, then those that the file names beyond them).
      Names that no list of classes may hold stay unknown.
    """
    found, problems = dota.read_labels(path, class_names)
    unknown = (problem.subject for problem in problems if problem.reason == Reason.UNKNOWN_CLASS)
    others = dict.fromkeys(filter(name_lists.usable, unknown))
    if others:
        class_names = (*class_names, *others)
        found, problems = dota.read_labels(path, class_names)
    return found, problems, tuple(class_names)


class _ImageCut:
    """The work on one image, counted as it goes."""

    def __init__(self, job, output, parameters):
        self._job, self._output, self._parameters = job, output, parameters
        self._objects, self._class_names, self._place = None, job.class_names, None
        self._names, self._stopped, self._coding = [], False, 0.0
        self._num_written = self._num_truncated = self._num_blank = 0
        self.problems = []

    def run(self, settings, stop):
        """Cuts tile after tile."""
        job, parameters = self._job, self._parameters
        if job.given is not None:
            self._objects, problems = job.given
            self.problems += problems
        elif job.labels is not None:
            self._objects, problems, self._class_names = read_any_labels(job.labels, job.class_names)
            self.problems += problems
        if any(problem.reason in UNREAD for problem in self.problems):
            return  # its tiles would seem to have no objects
        started = time.perf_counter()
        with ImageFile(job.image, settings) as image:
            self._coding += time.perf_counter() - started
            self._place = _place(job.image, image)
            cutter = _Cutter(image, parameters)
            windows = tiles.windows(
                image.width,
                image.height,
                [int(parameters.tile / rate) for rate in parameters.rates],
                [int(parameters.overlap / rate) for rate in parameters.rates],
                min_image_rate=parameters.min_image_rate,
            )
            polygons = np.zeros((0, 4, 2)) if self._objects is None else self._objects.polygons
            fractions = inside_fractions(polygons, windows)
            # 1e-6: an object of exactly min_inside stays, whichever way the division rounds
            kept = fractions >= parameters.min_inside - 1e-6
            for window, fraction, keep in zip(windows.tolist(), fractions, kept, strict=True):
                if stop is not None and stop.is_set():
                    self._stopped = True
                    return
                self._cut(cutter, window, fraction, keep)
        if self._objects is not None:
            self.problems += [
                Problem(job.labels, line, Reason.IN_NO_TILE, "no tile holds enough of this object")
                for line in self._objects.lines[~kept.any(axis=0)].tolist()
            ]

    def _cut(self, cutter, window, fraction, keep):
        """Writes one tile, its labels first: a tile that is there has its labels."""
        x1, y1, x2, _ = window
        name = tiles.format_tile_name(pathlib.Path(self._job.image).stem, x2 - x1, x1, y1)
        started = time.perf_counter()
        pixels = cutter.cut(window)
        self._coding += time.perf_counter() - started
        blank = _is_blank(pixels)
        self._num_blank += blank
        if blank and self._parameters.skip_blank and not keep.any():
            return
        if self._objects is not None:
            self._write_labels(name, window, fraction, keep)
        started = time.perf_counter()
        cutter.write(self._output / "images" / name, pixels)
        self._coding += time.perf_counter() - started
        self._names.append(name)

    def _write_labels(self, name, window, fraction, keep):
        x1, y1, x2, _ = window
        scale = self._parameters.tile / (x2 - x1) if self._parameters.resize else 1.0
        polygons = (self._objects.polygons[keep] - [x1, y1]) * scale
        cut_off = fraction[keep] < 1
        difficulties = np.where(cut_off, TRUNCATED, self._objects.difficulty[keep])
        lines = [
            dota.format_label_line(polygon, self._class_names[label], difficulty, self._class_names) + "\n"
            for polygon, label, difficulty in zip(polygons, self._objects.labels[keep], difficulties, strict=True)
        ]
        files.write_text(self._output / "labelTxt" / f"{name}.txt", "".join(lines), sync=False)
        self._num_written += len(lines)
        self._num_truncated += int(cut_off.sum())

    def result(self, begin):
        """The Result. Args: begin, of the work, by time.perf_counter."""
        labels = () if self._objects is None else np.unique(self._objects.labels).tolist()
        return Result(
            image=self._job.image,
            tiles=tuple(self._names),
            num_objects=0 if self._objects is None else len(self._objects.labels),
            num_written=self._num_written,
            num_truncated=self._num_truncated,
            num_blank=self._num_blank,
            class_names=tuple(self._class_names[label] for label in labels),
            place=self._place,
            problems=tuple(self.problems),
            seconds={"coding": self._coding, "all": time.perf_counter() - begin},
            stopped=self._stopped,
        )


def _place(path, image):
    """Where a georeferenced image lies, as JSON can hold it, or None."""
    if image.header.format != "TIFF":
        return None
    found, _ = geojson.read_georeference(path)
    if found is None:
        return None
    return {"transform": list(found.transform), "crs": found.crs.to_string() if found.crs else None}


def inside_fractions(polygons: np.ndarray, windows: np.ndarray) -> np.ndarray:
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
