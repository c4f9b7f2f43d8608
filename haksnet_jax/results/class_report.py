"""The report of a classifier: metrics, curves, confusions, images in one HTML file."""

import functools
import html
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.results import charts, page
from haksnet_jax.results.page import section, table
from haksnet_jax.results.top_k import NUM_BEST, ClassificationResult, classification_result
from haksnet_jax.wording import counted

MAX_CLASSES = 40  # of a confusion matrix or a chart: more cannot be read
_MOST_CONFUSED = 15  # pairs of classes that the table names
_SCORE_BINS = 10
_SHOWN_SCORES = 3  # beside an image
_METRICS = {"top1": "top-1", "top5": "top-5", "mean_recall": "mean over classes"}


class Subject(NamedTuple):
    """What a report shows: an evaluation, and what is known of the run that it is of.

    Attributes:
      title: its name, for headings.
      class_names: K classes.
      image_ids: N names.
      labels: [N] int.
      scores: [N, B] probabilities of the likeliest classes, best first.
      classes: [N, B] int, these classes.
      picture: function from an image's number to its pixels [H, W, 3] uint8.
      facts: dict of what is to be said of the run or evaluation: steps, hardware, ...
      history: list of records of training.
      curves: prefixes of the names of losses, and then of scores, in the history.
      warnings: sentences.
    """

    title: str
    class_names: tuple[str, ...]
    image_ids: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    picture: Callable[[int], np.ndarray]
    facts: dict[str, Any]
    history: list[dict[str, float]]
    curves: Sequence[str]
    warnings: list[str]

    def result(self) -> ClassificationResult:
        """ClassificationResult of it."""
        return classification_result(self.labels, self.classes[:, :NUM_BEST], self.class_names)

    def right(self) -> np.ndarray:
        """[N] bool: the likeliest class is the label."""
        return self.classes[:, 0] == self.labels


def write_report(path: str | os.PathLike[str], subjects: Sequence[Subject], *, num_images: int = 4) -> int:
    """Writes the report.

    Args:
      path: of the HTML file.
      subjects: one, or two that are shown side by side.
      num_images: how many of the worst images are shown, and how many of the best.

    Returns:
      Bytes of the file, at most `page.MAX_BYTES`.
    """
    columns = [page.Column(one.title, functools.partial(_sections, one)) for one in subjects]
    comparison = _comparison(*subjects) if len(subjects) == 2 else ""
    return page.write(path, columns, comparison=comparison, num_images=num_images)


def _sections(subject, num_images, side):
    result = subject.result()
    yield section("card", "Summary", _card(subject, result))
    if subject.history:
        yield section("curves", "Training", page.curves(subject.history, subject.curves))
    yield section("classes", "Classes", _class_table(subject, result))
    yield section("precision-recall", "Precision and recall", _precision_recall(subject))
    yield section("confusion", "Confusion matrix", _confusion(result))
    yield section("errors", "Errors", _errors(subject, result))
    if num_images:
        yield section("images", "Images", _images(subject, num_images, side))
    yield section("data", "Data", _statistics(subject))


def _card(subject, result):
    metrics = {_METRICS[name]: value for name, value in result.figures().items()}
    said = f"{counted(result.num_images, 'image')} of {counted(len(subject.class_names), 'class', 'classes')}"
    return page.card(metrics, said, subject.warnings, subject.facts)


def _class_table(subject, result):
    classes = result.to_json()["classes"]
    rows = [
        (name, one["num_images"], page.percent(one["recall"]), page.percent(one["precision"]), page.percent(ap))
        for (name, one), ap in zip(classes.items(), map(_average_precision, _curves_of(subject)), strict=True)
    ]
    rows.sort(key=lambda row: float(row[2]) if row[2] != "-" else 200.0)
    return table(("class, worst first", "images", "recognised (recall) %", "precision %", "average precision %"), rows)


def _curves_of(subject):
    """[(recall, precision)] of each class over falling probability; empty arrays for a class without images."""
    curves = []
    for label in range(len(subject.class_names)):
        own = subject.labels == label
        # (a class that is not among an image's likeliest ones is never reached there)
        score = np.where(subject.classes == label, subject.scores, 0).max(axis=1)
        order = np.argsort(-score, kind="stable")
        order = order[score[order] > 0]
        hits = own[order].cumsum()
        last = np.append(score[order][1:] != score[order][:-1], True)[: len(order)]  # equal scores count together
        hits, seen = hits[last], (1 + np.arange(len(order)))[last]
        curves.append((hits / own.sum(), hits / seen) if own.any() and len(order) else (np.zeros(0), np.zeros(0)))
    return curves


def _average_precision(curve):
    recall, precision = curve
    return float(np.sum(np.diff(recall, prepend=0) * precision)) if len(recall) else None


def _precision_recall(subject):
    curves = _curves_of(subject)
    order = np.argsort([_average_precision(curve) or 0 for curve in curves], kind="stable")[:MAX_CLASSES]
    series = {
        subject.class_names[label]: (np.append(0, curves[label][0]), np.append(curves[label][1][:1], curves[label][1]))
        for label in order.tolist()
        if len(curves[label][0])
    }
    chart = charts.lines(series, x_label="recall", y_label="precision", y_range=(0, 1))
    more = len(subject.class_names) - MAX_CLASSES
    return chart + (f"<p>The {MAX_CLASSES} worst classes; {more} better ones are not drawn.</p>" if more > 0 else "")


