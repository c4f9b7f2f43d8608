"""What may be asked of the views of an image, and what is done where nothing is asked.

It imports nothing that takes time, so that the commands' options name these defaults.
"""

import difflib
from typing import Any, NamedTuple

from haksnet_jax.errors import UserError
from haksnet_jax.results.thresholds import MERGE_IOU

RESIZES = ("auto", "fit", "tile")
PADDINGS = ("least", "full")
SCALES = (0.05, 20)  # smallest and largest factor


class Settings(NamedTuple):
    """How images are looked at.

    Attributes:
      resize: "fit" (the whole image at the size of the network's input), "tile" (windows at the image's own scale), or
        "auto": fit where the image is no larger than the input, else tile.
      score: lowest score of a detection, above 0, at most 1.
      overlap: pixels that neighbouring windows share, at scale 1; None for 200, or a quarter of a small window.
      tile: side of a window in pixels, a multiple of 32; None for the network's input.
      scales: factors by which images (or the content of windows) are resized besides; more than one are merged.
      flip: looks at every image (or window) mirrored left to right too, and merges.
      pad: "least" pads a fitted image up to the next multiple of 32, as upstream: one compilation for every such
        size; "full" always pads to the whole input: one compilation in all, results differ a little.
      iou_threshold: overlap, 0..1, above which merging drops the lower score.
    """

    resize: str = "auto"
    score: float = 0.05
    overlap: int | None = None
    tile: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    pad: str = "least"
    iou_threshold: float = MERGE_IOU


EVALUATION = Settings(pad="full")  # one size for all images, as a run evaluates itself


def settings_of(options: dict[str, Any]) -> Settings:
    """Settings from keyword arguments.

    Raises:
      UserError: a name is none of `Settings`; the nearest one is named.
    """
    known = list(Settings._fields)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            meant = f"is {near[0]} meant? There are" if near else "there are"
            raise UserError(f"unknown option {name!r}: {meant} {', '.join(known)}")
    settings = Settings(**options)
    scales = settings.scales
    return settings._replace(scales=(scales,) if isinstance(scales, (int, float)) else tuple(scales))


def check(settings: Settings, input_size: tuple[int, int] | None = None) -> None:
    """Looks at the values of settings before anything is done with them.

    Args:
      settings: Settings.
      input_size: (rows, columns) of the network's input; None leaves unchecked what depends on it.

    Raises:
      UserError: a value is out of range.
    """
    for name, allowed in (("resize", RESIZES), ("pad", PADDINGS)):
        if getattr(settings, name) not in allowed:
            raise UserError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(settings, name)!r}")
    if not 0 < settings.score <= 1:
        percent = f"; {settings.score:g} % is {settings.score / 100:g}" if 1 < settings.score <= 100 else ""
        raise UserError(f"score: expected a number above 0 and at most 1, got {settings.score:g}{percent}")
    if not 0 <= settings.iou_threshold <= 1:
        raise UserError(f"iou: expected a number from 0 to 1, got {settings.iou_threshold:g}")
    if not settings.scales or not all(is_scale(scale) for scale in settings.scales):
        given = ", ".join(f"{scale:g}" for scale in settings.scales) or "none"
        raise UserError(f"scales: expected numbers between {SCALES[0]} and {SCALES[1]}, got {given}")
    if settings.tile is not None and (settings.tile < 32 or settings.tile % 32):
        raise UserError(f"tile: expected a multiple of 32, got {settings.tile}")
    if settings.overlap is not None and settings.overlap < 0:
        raise UserError(f"overlap: expected at least 0, got {settings.overlap}")
    if input_size is not None and not shared_pixels(settings, input_size) < tile_side(settings, input_size):
        raise UserError(
            f"overlap: expected less than the tile of {tile_side(settings, input_size)}, got {settings.overlap}"
        )


def is_scale(value: float) -> bool:
    """Whether images can be looked at in this scale."""
    return SCALES[0] <= value <= SCALES[1]


def tile_side(settings: Settings, input_size: tuple[int, int]) -> int:
    """Side of the windows in pixels of the network's input."""
    return settings.tile or max(32, min(input_size) // 32 * 32)


def shared_pixels(settings: Settings, input_size: tuple[int, int]) -> int:
    """Pixels that neighbouring windows share, at scale 1."""
    return min(200, tile_side(settings, input_size) // 4) if settings.overlap is None else settings.overlap
