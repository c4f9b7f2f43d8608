"""Windows over a large image, the names of tiles, and the merging of detections of overlapping tiles."""

import re
from typing import NamedTuple

import numpy as np


def windows(width, height, tile, overlap, *, min_image_rate=0.6, padding=True):
    """Windows that cover an image, in the order of the tile files: column after column, each from top to bottom.

    Windows stand `tile - overlap` apart; the last one of a row or column moves back inside the image. An image smaller
    than a tile gets one window that reaches beyond its right or bottom edge. With several tile sizes the windows of all
    sizes form one list, and those with too little image are left out; a single size never loses a window, because all
    its windows hold the same share of image.

    Args:
      width: columns of the image.
      height: rows of the image.
      tile: side of a window in pixels, or a sequence of sides.
      overlap: pixels that neighbours share, smaller than the tile; one number, or one for each side.
      min_image_rate: windows of which at most this share is image are left out, unless that would leave none: then
        those within 0.01 of the best share stay.
      padding: True keeps every window a full square, to be padded; False cuts windows at the image's edge.

    Returns:
      [n, 4] int64 windows (x1, y1, x2, y2), x2 and y2 exclusive.

    Raises:
      ValueError: a size is not positive, an overlap is negative or not smaller than its tile, or the numbers of tiles
        and overlaps differ.
    """
    tiles = np.atleast_1d(np.asarray(tile, np.int64))
    overlaps = np.atleast_1d(np.asarray(overlap, np.int64))
    if overlaps.size == 1:
        overlaps = np.repeat(overlaps, tiles.size)
    if tiles.size != overlaps.size:
        raise ValueError(f"Expected one overlap for each tile size, got {overlaps.size} overlaps, {tiles.size} sizes.")
    if width < 1 or height < 1:
        raise ValueError(f"Expected an image with at least one pixel, got {width} x {height}.")
    found = []
    for side, shared in zip(tiles.tolist(), overlaps.tolist(), strict=True):
        if side < 1 or not 0 <= shared < side:
            raise ValueError(f"Expected tile > overlap >= 0, got tile {side}, overlap {shared}.")
        x1, y1 = np.meshgrid(_starts(width, side, side - shared), _starts(height, side, side - shared), indexing="ij")
        x1, y1 = x1.reshape(-1), y1.reshape(-1)
        found.append(np.stack([x1, y1, x1 + side, y1 + side], axis=-1))
    found = np.concatenate(found)
    inside = np.minimum(found, [width, height, width, height])
    sides, inside_sides = found[:, 2:] - found[:, :2], inside[:, 2:] - inside[:, :2]
    rates = inside_sides.prod(axis=-1) / sides.prod(axis=-1)
    keep = rates > min_image_rate
    if not keep.any():
        keep = rates > rates.max() - 0.01
    return (found if padding else inside)[keep]


def _starts(length, side, step):
    """First pixels of the windows along one axis, [n] int64."""
    if length <= side:
        return np.zeros(1, np.int64)
    starts = np.arange(0, length - side + step, step)
    starts[-1] = length - side
    return starts


class TileName(NamedTuple):
    """What the name of a tile says.

    Attributes:
      image: name of the image that the tile was cut from, without extension.
      scale: the number after the image's name. An int is the side of the window in pixels of the original image, in
        which x and y are pixels too. A float, or an int below 16, is the rate by which the image was resized before
        cutting (the naming of DOTA's own tool); x and y are then pixels of the resized image.
      x: column of the tile's left edge.
      y: row of its top edge.
    """

    image: str
    scale: int | float
    x: int
    y: int

    @property
    def rate(self):
        """Factor by which the original image was resized before cutting: 1.0 where `scale` is a window's side."""
        return float(self.scale) if isinstance(self.scale, float) or self.scale < 16 else 1.0


_TILE_NAME = re.compile(r"(?P<image>.+)__(?P<scale>\d+(?:\.\d+)?)__(?P<x>-?\d+)___(?P<y>-?\d+)")


def parse_tile_name(name):
    """Reads `<image>__<window or rate>__<x>___<y>`, for example `P0706__1024__0___824` or `P0706__0.5__0___824`.

    Args:
      name: name of a tile without folder and extension. The image's own name may hold underscores.

    Returns:
      A TileName.

    Raises:
      ValueError: the name has another form.
    """
    match = _TILE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"Expected a tile's name like P0706__1024__0___824, got {name!r}.")
    scale = match["scale"]
    return TileName(match["image"], float(scale) if "." in scale else int(scale), int(match["x"]), int(match["y"]))


def format_tile_name(image, window, x, y):
    """The name of the tile of `image` that starts at column x and row y, `window` pixels wide: P0706__1024__0___824."""
    return f"{image}__{window}__{x}___{y}"
