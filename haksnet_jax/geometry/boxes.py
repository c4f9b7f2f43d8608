"""Oriented boxes, their corners, and axis-parallel boxes.

Every function takes numpy or JAX arrays and answers in kind: the input pipeline and the results run in processes
that never import JAX.

  boxes   [..., 5]     cx, cy, w, h, angle: pixels and radians, from +x towards +y. y points down, so a positive angle
                       turns clockwise on the screen. In le90 form w >= h and -pi/2 <= angle < pi/2.
  hboxes  [..., 4]     x1, y1, x2, y2: axis-parallel.
  corners [..., 4, 2]  x, y of four points.
"""

import math
from typing import Any

from jaxtyping import Float


def to_le90(boxes: Float[Any, "*n 5"]) -> Float[Any, "*n 5"]:
    """Rewrites oriented boxes so that the width is the longer side.

    The rectangle stays the same set of points. Where the height is longer, the sides change places and the angle turns
    by pi/2; then the angle is reduced by multiples of pi. Two descriptions of one square can still differ by pi/2.

    Args:
      boxes: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians, any angle.

    Returns:
      [..., 5] the same rectangles with w >= h and -pi/2 <= angle < pi/2.
    """
    xp = boxes.__array_namespace__()  # numpy in the input pipeline, jax.numpy in the model
    cx, cy, w, h, angle = xp.moveaxis(boxes, -1, 0)
    upright = h > w
    w, h = xp.where(upright, h, w), xp.where(upright, w, h)
    angle = xp.where(upright, angle + math.pi / 2, angle)
    return xp.stack([cx, cy, w, h, reduce_angle(angle)], axis=-1)


def reduce_angle(angle: Float[Any, "*n"]) -> Float[Any, "*n"]:
    """Angles [...] in radians, plus or minus the multiple of pi that brings them to -pi/2 <= angle < pi/2."""
    xp = angle.__array_namespace__()
    angle = (angle + math.pi / 2) % math.pi - math.pi / 2
    # The remainder of a tiny negative number rounds up to pi itself, and the angle to pi/2: the excluded end.
    quarter_turn = xp.asarray(math.pi / 2, dtype=angle.dtype)
    return xp.where(angle >= quarter_turn, -quarter_turn, angle)


def boxes_to_corners(boxes: Float[Any, "*n 5"]) -> Float[Any, "*n 4 2"]:
    """Corner points of oriented boxes.

    Args:
      boxes: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians, any angle.

    Returns:
      [..., 4, 2] corners. Seen from the box's own axes, with the width along x: top left, top right, bottom right,
      bottom left (clockwise on the screen).
    """
    xp = boxes.__array_namespace__()
    cx, cy, w, h, angle = xp.moveaxis(boxes, -1, 0)
    cos, sin = xp.cos(angle) / 2, xp.sin(angle) / 2
    along_x, along_y = w * cos, w * sin  # half the width as a vector
    across_x, across_y = -h * sin, h * cos  # half the height as a vector
    x = xp.stack(
        [cx - along_x - across_x, cx + along_x - across_x, cx + along_x + across_x, cx - along_x + across_x], axis=-1
    )
    y = xp.stack(
        [cy - along_y - across_y, cy + along_y - across_y, cy + along_y + across_y, cy - along_y + across_y], axis=-1
    )
    return xp.stack([x, y], axis=-1)


def boxes_to_hboxes(boxes: Float[Any, "*n 5"]) -> Float[Any, "*n 4"]:
    """Smallest axis-parallel boxes that enclose oriented boxes.

    Args:
      boxes: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians, any angle.

    Returns:
      [..., 4] boxes (x1, y1, x2, y2), pixels; not clipped to any image.
    """
    xp = boxes.__array_namespace__()
    cx, cy, w, h, angle = xp.moveaxis(boxes, -1, 0)
    cos, sin = xp.abs(xp.cos(angle)), xp.abs(xp.sin(angle))
    half_x = (w * cos + h * sin) / 2
    half_y = (w * sin + h * cos) / 2
    return xp.stack([cx - half_x, cy - half_y, cx + half_x, cy + half_y], axis=-1)


def hboxes_to_boxes(hboxes: Float[Any, "*n 4"]) -> Float[Any, "*n 5"]:
    """Axis-parallel boxes as oriented ones.

    Args:
      hboxes: [..., 4] boxes (x1, y1, x2, y2), pixels.

    Returns:
      [..., 5] the same rectangles in le90 form: the angle is 0, or -pi/2 for boxes taller than wide.
    """
    xp = hboxes.__array_namespace__()
    x1, y1, x2, y2 = xp.moveaxis(hboxes, -1, 0)
    w, h = x2 - x1, y2 - y1
    return to_le90(xp.stack([(x1 + x2) / 2, (y1 + y2) / 2, w, h, xp.zeros_like(w)], axis=-1))


def hbox_area(hboxes: Float[Any, "*n 4"]) -> Float[Any, "*n"]:
    """Areas [...] in square pixels of axis-parallel boxes [..., 4]; 0 where x2 < x1 or y2 < y1."""
    xp = hboxes.__array_namespace__()
    x1, y1, x2, y2 = xp.moveaxis(hboxes, -1, 0)
    return xp.maximum(x2 - x1, 0) * xp.maximum(y2 - y1, 0)


def box_area(boxes: Float[Any, "*n 5"]) -> Float[Any, "*n"]:
    """Areas [...] in square pixels of oriented boxes [..., 5]."""
    return boxes[..., 2] * boxes[..., 3]
