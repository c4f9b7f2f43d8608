"""Quadrilaterals as le90 boxes and back, and how much of them lies in an image, by OpenCV and shapely."""

import math

import cv2
import numpy as np
import shapely
from numpy.typing import ArrayLike


def polygons_to_boxes(polygons: ArrayLike, min_side: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The smallest rectangle around each polygon, as a le90 box.

    Args:
      polygons: [N, 4, 2] corner points in pixels, in any order.
      min_side: boxes with a shorter side below it are not valid (the reference's label reader uses 2).

    Returns:
      (boxes [N, 5] float32 with w >= h and -pi/2 <= angle < pi/2, valid [N] bool). Rectangles without area are never
      valid; rows that are not valid are zero. Of a square's two descriptions the one with 0 < angle < pi/2 is given,
      and -pi/2 for an axis-parallel one, as in the reference.
    """
    polygons = np.ascontiguousarray(polygons, np.float32).reshape(-1, 4, 2)
    if not len(polygons):
        return np.zeros((0, 5), np.float32), np.zeros(0, bool)
    rectangles = [cv2.minAreaRect(polygon) for polygon in polygons]
    boxes = np.array([(cx, cy, w, h, angle) for (cx, cy), (w, h), angle in rectangles], np.float64)
    cx, cy, w, h, degrees = boxes.T
    # OpenCV has changed the quadrant of this angle between versions: to (0, 90] first, so that squares agree too.
    quarters = np.ceil(degrees / 90) - 1
    degrees = degrees - 90 * quarters
    odd = quarters % 2 == 1
    w, h = np.where(odd, h, w), np.where(odd, w, h)
    upright = h > w
    w, h = np.where(upright, h, w), np.where(upright, w, h)
    angle = np.radians(np.where(upright, degrees + 90, degrees))
    angle = (angle + math.pi / 2) % math.pi - math.pi / 2
    boxes = np.stack([cx, cy, w, h, angle], axis=-1).astype(np.float32)
    # float32 rounds -pi/2 and pi/2 outwards; the largest angle must stay below the float32 pi/2 as well.
    boxes[:, 4] = np.where(boxes[:, 4] >= np.float32(math.pi / 2), np.float32(-math.pi / 2), boxes[:, 4])
    valid = (h > 0) & (h >= min_side)
    return np.where(valid[:, None], boxes, np.float32(0)), valid


def boxes_to_polygons(boxes: ArrayLike) -> np.ndarray:
    """Corner points of oriented boxes.

    Args:
      boxes: [N, 5] boxes (cx, cy, w, h, angle), pixels and radians.

    Returns:
      [N, 4, 2] float64 corners, clockwise on the screen, beginning at the corner (-w/2, -h/2) of the unrotated box.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    along = np.stack([cos, sin], axis=-1) * boxes[:, 2:3] / 2
    across = np.stack([-sin, cos], axis=-1) * boxes[:, 3:4] / 2
    corners = np.stack([-along - across, along - across, along + across, -along + across], axis=1)
    return corners + boxes[:, None, :2]


def outside_fraction(polygons: ArrayLike, width: float, height: float) -> np.ndarray:
    """How much of each polygon's area (of its convex hull) lies outside the image.

    Args:
      polygons: [N, 4, 2] corner points in pixels.
      width: pixels of the image.
      height: pixels of the image.

    Returns:
      [N] float64 in 0..1: 0 wholly inside, 1 wholly outside. A polygon without area counts by its middle.
    """
    polygons = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    size = np.array([width, height], np.float64)
    fraction = np.zeros(len(polygons))
    fraction[np.any((high <= 0) | (low >= size), axis=-1)] = 1.0
    cut = np.flatnonzero((fraction == 0) & np.any((low < 0) | (high > size), axis=-1))
    if len(cut):
        hulls = shapely.convex_hull(shapely.polygons(polygons[cut]))
        areas = shapely.area(hulls)
        inside = shapely.area(shapely.clip_by_rect(hulls, 0, 0, width, height))
        middle = polygons[cut].mean(axis=1)
        middle_outside = np.any((middle < 0) | (middle > size), axis=-1)
        fraction[cut] = np.where(areas > 0, 1 - inside / np.where(areas > 0, areas, 1), middle_outside)
    return fraction
