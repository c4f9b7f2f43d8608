"""The report of a detector: metrics, curves, errors, images in one HTML file that needs no server or network."""

import functools
import html
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results import charts, detection_errors, mean_ap, page
from haksnet_jax.results.page import section, table
from haksnet_jax.results.thresholds import SHOWN_SCORE
from haksnet_jax.wording import counted

_LOWEST_SCORE = 0.05  # of the detections that the slider can show
_MOST_SHOWN = 600  # detections of an image, the best ones
_UNITS = {"AP50_voc07": "AP50 (VOC07)", "AP50_voc12": "AP50 (VOC12)", "AP75_voc12": "AP75", "AP50:95": "AP50:95"}


class Subject(NamedTuple):
    """What a report shows: an evaluation, and what is known of the run that it is of.

    Attributes:
      title: its name, for headings.
      class_names: the classes.
      detections, labels: dicts by image, as `mean_average_precision` takes them.
      picture: function from an image's name to its pixels [H, W, C] uint8, or to None.
      facts: dict of what is to be said of the run or evaluation: steps, hardware, ...
      history: list of records of training: {"step", "loss", ..., "AP50_voc12", ...}.
      warnings: sentences.
    """

    title: str
    class_names: tuple[str, ...]
    detections: dict[str, Any]
    labels: dict[str, Any]
    picture: Callable[[str], np.ndarray | None]
    facts: dict[str, Any]
    history: list[dict[str, float]]
    warnings: list[str]


class _Scored(NamedTuple):
    """A subject with its metrics."""

    subject: Subject
    result: mean_ap.MeanAveragePrecision
    errors: detection_errors.ErrorAnalysis


def write_report(
    path: str | os.PathLike[str], subjects: Sequence[Subject], *, score: float = SHOWN_SCORE, num_images: int = 4
) -> int:
    """Writes the report.

    Args:
      path: of the HTML file.
      subjects: one, or two that are shown side by side.
      score: lowest score of the detections that are counted as errors, and the slider's first position.
      num_images: how many of the worst images are shown, and how many of the best.

    Returns:
      Bytes of the file, at most `page.MAX_BYTES`.
    """
    scored = [
        _Scored(
            one,
            mean_ap.mean_average_precision(one.detections, one.labels, one.class_names),
            detection_errors.analyse_errors(one.detections, one.labels, one.class_names, score_threshold=score),
        )
        for one in subjects
    ]
    columns = [page.Column(one.subject.title, functools.partial(_sections, one, score)) for one in scored]
    comparison = _comparison(*scored) if len(scored) == 2 else ""
    return page.write(path, columns, comparison=comparison, num_images=num_images)


def _sections(one, score, num_images, side):
    subject, result, errors = one
    yield section("card", "Summary", _card(subject, result))
    if subject.history:
        yield section("curves", "Training", page.curves(subject.history, ("loss", "AP")))
    yield section("classes", "Classes", _class_table(result))
    yield section("precision-recall", "Precision and recall at IoU 0.5", _precision_recall(result))
    yield section("confusion", f"Confusion matrix above a score of {score:g}", _confusion(errors))
    yield section("errors", f"Errors above a score of {score:g}", _errors(errors))
    if num_images:
        yield section("images", "Images", _images(subject, errors, score, num_images, side))
    yield section("data", "Data", _statistics(subject))


def _card(subject, result):
    said = f"{counted(len(subject.labels), 'image')}, {counted(int(result.num_gts.sum()), 'object')} that count, "
    said += counted(int(result.num_detections.sum()), "detection")
    metrics = {_UNITS[name]: value for name, value in result.figures().items()}
    return page.card(metrics, said, subject.warnings, subject.facts)


def _class_table(result):
    rows = [
        (name, int(result.num_gts[label]), int(result.num_detections[label]))
        + tuple(map(page.percent, result.figures(label).values()))
        for label, name in enumerate(result.class_names)
    ]
    mean = ("mean", int(result.num_gts.sum()), int(result.num_detections.sum()))
    rows.append(mean + tuple(map(page.percent, result.figures().values())))
    return table(("class", "objects", "detections", *(f"{name} %" for name in _UNITS.values())), rows)


