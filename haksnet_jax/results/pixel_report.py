"""The report of a segmenter or change detector: metrics, curves, errors, images in one HTML file."""

import functools
import html
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results import charts, dense_maps, page, pixel_errors
from haksnet_jax.results.confusion import ChangeConfusion, Confusion
from haksnet_jax.results.page import section, table
from haksnet_jax.results.pixel_errors import PixelErrors
from haksnet_jax.wording import counted

_MOST_CONFUSED = 10  # pairs of classes that the table names
CHANGED = "changed"
_WRONG = (255, 0, 220)  # no colour of land or water
_MISSED, _FALSE = (255, 214, 0), (60, 150, 255)  # of change
_TITLES = {"image": "image", "before": "before", "after": "after"}
_NAMES = {"mean_iou": "mean IoU", "mean_f1": "mean F1", "accuracy": "pixels right"}


class Pixels(NamedTuple):
    """One image with what is labelled and what was predicted.

    Attributes:
      images: {"image": [H, W, C]}, or "before" and "after".
      labels: [H, W] uint8, 255 where there is none.
      predicted: [H, W] uint8.
    """

    images: dict[str, np.ndarray]
    labels: np.ndarray
    predicted: np.ndarray


class Subject(NamedTuple):
    """What a report shows: an evaluation, and what is known of the run that it is of.

    Attributes:
      title: its name, for headings.
      result: Confusion, or ChangeConfusion.
      errors: PixelErrors of the same images.
      pixels: function from an image's name to Pixels.
      colours: of the classes.
      facts: dict of what is to be said of the run or evaluation: steps, hardware, ...
      history: list of records of training.
      curves: prefixes of the names of losses, and then of scores, in the history.
      warnings: sentences.
    """

    title: str
    result: Confusion
    errors: PixelErrors
    pixels: Callable[[str], Pixels]
    colours: Sequence[tuple[int, int, int]]
    facts: dict[str, Any]
    history: list[dict[str, float]]
    curves: Sequence[str]
    warnings: list[str]


def write_report(path: str | os.PathLike[str], subjects: Sequence[Subject], *, num_images: int = 4) -> int:
    """Writes the report.

    Args:
      path: of the HTML file.
      subjects: one, or two that are shown side by side.
      num_images: how many of the worst images are shown, and how many of the best.

    Returns:
      Bytes of the file, at most `page.MAX_BYTES`.
    """
    # The page is made anew where images have to be smaller; their predictions are not.
    subjects = [one._replace(pixels=functools.cache(one.pixels)) for one in subjects]
    columns = [page.Column(one.title, functools.partial(_sections, one)) for one in subjects]
    comparison = _comparison(*subjects) if len(subjects) == 2 else ""
    return page.write(path, columns, comparison=comparison, num_images=num_images)


def _sections(subject, num_images, side):
    yield section("card", "Summary", _card(subject))
    if subject.history:
        yield section("curves", "Training", page.curves(subject.history, subject.curves))
    yield section("classes", "Classes", _class_table(subject))
    yield section("precision-recall", "Precision and recall of pixels", _precision_recall(subject))
    yield section("confusion", "Confusion matrix", _confusion(subject.result))
    yield section("errors", "Errors", _errors(subject))
    if num_images:
        yield section("images", "Images", _images(subject, num_images, side))
    yield section("data", "Data", _statistics(subject))


def _card(subject):
    figures = subject.result.figures()
    metrics = {_NAMES.get(name, page.named(name)): value for name, value in figures.items() if ":" not in name}
    num_pixels = int(subject.result.matrix.sum())
    said = f"{counted(len(subject.errors.by_image), 'image')}, {counted(num_pixels, 'labelled pixel')}"
    if subject.result.left_out:
        said += f"; not in the means: {', '.join(subject.result.left_out)}"
    return page.card(metrics, said, subject.warnings, subject.facts)


def _class_table(subject):
    result, errors = subject.result, subject.errors
    measures = result.per_class()
    total = max(int(result.matrix.sum()), 1)
    rows = []
    for label, name in enumerate(result.class_names):
        ap = errors.average_precision(label) if label in errors.of_interest else None
        share = result.matrix[label].sum() / total
        rows.append((name, *(page.percent(values[label]) for values in measures.values()), page.percent(ap), _p(share)))
    if not _is_change(subject):
        rows.append(("mean", *(page.percent(result.mean(measure)) for measure in measures), "", ""))
    return table(("class", *(f"{name} %" for name in measures), "average precision %", "share of labels %"), rows)


