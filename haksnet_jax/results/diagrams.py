"""Diagrams of results with matplotlib: precision and recall, confusion, errors by size, curves of training.

They are matplotlib figures without a window: write them with `save_figure`. (The report's charts are SVG, `charts`.)
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax import files
from haksnet_jax.results import visualize
from haksnet_jax.results.mean_ap import MeanAveragePrecision

if TYPE_CHECKING:  # half a second that drawing boxes need not pay
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Writes a figure as PNG, PDF or SVG by the path's ending; the file appears whole or not at all."""
    with files.whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=temporary.suffix[1:])


def precision_recall_figure(result: MeanAveragePrecision, *, iou_threshold: float = 0.5) -> "Figure":
    """Precision over recall, one curve a class that has labelled objects, with AP in the legend.

    Args:
      result: a MeanAveragePrecision.
      iou_threshold: one of its thresholds.

    Returns:
      A matplotlib figure.
    """
    column = result.threshold_index(iou_threshold)
    shown = np.flatnonzero(result.num_gts > 0)
    figure, axes = _figure(9, 5.5)
    for label in shown[np.argsort(-result.ap_voc12[shown, column], kind="stable")]:
        recall, precision, _ = result.precision_recall(label, iou_threshold)
        name = f"{result.class_names[label]}  {100 * result.ap_voc12[label, column]:.1f}"
        axes.plot(np.append(0, recall), np.append(1, precision), color=_line_colour(label), linewidth=1.6, label=name)
    mean = f"{100 * result.ap_voc12[shown, column].mean():.1f}" if shown.size else "-"
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"Precision and recall at IoU {iou_threshold:g}, mean AP {mean}", loc="left")
    if shown.size:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="class, AP", fontsize=9)
    return figure


def confusion_matrix_figure(matrix: ArrayLike, class_names: Sequence[str], *, with_background: bool = True) -> "Figure":
    """Confusion matrix, coloured by share of the true class, with counts.

    Args:
      matrix: [K + 1, K + 1] as from `ErrorAnalysis.confusion_matrix`. Classes that never occur are left out.
      class_names: K names.
      with_background: whether the last row and column are of what is no object; without, the matrix is [K, K].

    Returns:
      A matplotlib figure.
    """
    matrix = np.asarray(matrix)
    occurs = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    occurs[-1] |= with_background
    shown = np.flatnonzero(occurs)
    matrix = matrix[np.ix_(shown, shown)]
    names = [(*class_names, "background")[i] for i in shown]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3.2 + 0.48 * len(shown)
    figure, axes = _figure(side + 0.6, side)
    axes.grid(visible=False)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    last = (["missed"], ["nothing there"]) if with_background else ([], [])
    known = names[:-1] if with_background else names
    axes.set_xticks(range(len(names)), [*known, *last[0]], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [*known, *last[1]])
    for row, column in np.argwhere(matrix):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="detected as" if with_background else "taken for", ylabel="labelled as")
    axes.set_title("Confusion matrix", loc="left")
    figure.colorbar(picture, ax=axes, fraction=0.045, pad=0.03, label="share of the row")
    return figure


def errors_by_size_figure(counts: Mapping[str, np.ndarray]) -> "Figure":
    """Found and missed objects, and false detections by kind, over the size of the objects.

    Args:
      counts: dict from `ErrorAnalysis.by_size`.

    Returns:
      A matplotlib figure.
    """
    edges = [f"{edge:g}" for edge in counts["edges"]]
    bins = [f"< {edges[0]}"] + [f"{a}-{b}" for a, b in itertools.pairwise(edges)] + [f">= {edges[-1]}"]
    positions = np.arange(len(bins))
    figure, (above, below) = _figure(8, 6.5, rows=2)
    found = counts["objects"] - counts["missed"]
    above.bar(positions, found, color="#2f7ebc", label="found")
    above.bar(positions, counts["missed"], bottom=found, color="#d9d9d9", label="missed")
    for x, (number, total) in enumerate(zip(found, counts["objects"], strict=True)):
        if total:
            above.annotate(
                f"{100 * number / total:.0f} %", (x, total), (0, 2), textcoords="offset points", ha="center", fontsize=9
            )
    above.margins(y=0.12)
    above.set(ylabel="labelled objects")
    bottom = np.zeros(len(bins))
    kinds = {
        "wrong angle": "#e9c46a",
        "poor overlap": "#f4a259",
        "other class": "#8e6bbf",
        "duplicate": "#5aa469",
        "background": "#c8553d",
    }
    for kind, colour in kinds.items():
        below.bar(positions, counts[kind], bottom=bottom, color=colour, label=kind)
        bottom += counts[kind]
    below.set(ylabel="false detections", xlabel="size in pixels (square root of the area)")
    for axes in (above, below):
        axes.set_xticks(positions, bins)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    above.set_title("Errors by size", loc="left")
    return figure


# What the lines are called that a run's records name otherwise.
_LINE_NAMES = {
    "loss": "sum",
    "loss_rpn_cls": "RPN, object or not",
    "loss_rpn_box": "RPN, boxes",
    "loss_roi_cls": "RoI, classes",
    "loss_roi_box": "RoI, boxes",
    "AP50_voc07": "AP50 (VOC07)",
    "AP50_voc12": "AP50 (VOC12)",
    "AP75_voc12": "AP75 (VOC12)",
}


def training_figure(
    losses: Mapping[str, tuple[ArrayLike, ArrayLike]], scores: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
) -> "Figure":
    """Curves of a training run.

    Args:
      losses: a dict from name to (steps, values); drawn on a logarithmic axis, with a running median over the raw line.
        Values that are not finite are left out of the lines.
      scores: a dict from name to (steps, values in 0..1), such as AP; drawn below in percent, from 0 to 100, the last
        value beside the name. None for none.

    Returns:
      A matplotlib figure.
    """
    figure, axes = _figure(8, 6.5 if scores else 4, rows=2 if scores else 1)
    above = axes[0] if scores else axes
    for number, (name, (steps, values)) in enumerate(losses.items()):
        steps, values = np.asarray(steps), np.asarray(values, np.float64)
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        colour = _line_colour(number)
        width = max(1, len(values) // 50)
        if width > 1:
            above.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
            values = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
        above.plot(steps, values, color=colour, linewidth=1.6, label=_LINE_NAMES.get(name, name))
    if any((np.asarray(values, np.float64) > 0).any() for _, values in losses.values()):
        above.set_yscale("log")
    above.set(ylabel="loss")
    above.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    if scores:
        for number, (name, (steps, values)) in enumerate(scores.items()):
            percent = 100 * np.asarray(values, np.float64)
            label = f"{_LINE_NAMES.get(name, name)}  {percent[-1]:.1f}" if len(percent) else name
            axes[1].plot(steps, percent, color=_line_colour(number), marker="o", markersize=4, label=label)
        axes[1].set(ylabel="%", ylim=(0, 102))
        axes[1].set_yticks(range(0, 101, 10))
        axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        axes[1].sharex(above)
    (axes[1] if scores else above).set(xlabel="step")
    return figure


def _line_colour(number):
    """The palette, darkened for white paper."""
    return tuple(0.72 * channel / 255 for channel in visualize.class_colour(number))


def _figure(width, height, *, rows=1):
    """(figure, axes or list of axes) in the style of all figures, bound to no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, 1)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, color="#e4e4e4", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes
