"""Windows over a large image, the names of tiles, and the merging of detections of overlapping tiles."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from haksnet_jax.errors import UserError
from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.results.thresholds import MERGE_IOU

_FIRST_BLOCK = 2048
_SMALLEST_CELL = 8.0  # pixels; smaller boxes than this share the finest grid
_MAX_CELLS = 2**20  # along an axis
_PAIRS_AT_ONCE = 2**20


def windows(
    width: int, height: int, tile: ArrayLike, overlap: ArrayLike, *, min_image_rate: float = 0.6, padding: bool = True
) -> np.ndarray:
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
    def rate(self) -> float:
        """Factor by which the original image was resized before cutting: 1.0 where `scale` is a window's side."""
        return float(self.scale) if isinstance(self.scale, float) or self.scale < 16 else 1.0


_TILE_NAME = re.compile(r"(?P<image>.+)__(?P<scale>\d+(?:\.\d+)?)__(?P<x>-?\d+)___(?P<y>-?\d+)")


def parse_tile_name(name: str) -> TileName:
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


def is_tile_name(name: str) -> bool:
    """Whether `name` has the form that `parse_tile_name` reads."""
    return _TILE_NAME.fullmatch(name) is not None


def format_tile_name(image: str, window: int | float | str, x: int, y: int) -> str:
    """The name of the tile of `image` that starts at column x and row y, `window` pixels wide: P0706__1024__0___824."""
    return f"{image}__{window}__{x}___{y}"


def merge_tiles(
    detections_by_tile: Mapping[str, Mapping[str, Any]], *, iou_threshold: float = MERGE_IOU
) -> dict[str, dict[str, np.ndarray]]:
    """Merges the detections of tiles into detections of the images they were cut from.

    Args:
      detections_by_tile: a dict from the name of a tile (see `parse_tile_name`) to its detections: {"boxes": [n, 5] or
        "polygons": [n, 4, 2], "scores": [n], "labels": [n]} in pixels of the tile, the same of the two for all tiles;
        and where it is known "size": (columns, rows) of the tile, by which resized tiles are told from others.
      iou_threshold: as in `merge_detections`.

    Returns:
      A dict from image name, in order of first appearance, to {"boxes" or "polygons", "scores", "labels"} in pixels of
      the image, by descending score. An image of which no tile has a detection has empty arrays.

    Raises:
      ValueError: a name is not that of a tile, or a tile is larger than the window that its name gives.
    """
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    resized = _resized_side(detections_by_tile)
    for name, detections in detections_by_tile.items():
        tile = parse_tile_name(name)
        key = "polygons" if "polygons" in detections else "boxes"
        # (x, y) of centres and corners are moved and scaled, sides are scaled, angles stay.
        if key == "boxes":
            shapes = np.array(detections[key], np.float32).reshape(-1, 5)
            places, lengths, centres = shapes[:, :2], shapes[:, :4], shapes[:, :2]
        else:
            shapes = np.array(detections[key], np.float64).reshape(-1, 4, 2)
            places, lengths, centres = shapes, shapes, shapes.mean(axis=1)
        if _names_window(tile):
            if resized:
                lengths *= tile.scale / resized
            elif len(shapes) and (centres > tile.scale).any():  # centres lie inside the pixels that were looked at
                raise UserError(
                    f"{name} has a detection beyond its window of {tile.scale} pixels, so its tile was resized, and "
                    "Task-1 files do not say to what: give the detections.json, which does."
                )
        places += (tile.x, tile.y)
        lengths /= tile.rate
        scores = np.asarray(detections["scores"], np.float32).reshape(-1)
        labels = np.asarray(detections["labels"], np.int32).reshape(-1)
        parts.setdefault(tile.image, []).append((shapes, scores, labels))
    merged = {}
    for image, tiles in parts.items():
        shapes, scores, labels = (np.concatenate(field) for field in zip(*tiles, strict=True))
        if key == "boxes":
            kept = merge_detections(shapes, scores, labels, iou_threshold=iou_threshold)
        else:
            kept = merge_polygons(shapes, scores, labels, iou_threshold=iou_threshold)
        merged[image] = {key: shapes[kept], "scores": scores[kept], "labels": labels[kept]}
    return merged


def _names_window(tile):
    return isinstance(tile.scale, int) and tile.scale >= 16


