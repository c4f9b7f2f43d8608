"""Generated aerial scenes with oriented objects: something to train on and to test with where no data set is at hand.

A scene is ground (noise, fields, roads, sometimes water), clutter that is no object (trees, rocks, pads), and objects
with their shadows. Every object touches the four sides of its box. The sun stands still within a scene.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from haksnet_jax.geometry.polygons import boxes_to_polygons


class _Pen:
    """Draws in an object's own frame: x along its length and y across it, both from -1 to 1."""

    def __init__(self, image, box, sun=(0.7, 0.7), shadow_length=None):
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

    def shape(self, points, colour):
        points = np.asarray(points, np.float64) @ self.matrix + self.centre
        colour = 255 if self.shadow_length else tuple(int(value) for value in colour)
        cv2.fillPoly(self.image, [np.rint(points * 256).astype(np.int32)], colour, cv2.LINE_AA, 8)

    def rectangle(self, x1, y1, x2, y2, colour):
        self.shape([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], colour)

    def ellipse(self, x, y, rx, ry, colour, start=0.0, end=2 * math.pi):
        angles = np.linspace(start, end, 25)
        self.shape(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=-1), colour)

    def disc(self, x, y, radius, colour):
        """A circle on the ground; its radius is a share of the object's half width."""
        self.ellipse(x, y, radius / self.aspect, radius, colour)

    def frame(self, x1, y1, x2, y2, pixels, colour):
        """A rectangle of lines, each `pixels` wide."""
        dy = pixels / self.half_width
        dx = dy / self.aspect
        self.rectangle(x1, y1, x2, y1 + dy, colour)
        self.rectangle(x1, y2 - dy, x2, y2, colour)
        self.rectangle(x1, y1, x1 + dx, y2, colour)
        self.rectangle(x2 - dx, y1, x2, y2, colour)

    def line_across(self, x, pixels, colour, extent=1.0):
        dx = pixels / self.half_width / self.aspect / 2
        self.rectangle(x - dx, -extent, x + dx, extent, colour)


def _vary(rng, colour, amount=14):
    return np.clip(np.asarray(colour, np.float64) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3), 0, 255)


def _pick(rng, colours, amount=10):
    return _vary(rng, colours[rng.integers(len(colours))], amount)


def _shade(colour, factor):
    return np.clip(np.asarray(colour) * factor, 0, 255)


_WHITE = (236, 238, 238)
_PAINTS = ((225, 225, 225), (40, 44, 52), (150, 28, 30), (32, 62, 132), (196, 170, 60), (120, 124, 130))


def _draw_plane(pen, rng):
    body = _vary(rng, (226, 228, 230), 12)
    wing = _shade(body, 0.9)
    for side in (-1, 1):
        pen.shape([(0.28, 0.08 * side), (-0.28, side), (-0.44, side), (-0.12, 0.08 * side)], wing)
        pen.shape([(-0.7, 0.04 * side), (-0.9, 0.38 * side), (-1, 0.38 * side), (-0.92, 0.04 * side)], wing)
        pen.ellipse(0.02, 0.42 * side, 0.13, 0.055, _shade(body, 0.6))
    pen.ellipse(0, 0, 1, 0.11, body)
    pen.ellipse(0.1, 0.02, 0.75, 0.04, _shade(body, 1.1))
    pen.ellipse(0.84, 0, 0.07, 0.06, (60, 70, 84))
    pen.shape([(-0.6, 0), (-0.96, 0.03), (-0.96, -0.03)], _pick(rng, _PAINTS))


def _draw_ship(pen, rng):
    hull = _pick(rng, ((120, 124, 128), (92, 50, 44), (50, 60, 78), (150, 148, 140)))
    side = [(0.62, 0.85), (0.2, 1), (-0.85, 1), (-1, 0.7)]
    pen.shape([(1, 0), *side, *((x, -y) for x, y in reversed(side))], hull)
    deck = _pick(rng, ((168, 150, 120), (150, 96, 80), (170, 176, 180)))
    pen.shape([(0.88, 0), (0.56, 0.62), (-0.84, 0.7), (-0.9, 0), (-0.84, -0.7), (0.56, -0.62)], deck)
    for x in np.arange(0.4, -0.3, -0.24):
        pen.rectangle(x - 0.17, -0.5, x, 0.5, _pick(rng, ((176, 90, 60), (90, 110, 130), (130, 140, 120), deck)))
    pen.rectangle(-0.8, -0.6, -0.48, 0.6, _WHITE)
    pen.rectangle(-0.72, -0.3, -0.58, 0.3, (110, 116, 124))


