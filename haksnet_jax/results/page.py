"""What every report is made of: one HTML file of sections in one or two columns, below a limit of bytes."""

import base64
import html
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.results import charts

MAX_BYTES = 5_000_000  # of the file: so much travels by mail, and opens at once
_SIDES = (1000, 800, 640, 480, 360, 240)  # of images, in pixels: the largest with which the file stays below the limit
_LINES = {
    "loss": "sum",
    "AP50_voc07": "AP50 (VOC07)",
    "AP50_voc12": "AP50 (VOC12)",
    "AP75_voc12": "AP75",
    "top1": "top-1",
    "top5": "top-5",
    "mean_iou": "mean IoU",
    "mean_f1": "mean F1",
    "mean_recall": "mean recall",
    "f1_change": "F1 of change",
    "iou_change": "IoU of change",
    "precision_change": "precision of change",
    "recall_change": "recall of change",
}


class Column(NamedTuple):
    """What is shown of one run or evaluation.

    Attributes:
      title: its heading.
      sections: function of (images of each kind, longest side of an image in pixels) that gives its sections, HTML.
    """

    title: str
    sections: Callable[[int, int], Iterator[str]]


def write(path: str | os.PathLike[str], columns: Sequence[Column], *, comparison: str = "", num_images: int = 4) -> int:
    """Writes a report, with images as large as the limit of the file allows.

    Args:
      path: of the HTML file.
      columns: one, or two that are shown side by side.
      comparison: HTML above the columns.
      num_images: how many of the worst images are shown, and how many of the best.

    Returns:
      Bytes of the file, at most MAX_BYTES.
    """
    for side in _SIDES:
        data = _document(columns, comparison, num_images, side).encode()
        if len(data) <= MAX_BYTES:
            break
    else:
        data = _document(columns, comparison, 0, 0).encode()
    files.write_bytes(path, data)
    return len(data)


def _document(columns, comparison, num_images, side):
    titles = html.escape(" and ".join(column.title for column in columns))
    shown = [
        f'<div class="column"><h2>{html.escape(column.title)}</h2>{"".join(column.sections(num_images, side))}</div>'
        for column in columns
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{titles}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f"<header><h1>Report: {titles}</h1></header>"
        f'<main>{comparison}<div class="columns">{"".join(shown)}</div></main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def section(name: str, title: str, content: str) -> str:
    """HTML of a section. Args: name, its class; title; content, HTML."""
    return f'<section class="{name}"><h3>{html.escape(title)}</h3>{content}</section>'


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]], *, names: int = 1) -> str:
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


def percent(value: float | None) -> str:
    """A share in percent with two digits, or "-" where there is none."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"


def named(metric: str) -> str:
    """What a metric is called on the page."""
    return _LINES.get(metric, metric.replace("_", " ").replace("iou:", "IoU of "))


def card(metrics: Mapping[str, float | None], said: str, warnings: Sequence[str], facts: Mapping[str, Any]) -> str:
    """HTML of a summary.

    Args:
      metrics: {what it is called: share}.
      said: sentence below them.
      warnings: sentences.
      facts: {name: value} of how it was made; what is not known is left out.
    """
    tiles = "".join(
        f"<div><b>{percent(value)}</b><span>{html.escape(name)} in %</span></div>" for name, value in metrics.items()
    )
    shown = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in warnings)
    rows = [(name.replace("_", " "), _fact(name, value)) for name, value in facts.items() if value not in (None, "")]
    made = f"<details><summary>How it was made</summary>{table(('what', 'value'), rows, names=2)}</details>"
    return f'<div class="metrics">{tiles}</div><p>{html.escape(said)}</p>{shown}{made if rows else ""}'


def _fact(name, value):
    return f"{percent(value)} %" if name.startswith("best_") and isinstance(value, float) else value


def curves(history: Sequence[Mapping[str, float]], prefixes: Sequence[str]) -> str:
    """Charts of a run's records: losses, and scores in percent.

    Args:
      history: records; those with a learning rate are of training, the others of evaluations.
      prefixes: of the names of losses, and then of scores.
    """
    losses: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for record in history:
        for name, value in record.items():
            is_loss = name.startswith(prefixes[0])
            if not isinstance(value, (int, float)) or not name.startswith(tuple(prefixes)):
                continue
            shown = name.removeprefix("loss_").replace("_", " ") if is_loss and name != "loss" else named(name)
            if not is_loss and "learning_rate" in record:
                shown += ", training"  # of crops, as they are augmented
            steps, values = (losses if is_loss else scores).setdefault(shown, ([], []))
            steps.append(record["step"])
            values.append(value if is_loss else 100 * value)
    parts = [charts.lines(losses, x_label="step", y_label="loss", log=True)] if losses else []
    if scores:
        parts.append(charts.lines(scores, x_label="step", y_label="%", y_range=(0, 100)))
    return "".join(parts)


def confusion(
    matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, said: str, shares: bool = False
) -> str:
    """HTML of a confusion matrix, coloured by the share of the row.

    Args:
      matrix: [R, C] counts.
      rows, columns: their names.
      said: what both are.
      shares: whether percent of the row are written in the place of counts, which for pixels are too long.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for row, name in enumerate(rows):
        cells = "".join(
            f'<td style="{_shade(share[row, column])}">{_cell(matrix, share, row, column, shares)}</td>'
            for column in range(len(columns))
        )
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    body = f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
    return f"<p>{html.escape(said)}</p>{body}"