def _resized_side(detections_by_tile):
    """The side in pixels that all tiles were resized to, or None where they have the scale of their windows.

    Tiles are squares: those that were resized have one side whatever their windows, and the others that of their
    window, unless somebody cut them off at the edge of the image, where they are smaller.
    """
    sizes = {
        name: tuple(detections["size"])
        for name, detections in detections_by_tile.items()
        if detections.get("size") is not None and _names_window(parse_tile_name(name))
    }
    if not sizes:
        return None
    (width, height), *others = set(sizes.values())
    if not others and width == height:
        return width
    for name, (width, height) in sizes.items():
        if max(width, height) > parse_tile_name(name).scale:
            raise UserError(
                f"{name} is {width} x {height} pixels, more than its window, and not all tiles are of one size: "
                "expected tiles of their windows' sizes, or all resized to one"
            )
    return None


def merge_detections(
    boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike, *, iou_threshold: float = MERGE_IOU
) -> np.ndarray:
    """Greedy suppression of overlapping detections, class by class, over a whole image.

    The detections are taken by descending score, equal scores in the given order. Each one is kept unless its exact IoU
    with one of the same class that was kept before it is above the threshold. The result is that of comparing all
    pairs; a grid finds the few that can overlap, so that time grows with the number of detections and memory with the
    number of those pairs.

    Args:
      boxes: [n, 5] boxes (cx, cy, w, h, angle), pixels and radians.
      scores: [n].
      labels: [n] int classes.
      iou_threshold: overlap above which the lower score goes, 0..1.

    Returns:
      [k] int64 indices of the kept detections, by descending score.

    Raises:
      ValueError: the arrays differ in length, or boxes or scores are not finite.
    """
    return _suppress(np.asarray(boxes, np.float64).reshape(-1, 5), None, scores, labels, iou_threshold)


def merge_polygons(
    polygons: ArrayLike, scores: ArrayLike, labels: ArrayLike, *, iou_threshold: float = MERGE_IOU
) -> np.ndarray:
    """As `merge_detections`, by the exact IoU of quadrilaterals.

    Args:
      polygons: [n, 4, 2] corners, pixels.
      scores, labels, iou_threshold: as there.

    Returns, Raises: as there.
    """
    polygons = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
    if not np.isfinite(polygons).all():
        raise ValueError("Expected finite polygons and scores.")
    return _suppress(polygons_to_boxes(polygons)[0], polygon_iou.uncross(polygons), scores, labels, iou_threshold)


def _suppress(boxes, polygons, scores, labels, iou_threshold):
    """Rows that are kept; where there are polygons, boxes are rectangles around them."""
    scores, labels = np.asarray(scores).reshape(-1), np.asarray(labels).reshape(-1)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"Expected one score and label a box, got {len(boxes)}, {len(scores)} and {len(labels)}.")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("Expected finite boxes and scores.")
    order = np.argsort(-scores, kind="stable")
    scene = _Scene(boxes[order], None if polygons is None else polygons[order], labels[order], iou_threshold)
    kept = np.zeros(0, np.int64)
    start = 0
    # Block by block, and each block first against what is already kept: in a crowd of duplicates nearly all of a block
    # is gone before its members are compared with each other, which would be quadratic.
    while start < len(order):
        stop = min(len(order), start + max(_FIRST_BLOCK, 2 * len(kept)))
        suppressed = np.zeros(stop - start, bool)
        block = np.arange(start, stop)
        for _, worse in (*scene.overlaps(kept, block, finer_only=True), *scene.overlaps(block, kept)):
            suppressed[worse - start] = True
        block = block[~suppressed]
        kept = np.concatenate([kept, _greedy(block, list(scene.overlaps(block, block)))])
        start = stop
    return order[kept]


def _greedy(block, overlaps):
    """Members of `block` (ascending, best first) that no kept better member overlaps.

    Args:
      block: [n] int64.
      overlaps: list of (better [P], worse [P]) members.
    """
    if not overlaps:
        return block
    better, worse = (np.searchsorted(block, np.concatenate(side)) for side in zip(*overlaps, strict=True))
    order = np.argsort(better, kind="stable")
    worse = worse[order]
    first = np.searchsorted(better[order], np.arange(len(block) + 1))
    suppressed = np.zeros(len(block), bool)
    for member in np.flatnonzero(np.diff(first)).tolist():  # the others suppress nothing
        if not suppressed[member]:
            suppressed[worse[first[member] : first[member + 1]]] = True
    return block[~suppressed]


