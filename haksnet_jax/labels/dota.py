"""Label files in DOTA's text format, and polygons as le90 boxes and back.

A file holds one object a line, `x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty] [more columns]`, in pixels, separated by
spaces. Header lines (`imagesource:...`, `gsd:...`), blank lines, a byte order mark and either kind of line end are no
problem.

Every oddity of a line becomes a `Problem` with a short reason. Lines that cannot be objects are left out (`LEFT_OUT`):
  too_few_numbers   fewer than eight coordinates and a class
  bad_number        a coordinate that is no number, not finite, or beyond 1e7 pixels
  unknown_class     a class that is not among the given ones
  zero_area         four points on one line, or in one place
Lines with these reasons are kept:
  class_respelled   the class was found only by ignoring case, spaces, underscores and hyphens (named once a spelling)
  bad_difficulty    a difficulty that is no whole number (read as 0)
  crossed           edges cross each other: the points are in no order around the object; its box encloses all four
  duplicate         same points and class as an earlier line
"""

import collections
import functools
import math
import pathlib
import re
from typing import NamedTuple

import cv2
import numpy as np
import shapely

LEFT_OUT = frozenset({"too_few_numbers", "bad_number", "unknown_class", "zero_area"})
MAX_COORDINATE = 1e7  # beyond it float32 no longer holds whole pixels

_DOTA10 = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
)

CLASSES: dict[str, tuple[str, ...]] = {
    "dota10": _DOTA10,
    "dota15": (*_DOTA10, "container-crane"),
    "dota20": (*_DOTA10, "container-crane", "airport", "helipad"),
    "hrsc2016": ("ship",),
    "dior_r": (  # two orders are in use, this one and one with dam before the expressways; spelled as in the release
        "airplane",
        "airport",
        "baseballfield",
        "basketballcourt",
        "bridge",
        "chimney",
        "Expressway-Service-area",
        "Expressway-toll-station",
        "dam",
        "golffield",
        "groundtrackfield",
        "harbor",
        "overpass",
        "ship",
        "stadium",
        "storagetank",
        "tenniscourt",
        "trainstation",
        "vehicle",
        "windmill",
    ),
    "fair1m": (
        "Boeing737",
        "Boeing747",
        "Boeing777",
        "Boeing787",
        "C919",
        "A220",
        "A321",
        "A330",
        "A350",
        "ARJ21",
        "other-airplane",
        "Passenger Ship",
        "Motorboat",
        "Fishing Boat",
        "Tugboat",
        "Engineering Ship",
        "Liquid Cargo Ship",
        "Dry Cargo Ship",
        "Warship",
        "other-ship",
        "Small Car",
        "Bus",
        "Cargo Truck",
        "Dump Truck",
        "Van",
        "Trailer",
        "Tractor",
        "Excavator",
        "Truck Tractor",
        "other-vehicle",
        "Basketball Court",
        "Tennis Court",
        "Football Field",
        "Baseball Field",
        "Intersection",
        "Roundabout",
        "Bridge",
    ),
    "ssdd": ("ship",),
    "hrsid": ("ship",),
    "ucas_aod": ("car", "plane"),
}


def read_class_names(text):
    """Class names from a published list or a file with one class a line.

    Args:
      text: a key of CLASSES ("dota10", "hrsc2016", ...), or the path of a text file.

    Returns:
      tuple of names, in the order of their labels.

    Raises:
      ValueError: neither is the case, or the file names a class twice or none at all.
    """
    if text in CLASSES:
        return CLASSES[text]
    path = pathlib.Path(text)
    if not path.is_file():
        raise ValueError(
            f"expected --classes to be one of {', '.join(CLASSES)}, or a text file with one class a line; found no "
            f"file {text}"
        )
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if not names or twice:
        found = f"{twice[0]} is there twice" if twice else "it names none"
        raise ValueError(f"{path}: expected each class once, one a line; {found}")
    return names


class Objects(NamedTuple):
    """Labelled objects of one image.

    Attributes:
      polygons: [N, 4, 2] float64 corner points (x, y) in pixels, as written.
      labels: [N] int32 classes, 0-based.
      difficulty: [N] int32, 0 where the file gives none.
      lines: [N] int32 line numbers in the file, from 1.
    """

    polygons: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    lines: np.ndarray


class Problem(NamedTuple):
    """Something odd in the input.

    Attributes:
      path: the file.
      line: its line, from 1; 0 for the file as a whole.
      reason: a short key to count by.
      detail: a sentence for the reader.
    """

    path: str
    line: int
    reason: str
    detail: str

    def __str__(self):
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.detail} [{self.reason}]"


_HEADER = re.compile(r"^(imagesource|gsd|acquisition[ _-]?dates?)\s*:", re.IGNORECASE)  # the last is DOTA-v2.0's


def _plain(name):
    return re.sub(r"[\s_-]+", "", name).lower()


@functools.lru_cache(maxsize=8)
def _class_finder(class_names, class_aliases):
    return _ClassFinder(class_names, dict(class_aliases))


