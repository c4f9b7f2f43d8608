"""What stands in generated scenes: how each class is drawn, seen from above.

An object is drawn in its own frame by a `Pen`, once as it looks and once as the shadow that it throws, and touches the
four sides of its box.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike


class Pen:
    """Draws in an object's own frame: x along its length and y across it, both from -1 to 1."""

    def __init__(
        self,
        image: np.ndarray,
        box: Sequence[float],
        sun: tuple[float, float] = (0.7, 0.7),
        shadow_length: float | None = None,
    ) -> None:
        cx, cy, length, width, angle = box
        self.image = image
        self.shadow_length = shadow_length
        cos, sin = math.cos(angle), math.sin(angle)
        self.aspect = length / width
        self.half_width = width / 2
        self.matrix = np.array([[cos * length / 2, sin * length / 2], [-sin * width / 2, cos * width / 2]])
        self.centre = np.array([cx, cy])
        if shadow_length:
            self.centre = self.centre + np.asarray(sun) * shadow_length
        self.light = (-(cos * sun[0] + sin * sun[1]), -(-sin * sun[0] + cos * sun[1]))  # towards the sun

    def shape(self, points: Any, colour: ArrayLike) -> None:
        points = np.asarray(points, np.float64) @ self.matrix + self.centre
        value = (255,) if self.shadow_length else tuple(int(channel) for channel in np.asarray(colour))
        cv2.fillPoly(self.image, [np.rint(points * 256).astype(np.int32)], value, cv2.LINE_AA, 8)

    def rectangle(self, x1: float, y1: float, x2: float, y2: float, colour: ArrayLike) -> None:
        self.shape([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], colour)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: ArrayLike,
        start: float = 0.0,
        end: float = 2 * math.pi,
    ) -> None:
        angles = np.linspace(start, end, 25)
        self.shape(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=-1), colour)

    def disc(self, x: float, y: float, radius: float, colour: ArrayLike) -> None:
        """A circle on the ground; its radius is a share of the object's half width."""
        self.ellipse(x, y, radius / self.aspect, radius, colour)

    def frame(self, x1: float, y1: float, x2: float, y2: float, pixels: float, colour: ArrayLike) -> None:
        """A rectangle of lines, each `pixels` wide."""
        dy = pixels / self.half_width
        dx = dy / self.aspect
        self.rectangle(x1, y1, x2, y1 + dy, colour)
        self.rectangle(x1, y2 - dy, x2, y2, colour)
        self.rectangle(x1, y1, x1 + dx, y2, colour)
        self.rectangle(x2 - dx, y1, x2, y2, colour)

    def line_across(self, x: float, pixels: float, colour: ArrayLike, extent: float = 1.0) -> None:
        dx = pixels / self.half_width / self.aspect / 2
        self.rectangle(x - dx, -extent, x + dx, extent, colour)


def vary(rng: np.random.Generator, colour: ArrayLike, amount: float = 14) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float64) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3), 0, 255)


def pick(rng: np.random.Generator, colours: Sequence[ArrayLike], amount: float = 10) -> np.ndarray:
    return vary(rng, colours[int(rng.integers(len(colours)))], amount)


def shade(colour: ArrayLike, factor: float) -> np.ndarray:
    return np.clip(np.asarray(colour) * factor, 0, 255)


_WHITE = (236, 238, 238)
_PAINTS = ((225, 225, 225), (40, 44, 52), (150, 28, 30), (32, 62, 132), (196, 170, 60), (120, 124, 130))


def _draw_plane(pen, rng):
    body = vary(rng, (226, 228, 230), 12)
    wing = shade(body, 0.9)
    for side in (-1, 1):
        pen.shape([(0.28, 0.08 * side), (-0.28, side), (-0.44, side), (-0.12, 0.08 * side)], wing)
        pen.shape([(-0.7, 0.04 * side), (-0.9, 0.38 * side), (-1, 0.38 * side), (-0.92, 0.04 * side)], wing)
        pen.ellipse(0.02, 0.42 * side, 0.13, 0.055, shade(body, 0.6))
    pen.ellipse(0, 0, 1, 0.11, body)
    pen.ellipse(0.1, 0.02, 0.75, 0.04, shade(body, 1.1))
    pen.ellipse(0.84, 0, 0.07, 0.06, (60, 70, 84))
    pen.shape([(-0.6, 0), (-0.96, 0.03), (-0.96, -0.03)], pick(rng, _PAINTS))