class _Scene:
    """Boxes by descending score, with grids to find overlapping ones.

    A box belongs to the grid whose cells are as wide as its diagonal, rounded up to a power of two. The circles around
    two boxes can only touch when their centres lie in neighbouring cells of the coarser grid of the two. So each box
    looks, in its own grid, for boxes of the same or finer grids in the 3 x 3 cells around it.
    """

    def __init__(self, boxes, polygons, labels, iou_threshold):
        self.iou_threshold, self.polygons = iou_threshold, polygons
        self.table = polygon_iou.box_table(boxes)
        self.area = self.table[:, 2] * self.table[:, 3] if polygons is None else polygon_iou.polygon_area(polygons)
        diagonal = np.hypot(self.table[:, 2], self.table[:, 3])
        self.radius = diagonal / 2
        self.group = np.unique(labels, return_inverse=True)[1].reshape(-1)
        self.centre = self.table[:, :2] - self.table[:, :2].min(axis=0, initial=np.inf)
        extent = self.centre.max(initial=0)
        self.cell = max(_SMALLEST_CELL, extent / _MAX_CELLS)
        self.level = np.ceil(np.log2(np.maximum(diagonal / self.cell, 1))).astype(np.int64)

    def overlaps(self, queries, points, *, finer_only=False):
        """Yields arrays (better [P], worse [P]) of pairs of one class with IoU above the threshold.

        Args:
          queries: [n] ascending boxes that look for others of the same or finer grids.
          points: [m] ascending boxes to be found. If it is the same array, each pair comes once.
          finer_only: leaves out points of the same grid.
        """
        same = points is queries
        query_level, point_level = self.level[queries], self.level[points]
        for level in np.unique(query_level).tolist():
            searching = queries[query_level == level]
            found = points[point_level < level if finer_only else point_level <= level]
            if not len(found):
                continue
            for query, point in self._neighbours(searching, found, level):
                better, worse = np.minimum(query, point), np.maximum(query, point)
                if same:
                    once = (self.level[point] < level) | (point < query)
                    better, worse = better[once], worse[once]
                better, worse = self._overlapping(better, worse)
                if len(better):
                    yield better, worse

    def _neighbours(self, queries, points, level):
        """Yields (query [P], point [P]): points in the 3 x 3 cells around each query."""
        cell = self.cell * 2**level
        columns = int(self.centre.max() / cell) + 3  # an empty one at either side keeps rows apart

        def key(boxes):
            column, row = (self.centre[boxes] / cell).astype(np.int64).T + 1
            return (self.group[boxes] * columns + row) * columns + column

        point_keys = key(points)
        order = np.argsort(point_keys, kind="stable")
        points, point_keys = points[order], point_keys[order]
        query_keys = key(queries)
        order = np.argsort(query_keys, kind="stable")  # neighbours search at neighbouring places of memory
        queries, query_keys = queries[order], query_keys[order]
        for row in (-1, 0, 1):
            low = np.searchsorted(point_keys, query_keys + (row * columns - 1), side="left")
            high = np.searchsorted(point_keys, query_keys + (row * columns + 1), side="right")
            counts = high - low
            some = np.flatnonzero(counts)
            total = np.cumsum(counts[some])
            first = 0
            while first < len(some):
                done = total[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right")))
                piece = some[first:last]
                number = counts[piece]
                offset = np.repeat(low[piece] - (total[first:last] - number - done), number)
                yield np.repeat(queries[piece], number), points[offset + np.arange(len(offset))]
                first = last

    def _overlapping(self, better, worse):
        """Those of the pairs with IoU above the threshold."""
        dx, dy = (self.centre[better] - self.centre[worse]).T
        reach = self.radius[better] + self.radius[worse]
        area1, area2 = self.area[better], self.area[worse]
        # The IoU is at most the ratio of the areas.
        possible = (dx * dx + dy * dy < reach * reach) & (
            np.minimum(area1, area2) > self.iou_threshold * np.maximum(area1, area2)
        )
        better, worse = better[possible], worse[possible]
        if self.polygons is None:
            iou = polygon_iou.indexed_rotated_iou(self.table, better, worse)
        else:
            iou = polygon_iou.indexed_polygon_iou(self.polygons, self.polygons, better, worse)
        above = iou > self.iou_threshold
        return better[above], worse[above]
