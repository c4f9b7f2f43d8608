"""Drawings of detections and labels, and contact sheets.

Images are uint8 [H, W, 3] RGB, or [H, W] grey. Drawing functions answer with a new RGB image and leave theirs alone.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results import detection_errors
from haksnet_jax.results.thresholds import SHOWN_SCORE

# Hues far apart for neighbouring classes, all light enough to be seen on vegetation, water and asphalt.
_PALETTE = (
    (255, 92, 92),
    (64, 196, 255),
    (255, 214, 64),
    (126, 255, 128),
    (255, 128, 224),
    (64, 255, 230),
    (255, 156, 64),
    (170, 150, 255),
    (206, 255, 72),
    (255, 176, 186),
    (92, 148, 255),
    (255, 236, 176),
    (60, 224, 140),
    (226, 120, 255),
    (176, 236, 255),
    (230, 178, 110),
    (255, 60, 160),
    (180, 220, 160),
    (140, 255, 200),
    (255, 120, 60),
)
_CORRECT, _FALSE, _MISSED = (96, 255, 112), (255, 184, 48), (255, 64, 200)
_SHIFT = 4  # cv2 takes coordinates in sixteenths of a pixel
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(label: int) -> tuple[int, int, int]:
    """(red, green, blue) in 0..255 of a class number; the same in every drawing."""
    return _PALETTE[int(label) % len(_PALETTE)]


def draw_detections(
    image: np.ndarray,
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    text: bool = True,
    legend: bool = False,
) -> np.ndarray:
    """Draws detections, each class in its colour, with "class score" beside those that leave room for it.

    Texts never cover another object or another text: in a dense scene most of them are left out, and the best scores
    go first. `legend` names the colours instead.

    Args:
      image: uint8 [H, W, 3] RGB or [H, W].
      boxes: [n, 5] boxes (cx, cy, w, h, angle), pixels and radians.
      scores: [n] scores in 0..1.
      labels: [n] int classes.
      class_names: the classes' names.
      text: whether to write class and score.
      legend: adds a strip below the image with colour, name and count of each class that is in it.

    Returns:
      uint8 [H, W, 3] RGB, higher by the strip if there is one.

    Raises:
      ValueError: the image is not uint8 or has another number of channels.
    """
    polygons = boxes_to_corners(np.asarray(boxes, np.float64).reshape(-1, 5))
    scores, labels = np.asarray(scores, np.float64).reshape(-1), np.asarray(labels, np.int64).reshape(-1)
    order = np.argsort(-scores, kind="stable")
    polygons, scores, labels = polygons[order], scores[order], labels[order]
    canvas = _canvas(image)
    colours = [class_colour(label) for label in labels]
    _draw_outlines(canvas, polygons, colours)
    if text:
        texts = [f"{class_names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        _draw_texts(canvas, polygons, texts, colours)
    return _with_legend(canvas, _class_entries(labels, class_names)) if legend else canvas


def draw_labels(
    image: np.ndarray,
    polygons: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    difficulty: ArrayLike | None = None,
    text: bool = True,
    legend: bool = False,
) -> np.ndarray:
    """Draws labelled objects, each class in its colour; objects with a difficulty above 0 are dashed.

    Args:
      image: uint8 [H, W, 3] RGB or [H, W].
      polygons: [n, 4, 2] corners in pixels.
      labels: [n] int classes.
      class_names: the classes' names.
      difficulty: [n] int, or None for 0.
      text: whether to write the class beside objects that leave room for it.
      legend: as in `draw_detections`.

    Returns:
      uint8 [H, W, 3] RGB.
    """
    polygons, labels = np.asarray(polygons, np.float64).reshape(-1, 4, 2), np.asarray(labels, np.int64).reshape(-1)
    dashed = np.zeros(len(labels), bool) if difficulty is None else np.asarray(difficulty).reshape(-1) > 0
    canvas = _canvas(image)
    colours = [class_colour(label) for label in labels]
    _draw_outlines(canvas, polygons, colours, dashed=dashed)
    if text:
        _draw_texts(canvas, polygons, [class_names[label] for label in labels], colours)
    return _with_legend(canvas, _class_entries(labels, class_names)) if legend else canvas


def draw_comparison(
    image: np.ndarray,
    detections: Mapping[str, Any],
    labels: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = SHOWN_SCORE,
    side: int | None = None,
) -> np.ndarray:
    """Draws what is right and wrong in an image, with a legend: found objects, false detections, missed objects.

    Args:
      image: uint8 [H, W, 3] RGB or [H, W].
      detections: {"boxes" or "polygons", "scores", "labels"} of this image; its "size", as files give it, may be there.
      labels: {"polygons", "labels", "difficulty"} of this image. Objects of difficulty 1 are left out, as are the
        detections that match them.
      class_names: the classes' names.
      iou_threshold: overlap above which a detection and an object match.
      score_threshold: detections below it are left out.
      side: pixels of the longer side to which the image is resized before anything is drawn; None leaves it as it is.

    Returns:
      uint8 [H + strip, W, 3] RGB.
    """
    factor = 1.0 if side is None else side / max(image.shape[:2])
    if factor != 1:
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)
        factors = {"boxes": np.array([factor] * 4 + [1]), "polygons": factor}
        detections = {name: values * factors.get(name, 1) for name, values in detections.items() if name != "size"}
        labels = {**labels, "polygons": np.asarray(labels["polygons"]) * factor}
    scores = np.asarray(detections["scores"], np.float64).reshape(-1)
    order = np.argsort(-scores, kind="stable")  # the order of the analysis
    order = order[scores[order] >= score_threshold]
    kept = {name: np.asarray(values)[order] for name, values in detections.items() if name != "size"}
    errors = detection_errors.analyse_errors(
        [kept], [labels], class_names, iou_threshold=iou_threshold, score_threshold=score_threshold
    )
    if "polygons" in kept:
        polygons = np.asarray(kept["polygons"], np.float64).reshape(-1, 4, 2)
    else:
        polygons = boxes_to_corners(np.asarray(kept["boxes"], np.float64).reshape(-1, 5))
    correct, ignored = detection_errors.KINDS.index("correct"), detection_errors.KINDS.index("ignored")
    right = errors.kind == correct
    wrong = ~right & (errors.kind != ignored)
    missed = (errors.gt_found_as != errors.gt_label) & (errors.gt_found_as > -2)
    lost = np.asarray(labels["polygons"], np.float64).reshape(-1, 4, 2)[missed]
    canvas = _canvas(image)
    _draw_outlines(canvas, polygons[right], [_CORRECT] * right.sum())
    _draw_outlines(canvas, polygons[wrong], [_FALSE] * wrong.sum())
    _draw_outlines(canvas, lost, [_MISSED] * missed.sum(), dashed=np.ones(len(lost), bool))
    texts = [
        f"{class_names[label]} {score:.2f}"
        for label, score in zip(errors.label[wrong], np.asarray(kept["scores"], np.float64)[wrong], strict=True)
    ]
    texts += [class_names[label] for label in errors.gt_label[missed]]
    shown = np.concatenate([polygons[wrong], lost])
    _draw_texts(canvas, shown, texts, [_FALSE] * wrong.sum() + [_MISSED] * missed.sum())
    entries = [
        (_CORRECT, f"found ({right.sum()})"),
        (_FALSE, f"false ({wrong.sum()})"),
        (_MISSED, f"missed ({missed.sum()})"),
    ]
    return _with_legend(canvas, entries)


def contact_sheet(
    images: Iterable[np.ndarray], captions: Sequence[str] | None = None, *, columns: int = 4, cell: int = 320
) -> np.ndarray:
    """Images side by side, each scaled to fit a square, with captions below.

    Args:
      images: uint8 images [H, W, 3] RGB or [H, W], of any sizes.
      captions: one text each, cut where it is longer than the cell is wide; None for none.
      columns: images a row; fewer if there are fewer images.
      cell: side of the squares in pixels.

    Returns:
      uint8 RGB image.

    Raises:
      ValueError: there is no image, or not one caption each.
    """
    images = list(images)
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"Expected images and one caption each, got {len(images)} images.")
    gap, caption_height = 8, 22 if captions is not None else 0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    pitch_y = cell + caption_height + gap
    sheet = np.full((rows * pitch_y + gap, columns * (cell + gap) + gap, 3), 24, np.uint8)
    for number, image in enumerate(images):
        image = _canvas(image)
        scale = cell / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        row, column = divmod(number, columns)
        top, left = gap + row * pitch_y, gap + column * (cell + gap)
        y, x = top + (cell - size[1]) // 2, left + (cell - size[0]) // 2
        sheet[y : y + size[1], x : x + size[0]] = image
        if captions is not None:
            caption = str(captions[number])
            while len(caption) > 1 and cv2.getTextSize(caption, _FONT, 0.42, 1)[0][0] > cell:
                caption = caption[:-2].rstrip(".") + "."
            origin = (left, top + cell + caption_height - 7)
            cv2.putText(sheet, caption, origin, _FONT, 0.42, (230, 230, 230), 1, cv2.LINE_AA)
    return sheet


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an RGB image; the ending of the path says how. The file appears whole or not at all.

    Raises:
      ValueError: the ending is not that of an image format.
      OSError: the file cannot be written.
    """
    path = epath.Path(path)
    try:
        encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        encoded = False
    if not encoded:
        raise UserError(f"{path}: expected a name that ends like an image, for example .png or .jpg.")
    files.write_bytes(path, data.tobytes())