def _precision_recall(result):
    series = {}
    for label in np.argsort(-np.nan_to_num(result.ap_voc12[:, result.threshold_index(0.5)]), kind="stable").tolist():
        if result.num_gts[label]:
            recall, precision, _ = result.precision_recall(label, 0.5)
            series[result.class_names[label]] = (np.append(0, recall), np.append(1, precision))
    return charts.lines(series, x_label="recall", y_label="precision", y_range=(0, 1))


def _confusion(errors):
    matrix = errors.confusion_matrix()
    occurs = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
    occurs[-1] = True
    shown = np.flatnonzero(occurs)
    names = [errors.class_names[place] for place in shown[:-1]]
    said = "Rows: what is labelled. Columns: what it was detected as."
    return page.confusion(matrix[np.ix_(shown, shown)], (*names, "nothing there"), (*names, "missed"), said=said)


def _errors(errors):
    counts = errors.by_size()
    edges = [f"{edge:g}" for edge in counts.pop("edges")]
    bins = [f"< {edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f">= {edges[-1]}"]
    objects, missed, correct = counts.pop("objects"), counts.pop("missed"), counts.pop("correct")
    del correct
    meaning = {
        "missed": "an object that no detection found",
        "wrong angle": "would match, had it the angle of the object",
        "poor overlap": "on an object of its class, but not enough of it",
        "other class": "on an object of another class",
        "duplicate": "on an object that a better detection found",
        "background": "where no object of its class is",
    }
    totals = {"missed": missed} | counts
    rows = [(name, int(np.sum(totals[name])), text) for name, text in meaning.items()]
    rows = [(name, text, number) for name, number, text in rows]
    label = "size in pixels (square root of the area)"
    return (
        table(("error", "what it is", "number"), rows, names=2)
        + "<h4>False detections</h4>"
        + charts.stacked_bars(bins, counts, x_label=label, y_label="detections")
        + "<h4>Labelled objects</h4>"
        + charts.stacked_bars(bins, {"missed": missed, "found": objects - missed}, x_label=label, y_label="objects")
    )


def _images(subject, errors, score, num_images, side):
    """The worst and the best images, each with its labels and its detections, and the slider for all of them."""
    worst = errors.worst_images(num_images)
    taken = {name for name, _ in worst}
    best = [name for name in _best_images(errors, num_images + len(taken)) if name not in taken][:num_images]
    shown = [(counted(number, "error"), name) for name, number in worst]
    shown += [("among the best", name) for name in best]
    figures = [_figure(subject, name, said, side) for said, name in shown]
    figures = [figure for figure in figures if figure]
    if not figures:
        return "<p>The images are not at hand.</p>"
    controls = (
        f'<div class="controls"><label>lowest score <output>{score:.2f}</output> '
        f'<input type="range" class="score" min="{_LOWEST_SCORE}" max="1" step="0.01" value="{score:g}"></label> '
        '<label><input type="checkbox" class="show-labels" checked> labels (dashed)</label> '
        '<label><input type="checkbox" class="show-detections" checked> detections</label></div>'
    )
    names = dict.fromkeys(subject.class_names)
    return controls + charts.legend(names) + f'<div class="figures">{"".join(figures)}</div>'


def _best_images(errors, count):
    """Names of images with most correct detections among those with fewest errors."""
    num = len(errors.image_names)
    wrong = np.zeros(num, int)
    for name, number in errors.worst_images(num):
        wrong[errors.image_names.index(name)] = number
    right = np.bincount(errors.image[errors.kind == detection_errors.KINDS.index("correct")], minlength=num)
    order = np.lexsort((-right, wrong))
    return [errors.image_names[place] for place in order if right[place]][:count]


def _figure(subject, name, said, side):
    pixels = subject.picture(name)
    if pixels is None:
        return ""
    if pixels.ndim == 3 and pixels.shape[2] != 3:  # bands: the first three, or the first
        pixels = pixels[..., :3] if pixels.shape[2] > 3 else np.repeat(pixels[..., :1], 3, axis=2)
    height, width = pixels.shape[:2]
    truth, found = subject.labels[name], subject.detections.get(name)
    shapes = [
        _polygon(points, label, subject.class_names, "label")
        for points, label in zip(truth["polygons"], np.asarray(truth["labels"]).tolist(), strict=True)
    ]
    if found is not None:
        scores, labels = np.asarray(found["scores"]), np.asarray(found["labels"])
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= _LOWEST_SCORE][:_MOST_SHOWN]
        polygons = _polygons(found)
        shapes += [
            _polygon(polygons[row], int(labels[row]), subject.class_names, "detection", float(scores[row]))
            for row in order
        ]
    # Lines of one width on the screen, however large the image is.
    return (
        f'<figure><div class="picture"><img alt="{html.escape(name)}" src="{page.jpeg(pixels, side)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg></div>'
        f"<figcaption>{html.escape(name)}: {html.escape(said)}</figcaption></figure>"
    )


