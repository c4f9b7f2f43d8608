"""Boxes as numbers for a network to regress, relative to anchors and proposals, and back.

Decoding gives what a trained network of the reference means by its numbers. For sides without length the results and
their gradients stay finite; what they then are has no meaning.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from haksnet_jax.geometry.boxes import boxes_to_corners, boxes_to_hboxes, reduce_angle, to_le90
from haksnet_jax.structures import AnyArray

# Divisors and arguments of logarithms are at least this many pixels: far below any object, far above an underflow.
_SMALLEST_SIDE = 1e-3

# Corners within this many pixels of the topmost (rightmost) one count as lying at that side, as in the reference: for
# nearly axis-parallel boxes the top side, not the one corner that rounding puts highest, decides.
_SAME_SIDE = 0.1


def encode_midpoint_offset(
    anchors: Float[AnyArray, "*n 4"], boxes: Float[AnyArray, "*n 5"], stds: Sequence[float]
) -> Float[Array, "*n 6"]:
    """Oriented boxes relative to axis-parallel anchors, as the RPN of Oriented R-CNN regresses them.

    The enclosing axis-parallel box of centre (gx, gy) and size (gw, gh) is coded against the anchor's centre and size:
    dx = (gx - px) / pw, dy likewise, dw = log(gw / pw), dh likewise. Two offsets place the corners on its sides:
    da = (x of the topmost corner - gx) / gw and db = (y of the rightmost corner - gy) / gh, both within -0.5..0.5.
    Of several topmost corners the rightmost counts, of several rightmost ones the lowest on the screen, so
    that an axis-parallel box has da = db = 0.5.

    Args:
      anchors: [..., 4] boxes (x1, y1, x2, y2), pixels.
      boxes: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians.
      stds: six numbers that the deltas are divided by.

    Returns:
      [..., 6] deltas (dx, dy, dw, dh, da, db).
    """
    px, py, pw, ph = _centre_and_size(anchors)
    # Corners relative to the box's own centre: at 1000 px, float32 coordinates round to 6e-5 px.
    around_centre = boxes * jnp.asarray([0, 0, 1, 1, 1], boxes.dtype)
    _, _, gw, gh = _centre_and_size(boxes_to_hboxes(around_centre))
    pw, ph, gw, gh = (jnp.maximum(side, _SMALLEST_SIDE) for side in (pw, ph, gw, gh))
    x, y = jnp.moveaxis(boxes_to_corners(around_centre), -1, 0)
    at_top = jnp.abs(y - y.min(axis=-1, keepdims=True)) <= _SAME_SIDE
    at_right = jnp.abs(x - x.max(axis=-1, keepdims=True)) <= _SAME_SIDE
    top_x = jnp.where(at_top, x, -jnp.inf).max(axis=-1)
    right_y = jnp.where(at_right, y, -jnp.inf).max(axis=-1)
    deltas = jnp.stack(
        [
            (boxes[..., 0] - px) / pw,
            (boxes[..., 1] - py) / ph,
            jnp.log(gw / pw),
            jnp.log(gh / ph),
            top_x / gw,
            right_y / gh,
        ],
        axis=-1,
    )
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode_midpoint_offset(
    anchors: Float[AnyArray, "*n 4"],
    deltas: Float[AnyArray, "*n 6"],
    stds: Sequence[float],
    max_ratio: float = 16 / 1000,
) -> Float[Array, "*n 5"]:
    """Oriented boxes from axis-parallel anchors and midpoint offsets.

    The deltas (see `encode_midpoint_offset`) describe a parallelogram with its corners on the sides of a box. Its
    shorter diagonal is lengthened to the longer one, which makes it a rectangle. Nothing is clipped to the image.

    Args:
      anchors: [..., 4] boxes (x1, y1, x2, y2), pixels.
      deltas: [..., 6] (dx, dy, dw, dh, da, db); da and db are clipped to -0.5..0.5.
      stds: six numbers that the deltas were divided by.
      max_ratio: sides change at most by this factor and its inverse.

    Returns:
      [..., 5] le90 boxes (cx, cy, w, h, angle), pixels and radians.
    """
    px, py, pw, ph = _centre_and_size(anchors)
    dx, dy, dw, dh, da, db = jnp.moveaxis(deltas * jnp.asarray(stds, deltas.dtype), -1, 0)
    gw, gh = pw * _exp_limited(dw, max_ratio), ph * _exp_limited(dh, max_ratio)
    # Half diagonals, from the centre to the topmost and to the rightmost corner.
    top_x, top_y = jnp.clip(da, -0.5, 0.5) * gw, -0.5 * gh
    right_x, right_y = 0.5 * gw, jnp.clip(db, -0.5, 0.5) * gh
    top, right = _length(top_x, top_y), _length(right_x, right_y)
    longest = jnp.maximum(top, right)
    top_scale = longest / jnp.where(top > 0, top, 1)
    right_scale = longest / jnp.where(right > 0, right, 1)
    top_x, top_y, right_x, right_y = top_x * top_scale, top_y * top_scale, right_x * right_scale, right_y * right_scale
    # The sides are the difference and the sum of the half diagonals; the longer one gives the angle.
    falling_x, falling_y = right_x - top_x, right_y - top_y
    rising_x, rising_y = right_x + top_x, right_y + top_y
    falling, rising = _length(falling_x, falling_y), _length(rising_x, rising_y)
    along_falling = falling > rising
    along_x, along_y = jnp.where(along_falling, falling_x, rising_x), jnp.where(along_falling, falling_y, rising_y)
    is_point = jnp.maximum(falling, rising) == 0  # arctan2(0, 0) has no gradient
    angle = reduce_angle(jnp.arctan2(along_y, jnp.where(is_point, 1, along_x)))
    width, height = jnp.maximum(falling, rising), jnp.minimum(falling, rising)
    return jnp.stack([px + pw * dx, py + ph * dy, width, height, angle], axis=-1)


def encode_delta_xywha(
    proposals: Float[AnyArray, "*n 5"], boxes: Float[AnyArray, "*n 5"], stds: Sequence[float]
) -> Float[Array, "*n 5"]:
    """Oriented boxes relative to oriented proposals, as the box head regresses them.

    The offset between the centres is measured along the proposal's own axes, in units of its sides. The box's sides
    are named so that its first one deviates least from the direction of the proposal's width: at most by pi/4, which
    is da; then dw = log(first side / proposal's width) and dh likewise.

    Args:
      proposals: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians.
      boxes: [..., 5] boxes of the same form.
      stds: five numbers that the deltas are divided by.

    Returns:
      [..., 5] deltas (dx, dy, dw, dh, da).
    """
    px, py, pw, ph, pa = jnp.moveaxis(proposals, -1, 0)
    gx, gy, gw, gh, ga = jnp.moveaxis(boxes, -1, 0)
    pw, ph, gw, gh = (jnp.maximum(side, _SMALLEST_SIDE) for side in (pw, ph, gw, gh))
    cos, sin = jnp.cos(pa), jnp.sin(pa)
    turn = reduce_angle(ga - pa)
    turn_exchanged = reduce_angle(ga - pa + math.pi / 2)
    straight = jnp.abs(turn) < jnp.abs(turn_exchanged)
    deltas = jnp.stack(
        [
            (cos * (gx - px) + sin * (gy - py)) / pw,
            (cos * (gy - py) - sin * (gx - px)) / ph,
            jnp.log(jnp.where(straight, gw, gh) / pw),
            jnp.log(jnp.where(straight, gh, gw) / ph),
            jnp.where(straight, turn, turn_exchanged),
        ],
        axis=-1,
    )
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode_delta_xywha(
    proposals: Float[AnyArray, "*n 5"],
    deltas: Float[AnyArray, "*n 5"],
    stds: Sequence[float],
    image_size: Shaped[AnyArray, " 2"] | Sequence[int | AnyArray] | None = None,
    max_ratio: float = 16 / 1000,
) -> Float[Array, "*n 5"]:
    """Oriented boxes from oriented proposals and deltas; the inverse of `encode_delta_xywha`.

    Args:
      proposals: [..., 5] boxes (cx, cy, w, h, angle), pixels and radians.
      deltas: [..., 5] (dx, dy, dw, dh, da).
      stds: five numbers that the deltas were divided by.
      image_size: [2] rows and columns of the image, or None. Where given, centres (and nothing else) are clipped to
        0..columns - 1 and 0..rows - 1.
      max_ratio: sides change at most by this factor and its inverse.

    Returns:
      [..., 5] le90 boxes (cx, cy, w, h, angle), pixels and radians. A square's first side is the one across the
      proposal's width, as in the reference.
    """
    px, py, pw, ph, pa = jnp.moveaxis(proposals, -1, 0)
    dx, dy, dw, dh, da = jnp.moveaxis(deltas * jnp.asarray(stds, deltas.dtype), -1, 0)
    cos, sin = jnp.cos(pa), jnp.sin(pa)
    gx = px + dx * pw * cos - dy * ph * sin
    gy = py + dx * pw * sin + dy * ph * cos
    if image_size is not None:
        gx = jnp.clip(gx, 0, image_size[1] - 1)
        gy = jnp.clip(gy, 0, image_size[0] - 1)
    gw, gh = pw * _exp_limited(dw, max_ratio), ph * _exp_limited(dh, max_ratio)
    turned = jnp.where(gw == gh, pa + da + math.pi / 2, pa + da)
    return to_le90(jnp.stack([gx, gy, gw, gh, turned], axis=-1))


def _centre_and_size(hboxes):
    x1, y1, x2, y2 = jnp.moveaxis(hboxes, -1, 0)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _exp_limited(log_factor, max_ratio):
    limit = abs(math.log(max_ratio))
    return jnp.exp(jnp.clip(log_factor, -limit, limit))


def _length(x, y):
    """Length of vectors, with gradient 0 instead of NaN for those without any."""
    square = x * x + y * y
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