class _ClassFinder:
    """Looks class names up: exactly, by the given aliases, then by plain spelling."""

    def __init__(self, class_names, class_aliases):
        self.exact = {name: label for label, name in enumerate(class_names)}
        for alias, name in class_aliases.items():
            if name not in self.exact:
                raise ValueError(
                    f"class_aliases maps '{alias}' to '{name}', which is not among the classes "
                    f"({', '.join(class_names)})"
                )
            self.exact.setdefault(alias, self.exact[name])
        plain = [(_plain(name), label) for name, label in self.exact.items()]
        labels_of = {}
        for name, label in plain:
            labels_of.setdefault(name, set()).add(label)
        # Two classes that differ in spelling alone can only be told apart exactly.
        self.plain = {name: next(iter(labels)) for name, labels in labels_of.items() if len(labels) == 1}
        self.find = functools.lru_cache(maxsize=4096)(self._find)  # the same few words end nearly all lines

    def _find(self, words):
        """(label, number of words used, found exactly), or None. Longest name first: 'Cargo Truck' before 'Cargo'."""
        for count in range(len(words), 0, -1):
            name = " ".join(words[:count])
            if name in self.exact:
                return self.exact[name], count, True
            if _plain(name) in self.plain:
                return self.plain[_plain(name)], count, False
        return None


def _coordinates(words):
    """Eight floats, or the first word that is none."""
    values = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            return None, word
        if not abs(value) <= MAX_COORDINATE:  # catches NaN too
            return None, word
        values.append(value)
    return values, None