def _draw_vehicle(pen, rng):
    paint = _pick(rng, _PAINTS, 12)
    pen.shape([(-1, -0.8), (-0.9, -1), (0.85, -1), (1, -0.6), (1, 0.6), (0.85, 1), (-0.9, 1), (-1, 0.8)], paint)
    pen.shape([(0.5, -0.85), (0.22, -0.7), (0.22, 0.7), (0.5, 0.85)], (28, 34, 44))
    pen.rectangle(-0.55, -0.72, 0.2, 0.72, _shade(paint, 1.15))
    pen.shape([(-0.78, -0.8), (-0.58, -0.7), (-0.58, 0.7), (-0.78, 0.8)], (28, 34, 44))


def _draw_truck(pen, rng):
    load = _pick(rng, ((214, 214, 210), (190, 186, 170), (70, 92, 130), (150, 70, 56)))
    pen.rectangle(-1, -1, 0.5, 1, load)
    pen.rectangle(-0.97, -0.25, 0.46, 0.1, _shade(load, 1.1))
    pen.rectangle(0.5, -0.4, 0.62, 0.4, (50, 50, 52))
    cab = _pick(rng, _PAINTS)
    pen.rectangle(0.6, -0.9, 1, 0.9, cab)
    pen.rectangle(0.82, -0.75, 0.92, 0.75, (28, 34, 44))


def _draw_tank(pen, rng):
    roof = _pick(rng, ((222, 222, 216), (196, 196, 190), (170, 140, 110)))
    x, y = pen.light
    pen.disc(0, 0, 1, _shade(roof, 0.62))
    pen.disc(0.08 * x, 0.08 * y, 0.9, _shade(roof, 0.92))
    pen.disc(0.2 * x, 0.2 * y, 0.62, roof)
    pen.disc(0, 0, 0.14, _shade(roof, 0.5))


def _draw_building(pen, rng):
    roof = _pick(rng, ((156, 84, 64), (128, 72, 62), (112, 104, 100), (176, 120, 84)))
    lit = 1.15 if pen.light[1] > 0 else 0.75
    pen.rectangle(-1, -1, 1, 0, _shade(roof, 1.9 - lit))
    pen.rectangle(-1, 0, 1, 1, _shade(roof, lit))
    pen.shape([(-1, -1), (-0.72, 0), (-1, 1)], _shade(roof, 0.85))
    pen.shape([(1, -1), (0.72, 0), (1, 1)], _shade(roof, 1.0))
    pen.rectangle(-0.74, -0.05, 0.74, 0.05, _shade(roof, 1.3))
    pen.rectangle(0.3, -0.6, 0.42, -0.36, _shade(roof, 0.45))


def _draw_baseball(pen, rng):
    pen.shape([(-1, -1), (1, -1), (1, 1), (-1, 1)], _vary(rng, (92, 134, 70), 8))
    clay = _vary(rng, (176, 124, 82), 8)
    pen.shape([(-0.95, -0.95), (0.35, -0.95), (0.3, -0.3), (0.05, 0.05), (-0.3, 0.3), (-0.95, 0.35)], clay)
    pen.shape([(-0.72, -0.72), (-0.02, -0.72), (-0.02, -0.02), (-0.72, -0.02)], _vary(rng, (100, 146, 76), 6))
    pen.disc(-0.37, -0.37, 0.1, clay)


def _draw_bridge(pen, rng):
    road = _vary(rng, (128, 128, 126), 8)
    pen.rectangle(-1, -1, 1, 1, _shade(road, 1.4))
    pen.rectangle(-1, -0.8, 1, 0.8, road)
    for x in np.arange(-0.95, 0.95, 0.12):
        pen.rectangle(x, -0.06, x + 0.06, 0.06, _WHITE)


def _draw_track_field(pen, rng):
    track = _vary(rng, (178, 92, 72), 10)
    end = min(0.9, 1 / pen.aspect)
    for scale, colour in ((1.0, track), (0.84, _WHITE), (0.81, track), (0.66, _vary(rng, (84, 132, 66), 8))):
        half, cap = 1 - end, end * scale
        pen.rectangle(-half, -scale, half, scale, colour)
        pen.ellipse(half, 0, cap, scale, colour)
        pen.ellipse(-half, 0, cap, scale, colour)
    pen.line_across(0, 1.2, _WHITE, 0.5)


