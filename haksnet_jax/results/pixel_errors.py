"""What a segmenter or change detector gets wrong: by image, by the size of regions, near borders, at each threshold."""

from collections.abc import Sequence

import cv2
import numpy as np

from haksnet_jax.results.confusion import confusion_matrix

SIZE_EDGES = (8, 16, 32, 64, 128, 256)  # of regions: the square root of their area, in pixels
BORDER_EDGES = (2, 4, 8, 16, 32)  # pixels from the border between two classes of the labels
MIN_AREA = 16  # pixels of a region that is counted: fewer are specks
_LEVELS = 256  # of probability, from 0 to 1


class PixelErrors:
    """Sums over the images of a split.

    Args:
      class_names: K names.
      of_interest: labels whose regions and thresholds are looked at; None for all. (Of change, the changed alone.)

    Attributes:
      by_image: {image: [K, K] int64 confusion matrix}.
      found, missed: [bins] int64: regions of the labels, at least half of whose pixels have the class, and the others.
      right, false: [bins] int64: regions of the prediction, at least half of whose labelled pixels have the class in
        the labels, and the others.
      near_all, near_wrong: [bins] int64: labelled pixels by their distance from a border, and those that are wrong.
      thresholds: [K, 2, 256] int64: labelled pixels by the probability of the class, of other classes and of this one.
    """

    def __init__(self, class_names: Sequence[str], of_interest: Sequence[int] | None = None) -> None:
        self.class_names = tuple(class_names)
        self.of_interest = tuple(range(len(class_names))) if of_interest is None else tuple(of_interest)
        self.by_image: dict[str, np.ndarray] = {}
        bins = len(SIZE_EDGES) + 1
        self.found, self.missed, self.right, self.false = (np.zeros(bins, np.int64) for _ in range(4))
        self.near_all, self.near_wrong = (np.zeros(len(BORDER_EDGES) + 1, np.int64) for _ in range(2))
        self.thresholds = np.zeros((len(class_names), 2, _LEVELS), np.int64)

    def add(self, image_id: str, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Adds an image.

        Args:
          image_id: its name.
          labels: [H, W] int32, -1 where there is none.
          predicted: [H, W] uint8.

        Returns:
          [K, K] its confusion matrix.
        """
        matrix = confusion_matrix(labels, predicted, len(self.class_names))
        self.by_image[image_id] = matrix
        labelled = labels >= 0
        for label in self.of_interest:
            truth, said = labels == label, predicted == label
            good, bad = _regions(truth, said, labelled)
            self.found += good
            self.missed += bad
            good, bad = _regions(said & labelled, truth, labelled)
            self.right += good
            self.false += bad
        bins = np.digitize(_distance_from_border(labels), BORDER_EDGES)[labelled]
        self.near_all += np.bincount(bins, minlength=len(self.near_all))
        self.near_wrong += np.bincount(bins[(labels != predicted)[labelled]], minlength=len(self.near_wrong))
        return matrix

    def add_sums(self, labels: np.ndarray, sums: np.ndarray) -> None:
        """Adds pixels by the probability of each class.

        Args:
          labels: [H, W] int32, -1 where there is none.
          sums: [K, H, W] probabilities times a factor of each pixel.
        """
        labelled = labels >= 0
        total = np.maximum(sums.sum(axis=0), 1e-12)
        for label in self.of_interest:
            level = (sums[label] / total * (_LEVELS - 1)).round().astype(np.int32)
            level = np.clip(level, 0, _LEVELS - 1) + _LEVELS * (labels == label)
            self.thresholds[label] += np.bincount(level[labelled], minlength=2 * _LEVELS).reshape(2, _LEVELS)

    def precision_recall(self, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(recall, precision, threshold) [L] of a class, threshold falling; empty where no pixel has the class."""
        others, own = self.thresholds[label][:, ::-1].cumsum(axis=1)
        kept = own + others > 0
        if not own[-1]:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        threshold = np.arange(_LEVELS)[::-1] / (_LEVELS - 1)
        return own[kept] / own[-1], own[kept] / (own + others)[kept], threshold[kept]

    def average_precision(self, label: int) -> float | None:
        """Sum of precision times the steps of recall; None where no pixel has the class."""
        recall, precision, _ = self.precision_recall(label)
        return float(np.sum(np.diff(recall, prepend=0) * precision)) if len(recall) else None

    def ranked(self) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(worst first, best first): (image, share of its labelled pixels that are wrong); of the best those with more
        than one class in their labels come first, since one class alone is no task."""
        shares, classes = {}, {}
        for name, matrix in self.by_image.items():
            total = int(matrix.sum())
            if total:
                shares[name] = float(1 - np.trace(matrix) / total)
                classes[name] = int((matrix.sum(axis=1) > 0).sum())
        worst = sorted(shares, key=lambda name: -shares[name])
        best = sorted(shares, key=lambda name: (classes[name] < 2, shares[name]))
        return [(name, shares[name]) for name in worst], [(name, shares[name]) for name in best]


def _regions(regions, other, labelled):
    """([bins], [bins]): connected regions by size, of which at least half is in `other` too, and the rest."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(regions.astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    inside = np.bincount(numbers[other & labelled], minlength=count)
    kept = 1 + np.flatnonzero(area[1:] >= MIN_AREA)  # (number 0 is what is in no region)
    bins = np.digitize(np.sqrt(area[kept]), SIZE_EDGES)
    good = 2 * inside[kept] >= area[kept]
    length = len(SIZE_EDGES) + 1
    return np.bincount(bins[good], minlength=length), np.bincount(bins[~good], minlength=length)


def _distance_from_border(labels):
    """[H, W] float32: pixels to the nearest pixel whose neighbour has another label."""
    border = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    if not border.any():
        return np.full(labels.shape, np.inf, np.float32)
    return cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 5)
