"""Where a detector's errors come from: what became of each detection, and of each labelled object."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.results import overlaps
from haksnet_jax.results.thresholds import SHOWN_SCORE

KINDS = ("correct", "wrong angle", "poor overlap", "other class", "duplicate", "background", "ignored")


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

    def confusion_matrix(self) -> np.ndarray:
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
        matrix[-1] += np.bincount(self.label[nothing_found], minlength=num_classes + 1)
        return matrix

    def by_size(self, edges: Sequence[float] = (16, 32, 64, 128, 256)) -> dict[str, np.ndarray]:
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

    def worst_images(self, count: int = 8) -> list[tuple[Any, int]]:
        """Images with most errors (false detections and missed objects): [(name, number of errors)], worst first."""
        false = (self.kind != KINDS.index("correct")) & (self.kind != KINDS.index("ignored"))
        missed = (self.gt_found_as > -2) & (self.gt_found_as != self.gt_label)
        errors = np.bincount(self.image[false], minlength=len(self.image_names))
        errors += np.bincount(self.gt_image[missed], minlength=len(self.image_names))
        worst = np.argsort(-errors, kind="stable")[:count]
        return [(self.image_names[i], int(errors[i])) for i in worst if errors[i]]


def analyse_errors(
    detections_by_image: overlaps.DetectionsByImage,
    labels_by_image: overlaps.LabelsByImage,
    class_names: Sequence[str],
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = SHOWN_SCORE,
    ignore_difficult: bool = True,
    ignore_truncated: bool = False,
) -> ErrorAnalysis:
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
    images = overlaps.pair_up(detections_by_image, labels_by_image)
    detections, labels = overlaps.pool(images, len(class_names), score_threshold)
    ignored = np.isin(labels.difficulty, overlaps.ignored_difficulties(ignore_difficult, ignore_truncated))
    by_score = np.argsort(-detections.scores, kind="stable")
    detections = overlaps.Detected(*(field[by_score] for field in detections))
    det_index, gt_index, iou = overlaps.overlapping_pairs(detections, labels, same_class=False)
    same = detections.labels[det_index] == labels.labels[gt_index]
    best, best_iou = overlaps.best_labels(detections, labels, det_index[same], gt_index[same], iou[same])
    outcome = overlaps.outcomes(best, best_iou > iou_threshold, ignored)
    other = ~same & ~ignored[gt_index] & (iou > iou_threshold)
    found = np.zeros(len(ignored), bool)
    found[best[outcome == 1]] = True
    other &= ~found[gt_index]
    other_best, other_iou = overlaps.best_labels(detections, labels, det_index[other], gt_index[other], iou[other])
    on_other = (outcome == 0) & (best_iou <= iou_threshold) & (other_iou > iou_threshold)
    claims = overlaps.outcomes(np.where(on_other, other_best, -1), on_other, np.zeros(len(ignored), bool)) == 1

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
