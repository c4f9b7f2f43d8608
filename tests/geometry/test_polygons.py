"""Quadrilaterals as le90 boxes and back, and their share outside an image."""

import math

import numpy as np
import pytest
import shapely

from haksnet_jax.geometry.polygons import boxes_to_polygons, outside_fraction, polygons_to_boxes


def assert_boxes_equal(actual, expected, *, pixels=1e-3, radians=1e-4):
    """Equal within the tolerance that the recorded reference states (1e-3 pixel, 1e-4 rad, angle modulo pi)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual[:, :4], expected[:, :4], atol=pixels, rtol=0)
    turn = (actual[:, 4] - expected[:, 4] + math.pi / 2) % math.pi - math.pi / 2
    np.testing.assert_allclose(turn, 0, atol=radians)


def test_boxes_of_polygons_equal_the_reference(golden):
    recorded = golden("box_transforms")
    boxes, valid = polygons_to_boxes(recorded["poly2obb_np/polys"].reshape(-1, 4, 2), min_side=2.0)
    np.testing.assert_array_equal(valid, recorded["poly2obb_np/valid"] > 0)
    assert_boxes_equal(boxes, recorded["poly2obb_np/obbs"])


def test_boxes_go_to_polygons_and_back():
    rng = np.random.default_rng(0)
    w = rng.uniform(5, 200, 200)
    boxes = np.stack(
        [rng.uniform(0, 1000, 200), rng.uniform(0, 1000, 200), w, w * rng.uniform(0.1, 0.95, 200)]
        + [rng.uniform(-math.pi / 2, math.pi / 2, 200)],
        axis=-1,
    )
    back, valid = polygons_to_boxes(boxes_to_polygons(boxes))
    assert valid.all()
    # float32 corners near 1000 px are 6e-5 px coarse, which turns the shortest side (5 px) by 2e-5 rad
    assert_boxes_equal(back, boxes, pixels=2e-3, radians=2e-4)


@pytest.mark.parametrize("degrees", [0.0, 15.0, 45.0, 89.0, 90.0, 135.0, 180.0])
def test_angles_stay_in_le90_for_squares_and_upright_boxes(degrees):
    for w, h in [(40, 40), (40, 10)]:
        polygon = boxes_to_polygons([[100, 100, w, h, math.radians(degrees)]])
        (box,), _ = polygons_to_boxes(polygon)
        assert box[2] >= box[3]
        assert np.float32(-math.pi / 2) <= box[4] < np.float32(math.pi / 2)
        same = shapely.intersection(shapely.polygons(polygon[0]), shapely.polygons(boxes_to_polygons(box)[0]))
        assert shapely.area(same) == pytest.approx(w * h, rel=1e-4)  # float32 corners


def test_outside_fraction_is_the_cut_share_of_the_area():
    polygons = np.array(
        [
            [[10, 10], [20, 10], [20, 20], [10, 20]],  # inside
            [[-5, 10], [5, 10], [5, 20], [-5, 20]],  # half
            [[-5, -5], [5, -5], [5, 5], [-5, 5]],  # three quarters
            [[200, 10], [210, 10], [210, 20], [200, 20]],  # outside
            [[100, 0], [110, 0], [110, 10], [100, 10]],  # touches the border from outside
        ],
        float,
    )
    np.testing.assert_allclose(outside_fraction(polygons, 100, 50), [0, 0.5, 0.75, 1, 1], atol=1e-12)
    assert outside_fraction(np.zeros((0, 4, 2)), 10, 10).shape == (0,)
