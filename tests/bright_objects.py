"""A stand-in for the network that finds bright rectangles on dark ground, and a checkpoint to load it from.

It sees no more than the pixels of one window, like the network, and gives larger pieces higher scores.
"""

import json

import cv2
import numpy as np
from reference_weights import make_state_dict

from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.inference import detection_evaluator, detection_session
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.structures import PaddedDetections
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.torch_weights import from_torch, read_architecture

CLASS_NAMES = CLASSES["dota10"]
MOST = 50


def find_bright(image):
    """[(box, score, label)] of the bright rectangles in [H, W, 3]: label 0, or 1 where red is missing."""
    count, regions = cv2.connectedComponents((image.max(axis=-1) > 200).astype(np.uint8))
    found = []
    for number in range(1, count):
        points = np.argwhere(regions == number)[:, ::-1].astype(np.float32)
        if len(points) < 12:
            continue
        # Pixel corners and not centres, so that a square of 10 pixels is 10 wide.
        corners = np.concatenate([points + np.float32(offset) for offset in ((0, 0), (1, 0), (1, 1), (0, 1))])
        polygon = cv2.boxPoints(cv2.minAreaRect(corners))
        box = polygons_to_boxes(polygon[None])[0][0]
        y, x = points.mean(axis=0)[::-1].astype(int)
        found.append((box, min(0.99, 0.5 + len(points) / 10000), int(image[y, x, 0] < 100)))
    return found


class BrightObjects:
    """Takes the place of `detection_session.make_step`; counts the images that it was given."""

    def __init__(self):
        self.num_images = 0
        self.shapes = set()

    def __call__(self, graph, mesh, **settings):
        def step(variables, images, image_size, scale, score=0.05):
            images, image_size, scale = np.asarray(images), np.asarray(image_size), np.asarray(scale)
            self.shapes.add(images.shape)
            rows = []
            for image, size in zip(images, image_size, strict=True):
                self.num_images += int(image.any())
                found = find_bright(image[: size[0], : size[1]])[:MOST]
                boxes, scores, labels = np.zeros((MOST, 5)), np.zeros(MOST), np.zeros(MOST)
                for row, (box, certainty, label) in enumerate(found):
                    boxes[row], scores[row], labels[row] = box, certainty, label
                rows.append((boxes, scores, labels, scores > score, 0))
            boxes, scores, labels, valid, cut = map(np.stack, zip(*rows, strict=True))
            boxes = boxes / np.concatenate([scale, scale, np.ones((len(scale), 1))], axis=1)[:, None]
            return PaddedDetections(
                boxes.astype(np.float32),
                scores.astype(np.float32),
                labels.astype(np.int32),
                valid,
                cut.astype(np.int32),
            )

        return step


def use_bright_objects(monkeypatch):
    """Replaces the compiled network. Returns: the BrightObjects."""
    stand_in = BrightObjects()
    for module in (detection_session, detection_evaluator):
        monkeypatch.setattr(module, "make_step", stand_in)
    return stand_in


def save_tiny(folder, state_dict_file, *, input_size):
    """Saves the small reference detector. Returns: the checkpoint's folder."""
    state_dict = make_state_dict(json.loads(state_dict_file.read_text())["entries"])
    architecture = read_architecture(state_dict)
    info = {
        "architecture": architecture,
        "class_names": list(CLASS_NAMES),
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "input_size": list(input_size),
        "keep_ratio": True,
        "padding_divisor": 32,
    }
    model_folder.save_model(folder, from_torch(state_dict, architecture)[0], info)
    return folder


def scene(height, width, boxes, *, ground=40):
    """uint8 [H, W, 3] RGB with a bright rectangle for each (cx, cy, w, h, degrees) on ground that is not uniform."""
    image = np.full((height, width, 3), ground, np.uint8)
    image[::7, ::5] = ground // 2
    for cx, cy, w, h, degrees in boxes:
        # Sixteenths of a pixel; fillConvexPoly takes pixel centres, boxes the pixels' outer edges.
        corners = (cv2.boxPoints(((cx - 0.5, cy - 0.5), (w - 1, h - 1), degrees)) * 16).round().astype(np.int32)
        cv2.fillConvexPoly(image, corners, (250, 250, 250), shift=4)
    return image
