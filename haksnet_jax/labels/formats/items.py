"""Objects as annotation files describe them, before their classes are known by number."""

import math
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax.labels import classes, objects
from haksnet_jax.labels.formats.structured import FormatError
from haksnet_jax.labels.problems import Problem, Reason, shortened

MAX_POINTS = 100_000  # of one outline
MAX_ANGLE = 1e3  # radians, more than a hundred turns: what is beyond was no angle


class Item(NamedTuple):
    """One object.

    Attributes:
      name: its class, as written.
      points: [P, 2] outline in pixels, P >= 3; four points are taken as they are, others by their smallest rectangle.
      difficulty: as written: text, a number, a truth value, or None where there is none.
      line: of the file, from 1; 0 where the format has no lines.
      where: what to call it in a sentence: "annotation 7".
    """

    name: str
    points: np.ndarray
    difficulty: object
    line: int
    where: str


class ImageNames:
    """The images of one file, by their names without folder and ending: each of these must mean one image."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def stem(self, name: str, stem: str | None = None) -> str:
        """The name without folder and ending.

        Args:
          name: as the file writes it, with / or \\.
          stem: where it is something else than what `name` ends with.

        Raises:
          FormatError: an earlier image of another name has the same.
        """
        if stem is None:
            stem = pathlib.PurePosixPath(name.replace("\\", "/")).stem
        first = self._names.setdefault(stem, name)
        if first != name:
            detail = f"image {shortened(name)} is left out: without folder and ending {shortened(first)} has its name"
            raise FormatError(Reason.SAME_NAME, detail)
        return stem


def bounded(numbers: ArrayLike, where: str, line: int = 0, *, most: float = objects.MAX_COORDINATE) -> np.ndarray:
    """float64 array of numbers, none beyond `most`, so that computing with them does not overflow.

    Args:
      numbers: any nesting of numbers that an array takes.
      where, line: for the error.
      most: the largest magnitude.

    Raises:
      FormatError: one is not finite or beyond.
    """
    try:
        array = np.asarray(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):  # whole numbers of hundreds of digits, among others
        array = np.array(np.nan)
    if not np.all(np.abs(array) <= most):  # catches NaN too
        raise FormatError(Reason.BAD_NUMBER, f"{where}: a number is not finite or beyond {most:g}", line)
    return array


def rotated(cx: float, cy: float, w: float, h: float, radians: float, where: str, line: int = 0) -> np.ndarray:
    """[4, 2] corners of a box whose angle grows clockwise on the screen.

    Args:
      cx, cy, w, h: pixels.
      radians: the angle.
      where, line: for the error.

    Raises:
      FormatError: a number is beyond what a box in an image can have, or a side is negative.
    """
    # (number by number: arrays of one box would take ten times as long as all else)
    if not all(abs(number) <= objects.MAX_COORDINATE for number in (cx, cy, w, h)) or not abs(radians) <= MAX_ANGLE:
        raise FormatError(Reason.BAD_NUMBER, f"{where}: a number is not finite or beyond what an image has", line)
    if w < 0 or h < 0:
        raise FormatError(Reason.BAD_NUMBER, f"{where}: expected a width and height of 0 or more", line)
    cos, sin = math.cos(radians), math.sin(radians)
    along_x, along_y, across_x, across_y = cos * w / 2, sin * w / 2, -sin * h / 2, cos * h / 2
    corners = (
        (cx - along_x - across_x, cy - along_y - across_y),
        (cx + along_x - across_x, cy + along_y - across_y),
        (cx + along_x + across_x, cy + along_y + across_y),
        (cx - along_x + across_x, cy - along_y + across_y),
    )
    return np.array(corners, np.float64)


def upright(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """[4, 2] corners of an axis-parallel box."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def quadrilateral(points: ArrayLike, where: str, line: int = 0) -> np.ndarray:
    """[4, 2] the points themselves where they are four, else the corners of the smallest rectangle around them.

    Args:
      points: [P, 2] numbers; a last point that repeats the first does not count.
      where, line: for the error.

    Raises:
      FormatError: fewer than three points, too many, or numbers that are no coordinates.
    """
    try:
        points = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise FormatError(Reason.BAD_NUMBER, f"{where}: expected pairs of numbers as points", line) from None
    if not np.all(np.abs(points) <= objects.MAX_COORDINATE):  # catches NaN too
        detail = f"{where}: a coordinate is not finite or beyond {objects.MAX_COORDINATE:g} pixels"
        raise FormatError(Reason.BAD_NUMBER, detail, line)
    if len(points) > 3 and (points[0] == points[-1]).all():
        points = points[:-1]
    if not 3 <= len(points) <= MAX_POINTS:
        detail = f"{where}: expected an outline of 3 to {MAX_POINTS} points, found {len(points)}"
        raise FormatError(Reason.TOO_FEW_NUMBERS, detail, line)
    if len(points) == 4:
        return points
    return cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32))).astype(np.float64)


def collect(
    path: str | os.PathLike[str], items: Iterable[Item | FormatError], finder: classes.Finder
) -> tuple[objects.Objects, list[Problem]]:
    """Turns the objects of one image into Objects, and what cannot be turned into Problems.

    Args:
      path: the file, for the problems.
      items: Items; a FormatError among them is an object that could not be read.
      finder: classes.Finder.

    Returns:
      (Objects, list of Problem).
    """
    polygons, labels, difficulties, lines, names, problems, respelled = [], [], [], [], [], [], set()
    for item in items:
        try:
            if isinstance(item, FormatError):
                raise item
            label, exactly = finder.find_name(item.name) or (None, True)
            if label is None:
                known = ", ".join(finder.class_names[:4]) + (", ..." if len(finder.class_names) > 4 else "")
                name = shortened(item.name)
                detail = f"class '{name}' is not among the {len(finder.class_names)} given ones ({known})"
                problems.append(Problem(str(path), item.line, Reason.UNKNOWN_CLASS, detail, name))
                continue
            polygon = quadrilateral(item.points, item.where, item.line)
        except FormatError as error:
            problems.append(error.problem(path))
            continue
        if not exactly and item.name not in respelled:
            respelled.add(item.name)
            detail = f"class '{shortened(item.name)}' is read as '{finder.class_names[label]}'"
            problems.append(Problem(str(path), item.line, Reason.CLASS_RESPELLED, detail, item.name))
        difficulty = 0 if item.difficulty in (None, "") else classes.read_difficulty(str(item.difficulty))
        if difficulty is None:
            wanted = f"expected a whole number from 0 to {classes.MAX_DIFFICULTY}"
            detail = f"{item.where}: difficulty '{shortened(str(item.difficulty))}' is read as 0: {wanted}"
            problems.append(Problem(str(path), item.line, Reason.BAD_DIFFICULTY, detail))
        polygons.append(polygon)
        labels.append(label)
        difficulties.append(difficulty or 0)
        lines.append(item.line)
        names.append(item.where)
    found = objects.of_rows(polygons, labels, difficulties, lines)
    found, odd = objects.checked(path, found, names)
    return found, problems + odd
