"""The labelled objects of one image, and what can be odd about their polygons."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax.labels.problems import Problem, Reason

MAX_COORDINATE = 1e7  # beyond it float32 no longer holds whole pixels


class Objects(NamedTuple):
    """Labelled objects of one image.

    Attributes:
      polygons: [N, 4, 2] float64 corner points (x, y) in pixels, as written.
      labels: [N] int32 classes, 0-based.
      difficulty: [N] int32, 0 where the file gives none.
      lines: [N] int32 line numbers in the file, from 1; 0 where the format has no lines.
    """

    polygons: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    lines: np.ndarray


def of_rows(polygons: ArrayLike, labels: ArrayLike, difficulty: ArrayLike, lines: ArrayLike) -> Objects:
    """Objects of lists or arrays. Args: [N * 8] numbers, and three times [N]."""
    return Objects(
        np.array(polygons, np.float64).reshape(-1, 4, 2),
        np.array(labels, np.int32),
        np.array(difficulty, np.int32),
        np.array(lines, np.int32),
    )


def none() -> Objects:
    """No objects."""
    return of_rows([], [], [], [])


def select(objects: Objects, rows: np.ndarray) -> Objects:
    """Some of the objects. Args: objects; rows, an index or mask of arrays."""
    return Objects(*(part[rows] for part in objects))


def checked(path: object, objects: Objects, names: list[str] | None = None) -> tuple[Objects, list[Problem]]:
    """Leaves out objects without area, and names those that are crossed or there twice.

    Args:
      path: the file, for the problems.
      objects: Objects with finite coordinates.
      names: what to call the objects where the file has no lines ("annotation 7"); None: they are found by their lines.

    Returns:
      (Objects, list of Problem).
    """
    problems = []

    def report(row, reason, detail):
        if names is not None:
            detail = f"{names[row]}: {detail}"
        problems.append(Problem(str(path), int(objects.lines[row]), reason, detail))

    areas = _triangle_areas(objects.polygons)
    # 1e-6 square pixels: float64 coordinates leave about 1e-8 for points that are written as one line
    flat = np.all(np.abs(areas) <= 1e-6, axis=-1)
    for row in np.flatnonzero(flat).tolist():
        report(row, Reason.ZERO_AREA, "the four points lie on one line, so the object has no area")
    for row in np.flatnonzero(_crossed(areas) & ~flat).tolist():
        detail = "edges of the polygon cross each other; the box that encloses its points is used"
        report(row, Reason.CROSSED, detail)
    for row, first in _duplicates(objects.polygons, objects.labels):
        if not flat[row]:
            where = f"in line {objects.lines[first]}" if names is None else names[first]
            report(row, Reason.DUPLICATE, f"the same object as {where}")
    return (select(objects, ~flat) if flat.any() else objects), problems


def _triangle_areas(polygons):
    """[N, 4] twice the signed areas of the triangles left when one corner is taken away."""
    a, b, c = (polygons[:, corners] for corners in ((1, 0, 0, 0), (2, 2, 1, 1), (3, 3, 3, 2)))
    u, v = b - a, c - a
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _crossed(areas):
    """[N] bool, quadrilaterals whose opposite edges cross. Args: areas, of `_triangle_areas`."""
    without_0, without_1, without_2, without_3 = areas.T
    # Edges 01 and 23 cross when 2 and 3 lie on different sides of 01, and 0 and 1 on different sides of 23.
    first = (without_3 * without_2 < 0) & (without_1 * without_0 < 0)
    second = (without_0 * without_3 < 0) & (without_2 * without_1 < 0)  # edges 12 and 30
    return first | second


_MIX = np.random.default_rng(0).integers(0, 2**64, 9, np.uint64) | np.uint64(1)


def _duplicates(polygons, labels):
    """(row, first row with the same points and class) of every object that repeats an earlier one."""
    if len(labels) < 2:
        return []
    bits = np.ascontiguousarray(polygons).reshape(-1, 8).view(np.uint64)
    # Equal rows have equal hashes; the few rows whose hash is there twice are compared letter by letter.
    hashes = bits @ _MIX[:8] + labels.astype(np.uint64) * _MIX[8]
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order[1:]] == hashes[order[:-1]]
    suspects = np.unique(np.concatenate([order[1:][equal], order[:-1][equal]]))
    found, seen = [], {}
    for row in suspects.tolist():
        first = seen.setdefault((labels[row].item(), bits[row].tobytes()), row)
        if first != row:
            found.append((row, first))
    return found
