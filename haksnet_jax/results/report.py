"""One HTML file that shows a run or an evaluation: metrics, curves, errors, images. It needs no server or network."""

import base64
import html
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results import charts, mean_ap
from haksnet_jax.wording import counted

MAX_BYTES = 5_000_000  # of the file: so much travels by mail, and opens at once
_SIDES = (1000, 800, 640, 480, 360, 240)  # of images, in pixels: the largest with which the file stays below the limit
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
    errors: mean_ap.ErrorAnalysis


def write_report(path, subjects: Sequence[Subject], *, score: float = 0.3, num_images: int = 4) -> int:
    """Writes the report.

    Args:
      path: of the HTML file.
      subjects: one, or two that are shown side by side.
      score: lowest score of the detections that are counted as errors, and the slider's first position.
      num_images: how many of the worst images are shown, and how many of the best.

    Returns:
      Bytes of the file, at most MAX_BYTES.
    """
    scored = [
        _Scored(
            one,
            mean_ap.mean_average_precision(one.detections, one.labels, one.class_names),
            mean_ap.analyse_errors(one.detections, one.labels, one.class_names, score_threshold=score),
        )
        for one in subjects
    ]
    for side in _SIDES:
        text = _page(scored, score, num_images, side)
        data = text.encode()
        if len(data) <= MAX_BYTES:
            break
    else:
        data = _page(scored, score, 0, 0).encode()
    files.write_bytes(path, data)
    return len(data)


def _page(scored, score, num_images, side):
    titles = " and ".join(one.subject.title for one in scored)
    columns = [
        f'<div class="column"><h2>{html.escape(one.subject.title)}</h2>'
        + "".join(_sections(one, score, num_images, side))
        + "</div>"
        for one in scored
    ]
    comparison = _comparison(*scored) if len(scored) == 2 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(titles)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f"<header><h1>Report: {html.escape(titles)}</h1></header>"
        f'<main>{comparison}<div class="columns">{"".join(columns)}</div></main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _sections(one, score, num_images, side):
    subject, result, errors = one
    yield _section("card", "Summary", _card(subject, result))
    if subject.history:
        yield _section("curves", "Training", _curves(subject.history))
    yield _section("classes", "Classes", _class_table(result))
    yield _section("precision-recall", "Precision and recall at IoU 0.5", _precision_recall(result))
    yield _section("confusion", f"Confusion matrix above a score of {score:g}", _confusion(errors))
    yield _section("errors", f"Errors above a score of {score:g}", _errors(errors))
    if num_images:
        yield _section("images", "Images", _images(subject, errors, score, num_images, side))
    yield _section("data", "Data", _statistics(subject))


def _section(name, title, content):
    return f'<section class="{name}"><h3>{html.escape(title)}</h3>{content}</section>'


def _table(head, rows, *, names=1):
    """HTML table. Args: head, texts; rows, of texts; names, how many columns are names and not numbers."""
    cells = "".join(f"<th>{html.escape(str(text))}</th>" for text in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"name" if place < names else "number"}">{html.escape(str(text))}</td>'
            for place, text in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


def _card(subject, result):
    metrics = "".join(
        f"<div><b>{_percent(value)}</b><span>{_UNITS[name]} in %</span></div>"
        for name, value in result.figures().items()
    )
    num_objects = int(result.num_gts.sum())
    said = f"{counted(len(subject.labels), 'image')}, {counted(num_objects, 'object')} that count, "
    said += counted(int(result.num_detections.sum()), "detection")
    warnings = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in subject.warnings)
    facts = [(name.replace("_", " "), value) for name, value in subject.facts.items() if value not in (None, "")]
    table = f"<details><summary>How it was made</summary>{_table(('what', 'value'), facts, names=2)}</details>"
    return f'<div class="metrics">{metrics}</div><p>{said}</p>{warnings}{table if facts else ""}'


def _curves(history):
    losses, scores = {}, {}
    for record in history:
        for name, value in record.items():
            target = losses if name.startswith("loss") else scores if name.startswith("AP") else None
            if target is not None and isinstance(value, (int, float)):
                factor = 100 if target is scores else 1
                target.setdefault(name, ([], []))
                target[name][0].append(record["step"])
                target[name][1].append(factor * value)
    scores = {_UNITS.get(name, name): points for name, points in scores.items()}
    parts = [charts.lines(losses, x_label="step", y_label="loss", log=True)] if losses else []
    if scores:
        parts.append(charts.lines(scores, x_label="step", y_label="AP in %", y_range=(0, 100)))
    return "".join(parts)


def _class_table(result):
    rows = [
        (name, int(result.num_gts[label]), int(result.num_detections[label]))
        + tuple(map(_percent, result.figures(label).values()))
        for label, name in enumerate(result.class_names)
    ]
    mean = ("mean", int(result.num_gts.sum()), int(result.num_detections.sum()))
    rows.append(mean + tuple(map(_percent, result.figures().values())))
    return _table(("class", "objects", "detections", *(f"{name} %" for name in _UNITS.values())), rows)


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
    matrix = matrix[np.ix_(shown, shown)]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [(*errors.class_names, "")[place] for place in shown]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*names[:-1], "missed"))
    rows = []
    for row, name in enumerate((*names[:-1], "nothing there")):
        cells = "".join(
            f'<td style="background:rgb(34 110 180 / {share[row, column]:.2f})">{matrix[row, column] or ""}</td>'
            for column in range(len(shown))
        )
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    said = "<p>Rows: what is labelled. Columns: what it was detected as.</p>"
    return f'{said}<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


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
        _table(("error", "what it is", "number"), rows, names=2)
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
    right = np.bincount(errors.image[errors.kind == mean_ap.KINDS.index("correct")], minlength=num)
    order = np.lexsort((-right, wrong))
    return [errors.image_names[place] for place in order if right[place]][:count]


