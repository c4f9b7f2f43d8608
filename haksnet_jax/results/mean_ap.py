"""Average precision of oriented boxes by exact polygon overlap.

Detections and labels of an image come as `results.overlaps` says.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax.results import overlaps

IOU_THRESHOLDS = tuple((np.arange(10, 20) / 20).tolist())  # 0.5, 0.55, ... 0.95
# i * 0.1 and not i / 10: three of these levels lie one rounding above 0.3, 0.6 and 0.7, and DOTA's own tool compares
# with them, so that a recall of exactly 3 / 10 does not reach the level 0.3 there either.
_VOC07_LEVELS = np.arange(11) * 0.1


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

    def threshold_index(self, iou_threshold: float) -> int:
        """Position of an IoU threshold.

        Raises:
          ValueError: average precision was not computed there.
        """
        close = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold, rtol=0, atol=1e-9))
        if not close.size:
            raise ValueError(f"AP at IoU {iou_threshold} was not computed, only at {self.iou_thresholds}.")
        return int(close[0])

    def precision_recall(self, label: int, iou_threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

    def figures(self, label: int | None = None) -> dict[str, float | None]:
        """The four published metrics of a class, or their means over the classes with labelled objects.

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

    def num_tied(self) -> int:
        """Detections that share their score with another one of their class."""
        counts = [np.unique(scores, return_counts=True)[1] for scores in self.scores]
        return int(sum(count[count > 1].sum() for count in counts))

    def to_json(self) -> dict[str, Any]:
        """{"mean": metrics, "classes": {name: metrics, "num_gts", "num_detections"}}, ready for json.dumps."""
        classes = {
            name: {
                **self.figures(label),
                "num_gts": int(self.num_gts[label]),
                "num_detections": int(self.num_detections[label]),
            }
            for label, name in enumerate(self.class_names)
        }
        return {"mean": self.figures(), "classes": classes}

    def table(self) -> str:
        """The metrics as text in columns, in percent; "-" for classes without labelled objects."""
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
    detections_by_image: overlaps.DetectionsByImage,
    labels_by_image: overlaps.LabelsByImage,
    class_names: Sequence[str],
    *,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    ignore_difficult: bool = True,
    ignore_truncated: bool = False,
) -> MeanAveragePrecision:
    """Average precision as DOTA's own tool defines it, for all classes and thresholds.

    Within a class the detections of all images are taken by descending score. Each one is matched to the object of its
    image and class that it overlaps most (the first of equals), and to no other. With IoU > threshold it is a true
    positive if that object was not yet found, a false positive if it was, and neither if the object is to be ignored;
    otherwise it is a false positive. Detections of one class with equal scores enter the curve together, as one step to
    the recall and precision behind the last of them: average precision does not depend on the order of images or of
    lines. Means are over classes with at least one object that counts; without detections their AP is 0.

    Args:
      detections_by_image: a dict from image to its detections, or a list in the order of the labels (see `overlaps`).
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
    images = overlaps.pair_up(detections_by_image, labels_by_image)
    ignored_difficulties = overlaps.ignored_difficulties(ignore_difficult, ignore_truncated)
    detections, labels = overlaps.pool(images, len(class_names))
    ignored = np.isin(labels.difficulty, ignored_difficulties)
    pairs = overlaps.overlapping_pairs(detections, labels, same_class=True)
    best, best_iou = overlaps.best_labels(detections, labels, *pairs)

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
            np.stack([overlaps.outcomes(best[order], best_iou[order] > threshold, ignored) for threshold in thresholds])
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
