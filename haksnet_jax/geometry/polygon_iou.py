"""Exact overlaps of oriented boxes and of quadrilaterals, pair by pair, in float64 numpy.

The area that a polygon shares with a region is a sum over the polygon's edges. Where the region is 0 <= x <= 1 and
0 <= y <= g(x), the area is the integral of y, limited to 0..g(x), along the edges between x = 0 and x = 1. Every edge
adds a continuous function of its two ends: unlike an intersection that first sorts points into inside and outside,
rounding can never tip it over. So nearly identical, touching and collinear shapes need no special case, and all pairs
go through the same array operations.

An oriented box is such a region in its own axes with g = 1; a quadrilateral is two triangles, each with g = 1 - x.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Real, Shaped

# 4 x 16384 float64 are half a MiB an array: long enough that numpy's calls cost nothing, short enough for the cache
_CHUNK = 16384
_TINY = 1e-30


def rotated_iou_pairs(
    boxes1: Real[np.ndarray, "P 5"] | Sequence[Sequence[float]],
    boxes2: Real[np.ndarray, "P 5"] | Sequence[Sequence[float]],
) -> Float64[np.ndarray, " P"]:
    """Overlap of corresponding oriented boxes.

    Args:
      boxes1: [P, 5] boxes (cx, cy, w, h, angle), pixels and radians, any angle.
      boxes2: [P, 5] boxes.

    Returns:
      [P] float64 intersection over union, 0..1; 0 where either box has no area.
    """
    table1, table2 = box_table(boxes1), box_table(boxes2)
    return in_chunks(_table_iou, len(table1), table1, table2)


def indexed_rotated_iou(
    table: Float64[np.ndarray, "N 6"], index1: Int[np.ndarray, " P"], index2: Int[np.ndarray, " P"]
) -> Float64[np.ndarray, " P"]:
    """Overlap of pairs of boxes of one set.

    Args:
      table: [N, 6] from `box_table`.
      index1: [P] int rows of the table.
      index2: [P] int rows of the table.

    Returns:
      [P] float64 intersection over union.
    """
    return in_chunks(lambda i, j: _table_iou(table[i], table[j]), len(index1), index1, index2)


def box_table(boxes: Real[np.ndarray, "N 5"] | Sequence[Sequence[float]]) -> Float64[np.ndarray, "N 6"]:
    """[N, 6] float64 (cx, cy, w, h, cos, sin) of boxes [N, 5]; sides below zero become zero."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    sides = np.maximum(boxes[:, 2:4], 0)
    return np.concatenate([boxes[:, :2], sides, np.cos(boxes[:, 4:]), np.sin(boxes[:, 4:])], axis=1)


def polygon_iou_pairs(
    polygons1: Real[np.ndarray, "P 4 2"], polygons2: Real[np.ndarray, "P 4 2"]
) -> Float64[np.ndarray, " P"]:
    """Overlap of corresponding quadrilaterals, convex or not, in either direction of turning.

    Args:
      polygons1: [P, 4, 2] corner points in pixels. Edges must not cross each other: see `uncross`.
      polygons2: [P, 4, 2] corner points.

    Returns:
      [P] float64 intersection over union, 0..1; 0 where either polygon has no area.
    """
    polygons1, polygons2 = np.asarray(polygons1, np.float64), np.asarray(polygons2, np.float64)
    return in_chunks(_quadrilateral_iou, len(polygons1), polygons1, polygons2)


def indexed_polygon_iou(
    polygons1: Real[np.ndarray, "N 4 2"],
    polygons2: Real[np.ndarray, "M 4 2"],
    index1: Int[np.ndarray, " P"],
    index2: Int[np.ndarray, " P"],
) -> Float64[np.ndarray, " P"]:
    """Overlap of pairs (polygons1[index1], polygons2[index2]), [P] float64, without gathering all pairs at once."""
    polygons1, polygons2 = np.asarray(polygons1, np.float64), np.asarray(polygons2, np.float64)
    return in_chunks(lambda i, j: _quadrilateral_iou(polygons1[i], polygons2[j]), len(index1), index1, index2)


def polygon_area(polygons: Real[np.ndarray, "N 4 2"]) -> Float[np.ndarray, " N"]:
    """Areas [N] in square pixels of quadrilaterals [N, 4, 2] whose edges do not cross."""
    diagonal1, diagonal2 = polygons[:, 2] - polygons[:, 0], polygons[:, 3] - polygons[:, 1]
    return np.abs(_cross(diagonal1, diagonal2)) / 2


def uncross(polygons: Real[np.ndarray, "N 4 2"]) -> Float64[np.ndarray, "N 4 2"]:
    """Puts the corners of quadrilaterals whose edges cross in order around the outline.

    The four points of such a quadrilateral are always corners of their convex hull, and the crossing edges its
    diagonals: exchanging two corners is enough. Other quadrilaterals stay as they are.

    Args:
      polygons: [N, 4, 2] corner points.

    Returns:
      [N, 4, 2] float64.
    """
    polygons = np.array(polygons, np.float64).reshape(-1, 4, 2)

    def edges_cross(a, b, c, d):
        a, b, c, d = (polygons[:, i] for i in (a, b, c, d))
        return (_cross(b - a, c - a) * _cross(b - a, d - a) < 0) & (_cross(d - c, a - c) * _cross(d - c, b - c) < 0)

    first, second = edges_cross(0, 1, 2, 3), edges_cross(1, 2, 3, 0)
    polygons[first] = polygons[first][:, [0, 2, 1, 3]]
    polygons[second] = polygons[second][:, [0, 1, 3, 2]]
    return polygons


