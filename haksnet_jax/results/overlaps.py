"""Detections and labels of all images in one list, and which of them overlap: what every score of boxes starts from.

A set of detections of one image is {"boxes": [n, 5], "scores": [n], "labels": [n]}, boxes as (cx, cy, w, h, angle) in
pixels and radians; `"polygons": [n, 4, 2]` may stand in for `"boxes"`, as in text files. Labels of one image are
{"polygons": [n, 4, 2], "labels": [n], "difficulty": [n]}: 0 counts, 1 is difficult, 2 was truncated by tiling.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.wording import counted

_MAX_PAIRS_AT_ONCE = 4_000_000


class ArraysByName(Protocol):
    """What was detected in an image: a dict of arrays, or `results.detections.Detections`."""

    def __getitem__(self, name: str, /) -> Any: ...

    def __contains__(self, name: object, /) -> bool: ...


DetectionsByImage = Mapping[Any, ArraysByName] | Sequence[ArraysByName | None]
LabelsByImage = Mapping[Any, Mapping[str, Any]] | Sequence[Mapping[str, Any] | None]


class Detected(NamedTuple):
    """Detections of all images in one list: polygons [D, 4, 2], scores, labels and image numbers [D]."""

    polygons: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image: np.ndarray


class Labelled(NamedTuple):
    """Labelled objects of all images in one list: polygons [G, 4, 2], labels, difficulty and image numbers [G]."""

    polygons: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    image: np.ndarray


def ignored_difficulties(ignore_difficult: bool, ignore_truncated: bool) -> list[int]:
    """The difficulties whose objects neither count as missed nor make a detection wrong."""
    return [1] * bool(ignore_difficult) + [2] * bool(ignore_truncated)


def pair_up(
    detections_by_image: DetectionsByImage, labels_by_image: LabelsByImage
) -> list[tuple[Any, ArraysByName | None, Mapping[str, Any] | None]]:
    """[(name, detections or None, labels)] of every labelled image."""
    if isinstance(labels_by_image, Mapping) and isinstance(detections_by_image, Mapping):
        unknown = [name for name in detections_by_image if name not in labels_by_image]
        if unknown:
            raise ValueError(
                f"{counted(len(unknown), 'image')} with detections and without labels, for example {unknown[0]!r}: "
                "average precision needs the labels of every image (an image without objects has an empty list)."
            )
        return [(name, detections_by_image.get(name), labels) for name, labels in labels_by_image.items()]
    if isinstance(labels_by_image, Mapping) or isinstance(detections_by_image, Mapping):
        raise ValueError("Expected detections and labels both as dicts by image or both as lists.")
    if len(detections_by_image) != len(labels_by_image):
        raise ValueError(
            f"Expected as many detections as labels, got {len(detections_by_image)} and {len(labels_by_image)}."
        )
    return [(i, *pair) for i, pair in enumerate(zip(detections_by_image, labels_by_image, strict=True))]


def pool(
    images: Iterable[tuple[Any, ArraysByName | None, Mapping[str, Any] | None]],
    num_classes: int,
    score_threshold: float = -np.inf,
) -> tuple[Detected, Labelled]:
    """(Detected, Labelled) of all images."""
    detected, labelled = [], []
    for number, (name, detections, labels) in enumerate(images):
        if detections is not None and len(detections["scores"]):
            scores = np.asarray(detections["scores"], np.float64).reshape(-1)
            what = f"detections of image {name!r}"
            _check_finite(what, scores, detections["polygons" if "polygons" in detections else "boxes"])
            if "polygons" in detections:
                polygons = polygon_iou.uncross(detections["polygons"])
            else:
                polygons = boxes_to_corners(np.asarray(detections["boxes"], np.float64).reshape(-1, 5))
            classes = _checked(what, polygons, detections["labels"], num_classes, scores)
            above = scores >= score_threshold
            detected.append((polygons[above], scores[above], classes[above], np.full(above.sum(), number)))
        if labels is not None and len(labels["labels"]):
            what = f"labels of image {name!r}"
            _check_finite(what, labels["polygons"])
            polygons = polygon_iou.uncross(labels["polygons"])
            difficulty = np.asarray(labels.get("difficulty", np.zeros(len(polygons))), np.int64).reshape(-1)
            classes = _checked(what, polygons, labels["labels"], num_classes, difficulty)
            labelled.append((polygons, classes, difficulty, np.full(len(classes), number)))
    no_polygons, none = np.zeros((0, 4, 2)), np.zeros(0, np.int64)
    detected.append((no_polygons, np.zeros(0), none, none))
    labelled.append((no_polygons, none, none, none))
    return (
        Detected(*(np.concatenate(field) for field in zip(*detected, strict=True))),
        Labelled(*(np.concatenate(field) for field in zip(*labelled, strict=True))),
    )


def _checked(what, polygons, labels, num_classes, numbers):
    """Labels as int64, after checking that the arrays of one image fit each other."""
    labels = np.asarray(labels, np.int64).reshape(-1)
    if not len(polygons) == len(labels) == len(numbers):
        raise ValueError(
            f"The {what} are of unequal length: {len(polygons)} boxes, {len(labels)} labels, "
            f"{len(numbers)} scores or difficulties."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"The {what} have labels {labels.min()} to {labels.max()}; there are {num_classes} classes.")
    return labels


def _check_finite(what, *arrays):
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"The {what} hold numbers that are not finite.")


def overlapping_pairs(
    detections: Detected, labels: Labelled, *, same_class: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping pairs within images: (detection [P], label [P], IoU [P]), IoU > 0."""
    low, high = detections.polygons.min(axis=1, initial=np.inf), detections.polygons.max(axis=1, initial=-np.inf)
    gt_low, gt_high = labels.polygons.min(axis=1, initial=np.inf), labels.polygons.max(axis=1, initial=-np.inf)
    # One number for each group of boxes that may match.
    num_classes = 1 + max(detections.labels.max(initial=0), labels.labels.max(initial=0))
    group = detections.image * num_classes + detections.labels if same_class else detections.image
    gt_group = labels.image * num_classes + labels.labels if same_class else labels.image
    order, gt_order = np.argsort(group, kind="stable"), np.argsort(gt_group, kind="stable")
    groups, gt_starts, gt_counts = np.unique(gt_group[gt_order], return_index=True, return_counts=True)
    starts = np.searchsorted(group[order], groups, side="left")
    stops = np.searchsorted(group[order], groups, side="right")
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start, stop, gt_start, gt_count in zip(starts, stops, gt_starts, gt_counts, strict=True):
        gts = gt_order[gt_start : gt_start + gt_count]
        step = max(1, _MAX_PAIRS_AT_ONCE // len(gts))
        for piece in range(start, stop, step):
            dets = order[piece : min(piece + step, stop)]
            apart = (low[dets, None] >= gt_high[gts]) | (gt_low[gts] >= high[dets, None])
            row, column = np.nonzero(~apart.any(axis=-1))
            rows.append(dets[row])
            columns.append(gts[column])
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    iou = polygon_iou.indexed_polygon_iou(detections.polygons, labels.polygons, rows, columns)
    overlapping = iou > 0
    return rows[overlapping], columns[overlapping], iou[overlapping]


def best_labels(
    detections: Detected, labels: Labelled, det_index: np.ndarray, gt_index: np.ndarray, iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(label [D], IoU [D]) that each detection overlaps most; -1 and 0 where there is none."""
    best, best_iou = np.full(len(detections.labels), -1), np.zeros(len(detections.labels))
    order = np.lexsort((gt_index, -iou, det_index))  # of equal overlaps the first label
    dets, first = np.unique(det_index[order], return_index=True)
    best[dets] = gt_index[order][first]
    best_iou[dets] = iou[order][first]
    return best, best_iou


def outcomes(best: np.ndarray, matched: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """[n] int8 of detections in score order: 1 true positive, 0 false positive, -1 ignored."""
    outcome = np.zeros(len(best), np.int8)
    on_ignored = matched.copy()
    on_ignored[matched] = ignored[best[matched]]
    outcome[on_ignored] = -1
    candidates = np.flatnonzero(matched & ~on_ignored)
    outcome[candidates[np.unique(best[candidates], return_index=True)[1]]] = 1  # the first on each object
    return outcome