def _polygons(found):
    if "polygons" in found:
        return np.asarray(found["polygons"], np.float64).reshape(-1, 4, 2)
    return boxes_to_corners(np.asarray(found["boxes"], np.float64).reshape(-1, 5))


def _polygon(points, label, class_names, kind, score=None):
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(points).reshape(-1, 2).tolist())
    data = "" if score is None else f' data-score="{score:.3f}"'
    title = html.escape(class_names[label]) + ("" if score is None else f" {score:.2f}")
    looks = f'class="{kind}" stroke="{charts.colour(label, on_image=True)}"{data}'
    return f'<polygon {looks} points="{corners}"><title>{title}</title></polygon>'


def _statistics(subject):
    labels = [np.asarray(one["labels"], int) for one in subject.labels.values()]
    counts = np.bincount(np.concatenate([*labels, np.zeros(0, int)]), minlength=len(subject.class_names))
    polygons = [np.asarray(one["polygons"], np.float64).reshape(-1, 4, 2) for one in subject.labels.values()]
    sizes = np.sqrt(polygon_iou.polygon_area(polygon_iou.uncross(np.concatenate([*polygons, np.zeros((0, 4, 2))]))))
    per_image = np.array([len(one) for one in labels] or [0])
    edges = np.array([8, 16, 32, 64, 128, 256])
    names = ["< 8", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), ">= 256"]
    histogram = np.bincount(np.digitize(sizes, edges), minlength=len(names))
    said = (
        f"{counted(len(labels), 'image')}, {counted(int((per_image == 0).sum()), 'image')} without objects; "
        f"objects an image: median {np.median(per_image):g}, most {per_image.max()}"
    )
    rows = sorted(zip(subject.class_names, counts.tolist(), strict=True), key=lambda row: -row[1])
    return (
        f"<p>{said}</p>"
        + table(("class", "labelled objects"), rows)
        + charts.stacked_bars(names, {"objects": histogram}, x_label="size in pixels", y_label="objects")
    )


def _comparison(first, second):
    """Table of both results by class, with the difference."""
    rows = []
    for name in (*dict.fromkeys((*first.subject.class_names, *second.subject.class_names)), None):
        values = []
        for one in (first, second):
            known = name is None or name in one.subject.class_names
            label = None if name is None or not known else one.subject.class_names.index(name)
            values.append(one.result.figures(label) if known else dict.fromkeys(_UNITS))
        pairs = [tuple(value[metric] for value in values) for metric in ("AP50_voc12", "AP50:95")]
        rows.append(("mean" if name is None else name, pairs))
    return page.comparison([first.subject.title, second.subject.title], ("AP50", "AP50:95"), rows)