def _p(value):
    return f"{100 * value:.2f}"


def _precision_recall(subject):
    series, best = {}, []
    errors = subject.errors
    order = sorted(errors.of_interest, key=lambda label: -(errors.average_precision(label) or 0))
    for label in order:
        recall, precision, threshold = errors.precision_recall(label)
        if not len(recall):
            continue
        name = errors.class_names[label]
        series[name] = (np.append(0, recall), np.append(precision[0], precision))
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        place = int(f1.argmax())
        best.append((name, _p(f1[place]), f"{threshold[place]:.2f}", _p(precision[place]), _p(recall[place])))
    if not series:
        return "<p>No labelled pixel has a class of interest.</p>"
    head = ("class", "best F1 %", "where its probability is at least", "precision %", "recall %")
    return charts.lines(series, x_label="recall", y_label="precision", y_range=(0, 1)) + table(head, best)


def _confusion(result):
    shown = np.flatnonzero(result.matrix.sum(axis=0) + result.matrix.sum(axis=1) > 0)
    names = [result.class_names[place] for place in shown]
    said = "Rows: what is labelled. Columns: what was predicted. In percent of the row."
    return page.confusion(result.matrix[np.ix_(shown, shown)], names, names, said=said, shares=True)


def _errors(subject):
    errors, matrix = subject.errors, subject.result.matrix
    wrong = matrix - np.diag(np.diag(matrix))
    total = max(int(wrong.sum()), 1)
    pairs = [(row, column) for row, column in np.argwhere(wrong).tolist()]
    pairs = sorted(pairs, key=lambda pair: -wrong[pair])[:_MOST_CONFUSED]
    names = subject.result.class_names
    rows = [(names[a], names[b], f"{wrong[a, b]:,}", _p(wrong[a, b] / total)) for a, b in pairs]
    near = [
        (name, f"{count:,}", _p(bad / count) if count else "-", _p(bad / total))
        for name, count, bad in zip(_borders(), errors.near_all.tolist(), errors.near_wrong.tolist(), strict=True)
    ]
    bins, label = _sizes(), "size of the region in pixels (square root of the area)"
    of = ", ".join(names[label] for label in errors.of_interest) if len(errors.of_interest) == 1 else "all classes"
    return (
        "<h4>Which class is taken for which</h4>"
        + table(("labelled", "predicted", "pixels", "% of all errors"), rows, names=2)
        + "<h4>How far from a border between labels</h4>"
        + table(("distance in pixels", "pixels", "of them wrong %", "% of all errors"), near)
        + f"<h4>Labelled regions of {html.escape(of)}: at least half found, or not</h4>"
        + charts.stacked_bars(bins, {"missed": errors.missed, "found": errors.found}, x_label=label, y_label="regions")
        + f"<h4>Predicted regions of {html.escape(of)}: at least half right, or not</h4>"
        + charts.stacked_bars(bins, {"false": errors.false, "right": errors.right}, x_label=label, y_label="regions")
        + f"<p>Regions of fewer than {pixel_errors.MIN_AREA} pixels are not counted.</p>"
    )