def _canvas(image):
    """A copy of the image as uint8 [H, W, 3]."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] != 3 and image.dtype == np.uint8:  # bands: the first three, or the first
        image = image[..., :3] if image.shape[2] > 3 else image[..., 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"Expected a uint8 image [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}.")
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def _draw_outlines(canvas, polygons, colours, *, dashed=None):
    """Draws polygons, the first one on top."""
    fixed = np.round(np.clip(polygons, -1e5, 1e5) * 2**_SHIFT).astype(np.int32)
    sides = np.linalg.norm(polygons - np.roll(polygons, 1, axis=1), axis=-1)
    # A dark seam parts bright lines from bright ground; around many or small objects it would hide more than it shows.
    small = len(polygons) > 300 or (len(polygons) > 0 and np.median(sides.min(axis=-1)) < 20)
    for row in range(len(polygons) - 1, -1, -1):
        points = _dashes(polygons[row]) if dashed is not None and dashed[row] else [fixed[row]]
        closed = len(points) == 1
        if not small:
            cv2.polylines(canvas, points, closed, (16, 16, 16), 4, cv2.LINE_AA, _SHIFT)
        cv2.polylines(canvas, points, closed, colours[row], 1 if small else 2, cv2.LINE_AA, _SHIFT)


def _dashes(polygon):
    """The outline of one polygon as a list of short lines, in sixteenths of a pixel."""
    lines = []
    for start, stop in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        number = 2 * max(1, min(500, round(np.linalg.norm(stop - start) / 10))) + 1  # begins and ends with a dash
        steps = np.linspace(0, 1, number + 1)[:, None]
        points = np.round(np.clip(start + steps * (stop - start), -1e5, 1e5) * 2**_SHIFT).astype(np.int32)
        lines += [points[i : i + 2] for i in range(0, number, 2)]
    return lines


def _draw_texts(canvas, polygons, texts, colours):
    """Writes a text beside each polygon where it covers neither another polygon nor another text."""
    height, width = canvas.shape[:2]
    scale = float(np.clip(max(height, width) / 2400, 0.38, 1.2))
    # Who is where: 0 nobody, row + 1 an object, -1 a text.
    owner = np.zeros((height, width), np.int32)
    for row in range(len(polygons) - 1, -1, -1):
        cv2.fillPoly(owner, [np.round(np.clip(polygons[row], -1e5, 1e5)).astype(np.int32)], row + 1)
    for row, (polygon, text) in enumerate(zip(polygons, texts, strict=True)):
        (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
        box_width, box_height = text_width + 6, text_height + baseline + 3
        left, top = np.floor(polygon.min(axis=0)).astype(int)
        right, bottom = np.ceil(polygon.max(axis=0)).astype(int)
        if right <= 0 or bottom <= 0 or left >= width or top >= height or box_width > width or box_height > height:
            continue
        # At the four outermost corners. Above and below, the text hangs over to the side where the box goes on.
        highest, lowest = polygon[polygon[:, 1].argmin()], polygon[polygon[:, 1].argmax()]
        leftmost, rightmost = polygon[polygon[:, 0].argmin()], polygon[polygon[:, 0].argmax()]
        above_x, below_x = (x - box_width * (x - left) / max(right - left, 1) for x in (highest[0], lowest[0]))
        places = (
            (above_x, top - box_height - 1),
            (below_x, bottom + 2),
            (right + 2, rightmost[1] - box_height / 2),
            (left - box_width - 2, leftmost[1] - box_height / 2),
        )
        for x, y in places:
            x, y = int(np.clip(x, 0, width - box_width)), int(np.clip(y, 0, height - box_height))
            here = owner[y : y + box_height, x : x + box_width]
            if ((here != 0) & (here != row + 1)).any():
                continue
            here[:] = -1
            region = canvas[y : y + box_height, x : x + box_width]
            region[:] = region // 4  # dark glass: readable on snow, and the ground still shows
            origin = (x + 3, y + text_height + 2)
            cv2.putText(canvas, text, origin, _FONT, scale, colours[row], 1, cv2.LINE_AA)
            break


def _class_entries(labels, class_names):
    counts = np.bincount(labels, minlength=len(class_names))
    return [(class_colour(label), f"{class_names[label]} ({counts[label]})") for label in np.flatnonzero(counts)]


def _with_legend(canvas, entries):
    """The image with a strip below that explains the colours."""
    width = canvas.shape[1]
    scale, line_height, x, rows = 0.45, 22, 8, [[]]
    for colour, text in entries:
        entry_width = 20 + cv2.getTextSize(text, _FONT, scale, 1)[0][0] + 18
        if x + entry_width > width and rows[-1]:
            rows.append([])
            x = 8
        rows[-1].append((x, colour, text))
        x += entry_width
    strip = np.full((len(rows) * line_height + 8, width, 3), 24, np.uint8)
    for number, row in enumerate(rows):
        y = 4 + number * line_height
        for x, colour, text in row:
            cv2.rectangle(strip, (x, y + 5), (x + 12, y + 17), colour, -1)
            cv2.putText(strip, text, (x + 20, y + 16), _FONT, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([canvas, strip])
