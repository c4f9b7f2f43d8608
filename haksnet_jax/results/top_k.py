"""What is measured of a classifier: top-1, top-5, each class, and which is taken for which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax.wording import counted

NUM_BEST = 5  # of the likeliest classes, for top-5
SHOWN_CLASSES = 10  # in the table: the worst


class ClassificationResult(NamedTuple):
    """Counts over a labelled split.

    Attributes:
      class_names: K names.
      matrix: [K, K] int64: rows are labels, columns the likeliest class.
      num_in_best: images whose label is among the NUM_BEST likeliest classes.
    """

    class_names: tuple
    matrix: np.ndarray
    num_in_best: int

    @property
    def num_images(self) -> int:
        """Images that were counted."""
        return int(self.matrix.sum())

    def recall(self) -> np.ndarray:
        """[K] share of a class's images that are recognised; NaN where it has none."""
        count = self.matrix.sum(axis=1)
        return np.where(count > 0, np.diag(self.matrix) / np.maximum(count, 1), np.nan)

    def figures(self) -> dict[str, float | None]:
        """{name: share or None}: top1 and top5 over all images, mean_recall over the classes that have any."""
        total = self.num_images
        if not total:
            return {"top1": None, "top5": None, "mean_recall": None}
        return {
            "top1": float(np.trace(self.matrix) / total),
            "top5": self.num_in_best / total,
            "mean_recall": float(np.nanmean(self.recall())),
        }

    def table(self) -> str:
        """Text in percent: the shares, and the worst classes with what they are most often taken for."""
        shares = {name: f"{100 * share:.2f} %" for name, share in self.figures().items() if share is not None}
        if not shares:
            return "no image"
        lines = [
            f"top-1 {shares['top1']}   top-5 {shares['top5']}   mean over classes {shares['mean_recall']}   "
            f"({counted(self.num_images, 'image')})"
        ]
        recall = self.recall()
        order = [index for index in np.argsort(recall, kind="stable") if not np.isnan(recall[index])]
        width = max(len(name) for name in self.class_names)
        for index in order[:SHOWN_CLASSES]:
            others = self.matrix[index].copy()
            others[index] = 0
            taken = ""
            if others.any():
                other = int(others.argmax())
                taken = f"   most often taken for {self.class_names[other]} ({others[other]})"
            share = f"{100 * recall[index]:6.2f} % of {self.matrix[index].sum()}"
            lines.append(f"  {self.class_names[index]:<{width}}  {share}{taken}")
        if len(order) > SHOWN_CLASSES:
            lines.append(f"  and {len(order) - SHOWN_CLASSES} better classes")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """{"mean", "classes", "confusion"} of plain numbers."""
        predicted = self.matrix.sum(axis=0)
        classes = {}
        for index, (name, share) in enumerate(zip(self.class_names, self.recall(), strict=True)):
            precision = self.matrix[index, index] / predicted[index] if predicted[index] else None
            classes[name] = {
                "recall": None if np.isnan(share) else float(share),
                "precision": None if precision is None else float(precision),
                "num_images": int(self.matrix[index].sum()),
            }
        return {"mean": self.figures(), "classes": classes, "confusion": self.matrix.tolist()}


def classification_result(labels: ArrayLike, best: ArrayLike, class_names: Sequence[str]) -> ClassificationResult:
    """Counts predictions.

    Args:
      labels: [N] int.
      best: [N, NUM_BEST or K] the likeliest classes, likeliest first.
      class_names: K names.

    Returns:
      ClassificationResult.
    """
    labels, best = np.asarray(labels), np.asarray(best)
    matrix = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(matrix, (labels, best[:, 0]), 1)
    return ClassificationResult(tuple(class_names), matrix, int((best == labels[:, None]).any(axis=1).sum()))