def _confusion(result):
    matrix = result.matrix
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])
    shown = shown[(matrix.sum(axis=0) + matrix.sum(axis=1))[shown] > 0]
    names = [result.class_names[place] for place in shown]
    said = "Rows: the class. Columns: what it was taken for."
    if len(result.class_names) > MAX_CLASSES:
        said += f" The {MAX_CLASSES} classes with most errors."
    return page.confusion(matrix[np.ix_(shown, shown)], names, names, said=said)


def _errors(subject, result):
    right, total = subject.right(), max(len(subject.labels), 1)
    hit = subject.classes == subject.labels[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
    kinds = [
        ("right", "the likeliest class is the image's", int(right.sum())),
        ("second", "the image's class is the second likeliest", int((place == 1).sum())),
        ("third to fifth", "it is among the five likeliest", int(((place > 1) & (place < NUM_BEST)).sum())),
        ("far off", "it is not among the five likeliest", int(((place < 0) | (place >= NUM_BEST)).sum())),
    ]
    kinds = [(kind, meaning, number, page.percent(number / total)) for kind, meaning, number in kinds]
    wrong = result.matrix - np.diag(np.diag(result.matrix))
    pairs = sorted(map(tuple, np.argwhere(wrong).tolist()), key=lambda pair: -wrong[pair])[:_MOST_CONFUSED]
    names, counts = result.class_names, result.matrix.sum(axis=1)
    rows = [(names[a], names[b], int(wrong[a, b]), page.percent(wrong[a, b] / counts[a])) for a, b in pairs]
    bins = np.minimum((subject.scores[:, 0] * _SCORE_BINS).astype(int), _SCORE_BINS - 1)
    by_score = {
        "wrong": np.bincount(bins[~right], minlength=_SCORE_BINS),
        "right": np.bincount(bins[right], minlength=_SCORE_BINS),
    }
    ticks = [f"{10 * place}-{10 * place + 10}" for place in range(_SCORE_BINS)]
    return (
        table(("", "what it is", "images", "%"), kinds, names=2)
        + "<h4>Which class is taken for which</h4>"
        + table(("class", "taken for", "images", "% of the class"), rows, names=2)
        + "<h4>How sure it is</h4>"
        + charts.stacked_bars(ticks, by_score, x_label="probability of the likeliest class in %", y_label="images")
    )


def _images(subject, num_images, side):
    """The mistakes that the model is surest of, and what it is surest of among what is right."""
    right, surest = subject.right(), np.argsort(-subject.scores[:, 0], kind="stable")
    chosen = [(int(i), "among the worst: surely wrong") for i in surest[~right[surest]][:num_images]]
    seen: set[int] = set()  # of what is right, one image of each class first
    best = surest[right[surest]]
    firsts = [int(i) for i in best if (label := int(subject.labels[i])) not in seen and not seen.add(label)]
    firsts += [int(i) for i in best if int(i) not in set(firsts)][:num_images]
    chosen += [(i, "among the best") for i in firsts[:num_images]]
    figures = [_figure(subject, index, said, min(side, 480)) for index, said in chosen]
    return f'<div class="figures">{"".join(figures)}</div>'


def _figure(subject, index, said, side):
    name, label = subject.image_ids[index], int(subject.labels[index])
    scores = zip(subject.classes[index, :_SHOWN_SCORES], subject.scores[index, :_SHOWN_SCORES], strict=True)
    bars = "".join(
        f'<div class="bar{" own" if one == label else ""}"><i style="width:{100 * score:.0f}%"></i>'
        f"<span>{html.escape(subject.class_names[one])} {100 * score:.0f} %</span></div>"
        for one, score in scores
    )
    return (
        f'<figure><div class="picture"><img class="small" alt="{html.escape(name)}" '
        f'src="{page.jpeg(subject.picture(index), side)}"></div>'
        f"<p>labelled <b>{html.escape(subject.class_names[label])}</b></p>{bars}"
        f"<figcaption>{html.escape(name)}: {said}</figcaption></figure>"
    )


def _statistics(subject):
    counts = np.bincount(subject.labels, minlength=len(subject.class_names))
    rows = sorted(zip(subject.class_names, counts.tolist(), strict=True), key=lambda row: -row[1])
    without = int((counts == 0).sum())
    said = f"{counted(len(subject.labels), 'image')}; a class has {counts.min()} to {counts.max()}"
    said += f"; {counted(without, 'class has', 'classes have')} none" if without else ""
    return f"<p>{said}</p>" + table(("class", "images"), rows)


def _comparison(first, second):
    """Table of both results by class, with the difference."""
    results = [one.result() for one in (first, second)]
    recalls = [dict(zip(one.class_names, one.recall().tolist(), strict=True)) for one in results]
    figures = [one.figures() for one in results]
    rows = [(shown, [tuple(one[name] for one in figures)]) for name, shown in _METRICS.items()]
    rows += [(name, [tuple(one.get(name) for one in recalls)]) for name in dict.fromkeys((*recalls[0], *recalls[1]))]
    return page.comparison([first.title, second.title], ("recognised",), rows)
