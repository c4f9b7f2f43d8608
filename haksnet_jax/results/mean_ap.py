"""Average precision of oriented boxes by exact polygon overlap, and where the errors come from.

A set of detections of one image is {"boxes": [n, 5], "scores": [n], "labels": [n]}, boxes as (cx, cy, w, h, angle) in
pixels and radians; `"polygons": [n, 4, 2]` may stand in for `"boxes"`, as in text files. Labels of one image are
{"polygons": [n, 4, 2], "labels": [n], "difficulty": [n]}: 0 counts, 1 is difficult, 2 was truncated by tiling.
"""

import collections.abc
import dataclasses
from typing import NamedTuple

import numpy as np

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.wording import counted

IOU_THRESHOLDS = tuple((np.arange(10, 20) / 20).tolist())  # 0.5, 0.55, ... 0.95
# i * 0.1 and not i / 10: three of these levels lie one rounding above 0.3, 0.6 and 0.7, and DOTA's own tool compares
# with them, so that a recall of exactly 3 / 10 does not reach the level 0.3 there either.
_VOC07_LEVELS = np.arange(11) * 0.1
_MAX_PAIRS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision of every class at every IoU threshold.

    Attributes:
      class_names: K names.
      iou_thresholds: T thresholds.
      num_gts: [K] int64 labelled objects that count.
      num_detections: [K] int64 detections.
      ap_voc07: [K, T] mean of the best precision at 11 recalls; NaN for classes without labelled objects.
      ap_voc12: [K, T] area under the precision-recall curve made monotonous; NaN for the same.
      scores: K arrays, the scores of the class's detections, descending.
      outcomes: K arrays [T, n] int8 in the same order: 1 true positive, 0 false positive, -1 ignored.
    """

    class_names: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    num_gts: np.ndarray
    num_detections: np.ndarray
    ap_voc07: np.ndarray
    ap_voc12: np.ndarray
    scores: tuple[np.ndarray, ...]
    outcomes: tuple[np.ndarray, ...]

    def threshold_index(self, iou_threshold):
        """Position of an IoU threshold.

        Raises:
          ValueError: average precision was not computed there.
        """
        close = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold, rtol=0, atol=1e-9))
        if not close.size:
            raise ValueError(f"AP at IoU {iou_threshold} was not computed, only at {self.iou_thresholds}.")
        return int(close[0])

    def precision_recall(self, label, iou_threshold=0.5):
        """Precision-recall curve of a class, one point for each detection that is not ignored, best score first.

        Args:
          label: the class, an index.
          iou_threshold: one of `iou_thresholds`.

        Returns:
          (recall [n], precision [n], scores [n]); recall is NaN for a class without labelled objects.
        """
        outcome = self.outcomes[label][self.threshold_index(iou_threshold)]
        counted = outcome >= 0
        recall, precision = _precision_recall(outcome[counted], self.num_gts[label], self.scores[label][counted])
        return recall, precision, self.scores[label][counted]

    def figures(self, label=None):
        """The four published figures of a class, or their means over the classes with labelled objects.

        Args:
          label: the class, an index; None for the means.

        Returns:
          {"AP50_voc07", "AP50_voc12", "AP75_voc12", "AP50:95"}: floats in 0..1, the last one by VOC12. None where there
          is no labelled object, or where a threshold was not computed.
        """
        rows = np.flatnonzero(self.num_gts > 0) if label is None else [label]

        def mean(table, thresholds):
            try:
                columns = [self.threshold_index(threshold) for threshold in thresholds]
            except ValueError:
                return None
            values = table[np.ix_(rows, columns)]
            return float(values.mean()) if values.size and not np.isnan(values).any() else None

        return {
            "AP50_voc07": mean(self.ap_voc07, [0.5]),
            "AP50_voc12": mean(self.ap_voc12, [0.5]),
            "AP75_voc12": mean(self.ap_voc12, [0.75]),
            "AP50:95": mean(self.ap_voc12, IOU_THRESHOLDS),
        }

    def num_tied(self):
        """Detections that share their score with another one of their class."""
        counts = [np.unique(scores, return_counts=True)[1] for scores in self.scores]
        return int(sum(count[count > 1].sum() for count in counts))

    def to_json(self):
        """{"mean": figures, "classes": {name: figures and "num_gts", "num_detections"}}, ready for json.dumps."""
        classes = {
            name: {
                **self.figures(label),
                "num_gts": int(self.num_gts[label]),
                "num_detections": int(self.num_detections[label]),
            }
            for label, name in enumerate(self.class_names)
        }
        return {"mean": self.figures(), "classes": classes}

    def table(self):
        """The figures as text in columns, in percent; "-" for classes without labelled objects."""
        width = max(len(name) for name in ("class", "mean", *self.class_names))
        heads = ("AP50 voc07", "AP50 voc12", "AP75 voc12", "AP50:95")
        rule = "-" * (width + 22 + 12 * len(heads))

        def line(name, num_gts, num_detections, figures):
            cells = "".join(f"{'-' if value is None else f'{100 * value:.2f}':>12}" for value in figures.values())
            return f"{name:<{width}}{num_gts:>10}{num_detections:>12}{cells}"

        lines = [
            f"{'class':<{width}}{'objects':>10}{'detections':>12}" + "".join(f"{head:>12}" for head in heads),
            rule,
        ]
        lines += [
            line(name, self.num_gts[label], self.num_detections[label], self.figures(label))
            for label, name in enumerate(self.class_names)
        ]
        lines += [rule, line("mean", self.num_gts.sum(), self.num_detections.sum(), self.figures())]
        return "\n".join(lines)


def mean_average_precision(
    detections_by_image,
    labels_by_image,
    class_names,
    *,
    iou_thresholds=IOU_THRESHOLDS,
    ignore_difficult=True,
    ignore_truncated=False,
):
    """Average precision as DOTA's own tool defines it, for all classes and thresholds.

    Within a class the detections of all images are taken by descending score. Each one is matched to the object of its
    image and class that it overlaps most (the first of equals), and to no other. With IoU > threshold it is a true
    positive if that object was not yet found, a false positive if it was, and neither if the object is to be ignored;
    otherwise it is a false positive. Detections of one class with equal scores enter the curve together, as one step to
    the recall and precision behind the last of them: average precision does not depend on the order of images or of
    lines. Means are over classes with at least one object that counts; without detections their AP is 0.

    Args:
      detections_by_image: a dict from image to its detections, or a list in the order of the labels (see the module).
        Images that lack an entry in the dict have no detections.
      labels_by_image: a dict from image to its labels, or a list. Every labelled image counts, with or without objects.
      class_names: the K classes, in the order of the label numbers.
      iou_thresholds: thresholds of the IoU.
      ignore_difficult: ignores objects of difficulty 1, as DOTA's own tool.
      ignore_truncated: ignores objects of difficulty 2.

    Returns:
      A MeanAveragePrecision.

    Raises:
      ValueError: there are detections for an image that is not among the labels, or an image's arrays do not fit each
        other or the classes, or hold numbers that are not finite.
    """
    images = _pair_up(detections_by_image, labels_by_image)
    ignored_difficulties = _ignored_difficulties(ignore_difficult, ignore_truncated)
    detections, labels = _pool(images, len(class_names))
    ignored = np.isin(labels.difficulty, ignored_difficulties)
    best, best_iou = _best_labels(detections, labels, *_pairs(detections, labels, same_class=True))

    num_classes = len(class_names)
    thresholds = tuple(float(threshold) for threshold in iou_thresholds)
    num_gts = np.bincount(labels.labels[~ignored], minlength=num_classes)
    num_detections = np.bincount(detections.labels, minlength=num_classes)
    ap_voc07 = np.full((num_classes, len(thresholds)), np.nan)
    ap_voc12 = np.full((num_classes, len(thresholds)), np.nan)
    scores, outcomes = [], []
    by_score = np.argsort(-detections.scores, kind="stable")
    for label in range(num_classes):
        order = by_score[detections.labels[by_score] == label]
        outcome = (
            np.stack([_outcomes(best[order], best_iou[order] > threshold, ignored) for threshold in thresholds])
            if thresholds
            else np.zeros((0, len(order)), np.int8)
        )
        scores.append(detections.scores[order])
        outcomes.append(outcome)
        if num_gts[label]:
            for column, row in enumerate(outcome):
                counted = row >= 0
                recall, precision = _precision_recall(row[counted], num_gts[label], scores[-1][counted])
                ap_voc07[label, column] = _voc07(recall, precision)
                ap_voc12[label, column] = _voc12(recall, precision)
    return MeanAveragePrecision(
        tuple(class_names), thresholds, num_gts, num_detections, ap_voc07, ap_voc12, tuple(scores), tuple(outcomes)
    )


class ErrorAnalysis(NamedTuple):
    """What became of each detection above a score, and of each labelled object, at one IoU threshold.

    Attributes:
      class_names: K names.
      image_names: names of the I images (numbers where they came as a list).
      kind: [n] int8, position in `KINDS`, of each detection.
      label: [n] classes of the detections.
      size: [n] square roots of the detections' areas, pixels.
      image: [n] image of each detection, an index.
      gt_found_as: [m] of each labelled object: the class it was detected as, -1 if missed, -2 if it is ignored.
      gt_label: [m] classes of the objects.
      gt_size: [m] square roots of the objects' areas, pixels.
      gt_image: [m] image of each object, an index.
      confused_with: [n] class of the object that a detection of kind "other class" overlaps, else -1.
    """

    class_names: tuple[str, ...]
    image_names: tuple
    kind: np.ndarray
    label: np.ndarray
    size: np.ndarray
    image: np.ndarray
    gt_found_as: np.ndarray
    gt_label: np.ndarray
    gt_size: np.ndarray
    gt_image: np.ndarray
    confused_with: np.ndarray

    def confusion_matrix(self):
        """[K + 1, K + 1] int64: rows are the true classes, columns the detected ones, the last of each is background.

        Every object that counts stands once in its row (in the last column if it was missed), and every detection that
        found no object once in the last row.
        """
        num_classes = len(self.class_names)
        matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        counted = self.gt_found_as > -2
        found_as = np.where(self.gt_found_as < 0, num_classes, self.gt_found_as)
        np.add.at(matrix, (self.gt_label[counted], found_as[counted]), 1)
        kinds = ("wrong angle", "poor overlap", "duplicate", "background")
        nothing_found = np.isin(self.kind, [KINDS.index(kind) for kind in kinds])
        np.add.at(matrix, (num_classes, self.label[nothing_found]), 1)
        return matrix

    def by_size(self, edges=(16, 32, 64, 128, 256)):
        """Counts by size, the square root of the area.

        Args:
          edges: ascending sizes in pixels; bin i holds edges[i - 1] <= size < edges[i].

        Returns:
          {"edges": [S - 1], "objects": [S] labelled objects, "missed": [S] of these, and for each of KINDS but
          "ignored": [S] detections}.
        """
        edges = np.asarray(edges, np.float64)
        bins, gt_bins = np.digitize(self.size, edges), np.digitize(self.gt_size, edges)

        def count(values):
            return np.bincount(values, minlength=len(edges) + 1)

        counts = {"edges": edges, "objects": count(gt_bins[self.gt_found_as > -2])}
        counts["missed"] = count(gt_bins[(self.gt_found_as > -2) & (self.gt_found_as != self.gt_label)])
        for number, kind in enumerate(KINDS):
            if kind != "ignored":
                counts[kind] = count(bins[self.kind == number])
        return counts

    def worst_images(self, count=8):
        """Images with most errors (false detections and missed objects): [(name, number of errors)], worst first."""
        false = (self.kind != KINDS.index("correct")) & (self.kind != KINDS.index("ignored"))
        missed = (self.gt_found_as > -2) & (self.gt_found_as != self.gt_label)
        errors = np.bincount(self.image[false], minlength=len(self.image_names))
        errors += np.bincount(self.gt_image[missed], minlength=len(self.image_names))
        worst = np.argsort(-errors, kind="stable")[:count]
        return [(self.image_names[i], int(errors[i])) for i in worst if errors[i]]


KINDS = ("correct", "wrong angle", "poor overlap", "other class", "duplicate", "background", "ignored")


def analyse_errors(
    detections_by_image,
    labels_by_image,
    class_names,
    *,
    iou_threshold=0.5,
    score_threshold=0.3,
    ignore_difficult=True,
    ignore_truncated=False,
):
    """Sorts detections and missed objects into kinds of errors.

    Detections are matched as for average precision. Of those that are not correct, one is a `duplicate` if it lies on
    an object of its class that a better one has found; else `other class` if IoU > iou_threshold with an object of
    another class that nothing has found yet; else, if its best IoU with an object of its class is above 0.1, it has the
    `wrong angle` if it would match that object at the object's own angle, and else is of `poor overlap`; else
    `background`. Detections on ignored objects are `ignored`.

    Args:
      detections_by_image: as in `mean_average_precision`.
      labels_by_image: as there.
      class_names: as there.
      iou_threshold: overlap above which a detection and an object match.
      score_threshold: detections below it are left out.
      ignore_difficult: as there.
      ignore_truncated: as there.

    Returns:
      An ErrorAnalysis.

    Raises:
      ValueError: as there.
    """
    images = _pair_up(detections_by_image, labels_by_image)
    detections, labels = _pool(images, len(class_names), score_threshold)
    ignored = np.isin(labels.difficulty, _ignored_difficulties(ignore_difficult, ignore_truncated))
    by_score = np.argsort(-detections.scores, kind="stable")
    detections = Detected(*(field[by_score] for field in detections))
    det_index, gt_index, iou = _pairs(detections, labels, same_class=False)
    same = detections.labels[det_index] == labels.labels[gt_index]
    best, best_iou = _best_labels(detections, labels, det_index[same], gt_index[same], iou[same])
    outcome = _outcomes(best, best_iou > iou_threshold, ignored)
    other = ~same & ~ignored[gt_index] & (iou > iou_threshold)
    found = np.zeros(len(ignored), bool)
    found[best[outcome == 1]] = True
    other &= ~found[gt_index]
    other_best, other_iou = _best_labels(detections, labels, det_index[other], gt_index[other], iou[other])
    on_other = (outcome == 0) & (best_iou <= iou_threshold) & (other_iou > iou_threshold)
    claims = _outcomes(np.where(on_other, other_best, -1), on_other, np.zeros(len(ignored), bool)) == 1

    kind = np.full(len(outcome), KINDS.index("background"), np.int8)
    kind[best_iou > 0.1] = KINDS.index("poor overlap")
    near = np.flatnonzero(best_iou > 0.1)
    turned = _would_match_turned(detections.polygons[near], labels.polygons[best[near]], iou_threshold)
    kind[near[turned]] = KINDS.index("wrong angle")
    kind[claims] = KINDS.index("other class")
    kind[(outcome == 0) & (best_iou > iou_threshold)] = KINDS.index("duplicate")
    kind[outcome == 1] = KINDS.index("correct")
    kind[outcome == -1] = KINDS.index("ignored")
    gt_found_as = np.where(ignored, -2, -1)
    gt_found_as[other_best[claims]] = detections.labels[claims]
    gt_found_as[found] = labels.labels[found]
    confused_with = np.full(len(outcome), -1)
    confused_with[claims] = labels.labels[other_best[claims]]
    return ErrorAnalysis(
        tuple(class_names),
        tuple(name for name, _, _ in images),
        kind,
        detections.labels,
        np.sqrt(polygon_iou.polygon_area(detections.polygons)),
        detections.image,
        gt_found_as,
        labels.labels,
        np.sqrt(polygon_iou.polygon_area(labels.polygons)),
        labels.image,
        confused_with,
    )


def _would_match_turned(polygons, objects, iou_threshold):
    """[n] bool: whether polygons, turned around their centres to the angle of the objects, overlap them enough."""
    boxes, truth = polygons_to_boxes(polygons)[0].astype(np.float64), polygons_to_boxes(objects)[0].astype(np.float64)
    overlaps = []
    for quarter in (0.0, np.pi / 2):  # of what is almost square, either side may be the longer one
        turned = boxes.copy()
        turned[:, 4] = truth[:, 4] + quarter
        overlaps.append(polygon_iou.rotated_iou_pairs(turned, truth))
    return np.maximum(*overlaps) > iou_threshold


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


def _ignored_difficulties(ignore_difficult, ignore_truncated):
    return [1] * bool(ignore_difficult) + [2] * bool(ignore_truncated)


def _pair_up(detections_by_image, labels_by_image):
    """[(name, detections or None, labels)] of every labelled image."""
    by_name = isinstance(labels_by_image, collections.abc.Mapping)
    if by_name != isinstance(detections_by_image, collections.abc.Mapping):
        raise ValueError("Expected detections and labels both as dicts by image or both as lists.")
    if by_name:
        unknown = [name for name in detections_by_image if name not in labels_by_image]
        if unknown:
            raise ValueError(
                f"{counted(len(unknown), 'image')} with detections and without labels, for example {unknown[0]!r}: "
                "average precision needs the labels of every image (an image without objects has an empty list)."
            )
        return [(name, detections_by_image.get(name), labels) for name, labels in labels_by_image.items()]
    if len(detections_by_image) != len(labels_by_image):
        raise ValueError(
            f"Expected as many detections as labels, got {len(detections_by_image)} and {len(labels_by_image)}."
        )
    return [(i, *pair) for i, pair in enumerate(zip(detections_by_image, labels_by_image, strict=True))]


def _pool(images, num_classes, score_threshold=-np.inf):
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


def _pairs(detections, labels, *, same_class):
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


def _best_labels(detections, labels, det_index, gt_index, iou):
    """(label [D], IoU [D]) that each detection overlaps most; -1 and 0 where there is none."""
    best, best_iou = np.full(len(detections.labels), -1), np.zeros(len(detections.labels))
    order = np.lexsort((gt_index, -iou, det_index))  # of equal overlaps the first label
    dets, first = np.unique(det_index[order], return_index=True)
    best[dets] = gt_index[order][first]
    best_iou[dets] = iou[order][first]
    return best, best_iou


def _outcomes(best, matched, ignored):
    """[n] int8 of detections in score order: 1 true positive, 0 false positive, -1 ignored."""
    outcome = np.zeros(len(best), np.int8)
    on_ignored = matched.copy()
    on_ignored[matched] = ignored[best[matched]]
    outcome[on_ignored] = -1
    candidates = np.flatnonzero(matched & ~on_ignored)
    outcome[candidates[np.unique(best[candidates], return_index=True)[1]]] = 1  # the first on each object
    return outcome


def _precision_recall(outcome, num_gts, scores):
    """(recall [n], precision [n]) of detections in score order, none of them ignored; equal scores have equal ones.

    (How many of equal scores are true does not depend on their order: each detection belongs to one object, and the
    first on an object is true whichever it is.)
    """
    last = np.searchsorted(-scores, -scores, side="right") - 1  # of those with the same score
    true = np.cumsum(outcome, dtype=np.float64)[last] if len(last) else np.zeros(0)
    recall = true / num_gts if num_gts else np.full(len(true), np.nan)
    return recall, true / (last + 1)


def _voc07(recall, precision):
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, _VOC07_LEVELS, side="left")
    return np.append(best_from_here, 0.0)[reached].sum() / 11


def _voc12(recall, precision):
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best_from_here))
