"""Confusion matrices in exact integers, and what is measured with them: IoU, F1, precision, recall, accuracy, top-k."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts how often each class was taken for each.

    Args:
      labels: integers of any shape; those outside 0 .. K - 1 are left out.
      predictions: integers of the same shape, all in 0 .. K - 1.
      num_classes: K.

    Returns:
      [K, K] int64: rows are labels, columns predictions.

    Raises:
      ValueError: shapes that differ, or a prediction that is none of the classes.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels have shape {labels.shape}, predictions {predictions.shape}")
    valid = (labels >= 0) & (labels < num_classes)
    labels, predictions = labels[valid].astype(np.int64), predictions[valid].astype(np.int64)
    if predictions.size and not 0 <= predictions.min() <= predictions.max() < num_classes:
        raise ValueError(
            f"predictions of {num_classes} classes lie between {predictions.min()} and {predictions.max()}"
        )
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def top_k_correct(scores: ArrayLike, labels: ArrayLike, k: int) -> int:
    """How many labels are among the k highest scores of their row.

    Of equal scores the class with the lower number comes first.

    Args:
      scores: [N, K].
      labels: [N] integers.
      k: whole number; more than K counts as K.

    Returns:
      Whole number.
    """
    best = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return int((best == np.asarray(labels)[:, None]).any(axis=1).sum())


def _ratio(part, whole):
    """part / whole as floats, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole != 0)


class Confusion(NamedTuple):
    """A confusion matrix with its classes.

    Attributes:
      matrix: [K, K] int64, rows labels, columns predictions.
      class_names: K names.
      left_out: names of classes that no mean over classes takes in (pixels of theirs still count in accuracy, and as
        errors of other classes).
    """

    matrix: np.ndarray
    class_names: tuple
    left_out: tuple = ()

    def per_class(self) -> dict[str, np.ndarray]:
        """{"IoU", "F1", "precision", "recall"}: [K] float64 each, NaN where there is nothing to divide by.

        A class that neither labels nor predictions have has no measure at all.
        """
        right = np.diag(self.matrix)
        labelled, predicted = self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        return {
            "IoU": _ratio(right, labelled + predicted - right),
            "F1": _ratio(2 * right, labelled + predicted),
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, labelled),
        }

    def scored(self) -> np.ndarray:
        """[K] bool: the classes of the means: not left out, and found in labels or predictions."""
        present = (self.matrix.sum(axis=0) + self.matrix.sum(axis=1)) > 0
        return present & ~np.isin(self.class_names, self.left_out)

    def mean(self, measure: str) -> float | None:
        """Mean of a measure over the scored classes, or None where there is none."""
        values = self.per_class()[measure][self.scored()]
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else None

    def accuracy(self) -> float | None:
        """Share of all labelled pixels that are right, classes left out included; None where none is labelled."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix) / total) if total else None

    def figures(self) -> dict[str, float | None]:
        """{name: float or None}: mean_iou, mean_f1, accuracy, and iou:CLASS for each class."""
        per_class = zip(self.class_names, self.per_class()["IoU"].tolist(), strict=True)
        return {
            "mean_iou": self.mean("IoU"),
            "mean_f1": self.mean("F1"),
            "accuracy": self.accuracy(),
        } | {f"iou:{name}": None if np.isnan(value) else value for name, value in per_class}

    def table(self) -> str:
        """Text in percent: a line for each class, and the means; "-" where there is nothing to measure."""
        measures = self.per_class()
        total = max(int(self.matrix.sum()), 1)
        width = max(len("mean"), *(len(name) for name in self.class_names))
        lines = [f"{'in %':<{width}}  " + "  ".join(f"{name:>9}" for name in measures) + "   share of labels"]
        for i, name in enumerate(self.class_names):
            values = "  ".join(_shown(measures[measure][i]) for measure in measures)
            note = "  (not in the means)" if name in self.left_out else ""
            lines.append(f"{name:<{width}}  {values}   {100 * self.matrix[i].sum() / total:15.2f}{note}")
        values = "  ".join(_shown(self.mean(measure)) for measure in measures)
        lines.append(f"{'mean':<{width}}  {values}")
        lines.append(f"pixels right {_shown(self.accuracy()).strip()}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """{"mean", "classes", "confusion_matrix", "left_out"} of plain numbers."""
        measures = {name: values.tolist() for name, values in self.per_class().items()}
        return {
            "mean": {name: self.mean(name) for name in measures} | {"accuracy": self.accuracy()},
            "classes": {
                name: {measure: _plain(values[i]) for measure, values in measures.items()}
                | {"num_pixels": int(self.matrix[i].sum())}
                for i, name in enumerate(self.class_names)
            },
            "confusion_matrix": self.matrix.tolist(),
            "left_out": list(self.left_out),
        }


class ChangeConfusion(Confusion):
    """A confusion matrix of two classes, no change and change, told by the measures of change."""

    def figures(self) -> dict[str, float | None]:
        """{name: float or None}: f1_change, iou_change, precision_change, recall_change, accuracy."""
        measures = self.per_class()
        return {
            f"{name.lower()}_change": _plain(float(measures[name][1])) for name in ("F1", "IoU", "precision", "recall")
        } | {"accuracy": self.accuracy()}


def _plain(value):
    return None if value is None or np.isnan(value) else value


def _shown(value):
    return f"{'-':>9}" if value is None or np.isnan(value) else f"{100 * value:9.2f}"
