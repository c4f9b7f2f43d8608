"""Fixtures, the rows of the report, and how two sets of boxes are compared."""

import importlib.util
import json
import math
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs

_EPSILON = float(np.finfo(np.float32).eps)


class Row(NamedTuple):
    """One line of the report.

    Attributes:
      part: the fixture, such as "inference_t".
      what: what of it was compared.
      absolute: largest absolute difference; for discrete results the number of entries that differ.
      relative: the same relative to the largest value of the array; for discrete results their share.
      tolerance: in words.
      passed: whether everything lies within the tolerance.
      note: what the figures do not say.
    """

    part: str
    what: str
    absolute: float
    relative: float
    tolerance: str
    passed: bool
    note: str = ""


class Fixture:
    """One recorded fixture: `manifest` (dict) and arrays by name.

    Args:
      folder: where it lies, together with `reference_weights.py` and the state_dict_*.json.
      name: without extension.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self.folder = pathlib.Path(folder)
        self.name = name
        self.manifest = json.loads((self.folder / f"{name}.json").read_text())
        arrays = self.folder / f"{name}.npz"
        self._arrays = np.load(arrays) if arrays.exists() else {}

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        """Names of the arrays."""
        return iter(self._arrays)

    def cases(self, prefix: str = "") -> list[str]:
        """What the arrays' names begin with, up to the first slash, sorted."""
        return sorted({key.split("/")[0] for key in self if key.startswith(prefix)})

    def sampled(self, key: str, full: ArrayLike) -> np.ndarray:
        """The elements of `full` (reference layout, whole array) that are stored of `key`, flat."""
        entry = self.manifest["arrays"][key]
        full = np.asarray(full)
        if list(full.shape) != entry["shape"]:
            raise ValueError(f"{self.name}, {key}: the reference has shape {entry['shape']}, we {list(full.shape)}")
        return full.reshape(-1)[:: entry.get("flat_stride", 1)]

    def reference_weights(self) -> types.ModuleType:
        """The module `reference_weights.py` of the folder."""
        path = self.folder / "reference_weights.py"
        spec = importlib.util.spec_from_file_location("reference_weights", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


class Comparison:
    """Largest differences over any number of arrays.

    An element may differ by `absolute` + `relative` times the scale of its array, which is the array's largest value
    unless another one is given.
    """

    def __init__(self, fixture: Fixture, what: str, *, absolute: float = 0.0, relative: float = 0.0) -> None:
        self._fixture, self._what = fixture, what
        self._limits = (absolute, relative)
        self._absolute = self._relative = 0.0
        self._num_values = 0
        self._passed = True

    def add(
        self, ours: ArrayLike, theirs: ArrayLike, *, scale: ArrayLike | None = None, rounding: float | np.ndarray = 0.0
    ) -> None:
        """Takes two arrays of one shape. Args: scale, see the class; rounding, what is allowed on top (broadcasts)."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if ours.shape != theirs.shape:
            raise ValueError(f"{self._what}: the reference has shape {theirs.shape}, we {ours.shape}")
        self._num_values += theirs.size
        if not theirs.size:
            return
        with np.errstate(invalid="ignore"):
            difference = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
        scale = np.abs(theirs).max() if scale is None else np.asarray(scale, np.float64)
        allowed = self._limits[0] + self._limits[1] * scale + rounding
        self._passed &= bool((difference <= allowed).all())  # False for NaN as well
        self._absolute = np.fmax(self._absolute, np.nan_to_num(difference, nan=np.inf).max())
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(difference > 0, difference / scale, 0.0)
        self._relative = np.fmax(self._relative, np.nan_to_num(relative, nan=np.inf).max())

    def add_stored(self, key: str, full: ArrayLike) -> None:
        """Takes a whole array of ours and what is stored of the fixture's `key`."""
        largest = self._fixture.manifest["arrays"][key].get("abs_max")
        self.add(self._fixture.sampled(key, full), self._fixture[key].reshape(-1), scale=largest)

    def add_boxes(self, ours: ArrayLike, theirs: ArrayLike) -> None:
        """Takes oriented boxes: lengths relative to the width (at least a pixel), angles modulo pi.

        Centres and sides carry the rounding of float32 coordinates on top, on both sides, and angles what that rounding
        makes of the longer side; where width and height are equal within rounding, either may be the width.
        """
        theirs = np.asarray(theirs, np.float64)
        width = np.maximum(theirs[:, 2], 1.0)
        rounding = 3 * _EPSILON * (np.abs(theirs[:, :2]).max(axis=1) + width)
        self.add(
            box_differences(ours, theirs),
            np.zeros_like(theirs),
            scale=np.stack([width] * 4 + [np.ones_like(width)], axis=1),
            rounding=np.stack([rounding] * 4 + [4 * rounding / width], axis=1),
        )

    def row(self, note: str = "") -> Row:
        """The line of the report."""
        words = []
        if self._limits[0]:
            words.append(f"{self._limits[0]:.0e}")
        if self._limits[1]:
            words.append(f"{self._limits[1]:.0e} relative")
        return Row(
            self._fixture.name,
            self._what,
            float(self._absolute),
            float(self._relative),
            " + ".join(words) or "equal",
            self._passed and self._num_values > 0,
            note if self._num_values else "nothing was compared",
        )


def equal_row(fixture: Fixture, what: str, pairs: Iterable[tuple[ArrayLike, ArrayLike]], note: str = "") -> Row:
    """A row for discrete results. Args: pairs, list of (ours, theirs) arrays."""
    num_values = num_differ = 0
    for ours, theirs in pairs:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        num_values += theirs.size
        if ours.shape == theirs.shape:
            num_differ += int((ours != theirs).sum())
        else:
            num_differ += max(ours.size, theirs.size)
            note = note or f"we have {ours.shape}, the reference {theirs.shape}"
    return Row(
        fixture.name, what, num_differ, num_differ / max(num_values, 1), "equal", num_differ == 0 and bool(pairs), note
    )


def box_differences(ours: ArrayLike, theirs: ArrayLike) -> np.ndarray:
    """Absolute differences of oriented boxes [n, 5]; the angle's modulo pi, for squares modulo pi/2."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the reference has {len(theirs)} boxes, we {len(ours)}")
    difference = np.abs(ours - theirs)
    square = theirs[:, 2] - theirs[:, 3] < 1e-3 * np.maximum(theirs[:, 2], 1)
    period = np.where(square, math.pi / 2, math.pi)
    turn = ours[:, 4] - theirs[:, 4]
    difference[:, 4] = np.abs(turn - period * np.round(turn / period))
    return difference


def corner_distances(ours: ArrayLike, theirs: ArrayLike) -> np.ndarray:
    """[n] largest distance between corners of two boxes, whichever corner either begins with."""
    ours, theirs = (boxes_to_corners(np.asarray(boxes, np.float64)) for boxes in (ours, theirs))
    turns = [np.linalg.norm(np.roll(ours, turn, axis=1) - theirs, axis=-1).max(axis=1) for turn in range(4)]
    return np.min(turns, axis=0)


class Found(NamedTuple):
    """Boxes with scores: proposals or detections. boxes [n, 5], scores [n], labels [n]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Limits(NamedTuple):
    """When two boxes count as the same."""

    score: float = 1e-3
    iou: float = 0.99
    pixels: float = 0.1


def match_boxes(ours: Found, theirs: Found, limits: Limits = Limits()) -> tuple[np.ndarray, list[int], list[int]]:  # noqa: B008 (an immutable tuple)
    """Pairs boxes of two sets one to one, closest first.

    Args:
      ours, theirs: Found.
      limits: boxes of one label are the same with scores within `score` and an IoU above `iou` or all corners within
        `pixels`.

    Returns:
      (pairs [p, 2] of indices, unmatched indices of ours, unmatched indices of theirs).
    """
    near = (
        (np.abs(ours.scores[:, None] - theirs.scores) <= limits.score)
        & (ours.labels[:, None] == theirs.labels)
        # Farther apart than that, the IoU is below the limit and the corners are beyond it.
        & (
            np.linalg.norm(ours.boxes[:, None, :2] - theirs.boxes[:, :2], axis=-1)
            <= limits.pixels + 2 * (1 - limits.iou) * theirs.boxes[:, 2]
        )
    )
    first, second = np.nonzero(near)
    distance = corner_distances(ours.boxes[first], theirs.boxes[second])
    iou = rotated_iou_pairs(ours.boxes[first].astype(np.float64), theirs.boxes[second].astype(np.float64))
    same = (iou > limits.iou) | (distance <= limits.pixels)
    left_of_ours, left_of_theirs, pairs = set(range(len(ours.boxes))), set(range(len(theirs.boxes))), []
    for candidate in np.argsort(distance, kind="stable"):
        i, j = int(first[candidate]), int(second[candidate])
        if same[candidate] and i in left_of_ours and j in left_of_theirs:
            pairs.append((i, j))
            left_of_ours.remove(i)
            left_of_theirs.remove(j)
    return np.array(pairs, int).reshape(-1, 2), sorted(left_of_ours), sorted(left_of_theirs)


def explain(
    unmatched: Sequence[list[int]],
    ours: Found,
    theirs: Found,
    *,
    overlaps: Callable[[np.ndarray, np.ndarray], np.ndarray],
    iou_threshold: float,
    score_threshold: float,
    causes: np.ndarray | None = None,
) -> list[str | None]:
    """Why boxes of one set have no counterpart in the other.

    Args:
      unmatched: (indices of ours, indices of theirs) from `match_boxes`.
      ours, theirs: Found.
      overlaps: ([n, 5], [n, 5]) -> [n] the IoU that the suppression looked at.
      iou_threshold: of the suppression.
      score_threshold: least score that comes out.
      causes: boxes [m, 5] of an earlier stage that differ, or None.

    Returns:
      List of a reason for each unmatched box, ours first; None where there is none.
    """
    sets = (ours, theirs)
    reasons: list[str | None] = []
    for side, indices in enumerate(unmatched):
        for index in indices:
            box, score, label = (values[index] for values in sets[side])
            if abs(score - score_threshold) <= 1e-3:
                reasons.append("score at the threshold")
                continue
            lowest = [one.scores.min() for one in sets if len(one.scores)]
            if any(abs(score - one) <= 1e-5 for one in lowest):
                reasons.append("score at the end of the list")
                continue
            reasons.append(None)
            for other_side in (0, 1):
                one = sets[other_side]
                same = np.flatnonzero(one.labels == label)
                if other_side == side:
                    same = same[same != index]
                iou = overlaps(np.broadcast_to(box, (len(same), 5)), one.boxes[same])
                if (np.abs(iou - iou_threshold) <= 5e-3).any():
                    reasons[-1] = "overlap at the threshold"
                elif other_side != side and ((iou > iou_threshold) & (np.abs(one.scores[same] - score) <= 1e-3)).any():
                    reasons[-1] = "tie"
                elif ((iou > iou_threshold) & np.isin(same, unmatched[other_side])).any():
                    reasons[-1] = "follows another that differs"
                if reasons[-1]:
                    break
            if reasons[-1] is None and causes is not None and len(causes):
                iou = rotated_iou_pairs(np.broadcast_to(box, causes.shape).astype(np.float64), causes)
                if (iou > 0.3).any():
                    reasons[-1] = "follows a proposal that differs"
    return reasons


def found_rows(
    fixture: Fixture,
    what: str,
    ours: Found,
    theirs: Found,
    *,
    limits: Limits = Limits(),  # noqa: B008 (an immutable tuple)
    share: float = 0.005,
    **settings: Any,
) -> tuple[list[Row], np.ndarray]:
    """The rows for one set of proposals or detections.

    Args:
      fixture: Fixture.
      what: name of the rows.
      ours, theirs: Found.
      limits: Limits.
      share: of boxes, at least one, that may have no counterpart, either way.
      **settings: of `explain`.

    Returns:
      (rows, unmatched boxes [m, 5] of both).
    """
    pairs, *unmatched = match_boxes(ours, theirs, limits)
    reasons = explain(unmatched, ours, theirs, **settings)
    allowed = max(1.0, share * len(theirs.boxes))
    counts = [len(indices) for indices in unmatched]
    note = f"{len(theirs.boxes)} boxes; without counterpart: {counts[1]} of the reference's, {counts[0]} of ours"
    if reasons:
        kinds = {reason: reasons.count(reason) for reason in reasons}
        note += " (" + ", ".join(f"{reason or 'unexplained'}: {count}" for reason, count in kinds.items()) + ")"
    rows = [
        Row(
            fixture.name,
            f"{what}: counterparts",
            max(counts),
            max(counts) / max(len(theirs.boxes), 1),
            f"{allowed:.0f} boxes",
            max(counts) <= allowed and None not in reasons,
            note,
        )
    ]
    distance = corner_distances(ours.boxes[pairs[:, 0]], theirs.boxes[pairs[:, 1]])
    corners = Comparison(fixture, f"{what}: corners of pairs, px", absolute=math.inf)
    corners.add(distance, np.zeros_like(distance), scale=np.maximum(theirs.boxes[pairs[:, 1], 2], 1))
    scores = Comparison(fixture, f"{what}: scores of pairs", absolute=limits.score)
    scores.add(ours.scores[pairs[:, 0]], theirs.scores[pairs[:, 1]])
    words = f"IoU > {limits.iou} or {limits.pixels} px"
    rows.append(corners.row()._replace(tolerance=words))
    rows.append(scores.row())
    if not len(pairs):  # nothing to pair is no failure: the counts above judge it
        rows = rows[:1]
    differing = np.concatenate([ours.boxes[unmatched[0]], theirs.boxes[unmatched[1]]])
    return rows, differing.astype(np.float64)