def in_chunks(
    function: Callable[..., np.ndarray], count: int, *arrays: Shaped[np.ndarray, "{count} ..."]
) -> Float64[np.ndarray, " {count}"]:
    """Applies a function of [P, ...] arrays to slices of them, on all cores, and joins its [P] float64 results."""
    result = np.empty(count, np.float64)

    def one(start):
        piece = slice(start, start + _CHUNK)
        result[piece] = function(*(array[piece] for array in arrays))

    starts = range(0, count, _CHUNK)
    workers = min(len(starts), os.cpu_count() or 1, 8)
    if workers < 2:
        for start in starts:
            one(start)
    else:
        # Threads are enough: numpy releases the lock inside its loops.
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, starts))
    return result


def _table_iou(table1, table2):
    """[P] IoU of boxes given as rows of `box_table`."""
    cx1, cy1, w1, h1, cos1, sin1 = table1.T
    cx2, cy2, w2, h2, cos2, sin2 = table2.T
    area1, area2 = w1 * h1, w2 * h2
    per_w, per_h = 1 / np.where(w1 > 0, w1, 1), 1 / np.where(h1 > 0, h1, 1)
    # The second box in the axes of the first, in units of its sides: the first is then the unit square.
    dx, dy = cx2 - cx1, cy2 - cy1
    cos, sin = cos1 * cos2 + sin1 * sin2, cos1 * sin2 - sin1 * cos2
    x0, y0 = (dx * cos1 + dy * sin1) * per_w + 0.5, (dy * cos1 - dx * sin1) * per_h + 0.5
    along_x, along_y = w2 * cos * (per_w / 2), w2 * sin * (per_h / 2)
    across_x, across_y = -h2 * sin * (per_w / 2), h2 * cos * (per_h / 2)
    x = np.stack([x0 - along_x - across_x, x0 + along_x - across_x, x0 + along_x + across_x, x0 - along_x + across_x])
    y = np.stack([y0 - along_y - across_y, y0 + along_y - across_y, y0 + along_y + across_y, y0 - along_y + across_y])
    return _ratio(np.abs(_integral(x, y, triangle=False)) * area1, area1, area2)


def _quadrilateral_iou(polygons1, polygons2):
    """[P] IoU of quadrilaterals [P, 4, 2] whose edges do not cross."""
    corners = polygons1.transpose(1, 2, 0)  # [4, 2, P]
    # From the first corner of the first: with coordinates of 20,000 pixels the products would lose digits.
    points = polygons2.transpose(1, 2, 0) - corners[0]
    shared = np.zeros(len(polygons1))
    for second, third in ((1, 2), (2, 3)):
        ux, uy = corners[second] - corners[0]
        vx, vy = corners[third] - corners[0]
        twice_area = ux * vy - uy * vx
        scale = 1 / np.where(np.abs(twice_area) > _TINY, twice_area, 1)
        x = (points[:, 0] * vy - points[:, 1] * vx) * scale
        y = (points[:, 1] * ux - points[:, 0] * uy) * scale
        # A triangle that turns the other way also turns the polygon around in its axes, and so the integral's sign: of
        # a quadrilateral that is not convex, the one triangle is taken away from the other.
        shared += _integral(x, y, triangle=True) * np.abs(twice_area)
    return _ratio(np.abs(shared), polygon_area(polygons1), polygon_area(polygons2))


def _ratio(shared, area1, area2):
    smaller = np.minimum(area1, area2)
    shared = np.minimum(shared, smaller)  # rounding must not make an overlap above 1
    # Nor one where nothing is shared: a sum of integrals that cancel leaves some 1e-16 of the area, more for slivers.
    shared = np.where(shared > 1e-9 * smaller, shared, 0.0)
    union = area1 + area2 - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def _cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _integral(x, y, *, triangle):
    """Signed area that polygons share with the unit square, or with the triangle (0, 0), (1, 0), (0, 1).

    Args:
      x: [V, P] corners of P polygons.
      y: [V, P].
      triangle: which of the two regions.

    Returns:
      [P]; the sign depends on the polygon's direction of turning, but is the same for all regions.
    """
    next_x, next_y = np.roll(x, -1, axis=0), np.roll(y, -1, axis=0)
    # The part of each edge from x = 0 to x = 1, from (left, low) to (right, high) if it runs to the right and up.
    left, right = np.clip(x, 0, 1), np.clip(next_x, 0, 1)
    dx = next_x - x
    slope = (next_y - y) / np.where(np.abs(dx) > _TINY, dx, 1)
    low, high = y + slope * (left - x), next_y + slope * (right - next_x)
    rise = high - low
    safe_rise = np.where(np.abs(rise) > _TINY, rise, 1)
    # t in 0..1 along that part; it meets y = 0 at `bottom` and y = g(x) at `top`.
    bottom = np.clip(-low / safe_rise, 0, 1)
    if not triangle:
        top = np.clip((1 - low) / safe_rise, 0, 1)
        first, last = np.clip(low, 0, 1), np.clip(high, 0, 1)
        # Constant, then linear from `first` to `last`, then constant.
        mean = last + (first - last) * (bottom + top) / 2
    else:
        roof_first, roof_last = 1 - left, 1 - right
        closing = rise - (roof_last - roof_first)  # how fast the edge comes up to the sloping roof
        top = np.clip((roof_first - low) / np.where(np.abs(closing) > _TINY, closing, 1), 0, 1)

        def height(t):
            return np.clip(low + rise * t, 0, roof_first + (roof_last - roof_first) * t)

        t1, t2 = np.minimum(bottom, top), np.maximum(bottom, top)
        # Trapezoids between t = 0, t1, t2, 1: the height is linear between these.
        mean = (height(0) * t1 + height(t1) * t2 + height(t2) * (1 - t1) + height(1) * (1 - t2)) / 2
    return (mean * (right - left)).sum(axis=0)