def _figure(subject, name, said, side):
    pixels = subject.picture(name)
    if pixels is None:
        return ""
    if pixels.ndim == 3 and pixels.shape[2] != 3:  # bands: the first three, or the first
        pixels = pixels[..., :3] if pixels.shape[2] > 3 else np.repeat(pixels[..., :1], 3, axis=2)
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    if factor < 1:
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    source = base64.b64encode(encoded.tobytes()).decode()
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
        f'<figure><div class="picture"><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{source}">'
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
        + _table(("class", "labelled objects"), rows)
        + charts.stacked_bars(names, {"objects": histogram}, x_label="size in pixels", y_label="objects")
    )


def _comparison(first, second):
    """Table of both results by class, with the difference."""
    rows = []
    names = list(dict.fromkeys((*first.subject.class_names, *second.subject.class_names)))
    for name in (*names, None):
        values = []
        for one in (first, second):
            known = name is None or name in one.subject.class_names
            label = None if name is None or not known else one.subject.class_names.index(name)
            values.append(one.result.figures(label) if known else dict.fromkeys(_UNITS))
        row = ["mean" if name is None else name]
        for metric in ("AP50_voc12", "AP50:95"):
            a, b = (value[metric] for value in values)
            row += [_percent(a), _percent(b), "-" if a is None or b is None else f"{100 * (b - a):+.2f}"]
        rows.append(row)
    titles = [one.subject.title for one in (first, second)]
    head = ["class"]
    for metric in ("AP50", "AP50:95"):
        head += [f"{metric} % {titles[0]}", f"{metric} % {titles[1]}", "difference"]
    return _section("comparison", "Side by side", _table(head, rows))


def read_history(lines) -> list[dict[str, float]]:
    """Records of `metrics.jsonl`. Args: lines, of the file; one that is cut off at the end is left out."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            records.append(record)
    return records


_STYLE = """
:root{color-scheme:light;font:16px/1.45 system-ui,sans-serif;color:#1d2733;background:#f4f6f8}
body{margin:0}header{background:#16324f;color:#fff;padding:.8rem 1rem}h1{font-size:1.25rem;margin:0}
main{max-width:1500px;margin:0 auto;padding:.6rem}h2{font-size:1.15rem;margin:.6rem .2rem;overflow-wrap:anywhere}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr));gap:.8rem}.column{min-width:0}
section{background:#fff;border:1px solid #dde3e9;border-radius:8px;padding:.7rem .9rem;margin:0 0 .8rem}
h3{font-size:1.02rem;margin:0 0 .5rem}h4{font-size:.92rem;margin:.8rem 0 .2rem}p{margin:.4rem 0}
.metrics{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:.5rem}
.metrics div{background:#eef3f8;border-radius:6px;padding:.45rem .6rem}.metrics b{font-size:1.45rem;display:block}
.metrics span{font-size:.8rem;color:#4a5a6a}.warning{background:#fff3d6;border-radius:6px;padding:.4rem .6rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;width:100%}
th,td{padding:.25rem .5rem;border-bottom:1px solid #e6ebf0;text-align:right;white-space:nowrap}
th:first-child,td.name{text-align:left;white-space:normal}.confusion td,.confusion th{text-align:center}
.confusion tr th:first-child{text-align:left}
svg{width:100%;height:auto;display:block}section>svg{max-width:760px}svg text{font-size:12px;fill:#44525f}
.grid{stroke:#e3e8ed}@media(max-width:600px){svg text{font-size:18px}}.errors th:nth-child(2){text-align:left}
.legend{display:flex;flex-wrap:wrap;gap:.2rem .8rem;font-size:.8rem}
.legend i{display:inline-block;width:.8em;height:.8em;
margin-right:.35em;border-radius:2px}
.controls{display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;align-items:center;position:sticky;top:0;background:#fff;
padding:.4rem 0;z-index:1;font-size:.9rem}.controls input[type=range]{width:min(60vw,260px);vertical-align:middle}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:.7rem;margin-top:.5rem}
figure{margin:0}.picture{position:relative;background:#222}.picture img{width:100%;display:block}
.picture svg{position:absolute;inset:0;width:100%;height:100%}figcaption{font-size:.8rem;overflow-wrap:anywhere}
polygon{fill:transparent;stroke-width:2;vector-effect:non-scaling-stroke}polygon.label{stroke-dasharray:5 4;
stroke-width:2.5}.hidden{display:none}details summary{cursor:pointer;margin:.4rem 0}
"""

_SCRIPT = """
for (const section of document.querySelectorAll('section.images')) {
  const slider = section.querySelector('.score');
  if (!slider) continue;
  const labels = section.querySelector('.show-labels'), found = section.querySelector('.show-detections');
  const update = () => {
    section.querySelector('output').textContent = Number(slider.value).toFixed(2);
    for (const shape of section.querySelectorAll('polygon.detection'))
      shape.classList.toggle('hidden', !found.checked || Number(shape.dataset.score) < Number(slider.value));
    for (const shape of section.querySelectorAll('polygon.label')) shape.classList.toggle('hidden', !labels.checked);
  };
  for (const control of [slider, labels, found]) control.addEventListener('input', update);
  update();
}
"""