def _triangle_areas(polygons):
    """[N, 4] twice the signed areas of the triangles left when one corner is taken away."""
    areas = []
    for left_out in range(4):
        a, b, c = (polygons[:, i] for i in range(4) if i != left_out)
        u, v = b - a, c - a
        areas.append(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    return np.stack(areas, axis=-1)


def _crossed(polygons):
    """[N] bool, quadrilaterals whose opposite edges cross."""
    without_0, without_1, without_2, without_3 = _triangle_areas(polygons).T
    # Edges 01 and 23 cross when 2 and 3 lie on different sides of 01, and 0 and 1 on different sides of 23.
    first = (without_3 * without_2 < 0) & (without_1 * without_0 < 0)
    second = (without_0 * without_3 < 0) & (without_2 * without_1 < 0)  # edges 12 and 30
    return first | second


def read_labels(path, class_names, *, class_aliases=None):
    """Reads one label file.

    Args:
      path: the file.
      class_names: the classes, in the order of their labels.
      class_aliases: other spellings, as a dict from the spelling in the files to one of class_names.

    Returns:
      (Objects, list of Problem). The content never raises; the module's docstring says which lines are left out.

    Raises:
      OSError: the file cannot be read.
      ValueError: an alias stands for a class that does not exist.
    """
    path = pathlib.Path(path)
    # replace: a stray byte in one line must not hide the others
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    finder = _class_finder(tuple(class_names), tuple((class_aliases or {}).items()))
    problems = []
    polygons, labels, difficulties, lines = [], [], [], []
    respelled = set()

    def report(line, reason, detail):
        problems.append(Problem(str(path), line, reason, detail))

    # split on newlines alone: str.splitlines also breaks at characters that a class name may hold
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        words = line.split()
        if not words or _HEADER.match(line.lstrip()):
            continue
        if len(words) < 9:
            report(
                number,
                "too_few_numbers",
                f"expected 8 coordinates, a class and a difficulty, found {len(words)} words: '{_shortened(line)}'",
            )
            continue
        values, bad_word = _coordinates(words[:8])
        if values is None:
            report(number, "bad_number", f"expected a coordinate in pixels, found '{_shortened(bad_word)}'")
            continue
        found = finder.find(tuple(words[8:12]))  # no published class has more than two words
        if found is None:
            report(
                number,
                "unknown_class",
                f"class '{_shortened(words[8])}' is not among the {len(class_names)} given ones "
                f"({', '.join(class_names[:4])}{', ...' if len(class_names) > 4 else ''})",
            )
            continue
        label, count, exactly = found
        spelling = " ".join(words[8 : 8 + count])
        if not exactly and spelling not in respelled:
            respelled.add(spelling)
            report(number, "class_respelled", f"class '{spelling}' is read as '{class_names[label]}'")
        difficulty = 0
        if len(words) > 8 + count:
            try:
                difficulty = int(words[8 + count])
            except ValueError:
                report(number, "bad_difficulty", f"difficulty '{_shortened(words[8 + count])}' is read as 0")
        polygons.append(values)
        labels.append(label)
        difficulties.append(max(-(2**31), min(difficulty, 2**31 - 1)))
        lines.append(number)

    polygons = np.array(polygons, np.float64).reshape(-1, 4, 2)
    labels, difficulties = np.array(labels, np.int32), np.array(difficulties, np.int32)
    lines = np.array(lines, np.int32)

    # 1e-6 square pixels: float64 coordinates leave about 1e-8 for points that are written as one line
    flat = np.all(np.abs(_triangle_areas(polygons)) <= 1e-6, axis=-1)
    crossed = _crossed(polygons)
    seen = {}
    for row, line in enumerate(lines.tolist()):
        if flat[row]:
            report(line, "zero_area", "the four points lie on one line, so the object has no area")
            continue
        if crossed[row]:
            report(line, "crossed", "edges of the polygon cross each other; the box that encloses its points is used")
        first = seen.setdefault((labels[row].item(), polygons[row].tobytes()), line)
        if first != line:
            report(line, "duplicate", f"the same object as in line {first}")
    keep = ~flat
    problems.sort(key=lambda problem: problem.line)
    return Objects(polygons[keep], labels[keep], difficulties[keep], lines[keep]), problems


def _shortened(text):
    text = text.strip()
    return text if len(text) <= 60 else text[:57] + "..."


def format_label_line(polygon, class_name, difficulty=0):
    """One line of a label file, without its line end.

    Spaces in a class become hyphens, since spaces separate the columns; `read_labels` finds the class all the same.

    Args:
      polygon: [4, 2] corner points in pixels; written with at most three decimals.
      class_name: the class.
      difficulty: a whole number.
    """
    numbers = " ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in np.asarray(polygon, np.float64).reshape(8))
    return f"{numbers} {'-'.join(class_name.split())} {int(difficulty)}"


def polygons_to_boxes(polygons, min_side=0.0):
    """The smallest rectangle around each polygon, as a le90 box.

    Args:
      polygons: [N, 4, 2] corner points in pixels, in any order.
      min_side: boxes with a shorter side below it are not valid (the reference's label reader uses 2).

    Returns:
      (boxes [N, 5] float32 with w >= h and -pi/2 <= angle < pi/2, valid [N] bool). Rectangles without area are never
      valid; rows that are not valid are zero. Of a square's two descriptions the one with 0 < angle < pi/2 is given,
      and -pi/2 for an axis-parallel one, as in the reference.
    """
    polygons = np.ascontiguousarray(polygons, np.float32).reshape(-1, 4, 2)
    if not len(polygons):
        return np.zeros((0, 5), np.float32), np.zeros(0, bool)
    rectangles = [cv2.minAreaRect(polygon) for polygon in polygons]
    boxes = np.array([(cx, cy, w, h, angle) for (cx, cy), (w, h), angle in rectangles], np.float64)
    cx, cy, w, h, degrees = boxes.T
    # OpenCV has changed the quadrant of this angle between versions: to (0, 90] first, so that squares agree too.
    quarters = np.ceil(degrees / 90) - 1
    degrees = degrees - 90 * quarters
    odd = quarters % 2 == 1
    w, h = np.where(odd, h, w), np.where(odd, w, h)
    upright = h > w
    w, h = np.where(upright, h, w), np.where(upright, w, h)
    angle = np.radians(np.where(upright, degrees + 90, degrees))
    angle = (angle + math.pi / 2) % math.pi - math.pi / 2
    boxes = np.stack([cx, cy, w, h, angle], axis=-1).astype(np.float32)
    # float32 rounds -pi/2 and pi/2 outwards; the largest angle must stay below the float32 pi/2 as well.
    boxes[:, 4] = np.where(boxes[:, 4] >= np.float32(math.pi / 2), np.float32(-math.pi / 2), boxes[:, 4])
    valid = (h > 0) & (h >= min_side)
    return np.where(valid[:, None], boxes, np.float32(0)), valid


def boxes_to_polygons(boxes):
    """Corner points of oriented boxes.

    Args:
      boxes: [N, 5] boxes (cx, cy, w, h, angle), pixels and radians.

    Returns:
      [N, 4, 2] float64 corners, clockwise on the screen, beginning at the corner (-w/2, -h/2) of the unrotated box.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    along = np.stack([cos, sin], axis=-1) * boxes[:, 2:3] / 2
    across = np.stack([-sin, cos], axis=-1) * boxes[:, 3:4] / 2
    corners = np.stack([-along - across, along - across, along + across, -along + across], axis=1)
    return corners + boxes[:, None, :2]


def outside_fraction(polygons, width, height):
    """How much of each polygon's area (of its convex hull) lies outside the image.

    Args:
      polygons: [N, 4, 2] corner points in pixels.
      width: pixels of the image.
      height: pixels of the image.

    Returns:
      [N] float64 in 0..1: 0 wholly inside, 1 wholly outside. A polygon without area counts by its middle.
    """
    polygons = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    size = np.array([width, height], np.float64)
    fraction = np.zeros(len(polygons))
    fraction[np.any((high <= 0) | (low >= size), axis=-1)] = 1.0
    cut = np.flatnonzero((fraction == 0) & np.any((low < 0) | (high > size), axis=-1))
    if len(cut):
        hulls = shapely.convex_hull(shapely.polygons(polygons[cut]))
        areas = shapely.area(hulls)
        inside = shapely.area(shapely.clip_by_rect(hulls, 0, 0, width, height))
        middle = polygons[cut].mean(axis=1)
        middle_outside = np.any((middle < 0) | (middle > size), axis=-1)
        fraction[cut] = np.where(areas > 0, 1 - inside / np.where(areas > 0, areas, 1), middle_outside)
    return fraction