def _draw_tennis(pen, rng):
    pen.rectangle(-1, -1, 1, 1, _vary(rng, (66, 112, 88), 8))
    pen.rectangle(-0.8, -0.72, 0.8, 0.72, _pick(rng, ((62, 92, 150), (150, 84, 66), (70, 130, 84)), 6))
    pen.frame(-0.8, -0.72, 0.8, 0.72, 1.2, _WHITE)
    pen.frame(-0.42, -0.52, 0.42, 0.52, 1.0, _WHITE)
    pen.line_across(0, 1.4, _WHITE, 0.8)


def _draw_basketball(pen, rng):
    pen.rectangle(-1, -1, 1, 1, _pick(rng, ((196, 128, 82), (84, 110, 150), (168, 74, 64)), 8))
    inner = _vary(rng, (208, 170, 120), 8)
    for side in (-1, 1):
        pen.ellipse(0.92 * side, 0, 0.46, 0.72, inner, math.pi / 2 * side, math.pi / 2 * (2 + side))
        pen.rectangle(min(0.55 * side, 0.95 * side), -0.25, max(0.55 * side, 0.95 * side), 0.25, (150, 60, 56))
    pen.disc(0, 0, 0.3, inner)
    pen.frame(-0.94, -0.9, 0.94, 0.9, 1.2, _WHITE)
    pen.line_across(0, 1.2, _WHITE, 0.9)


def _draw_soccer(pen, rng):
    grass = _vary(rng, (82, 136, 62), 8)
    for index, x in enumerate(np.linspace(-1, 0.8, 10)):
        pen.rectangle(x, -1, x + 0.21, 1, _shade(grass, 1.12 if index % 2 else 0.95))
    pen.frame(-0.93, -0.9, 0.93, 0.9, 1.2, _WHITE)
    pen.frame(-0.93, -0.45, -0.65, 0.45, 1.0, _WHITE)
    pen.frame(0.65, -0.45, 0.93, 0.45, 1.0, _WHITE)
    pen.line_across(0, 1.2, _WHITE, 0.9)
    pen.disc(0, 0, 0.24, _shade(grass, 1.4))
    pen.disc(0, 0, 0.18, grass)


def _draw_roundabout(pen, rng):
    pen.disc(0, 0, 1, _vary(rng, (176, 174, 168), 6))
    pen.disc(0, 0, 0.94, _vary(rng, (104, 104, 106), 6))
    pen.disc(0, 0, 0.56, _WHITE)
    pen.disc(0, 0, 0.5, _vary(rng, (88, 132, 70), 8))
    pen.disc(0, 0, 0.16, _vary(rng, (60, 92, 52), 8))


def _draw_harbor(pen, rng):
    pier = _vary(rng, (172, 168, 158), 8)
    pen.rectangle(-1, -1, 1, -0.7, pier)
    for x in np.linspace(-0.95, 0.85, max(3, round(2.5 * pen.aspect))):
        pen.rectangle(x, -0.75, x + 0.1 / max(1, pen.aspect / 2), 1, pier)


def _draw_pool(pen, rng):
    water = _vary(rng, (70, 178, 204), 8)
    for scale, colour in ((1.0, (222, 216, 202)), (0.84, water)):
        cut = 0.25 * scale
        pen.shape(
            [(-scale, -scale + cut), (-scale + cut, -scale), (scale - cut, -scale), (scale, -scale + cut)]
            + [(scale, scale - cut), (scale - cut, scale), (-scale + cut, scale), (-scale, scale - cut)],
            colour,
        )
    pen.rectangle(-0.6, -0.5, 0.1, -0.3, _shade(water, 1.15))