def _draw_ship(pen, rng):
    hull = pick(rng, ((120, 124, 128), (92, 50, 44), (50, 60, 78), (150, 148, 140)))
    side = [(0.62, 0.85), (0.2, 1), (-0.85, 1), (-1, 0.7)]
    pen.shape([(1, 0), *side, *((x, -y) for x, y in reversed(side))], hull)
    deck = pick(rng, ((168, 150, 120), (150, 96, 80), (170, 176, 180)))
    pen.shape([(0.88, 0), (0.56, 0.62), (-0.84, 0.7), (-0.9, 0), (-0.84, -0.7), (0.56, -0.62)], deck)
    for x in np.arange(0.4, -0.3, -0.24):
        pen.rectangle(x - 0.17, -0.5, x, 0.5, pick(rng, ((176, 90, 60), (90, 110, 130), (130, 140, 120), deck)))
    pen.rectangle(-0.8, -0.6, -0.48, 0.6, _WHITE)
    pen.rectangle(-0.72, -0.3, -0.58, 0.3, (110, 116, 124))


def _draw_vehicle(pen, rng):
    paint = pick(rng, _PAINTS, 12)
    pen.shape([(-1, -0.8), (-0.9, -1), (0.85, -1), (1, -0.6), (1, 0.6), (0.85, 1), (-0.9, 1), (-1, 0.8)], paint)
    pen.shape([(0.5, -0.85), (0.22, -0.7), (0.22, 0.7), (0.5, 0.85)], (28, 34, 44))
    pen.rectangle(-0.55, -0.72, 0.2, 0.72, shade(paint, 1.15))
    pen.shape([(-0.78, -0.8), (-0.58, -0.7), (-0.58, 0.7), (-0.78, 0.8)], (28, 34, 44))


def _draw_truck(pen, rng):
    load = pick(rng, ((214, 214, 210), (190, 186, 170), (70, 92, 130), (150, 70, 56)))
    pen.rectangle(-1, -1, 0.5, 1, load)
    pen.rectangle(-0.97, -0.25, 0.46, 0.1, shade(load, 1.1))
    pen.rectangle(0.5, -0.4, 0.62, 0.4, (50, 50, 52))
    cab = pick(rng, _PAINTS)
    pen.rectangle(0.6, -0.9, 1, 0.9, cab)
    pen.rectangle(0.82, -0.75, 0.92, 0.75, (28, 34, 44))


def _draw_tank(pen, rng):
    roof = pick(rng, ((222, 222, 216), (196, 196, 190), (170, 140, 110)))
    x, y = pen.light
    pen.disc(0, 0, 1, shade(roof, 0.62))
    pen.disc(0.08 * x, 0.08 * y, 0.9, shade(roof, 0.92))
    pen.disc(0.2 * x, 0.2 * y, 0.62, roof)
    pen.disc(0, 0, 0.14, shade(roof, 0.5))


def _draw_building(pen, rng):
    roof = pick(rng, ((156, 84, 64), (128, 72, 62), (112, 104, 100), (176, 120, 84)))
    lit = 1.15 if pen.light[1] > 0 else 0.75
    pen.rectangle(-1, -1, 1, 0, shade(roof, 1.9 - lit))
    pen.rectangle(-1, 0, 1, 1, shade(roof, lit))
    pen.shape([(-1, -1), (-0.72, 0), (-1, 1)], shade(roof, 0.85))
    pen.shape([(1, -1), (0.72, 0), (1, 1)], shade(roof, 1.0))
    pen.rectangle(-0.74, -0.05, 0.74, 0.05, shade(roof, 1.3))
    pen.rectangle(0.3, -0.6, 0.42, -0.36, shade(roof, 0.45))


def _draw_baseball(pen, rng):
    pen.shape([(-1, -1), (1, -1), (1, 1), (-1, 1)], vary(rng, (92, 134, 70), 8))
    clay = vary(rng, (176, 124, 82), 8)
    pen.shape([(-0.95, -0.95), (0.35, -0.95), (0.3, -0.3), (0.05, 0.05), (-0.3, 0.3), (-0.95, 0.35)], clay)
    pen.shape([(-0.72, -0.72), (-0.02, -0.72), (-0.02, -0.02), (-0.72, -0.02)], vary(rng, (100, 146, 76), 6))
    pen.disc(-0.37, -0.37, 0.1, clay)


def _draw_bridge(pen, rng):
    road = vary(rng, (128, 128, 126), 8)
    pen.rectangle(-1, -1, 1, 1, shade(road, 1.4))
    pen.rectangle(-1, -0.8, 1, 0.8, road)
    for x in np.arange(-0.95, 0.95, 0.12):
        pen.rectangle(x, -0.06, x + 0.06, 0.06, _WHITE)


def _draw_track_field(pen, rng):
    track = vary(rng, (178, 92, 72), 10)
    end = min(0.9, 1 / pen.aspect)
    for scale, colour in ((1.0, track), (0.84, _WHITE), (0.81, track), (0.66, vary(rng, (84, 132, 66), 8))):
        half, cap = 1 - end, end * scale
        pen.rectangle(-half, -scale, half, scale, colour)
        pen.ellipse(half, 0, cap, scale, colour)
        pen.ellipse(-half, 0, cap, scale, colour)
    pen.line_across(0, 1.2, _WHITE, 0.5)


