"""Generated aerial scenes with oriented objects: something to train on and to test with where no data set is at hand.

A scene is ground (noise, fields, roads, sometimes water), clutter that is no object (trees, rocks, pads), and objects
with their shadows. Every object touches the four sides of its box. The sun stands still within a scene.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from haksnet_jax.geometry.polygons import boxes_to_polygons
from haksnet_jax.pipeline.scene_objects import Pen, pick, shade, vary

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
    dark, light = (vary(rng, colour, 8) for colour in _GROUNDS[rng.integers(len(_GROUNDS))])
    share = np.linspace(0, 1, 256)[:, None]
    palette = np.rint(np.clip(dark * (1 - share) + light * share, 0, 255)).astype(np.uint8)
    image = palette[np.clip(broad * 50 + 128, 0, 255).astype(np.uint8)]

    grid_angle = rng.uniform(0, math.pi)  # fields and roads of a place share their directions
    area = height * width / 256**2
    for _ in range(rng.poisson(2.0 * area)):
        angle = grid_angle + rng.integers(2) * math.pi / 2
        box = (rng.uniform(0, width), rng.uniform(0, height), rng.uniform(60, 180), rng.uniform(40, 120), angle)
        pen, colour = Pen(image, box), pick(rng, _FIELDS)
        pen.rectangle(-1, -1, 1, 1, colour)
        furrows = int(rng.integers(6, 22))
        for x in np.linspace(-1, 1, furrows, endpoint=False):
            pen.rectangle(x, -1, x + 1 / furrows, 1, shade(colour, 0.93))
    for _ in range(rng.poisson(1.2 * math.sqrt(area))):
        angle = grid_angle + rng.integers(2) * math.pi / 2 + rng.normal(0, 0.03)
        road_width = rng.uniform(9, 20)
        reach = 2.0 * max(height, width)
        pen = Pen(image, (rng.uniform(0, width), rng.uniform(0, height), reach, road_width, angle))
        asphalt = vary(rng, (112, 112, 112), 10)
        pen.rectangle(-1, -1, 1, 1, shade(asphalt, 1.25))
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
        beach = vary(rng, (188, 176, 146), 8).astype(np.float32)
        sea = vary(rng, _WATERS[rng.integers(len(_WATERS))], 8).astype(np.float32)
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
        Pen(image, box).rectangle(-1, -1, 1, 1, pick(rng, ((150, 148, 142), (98, 98, 100), (160, 142, 112)), 8))
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
            Pen(shadow, box, sun, shadow_length=0.5 * box[2]).disc(0, 0, 1, 255)
    return blobs


def _draw_blobs(rng, image, blobs, sun):
    for box, rock in blobs:
        pen = Pen(image, box, sun)
        colour = vary(rng, (126, 120, 112) if rock else (58, 84, 44), 10)
        angles = np.linspace(0, 2 * math.pi, 11)[:-1]
        ragged = rng.uniform(0.72, 1.1, 10)
        outline = np.stack([ragged * np.cos(angles), ragged * np.sin(angles)], axis=-1)
        x, y = pen.light
        pen.shape(outline, shade(colour, 0.8))
        pen.shape(outline * 0.7 + np.array([x, y]) * 0.2, colour)
        pen.shape(outline * 0.35 + np.array([x, y]) * 0.35, shade(colour, 1.25))


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
            look.draw(Pen(shadow, box, sun, shadow_length=look.height * box[3]), np.random.default_rng(seed))
    dark = cv2.GaussianBlur(shadow, (3, 3), 0.8)
    strength = rng.uniform(0.35, 0.6)
    shade = cv2.merge([cv2.convertScaleAbs(dark, alpha=-strength, beta=255)] * 3)
    image = cv2.multiply(ground.image, shade, scale=1 / 255)
    _draw_blobs(rng, image, ground.blobs, sun)
    for box, label, seed in objects:
        looks[label].draw(Pen(image, box, sun), np.random.default_rng(seed))

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
    pen = Pen(drawn, ground.boxes[index], ground.sun, shadow_length=1e-6)
    looks[ground.labels[index]].draw(pen, np.random.default_rng(ground.seeds[index]))
    return drawn >= 128


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], looks: Sequence[Any], objects_per_scene: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def draw_scene_with_mask(
    rng: np.random.Generator, size: tuple[int, int], looks: Sequence[Any], objects_per_scene: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
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


def draw_pair(
    rng: np.random.Generator, size: tuple[int, int], looks: Sequence[Any], objects_per_scene: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
