"""What was found in one image, as an object: boxes, scores, names, polygons, and the ways out to other tools."""

import functools
import operator
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results import geojson, visualize

_ARRAYS = ("boxes", "scores", "labels", "polygons", "names")


class Detection(NamedTuple):
    """One object.

    Attributes:
      box: [5] float32 (cx, cy, w, h, angle), pixels of the image and radians.
      score: in 0..1.
      label: number of its class.
      name: name of its class.
      polygon: [4, 2] float32 corners in pixels of the image.
    """

    box: np.ndarray
    score: float
    label: int
    name: str
    polygon: np.ndarray


class Detections:
    """Objects found in one image, best score first.

    It has a length, is iterated as `Detection`s, and is cut down by a mask, indices or a slice
    (`detections[detections.scores > 0.5]`) or by `filter`. `detections["boxes"]` is the same as `detections.boxes`.

    Args:
      boxes: [n, 5] (cx, cy, w, h, angle), pixels of the image and radians.
      scores: [n] in 0..1.
      labels: [n] int classes.
      class_names: names of all classes, by label.
      image: the image's name.
      path: its file, or None for an array.
      size: (columns, rows) of the image, or None where that is not known.
      read: function from a longest side in pixels to (the image reduced to it, factor), for `plot`; None where the
        image is not at hand.
      num_cut: objects beyond the most that the network gives, which are not here.
      error: why the image could not be read, where it could not.

    Attributes:
      boxes: [n, 5] float32.
      scores: [n] float32.
      labels: [n] int32.
      class_names, image, path, size, num_cut, error: as given.
    """

    def __init__(
        self,
        boxes: Any,
        scores: Any,
        labels: Any,
        class_names: tuple[str, ...],
        *,
        image: str | None = None,
        path: str | pathlib.Path | None = None,
        size: tuple[int, int] | None = None,
        read: Callable | None = None,
        num_cut: int = 0,
        error: Exception | None = None,
    ) -> None:
        self.boxes = np.asarray(boxes, np.float32).reshape(-1, 5)
        self.scores = np.asarray(scores, np.float32).reshape(-1)
        self.labels = np.asarray(labels, np.int32).reshape(-1)
        if not len(self.boxes) == len(self.scores) == len(self.labels):
            raise ValueError(
                f"expected one score and one label a box, got {len(self.boxes)}, {len(self.scores)} and "
                f"{len(self.labels)}"
            )
        self.class_names = tuple(class_names)
        self.image, self.path = image, None if path is None else pathlib.Path(path)
        self.size, self.num_cut, self.error = size, num_cut, error
        self._read = read

    @property
    def names(self) -> list[str]:
        """Names of the classes, one for each object."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def polygons(self) -> np.ndarray:
        """[n, 4, 2] float32 corners in pixels of the image."""
        return boxes_to_corners(self.boxes.astype(np.float64)).astype(np.float32)

    @functools.cached_property
    def georeference(self) -> geojson.Georeference | None:
        """Where the image lies on the ground; None where its file does not say, or there is no file."""
        return None if self.path is None else geojson.read_georeference(self.path)[0]

    @property
    def geo_polygons(self) -> np.ndarray | None:
        """[n, 4, 2] float64 corners in the image's coordinate system (`georeference.crs`), or None without one."""
        if self.georeference is None:
            return None
        return geojson.to_ground(boxes_to_corners(self.boxes.astype(np.float64)), self.georeference)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.boxes, self.scores.tolist(), self.labels.tolist(), self.names, self.polygons)
        return (Detection(*row) for row in zip(*columns, strict=True))

    def __contains__(self, name: object) -> bool:
        return name in _ARRAYS

    @overload
    def __getitem__(self, index: str) -> Any: ...

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "Detections": ...

    def __getitem__(self, index: Any) -> Any:
        """A named array; or one `Detection` (an int); or `Detections` (a mask, indices, a slice).

        Raises:
          KeyError: no array has this name.
        """
        if isinstance(index, str):
            if index not in _ARRAYS:
                raise KeyError(f"{index!r}: expected one of {', '.join(_ARRAYS)}")
            return getattr(self, index)
        if not isinstance(index, slice) and np.ndim(index) == 0:
            row = operator.index(index)
            return next(iter(self._chosen([row])))
        return self._chosen(index)

    def renamed(self, image: str) -> "Detections":
        """The same with another name of the image."""
        other = self._chosen(slice(None))
        other.image = image
        return other

    def _chosen(self, rows):
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if rows.size == 0:
                rows = rows.astype(np.int64)
        chosen = Detections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            self.class_names,
            image=self.image,
            path=self.path,
            size=self.size,
            read=self._read,
            num_cut=self.num_cut,
            error=self.error,
        )
        if "georeference" in self.__dict__:
            chosen.__dict__["georeference"] = self.georeference
        return chosen

    def filter(self, *, classes: Any = None, score: float | None = None) -> "Detections":
        """Those of some classes, and of a lowest score.

        Args:
          classes: a name, several names, or None for all.
          score: lowest score, or None for all.

        Raises:
          UserError: a name is none of the classes.
        """
        keep = np.ones(len(self), bool)
        if classes is not None:
            keep &= np.isin(self.labels, labels_of(classes, self.class_names))
        if score is not None:
            keep &= self.scores >= score
        return self[keep]

    def as_dict(self) -> dict[str, Any]:
        """{"boxes", "scores", "labels"}, and "size" where it is known."""
        arrays = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return arrays if self.size is None else arrays | {"size": self.size}

    def plot(self, *, text: bool = True, legend: bool = True, longest_side: int = 4096) -> np.ndarray:
        """Draws the objects into their image.

        Args:
          text: whether class and score are written beside those that leave room for it.
          legend: adds a strip below with the classes' colours.
          longest_side: larger images are reduced to this many pixels.

        Returns:
          uint8 [H, W, 3] RGB.

        Raises:
          ValueError: the image is not at hand.
        """
        if self._read is None:
            raise ValueError("the image of these detections is not at hand, so there is nothing to draw into")
        pixels, factor = self._read(longest_side)
        boxes = self.boxes * np.array([factor] * 4 + [1], np.float32)
        return visualize.draw_detections(
            pixels, boxes, self.scores, self.labels, self.class_names, text=text, legend=legend
        )

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """Writes them to a file; its ending says how.

        `.jpg`, `.png`: a drawing; `.json`: as in predict's detections.json; `.geojson`, `.gpkg`: on the ground; `.csv`;
        `.txt`: a line for each object, as DOTA's labels.

        Raises:
          UserError: another ending, or the format needs what is not there.
        """
        from haksnet_jax.results import formats  # (which is made of these objects)

        return formats.save(pathlib.Path(path), self)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Entries of a COCO results file: `bbox` is the axis-parallel box around `segmentation`, the four corners.

        Args:
          image_id: of this image in the annotation file. Categories are numbered from 1 in the order of `class_names`.
        """
        from haksnet_jax.results import formats

        return formats.coco_entries(self, image_id)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`, with the corners where its oriented boxes are kept (`data["xyxyxyxy"]`).

        Raises:
          UserError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                f"to_supervision needs the package supervision ({error}): pip install supervision"
            ) from error
        low, high = self.polygons.min(axis=1, initial=np.inf), self.polygons.max(axis=1, initial=-np.inf)
        return supervision.Detections(
            xyxy=np.concatenate([low, high], axis=1) if len(self) else np.zeros((0, 4), np.float32),
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"xyxyxyxy": self.polygons, "class_name": np.array(self.names, dtype=str)},
        )

    def to_geodataframe(self) -> Any:
        """A `geopandas.GeoDataFrame` with the columns label, score and geometry, in the image's coordinate system.

        Without a place on the ground the geometry is in pixels, y growing downwards, and `crs` is None.

        Raises:
          UserError: geopandas is not installed.
        """
        try:
            import geopandas
        except ImportError as error:
            raise UserError(f"to_geodataframe needs the package geopandas ({error}): pip install geopandas") from error
        import shapely

        corners = self.polygons if self.geo_polygons is None else self.geo_polygons
        crs = None if self.georeference is None or self.georeference.crs is None else self.georeference.crs.to_wkt()
        return geopandas.GeoDataFrame(
            {"label": self.names, "score": self.scores.tolist()}, geometry=list(shapely.polygons(corners)), crs=crs
        )

    def __repr__(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        found = ", ".join(f"{counts[label]} {self.class_names[label]}" for label in np.flatnonzero(counts))
        what = f"{self.image}: " if self.image else ""
        return f"<Detections {what}{self.error or found or 'nothing found'}>"


def labels_of(classes: Any, class_names: tuple[str, ...]) -> list[int]:
    """Numbers of classes.

    Args:
      classes: a name, or several names.
      class_names: all names, by label.

    Raises:
      UserError: a name is not among them, or there is none.
    """
    wanted = [classes] if isinstance(classes, str) else list(classes)
    unknown = [str(name) for name in wanted if name not in class_names]
    if unknown or not wanted:
        raise UserError(
            f"classes: {', '.join(unknown) or 'nothing'} is not among the model's classes: {', '.join(class_names)}"
        )
    return [class_names.index(name) for name in wanted]