def _sizes():
    edges = pixel_errors.SIZE_EDGES
    return [f"< {edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f">= {edges[-1]}"]


def _borders():
    edges = pixel_errors.BORDER_EDGES
    between = (f"{a} to {b}" for a, b in itertools.pairwise(edges))
    return [f"less than {edges[0]}", *between, f"{edges[-1]} or more"]


def _images(subject, num_images, side):
    """The worst and the best images: as they are, labels, prediction, and what is wrong; a slider for the colours."""
    worst, best = subject.errors.ranked()
    worst = [entry for entry in worst if entry[1] > 0][:num_images]
    taken = {name for name, _ in worst}
    best = [entry for entry in best if entry[0] not in taken][:num_images]
    figures = [
        _figure(subject, name, f"{kind}, {_p(share)} % of its pixels are wrong", side)
        for kind, entries in (("among the worst", worst), ("among the best", best))
        for name, share in entries
    ]
    controls = (
        '<div class="controls"><label>colours over the image <output>0.60</output> '
        '<input type="range" class="opacity" min="0" max="1" step="0.05" value="0.6"></label></div>'
    )
    colours = {name: f"rgb{tuple(map(int, subject.colours[i]))}" for i, name in enumerate(subject.result.class_names)}
    if _is_change(subject):
        del colours[subject.result.class_names[0]]  # where nothing changed, the image is seen as it is
    kinds = {"missed": _MISSED, "false": _FALSE} if _is_change(subject) else {"wrong": _WRONG}
    colours |= {name: f"rgb{colour}" for name, colour in kinds.items()}
    return controls + charts.legend(colours, colours.values()) + f'<div class="rows">{"".join(figures)}</div>'


def _figure(subject, name, said, side):
    pixels = subject.pixels(name)
    height, width = pixels.labels.shape
    # Each image is in the file once, as a property that the panels show as their background.
    names = list(pixels.images)
    images = ";".join(f"--{one}:url({page.jpeg(dense_maps.as_rgb(pixels.images[one]), side)})" for one in names)
    is_change = _is_change(subject)
    known = pixels.labels != IGNORED
    shown = np.where(known, pixels.predicted, IGNORED)
    wrong = known & (pixels.labels != pixels.predicted)
    paint = np.where(pixels.labels[..., None] == 1, _MISSED, _FALSE) if is_change else np.uint8(_WRONG)
    layers = {
        "labels": _coloured(pixels.labels, subject.colours, is_change),
        "prediction": _coloured(shown, subject.colours, is_change),
        "wrong": np.dstack([np.broadcast_to(paint, (*wrong.shape, 3)).astype(np.uint8), np.uint8(255) * wrong]),
    }
    panels = [_panel(_TITLES.get(one, one), one, "", width, height) for one in names]
    for title, layer in layers.items():
        mask = f'<img class="mask" alt="" src="{page.png(layer, side)}">'
        panels.append(_panel(title, names[-1], mask, width, height))
    caption = f"<figcaption>{html.escape(name)}: {html.escape(said)}</figcaption>"
    return f'<figure style="{images}"><div class="panels">{"".join(panels)}</div>{caption}</figure>'


def _is_change(subject):
    return isinstance(subject.result, ChangeConfusion)


def _coloured(labels, colours, is_change):
    """[H, W, 4] uint8: colours of the classes; nothing where there is no label, or nothing changed."""
    alpha = np.where((labels == IGNORED) | (is_change & (labels == 0)), 0, 255).astype(np.uint8)
    return np.dstack([dense_maps.coloured(labels, colours), alpha])


def _panel(title, image, mask, width, height):
    style = f"background-image:var(--{image});aspect-ratio:{width}/{height}"
    return f'<div><div class="panel" role="img" aria-label="{title}" style="{style}">{mask}</div><p>{title}</p></div>'


def _statistics(subject):
    matrices = subject.errors.by_image.values()
    per_class = subject.result.matrix.sum(axis=1)
    images = np.sum([matrix.sum(axis=1) > 0 for matrix in matrices], axis=0) if matrices else np.zeros(len(per_class))
    total = max(int(per_class.sum()), 1)
    rows = [
        (name, int(images[label]), f"{per_class[label]:,}", _p(per_class[label] / total))
        for label, name in enumerate(subject.result.class_names)
    ]
    rows.sort(key=lambda row: -float(row[3]))
    regions = subject.errors.found + subject.errors.missed
    label = "size in pixels (square root of the area)"
    return (
        f"<p>{counted(len(subject.errors.by_image), 'image')}</p>"
        + table(("class", "images that have it", "labelled pixels", "share %"), rows)
        + "<h4>Labelled regions</h4>"
        + charts.stacked_bars(_sizes(), {"regions": regions}, x_label=label, y_label="regions")
    )


def _comparison(first, second):
    """Table of both results, with the difference."""
    metrics, both = ("F1", "IoU"), (first, second)
    if all(map(_is_change, both)):
        names = [CHANGED]
    else:
        names = list(dict.fromkeys((*first.result.class_names, *second.result.class_names)))
    rows = [(name, [tuple(_measure(one, metric, name) for one in both) for metric in metrics]) for name in names]
    if names != [CHANGED]:
        rows.append(("mean", [tuple(one.result.mean(metric) for one in both) for metric in metrics]))
    return page.comparison([first.title, second.title], metrics, rows)


def _measure(subject, metric, name):
    names = subject.result.class_names
    return float(subject.result.per_class()[metric][names.index(name)]) if name in names else None