def _draw_tennis(pen, rng):
    pen.rectangle(-1, -1, 1, 1, vary(rng, (66, 112, 88), 8))
    pen.rectangle(-0.8, -0.72, 0.8, 0.72, pick(rng, ((62, 92, 150), (150, 84, 66), (70, 130, 84)), 6))
    pen.frame(-0.8, -0.72, 0.8, 0.72, 1.2, _WHITE)
    pen.frame(-0.42, -0.52, 0.42, 0.52, 1.0, _WHITE)
    pen.line_across(0, 1.4, _WHITE, 0.8)


def _draw_basketball(pen, rng):
    pen.rectangle(-1, -1, 1, 1, pick(rng, ((196, 128, 82), (84, 110, 150), (168, 74, 64)), 8))
    inner = vary(rng, (208, 170, 120), 8)
    for side in (-1, 1):
        pen.ellipse(0.92 * side, 0, 0.46, 0.72, inner, math.pi / 2 * side, math.pi / 2 * (2 + side))
        pen.rectangle(min(0.55 * side, 0.95 * side), -0.25, max(0.55 * side, 0.95 * side), 0.25, (150, 60, 56))
    pen.disc(0, 0, 0.3, inner)
    pen.frame(-0.94, -0.9, 0.94, 0.9, 1.2, _WHITE)
    pen.line_across(0, 1.2, _WHITE, 0.9)


def _draw_soccer(pen, rng):
    grass = vary(rng, (82, 136, 62), 8)
    for index, x in enumerate(np.linspace(-1, 0.8, 10)):
        pen.rectangle(x, -1, x + 0.21, 1, shade(grass, 1.12 if index % 2 else 0.95))
    pen.frame(-0.93, -0.9, 0.93, 0.9, 1.2, _WHITE)
    pen.frame(-0.93, -0.45, -0.65, 0.45, 1.0, _WHITE)
    pen.frame(0.65, -0.45, 0.93, 0.45, 1.0, _WHITE)
    pen.line_across(0, 1.2, _WHITE, 0.9)
    pen.disc(0, 0, 0.24, shade(grass, 1.4))
    pen.disc(0, 0, 0.18, grass)


def _draw_roundabout(pen, rng):
    pen.disc(0, 0, 1, vary(rng, (176, 174, 168), 6))
    pen.disc(0, 0, 0.94, vary(rng, (104, 104, 106), 6))
    pen.disc(0, 0, 0.56, _WHITE)
    pen.disc(0, 0, 0.5, vary(rng, (88, 132, 70), 8))
    pen.disc(0, 0, 0.16, vary(rng, (60, 92, 52), 8))


def _draw_harbor(pen, rng):
    pier = vary(rng, (172, 168, 158), 8)
    pen.rectangle(-1, -1, 1, -0.7, pier)
    for x in np.linspace(-0.95, 0.85, max(3, round(2.5 * pen.aspect))):
        pen.rectangle(x, -0.75, x + 0.1 / max(1, pen.aspect / 2), 1, pier)


def _draw_pool(pen, rng):
    water = vary(rng, (70, 178, 204), 8)
    for scale, colour in ((1.0, (222, 216, 202)), (0.84, water)):
        cut = 0.25 * scale
        pen.shape(
            [(-scale, -scale + cut), (-scale + cut, -scale), (scale - cut, -scale), (scale, -scale + cut)]
            + [(scale, scale - cut), (scale - cut, scale), (-scale + cut, scale), (-scale, scale - cut)],
            colour,
        )
    pen.rectangle(-0.6, -0.5, 0.1, -0.3, shade(water, 1.15))


def _draw_helicopter(pen, rng):
    body = pick(rng, ((80, 92, 70), (200, 60, 50), (60, 76, 110), (214, 214, 214)))
    pen.ellipse(0.35, 0, 0.48, 0.26, body)
    pen.shape([(0.0, 0.12), (-1, 0.05), (-1, -0.05), (0.0, -0.12)], body)
    pen.rectangle(-1, -0.25, -0.9, 0.25, shade(body, 0.8))
    pen.ellipse(0.65, 0, 0.14, 0.18, (40, 50, 62))
    turn = rng.uniform(0.6, 1.0)
    for first in (turn, turn + math.pi / 2):
        x, y = 0.65 * math.cos(first), math.sin(first)
        x, y = x / abs(math.sin(turn)), y / max(abs(math.sin(turn)), abs(math.cos(turn)))
        x = np.clip(x, -0.65, 0.65)
        pen.shape([(0.35 + x, y), (0.39, 0.05), (0.35 - x, -y), (0.31, -0.05)], (46, 46, 48))


