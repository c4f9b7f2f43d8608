"""Maps of classes as they leave: colours, overlays and pictures to look at."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results.visualize import class_colour

CHANGE_COLOURS = ((0, 0, 0), (255, 64, 64))
_OPACITY = 0.45
_TITLE_HEIGHT = 22


def colours_of(class_names: Sequence[str], colours: Sequence[Sequence[int]] | None = None) -> list[tuple[int, ...]]:
    """The colour of each class. Args: class_names; colours, [K] of (r, g, b) that are known, or None. Returns: list."""
    return [tuple(colours[i]) if colours else class_colour(i) for i in range(len(class_names))]


def colour_table(colours: Sequence[Sequence[int]]) -> np.ndarray:
    """[256, 3] uint8: the colour of each label, black where it is none."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = np.asarray(colours, np.uint8)
    return table


def coloured(labels: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """[H, W, 3] uint8 RGB of labels [H, W]."""
    return colour_table(colours)[labels]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 of an image [H, W, C]: its first three channels, or the first one three times."""
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    low, high = np.nanpercentile(image, (2, 98))
    return np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Sequence[int]], *, transparent: Sequence[int] = ()
) -> np.ndarray:
    """Labels in their colours over an image, with an outline between them.

    Args:
      image: [H, W, C].
      labels: [H, W] uint8.
      colours: of the classes.
      transparent: labels through which the image is seen as it is.

    Returns:
      [H, W, 3] uint8 RGB.
    """
    image = as_rgb(image)
    paint = coloured(labels, colours)
    mixed = cv2.addWeighted(image, 1 - _OPACITY, paint, _OPACITY, 0)
    clear = np.isin(labels, (*transparent, IGNORED))
    mixed[clear] = image[clear]
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[edge] = (
        paint[edge] if not transparent else colour_table(colours)[labels.max(initial=0, where=labels < IGNORED)]
    )
    return mixed


def comparison(
    images: Mapping[str, np.ndarray],
    predicted: np.ndarray,
    labels: np.ndarray,
    colours: Sequence[Sequence[int]],
    *,
    side: int = 640,
) -> np.ndarray:
    """Images, the prediction and the labels side by side, each below its title.

    Args:
      images: {title: [H, W, C]}, of the same size.
      predicted, labels: [H, W] uint8; where there is no label the prediction is black too.
      colours: of the classes.
      side: longest side of each panel in pixels.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    shown = np.where(labels == IGNORED, IGNORED, predicted)
    panels = [*map(as_rgb, images.values()), coloured(shown, colours), coloured(labels, colours)]
    factor = min(1.0, side / max(labels.shape))
    if factor < 1:
        size = tuple(max(1, round(length * factor)) for length in labels.shape[::-1])
        panels = [
            cv2.resize(panel, size, interpolation=cv2.INTER_AREA if i < len(images) else cv2.INTER_NEAREST)
            for i, panel in enumerate(panels)
        ]
    titles = (*images, "prediction", "labels")
    panels = [_titled(panel, title) for panel, title in zip(panels, titles, strict=True)]
    gap = np.full((panels[0].shape[0], 4, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(row[:-1], axis=1)


def _titled(panel, title):
    """The panel below a strip with its title."""
    strip = np.full((_TITLE_HEIGHT, panel.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, _TITLE_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([strip, panel])


def legend(width: int, class_names: Sequence[str], colours: Sequence[Sequence[int]]) -> np.ndarray:
    """A strip with the names of the classes in their colours. Returns: [h, width, 3] uint8 RGB."""
    line, scale = 22, 0.5
    x, y, places = 6, 16, []
    for name, colour in zip(class_names, colours, strict=True):
        (text, _), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        if x > 6 and x + text + 26 > width:
            x, y = 6, y + line
        places.append((name, colour, x, y))
        x += text + 40
    strip = np.full((y + 8, width, 3), 255, np.uint8)
    for name, colour, x, y in places:
        cv2.rectangle(strip, (x, y - 11), (x + 14, y + 1), tuple(int(v) for v in colour), -1)
        cv2.rectangle(strip, (x, y - 11), (x + 14, y + 1), (90, 90, 90), 1)
        cv2.putText(strip, name, (x + 20, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 1, cv2.LINE_AA)
    return strip