def _draw_helicopter(pen, rng):
    body = _pick(rng, ((80, 92, 70), (200, 60, 50), (60, 76, 110), (214, 214, 214)))
    pen.ellipse(0.35, 0, 0.48, 0.26, body)
    pen.shape([(0.0, 0.12), (-1, 0.05), (-1, -0.05), (0.0, -0.12)], body)
    pen.rectangle(-1, -0.25, -0.9, 0.25, _shade(body, 0.8))
    pen.ellipse(0.65, 0, 0.14, 0.18, (40, 50, 62))
    turn = rng.uniform(0.6, 1.0)
    for first in (turn, turn + math.pi / 2):
        x, y = 0.65 * math.cos(first), math.sin(first)
        x, y = x / abs(math.sin(turn)), y / max(abs(math.sin(turn)), abs(math.cos(turn)))
        x = np.clip(x, -0.65, 0.65)
        pen.shape([(0.35 + x, y), (0.39, 0.05), (0.35 - x, -y), (0.31, -0.05)], (46, 46, 48))


def _draw_crane(pen, rng):
    steel = _pick(rng, ((190, 70, 50), (60, 110, 170), (206, 176, 70)))
    for y in (-1, 0.7):
        pen.rectangle(-0.7, y, 0.3, y + 0.3, steel)
    for x in (-0.7, -0.25, 0.2):
        pen.rectangle(x, -1, x + 0.1, 1, steel)
    for y in (-0.3, 0.15):
        pen.rectangle(-1, y, 1, y + 0.15, _shade(steel, 1.15))
    for x in np.linspace(-1, 0.94, 9):
        pen.rectangle(x, -0.3, x + 0.06, 0.3, _shade(steel, 0.8))


def _draw_airport(pen, rng):
    pen.rectangle(-1, -1, 1, 1, _vary(rng, (132, 146, 98), 8))
    asphalt = _vary(rng, (96, 96, 98), 6)
    pen.rectangle(-1, -0.85, 1, -0.45, asphalt)
    for x in np.arange(-0.9, 0.9, 0.12):
        pen.rectangle(x, -0.68, x + 0.06, -0.63, _WHITE)
    pen.rectangle(-0.8, 0.1, 0.8, 0.3, _shade(asphalt, 1.2))
    for x in (-0.8, -0.1, 0.7):
        pen.rectangle(x, -0.5, x + 0.1, 0.15, _shade(asphalt, 1.2))
    pen.rectangle(-0.5, 0.3, 0.5, 0.95, (176, 176, 172))
    pen.rectangle(-0.35, 0.62, 0.35, 0.95, (210, 206, 196))


def _draw_helipad(pen, rng):
    pen.rectangle(-1, -1, 1, 1, _vary(rng, (126, 126, 124), 8))
    pen.disc(0, 0, 0.86, (226, 196, 70))
    pen.disc(0, 0, 0.76, _vary(rng, (104, 110, 106), 6))
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

_GROUNDS = (  # dark to light, for the land's two-colour noise
    ((78, 94, 60), (126, 136, 92)),  # grass
    ((96, 88, 66), (152, 138, 106)),  # dry land
    ((108, 106, 102), (148, 146, 140)),  # town
    ((136, 116, 88), (186, 166, 130)),  # sand
)
_FIELDS = ((120, 132, 76), (150, 138, 88), (96, 116, 64), (134, 114, 82), (172, 160, 110), (106, 128, 84))
_WATERS = ((38, 66, 82), (48, 84, 96), (52, 78, 72))


def _noise(rng, height, width, cell):
    """[height, width] float32 smooth noise of about unit spread whose bumps are `cell` pixels wide."""
    rows, columns = math.ceil(height / cell) + 3, math.ceil(width / cell) + 3
    grid = rng.standard_normal((rows, columns), np.float32)
    wide = cv2.resize(grid, (columns * cell, rows * cell), interpolation=cv2.INTER_CUBIC)
    return wide[cell : cell + height, cell : cell + width]