def _draw_crane(pen, rng):
    steel = pick(rng, ((190, 70, 50), (60, 110, 170), (206, 176, 70)))
    for y in (-1, 0.7):
        pen.rectangle(-0.7, y, 0.3, y + 0.3, steel)
    for x in (-0.7, -0.25, 0.2):
        pen.rectangle(x, -1, x + 0.1, 1, steel)
    for y in (-0.3, 0.15):
        pen.rectangle(-1, y, 1, y + 0.15, shade(steel, 1.15))
    for x in np.linspace(-1, 0.94, 9):
        pen.rectangle(x, -0.3, x + 0.06, 0.3, shade(steel, 0.8))


def _draw_airport(pen, rng):
    pen.rectangle(-1, -1, 1, 1, vary(rng, (132, 146, 98), 8))
    asphalt = vary(rng, (96, 96, 98), 6)
    pen.rectangle(-1, -0.85, 1, -0.45, asphalt)
    for x in np.arange(-0.9, 0.9, 0.12):
        pen.rectangle(x, -0.68, x + 0.06, -0.63, _WHITE)
    pen.rectangle(-0.8, 0.1, 0.8, 0.3, shade(asphalt, 1.2))
    for x in (-0.8, -0.1, 0.7):
        pen.rectangle(x, -0.5, x + 0.1, 0.15, shade(asphalt, 1.2))
    pen.rectangle(-0.5, 0.3, 0.5, 0.95, (176, 176, 172))
    pen.rectangle(-0.35, 0.62, 0.35, 0.95, (210, 206, 196))


def _draw_helipad(pen, rng):
    pen.rectangle(-1, -1, 1, 1, vary(rng, (126, 126, 124), 8))
    pen.disc(0, 0, 0.86, (226, 196, 70))
    pen.disc(0, 0, 0.76, vary(rng, (104, 110, 106), 6))
    for x1, y1, x2, y2 in ((-0.4, -0.36, 0.4, -0.2), (-0.4, 0.2, 0.4, 0.36), (-0.08, -0.3, 0.08, 0.3)):
        pen.rectangle(x1, y1, x2, y2, _WHITE)


class Look(NamedTuple):
    """How a class is drawn.

    Attributes:
      draw: function of a pen and a random generator.
      length: smallest and largest length in pixels.
      aspect: smallest and largest length / width.
      ground: "land" or "water".
      height: of the shadow, as a share of the width; 0 throws none.
      round: looks the same from every side, so its box is axis-parallel.
      group: most objects that stand in a row.
    """

    draw: Callable
    length: tuple[float, float]
    aspect: tuple[float, float]
    ground: str = "land"
    height: float = 0.0
    round: bool = False
    group: int = 1


_CAR = Look(_draw_vehicle, (13, 20), (1.9, 2.3), height=0.3, group=6)
_PLANE = Look(_draw_plane, (30, 66), (1.05, 1.25), height=0.12, group=3)
_TANK = Look(_draw_tank, (16, 44), (1.0, 1.0), height=0.25, round=True, group=4)
LOOKS = {
    "plane": _PLANE,
    "airplane": _PLANE,
    "ship": Look(_draw_ship, (26, 80), (3.0, 4.2), ground="water", height=0.2, group=3),
    "vehicle": _CAR,
    "car": _CAR,
    "small-vehicle": _CAR,
    "large-vehicle": Look(_draw_truck, (28, 46), (3.0, 3.8), height=0.5, group=4),
    "storage-tank": _TANK,
    "building": Look(_draw_building, (26, 60), (1.3, 2.0), height=0.3, group=3),
    "baseball-diamond": Look(_draw_baseball, (44, 80), (1.0, 1.0)),
    "bridge": Look(_draw_bridge, (50, 110), (3.5, 6.0), height=0.3),
    "ground-track-field": Look(_draw_track_field, (80, 150), (1.7, 2.1)),
    "tennis-court": Look(_draw_tennis, (36, 56), (1.7, 2.0), group=4),
    "basketball-court": Look(_draw_basketball, (34, 54), (1.6, 1.9), group=2),
    "soccer-ball-field": Look(_draw_soccer, (70, 130), (1.4, 1.7)),
    "roundabout": Look(_draw_roundabout, (36, 70), (1.0, 1.0), round=True),
    "harbor": Look(_draw_harbor, (50, 110), (1.8, 3.5), ground="water", height=0.05),
    "swimming-pool": Look(_draw_pool, (18, 36), (1.4, 2.0)),
    "helicopter": Look(_draw_helicopter, (22, 36), (1.3, 1.5), height=0.2, group=2),
    "container-crane": Look(_draw_crane, (40, 80), (1.4, 2.0), height=0.5),
    "airport": Look(_draw_airport, (140, 240), (1.8, 2.4)),
    "helipad": Look(_draw_helipad, (26, 40), (1.0, 1.0)),
}