def _shade(share):
    return f"background:rgb(34 110 180 / {share:.2f})" + (";color:#fff" if share > 0.55 else "")


def _cell(matrix, share, row, column, shares):
    if not matrix[row, column]:
        return ""
    return f"{100 * share[row, column]:.1f}" if shares else str(matrix[row, column])


def comparison(
    titles: Sequence[str],
    metrics: Sequence[str],
    rows: Iterable[tuple[str, Sequence[tuple[float | None, float | None]]]],
) -> str:
    """HTML of two results beside each other, with their differences.

    Args:
      titles: of the two.
      metrics: names of what is compared.
      rows: of (name, [(first, second) for each metric]), shares or None.
    """
    head = ["class"]
    for metric in metrics:
        head += [f"{metric} % {titles[0]}", f"{metric} % {titles[1]}", "difference"]
    lines = []
    for name, pairs in rows:
        line = [name]
        for pair in pairs:
            first, second = (np.nan if value is None else value for value in pair)
            line += [*map(percent, pair), "-" if np.isnan(second - first) else f"{100 * (second - first):+.2f}"]
        lines.append(line)
    return section("comparison", "Side by side", table(head, lines))


def numbered(titles: Sequence[str]) -> list[str]:
    """Titles that differ: two that are equal get numbers."""
    if len(set(titles)) == len(titles):
        return list(titles)
    return [f"{title} ({number})" for number, title in enumerate(titles, start=1)]


def read_history(lines: Iterable[str]) -> list[dict[str, float]]:
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


def jpeg(pixels: np.ndarray, side: int) -> str:
    """`data:` address of an image. Args: pixels [H, W, 3] uint8 RGB; side, the longest one it may have."""
    pixels = _no_longer(pixels, side, cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _no_longer(pixels, side, interpolation):
    """Pixels made smaller, with their ratio kept, until no side is longer than `side`."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    if factor == 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(pixels, size, interpolation=interpolation)


def png(pixels: np.ndarray, side: int) -> str:
    """`data:` address of flat colours with an alpha channel. Args: pixels [H, W, 4] uint8 RGBA; side, as in `jpeg`."""
    pixels = _no_longer(pixels, side, cv2.INTER_NEAREST)
    encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


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
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;min-width:min(100%,34rem)}
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
stroke-width:2.5}.rows{display:grid;gap:1rem;margin-top:.5rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,170px),1fr));gap:.4rem}
.panels p{font-size:.8rem;margin:.1rem 0 .3rem;text-align:center}.panel{background-size:100% 100%}
.mask{width:100%;height:100%;display:block;opacity:.6;image-rendering:pixelated}
.picture img.small{max-height:240px;object-fit:contain;image-rendering:auto}
.bar{position:relative;background:#eef1f4;border-radius:3px;margin:.15rem 0;font-size:.8rem;padding:.1rem .35rem}
.bar i{position:absolute;inset:0 auto 0 0;background:#f0b7a8;border-radius:3px}.bar.own i{background:#a9d8b0}
.bar span{position:relative}.hidden{display:none}details summary{cursor:pointer;margin:.4rem 0}
"""

_SCRIPT = """
for (const section of document.querySelectorAll('section.images')) {
  const slider = section.querySelector('.opacity');
  if (!slider) continue;
  slider.addEventListener('input', () => {
    section.querySelector('output').textContent = Number(slider.value).toFixed(2);
    for (const mask of section.querySelectorAll('.mask')) mask.style.opacity = slider.value;
  });
}
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