def _draw_ground(rng, height, width, with_water):
    """(image [height, width, 3] uint8, water [height, width] bool)."""
    broad = _noise(rng, height, width, 64) + 0.5 * _noise(rng, height, width, 24) + 0.3 * _noise(rng, height, width, 8)
    dark, light = (_vary(rng, colour, 8) for colour in _GROUNDS[rng.integers(len(_GROUNDS))])
    share = np.linspace(0, 1, 256)[:, None]
    palette = np.rint(np.clip(dark * (1 - share) + light * share, 0, 255)).astype(np.uint8)
    image = palette[np.clip(broad * 50 + 128, 0, 255).astype(np.uint8)]

    grid_angle = rng.uniform(0, math.pi)  # fields and roads of a place share their directions
    area = height * width / 256**2
    for _ in range(rng.poisson(2.0 * area)):
        angle = grid_angle + rng.integers(2) * math.pi / 2
        box = (rng.uniform(0, width), rng.uniform(0, height), rng.uniform(60, 180), rng.uniform(40, 120), angle)
        pen, colour = _Pen(image, box), _pick(rng, _FIELDS)
        pen.rectangle(-1, -1, 1, 1, colour)
        furrows = int(rng.integers(6, 22))
        for x in np.linspace(-1, 1, furrows, endpoint=False):
            pen.rectangle(x, -1, x + 1 / furrows, 1, _shade(colour, 0.93))
    for _ in range(rng.poisson(1.2 * math.sqrt(area))):
        angle = grid_angle + rng.integers(2) * math.pi / 2 + rng.normal(0, 0.03)
        road_width = rng.uniform(9, 20)
        reach = 2.0 * max(height, width)
        pen = _Pen(image, (rng.uniform(0, width), rng.uniform(0, height), reach, road_width, angle))
        asphalt = _vary(rng, (112, 112, 112), 10)
        pen.rectangle(-1, -1, 1, 1, _shade(asphalt, 1.25))
        pen.rectangle(-1, -0.86, 1, 0.86, asphalt)
        dash = 16 / reach
        for x in np.arange(-1, 1, 2 * dash):
            pen.rectangle(x, -0.05, x + dash, 0.05, (205, 205, 198))

    water = np.zeros((height, width), bool)
    if with_water:
        # The shore runs along a tilted plane bent by noise, so that land and water are large and connected.
        direction = rng.uniform(0, 2 * math.pi)
        y, x = np.ogrid[:height, :width]
        slope = (x - width / 2) * math.cos(direction) + (y - height / 2) * math.sin(direction)
        depth = (slope - rng.normal(0, 0.12) * max(height, width)).astype(np.float32)
        depth += 14 * _noise(rng, height, width, 64) + 4 * _noise(rng, height, width, 20)
        beach = _vary(rng, (188, 176, 146), 8).astype(np.float32)
        sea = _vary(rng, _WATERS[rng.integers(len(_WATERS))], 8).astype(np.float32)
        edge = np.clip(depth / 3, 0, 1)[..., None]
        shelf = np.clip(depth / 60, 0, 1)[..., None]
        colour = sea * (1.25 - 0.25 * shelf) * (1 + 0.03 * _noise(rng, height, width, 6)[..., None])
        land = image.astype(np.float32)
        land += (beach - land) * (np.clip(1 + depth / 8, 0, 1) * 0.9)[..., None]
        image = np.clip(land + (colour - land) * edge, 0, 255).astype(np.uint8)
        water = depth > 4
    return image, water


