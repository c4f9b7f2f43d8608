"""Images that the device moves, against SciPy's interpolation and OpenCV's, and a training row against the host's."""

import cv2
import jax
import numpy as np
import pytest
import scipy.ndimage

from haksnet_jax.errors import UserError
from haksnet_jax.kernels.warp import warp_affine
from haksnet_jax.pipeline.detection_rows import Augment, TrainingRow
from haksnet_jax.pipeline.transforms import move_matrix


def _turn(height, width, degrees):
    return cv2.invertAffineTransform(move_matrix((height, width), None, degrees)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_it_interpolates_as_scipy_does(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 40, channels), np.uint8)
    size = np.array([[30, 40], [21, 33]], np.int32)
    matrices = np.stack([_turn(30, 40, 20.0), _turn(21, 33, -130.0)])
    found = np.asarray(jax.jit(warp_affine)(images, matrices, size))
    rows, columns = np.mgrid[:30, :40].astype(np.float64)
    for i, (height, width) in enumerate(size):
        x, y = np.tensordot(matrices[i].astype(np.float64), np.stack([columns, rows, np.ones_like(rows)]), 1)
        assert (found[i, height:] == images[i, height:]).all() and (found[i, :, width:] == images[i, :, width:]).all()
        for band in range(channels):
            content = images[i, :height, :width, band].astype(np.float64)
            expected = scipy.ndimage.map_coordinates(content, [y, x], order=1, mode="grid-constant")
            # (half a level of rounding, and a thousandth for places in float32)
            assert np.abs(found[i, ..., band] - expected)[:height, :width].max() < 0.51


def test_nothing_moves_by_the_identity():
    images = np.random.default_rng(0).integers(0, 256, (1, 17, 23, 3), np.uint8)
    found = warp_affine(images, np.eye(2, 3, dtype=np.float32)[None], np.array([[17, 23]], np.int32))
    np.testing.assert_array_equal(found, images)


def _example(height=120, width=100):
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 4)
    smooth = np.uint8(np.clip((smooth.astype(float) - 128) * 5 + 128, 0, 255))
    polygons = np.array([[[30, 30], [70, 40], [66, 60], [26, 50]]], np.float32).reshape(1, 8)
    return {"image": smooth, "polygons": polygons, "labels": np.zeros(1, np.int32), "image_id": "a"}


@pytest.mark.parametrize("quarter", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_the_device_turns_is_that_of_the_host(seed, quarter):
    def row(where):
        augment = Augment(rotation_probability=1.0, rotate_on=where, quarter_turn_classes=("a",) if quarter else ())
        made = TrainingRow(image_size=(128, 128), max_boxes=3, class_names=("a",), augment=augment, resize="none")
        return made(_example(), np.random.default_rng(seed))

    on_host, on_device = row("host"), row("device")
    turned = warp_affine(on_device["image"][None], on_device.pop("turn")[None], on_device["image_size"][None])[0]
    difference = np.abs(np.asarray(turned).astype(int) - on_host["image"])  # padding too
    # OpenCV places a pixel to the 32nd of one; a step of an image as smooth as this one is up to 30 levels.
    assert difference.max() <= 4 and difference.mean() < 0.5
    for name in on_host.keys() - {"image"}:
        np.testing.assert_array_equal(on_host[name], on_device[name])


def test_another_place_is_refused():
    with pytest.raises(UserError, match=r"augment\.rotate_on: expected host or device, got 'gpu'"):
        TrainingRow(image_size=(64, 64), max_boxes=3, class_names=("a",), augment=Augment(rotate_on="gpu"))
