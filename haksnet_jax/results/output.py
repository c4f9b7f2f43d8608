"""The folder that predictions are written to: results of each image as they come, and files of all at the end."""

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from haksnet_jax import files, json_files, npz
from haksnet_jax.errors import UserError
from haksnet_jax.labels import name_lists
from haksnet_jax.results import detections_json, dota, formats, visualize
from haksnet_jax.results.detections import Detections

UNFINISHED = ".unfinished"  # folder in the output: what a run has so far
_RECORD = "run.json"  # in it: what the run does
_DRAWING_SIDE = 4096  # pixels: larger images are drawn reduced to this
# What belongs to an image, by the formats' folders; {} is its name.
_OF_IMAGE = (
    "drawings/{}.jpg",
    "geojson/{}.geojson",
    "geojson/{}.wgs84.geojson",
    "yolo-obb/{}.txt",
    "labels/{}.txt",
)
_OF_ALL = ("detections.csv", "detections.gpkg", "coco/results.json", "coco/images.json", "yolo-obb/classes.txt")


def prepare(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Makes an output folder and finds out whether it can be written to, before any work is done.

    Args:
      folder: str or path.

    Returns:
      pathlib.Path.

    Raises:
      UserError: it cannot.
    """
    return files.output_folder(folder)


def require_finished(predictions: str | os.PathLike[str]) -> None:
    """Refuses predictions of a folder in which predict runs or was stopped: some of its files may be of an earlier run.

    Args:
      predictions: the folder, a folder in it, or a file in it.

    Raises:
      UserError: they are not complete.
    """
    path = pathlib.Path(os.path.abspath(predictions))
    for folder in (path, path.parent):
        if (folder / UNFINISHED / _RECORD).is_file():
            raise UserError(
                f"{predictions}: these predictions are not complete, `haksnet predict` is running or was stopped: give "
                "the same command again, it goes on where it ended"
            )


class OutputFolder:
    """Results of a run of predictions.

    Args:
      folder: pathlib.Path, prepared.
      class_names: of the model.
      wanted: labels that are kept, or None for all.
      drawings: whether images are drawn.
      drawing_score: lowest score that is drawn.
      formats: names of `formats.FORMATS` that are written besides detections.json.

    Attributes:
      num_damaged: results of a stopped run that were damaged; their images are done again.
      removed: files of earlier runs that `finish` removed, which would lie beside results that they do not belong to.
      left_out: {reason: number of images} that a format could not hold.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        class_names: tuple[str, ...],
        wanted: Sequence[int] | None,
        *,
        drawings: bool,
        drawing_score: float,
        formats: Sequence[str],
    ) -> None:
        self.folder = folder
        self.class_names = class_names
        self.wanted = wanted
        self.drawings, self.drawing_score, self.formats = drawings, drawing_score, formats
        self.num_damaged = 0
        self.removed: list[str] = []
        self.left_out: dict[str, int] = {}
        self._parts = folder / UNFINISHED
        self._former: set[str] = set()  # names of images whose files of an earlier run may lie here

    def resume(self, run: str) -> None:
        """Begins, or goes on with a run of the same settings. Args: run, a JSON text that says what is done."""
        self._former = self._images_of_former_run()
        record = self._parts / _RECORD
        try:
            same = record.read_text(encoding="utf-8") == run
        except (OSError, ValueError):
            same = False
        if not same:
            self._former |= {path.stem for path in self._parts.glob("*.npz")}
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir(parents=True, exist_ok=True)
            files.write_text(record, run)

    def _images_of_former_run(self):
        path = self.folder / "detections.json"
        if not path.is_file():
            return set()
        try:
            return set(detections_json.read(path)[0])
        except UserError:  # not ours, or damaged: then nothing is known of what lies beside it
            return set()

    def _part(self, path):
        return self._parts / f"{dota.image_stem(path.name)}.npz"

    def has(self, path: pathlib.Path) -> bool:
        """Whether an image was finished before, its file is the same, and its results are whole."""
        part = self._part(path)
        if not part.is_file():
            return False
        try:
            arrays = npz.read(part, max_bytes=part.stat().st_size)  # (they are not packed)
            identity = tuple(arrays["identity"].tolist())
            Detections(arrays["boxes"], arrays["scores"], arrays["labels"], self.class_names)
            return identity == _identity(path) and arrays["size"].shape == (2,)
        except (OSError, ValueError, KeyError):
            self.num_damaged += 1
            part.unlink(missing_ok=True)
            return False

    def add(self, path: pathlib.Path, image: Any, detections: Mapping[str, np.ndarray]) -> None:
        """Writes what belongs to one image. Args: path; image, open, is closed; detections, merged."""
        try:
            if self.wanted is not None:
                keep = np.isin(detections["labels"], self.wanted)
                detections = {name: values[keep] for name, values in detections.items()}
            if self.drawings:
                pixels, factor = image.thumbnail(_DRAWING_SIDE)
                shown = detections["scores"] >= self.drawing_score
                boxes, scores, labels = (detections[key][shown] for key in ("boxes", "scores", "labels"))
                boxes = boxes * np.array([factor] * 4 + [1], np.float32)
                drawing = visualize.draw_detections(pixels, boxes, scores, labels, self.class_names, legend=True)
                (self.folder / "drawings").mkdir(exist_ok=True)
                visualize.write_image(self.folder / "drawings" / f"{dota.image_stem(path.name)}.jpg", drawing)
            part = self._part(path)
            with files.whole(part) as temporary:
                more = {"size": (image.width, image.height), "identity": _identity(path)}
                np.savez(temporary, **detections, **more)  # type: ignore[arg-type]  # (numpy's `allow_pickle` is not in them)
        finally:
            image.close()

    def _read(self, path):
        with np.load(self._part(path)) as part:
            return Detections(
                part["boxes"],
                part["scores"],
                part["labels"],
                self.class_names,
                image=path.name,
                path=path,
                size=tuple(part["size"].tolist()),
            )

    def finish(self, paths: Sequence[pathlib.Path]) -> int:
        """Writes what is made of all images, and removes what earlier runs left of others.

        Args:
          paths: of the images that are done.

        Returns:
          Number of detections.
        """
        files.write_text(self.folder / "classes.txt", name_lists.as_text(self.class_names))
        written: set[str] = set()
        left_out: collections.Counter[str] = collections.Counter()
        for name in self.formats:
            done = formats.FORMATS[name](self.folder, map(self._read, paths), self.class_names)
            written |= {os.path.abspath(path) for path in done.paths}
            left_out.update(done.left_out)
        self.left_out = dict(left_out)
        if "yolo-obb" in self.formats:
            written.add(os.path.abspath(self.folder / "yolo-obb" / "classes.txt"))
        if self.drawings:
            written |= {
                os.path.abspath(self.folder / "drawings" / f"{dota.image_stem(path.name)}.jpg") for path in paths
            }
        self._remove_former({dota.image_stem(path.name) for path in paths}, written)
        entries = ((one.image, *one.size, one.as_dict()) for one in map(self._read, paths))
        count = detections_json.write(self.folder / "detections.json", entries, self.class_names)
        shutil.rmtree(self._parts)
        return count

    def _remove_former(self, images, written):
        """Removes files of this program that belong to an earlier run: they are none of the results beside them."""
        if not self._former:
            return
        candidates = [self.folder / place.format(name) for name in self._former | images for place in _OF_IMAGE]
        candidates += [self.folder / place for place in _OF_ALL]
        if "task1" not in self.formats:
            candidates += (self.folder / "task1").glob("Task1_*.txt")
        for path in sorted(set(candidates)):
            if os.path.abspath(path) not in written and path.is_file():
                path.unlink()
                self.removed.append(str(path.relative_to(self.folder)))
        for name in ("drawings", "geojson", "yolo-obb", "labels", "coco", "task1"):
            place = self.folder / name
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _identity(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def describe(settings: Mapping[str, Any]) -> str:
    """JSON text of what a run does, by which a stopped one is told from another. Args: settings, a dict."""
    return json.dumps(settings, indent=1, default=json_files.quoted) + "\n"