class _Places:
    """Which ground is taken, on a grid of two pixels."""

    def __init__(self, height, width, water):
        self.taken = np.zeros((height // 2 + 1, width // 2 + 1), np.uint8)
        self.water = water
        self.height, self.width = height, width

    def ground(self, x, y):
        return "water" if self.water[int(y), int(x)] else "land"

    def take(self, box, ground=None):
        """Takes the box's ground, with a pixel around it, where it is free and of one kind; says whether it was."""
        cx, cy, length, width, angle = box
        if not (0 <= cx < self.width and 0 <= cy < self.height):
            return False
        (polygon,) = boxes_to_polygons([(cx, cy, length + 3, width + 3, angle)])
        u, v = np.meshgrid(np.linspace(0, 1, max(3, int(length / 6))), np.linspace(0, 1, max(3, int(width / 6))))
        edges = polygon[[1, 3]] - polygon[0]
        points = polygon[0] + u.reshape(-1, 1) * edges[0] + v.reshape(-1, 1) * edges[1]
        x, y = points.astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < self.width) & (y < self.height)
        if inside.mean() < 0.75:
            return False
        x, y = x[inside], y[inside]
        if self.taken[y // 2, x // 2].any():
            return False
        if ground is not None and (self.water[y, x] != (ground == "water")).any():
            return False
        cv2.fillPoly(self.taken, [np.rint(polygon / 2).astype(np.int32)], 1)
        return True


def _place_objects(rng, places, looks, objects_per_scene):
    """Boxes and labels of objects that do not overlap, some of them in rows."""
    target = int(rng.integers(objects_per_scene[0], objects_per_scene[1] + 1))
    labels_on = {
        ground: [label for label, look in enumerate(looks) if look.ground == ground] for ground in ("land", "water")
    }
    boxes, labels = [], []
    for _ in range(12 * target + 20):  # a crowded scene ends up with fewer objects than drawn for
        if len(boxes) >= target:
            break
        x, y = rng.uniform(0, places.width), rng.uniform(0, places.height)
        ground = places.ground(x, y)
        if not labels_on[ground]:
            continue
        label = int(rng.choice(labels_on[ground]))
        look = looks[label]
        length = rng.uniform(*look.length)
        width = length / rng.uniform(*look.aspect)
        angle = 0.0 if look.round else rng.uniform(-math.pi, math.pi)
        count = int(rng.integers(1, look.group + 1)) if rng.random() < 0.5 else 1
        step = width * rng.uniform(1.25, 1.6)
        for index in range(min(count, target - len(boxes))):
            box = (x - math.sin(angle) * step * index, y + math.cos(angle) * step * index, length, width, angle)
            if not places.take(box, look.ground):
                break
            boxes.append(box)
            labels.append(label)
    return boxes, labels


def _draw_clutter(rng, image, shadow, places, sun):
    """Trees, rocks and bare pads: things that are no objects."""
    area = places.height * places.width / 256**2
    pads = []
    for _ in range(rng.poisson(1.5 * area)):
        length = rng.uniform(14, 44)
        box = (rng.uniform(0, places.width), rng.uniform(0, places.height), length, length / rng.uniform(1, 3))
        box = (*box, rng.uniform(0, math.pi))
        if places.take(box, "land"):
            pads.append(box)
    for box in pads:
        _Pen(image, box).rectangle(-1, -1, 1, 1, _pick(rng, ((150, 148, 142), (98, 98, 100), (160, 142, 112)), 8))
    blobs = []
    for _ in range(rng.poisson(4 * area)):
        x, y = rng.uniform(0, places.width), rng.uniform(0, places.height)
        rock = rng.random() < 0.2
        for _ in range(int(rng.integers(1, 7))):
            radius = rng.uniform(2.5, 5 if rock else 8)
            box = (x + rng.normal(0, 12), y + rng.normal(0, 12), 2 * radius, 2 * radius, rng.uniform(0, math.pi))
            if places.take(box, None if rock else "land"):
                blobs.append((box, rock))
    for box, rock in blobs:
        if not rock:
            _Pen(shadow, box, sun, shadow_length=0.5 * box[2]).disc(0, 0, 1, 255)
    return blobs


def _draw_blobs(rng, image, blobs, sun):
    for box, rock in blobs:
        pen = _Pen(image, box, sun)
        colour = _vary(rng, (126, 120, 112) if rock else (58, 84, 44), 10)
        angles = np.linspace(0, 2 * math.pi, 11)[:-1]
        ragged = rng.uniform(0.72, 1.1, 10)
        outline = np.stack([ragged * np.cos(angles), ragged * np.sin(angles)], axis=-1)
        x, y = pen.light
        pen.shape(outline, _shade(colour, 0.8))
        pen.shape(outline * 0.7 + np.array([x, y]) * 0.2, colour)
        pen.shape(outline * 0.35 + np.array([x, y]) * 0.35, _shade(colour, 1.25))


class _Ground(NamedTuple):
    """A place before its objects are drawn: what all its dates have in common."""

    image: np.ndarray  # with pads
    water: np.ndarray
    shadow: np.ndarray  # of the blobs
    blobs: list
    sun: tuple
    boxes: list
    labels: list
    seeds: np.ndarray


def _lay_out(rng, size, looks, objects_per_scene):
    height, width = size
    grounds = {look.ground for look in looks}
    with_water = "water" in grounds and (grounds == {"water"} or rng.random() < 0.6)
    image, water = _draw_ground(rng, height, width, with_water)
    sun_angle = rng.uniform(0, 2 * math.pi)
    sun = (math.cos(sun_angle), math.sin(sun_angle))
    places = _Places(height, width, water)
    boxes, labels = _place_objects(rng, places, looks, objects_per_scene)
    shadow = np.zeros((height, width), np.uint8)
    blobs = _draw_clutter(rng, image, shadow, places, sun)
    seeds = rng.integers(2**32, size=len(boxes))
    return _Ground(image, water, shadow, blobs, sun, boxes, labels, seeds)


def _draw_date(rng, ground, looks, shown):
    """The place at one date. Args: rng; ground; looks; shown, bool for each object. Returns: [H, W, 3] uint8."""
    objects = [
        entry
        for entry, drawn in zip(zip(ground.boxes, ground.labels, ground.seeds, strict=True), shown, strict=True)
        if drawn
    ]
    shadow, sun = ground.shadow.copy(), ground.sun
    height, width = shadow.shape
    for box, label, seed in objects:
        look = looks[label]
        if look.height:
            # the shadow is the object's own drawing in one colour, moved away from the sun
            look.draw(_Pen(shadow, box, sun, shadow_length=look.height * box[3]), np.random.default_rng(seed))
    dark = cv2.GaussianBlur(shadow, (3, 3), 0.8)
    strength = rng.uniform(0.35, 0.6)
    shade = cv2.merge([cv2.convertScaleAbs(dark, alpha=-strength, beta=255)] * 3)
    image = cv2.multiply(ground.image, shade, scale=1 / 255)
    _draw_blobs(rng, image, ground.blobs, sun)
    for box, label, seed in objects:
        looks[label].draw(_Pen(image, box, sun), np.random.default_rng(seed))

    # What the camera adds: a little blur, haze or contrast, and grain.
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    grain = rng.standard_normal((height, width), np.float32) * rng.uniform(2, 6) + 3 * _noise(rng, height, width, 3)
    image = image.astype(np.float32) * rng.uniform(0.85, 1.15) + rng.normal(0, 6)
    image += grain[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _silhouette(ground, looks, index):
    """[H, W] bool: the pixels of one object."""
    drawn = np.zeros(ground.shadow.shape, np.uint8)
    # A shadow that falls (almost) under the object itself.
    pen = _Pen(drawn, ground.boxes[index], ground.sun, shadow_length=1e-6)
    looks[ground.labels[index]].draw(pen, np.random.default_rng(ground.seeds[index]))
    return drawn >= 128


def draw_scene(rng, size, looks, objects_per_scene):
    """Draws one scene.

    Args:
      rng: np.random.Generator; the scene depends on nothing else.
      size: (rows, columns) in pixels.
      looks: the Look of each class.
      objects_per_scene: smallest and largest number of objects; a crowded scene may hold fewer.

    Returns:
      (image [H, W, 3] uint8 RGB, boxes [N, 5] float64 (cx, cy, length, width, angle), labels [N] int32).
    """
    ground = _lay_out(rng, size, looks, objects_per_scene)
    image = _draw_date(rng, ground, looks, [True] * len(ground.boxes))
    return image, np.array(ground.boxes, np.float64).reshape(-1, 5), np.array(ground.labels, np.int32)


def draw_scene_with_mask(rng, size, looks, objects_per_scene):
    """Draws one scene and says what each pixel shows.

    Args:
      rng, size, looks, objects_per_scene: as in `draw_scene`, whose scene it is.

    Returns:
      (image [H, W, 3] uint8 RGB, mask [H, W] uint8: 0 land, 1 water, 2 + label an object).
    """
    ground = _lay_out(rng, size, looks, objects_per_scene)
    mask = ground.water.astype(np.uint8)
    for index, label in enumerate(ground.labels):
        mask[_silhouette(ground, looks, index)] = 2 + label
    return _draw_date(rng, ground, looks, [True] * len(ground.boxes)), mask


def draw_pair(rng, size, looks, objects_per_scene):
    """Draws one place at two dates: other light and another camera, some objects gone and some new.

    Args:
      rng, size, looks, objects_per_scene: as in `draw_scene`; the number of objects is that of both dates together.

    Returns:
      (before [H, W, 3] uint8 RGB, after, mask [H, W] uint8: 1 where an object came or went).
    """
    ground = _lay_out(rng, size, looks, objects_per_scene)
    fate = rng.random(len(ground.boxes))  # below 1/4 the object is gone later, above 3/4 it is new
    mask = np.zeros(size, np.uint8)
    for index in np.flatnonzero((fate < 0.25) | (fate > 0.75)):
        mask[_silhouette(ground, looks, index)] = 1
    return _draw_date(rng, ground, looks, fate <= 0.75), _draw_date(rng, ground, looks, fate >= 0.25), mask
