import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.geometry import boxes as ops

# The reference and this project compute the same few float32 products and sums in another order; coordinates reach
# 1100 px, where one unit in the last place is 1.2e-4 px.
PIXEL = 3e-4


@pytest.fixture(params=["numpy", "jax"])
def array(request):
    return {"numpy": np.asarray, "jax": jnp.asarray}[request.param]


def angle_distance(a, b, period=math.pi):
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.abs(difference - period * np.round(difference / period))


def random_boxes(seed, n, angle=7.0):
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(0, 1000, (n, 2)), rng.uniform(1, 300, (n, 2)), rng.uniform(-angle, angle, (n, 1))], axis=1
    ).astype(np.float32)


def point_set(corners):
    """Corners in an order that only depends on the points."""
    corners = np.asarray(corners, np.float64)
    centred = corners - corners.mean(axis=-2, keepdims=True)
    order = np.argsort(np.arctan2(centred[..., 1], centred[..., 0]), axis=-1)
    return np.take_along_axis(corners, order[..., None], axis=-2)


def test_corners_are_those_of_the_reference(golden, array):
    fixture = golden("box_transforms")
    corners = ops.boxes_to_corners(array(fixture["obb"]))
    fixture.compare("obb2poly", np.asarray(corners).reshape(-1, 8), rtol=0, atol=PIXEL)


def test_enclosing_boxes_are_those_of_the_reference(golden, array):
    fixture = golden("box_transforms")
    hboxes = ops.boxes_to_hboxes(array(fixture["obb"]))
    fixture.compare("obb2xyxy", hboxes, rtol=0, atol=PIXEL)
    as_oriented = np.asarray(ops.hboxes_to_boxes(hboxes))
    expected = fixture["obb2hbb"]
    # The sides are differences of rounded coordinates; where they are equal within rounding, either may be the width.
    same_side = angle_distance(as_oriented[:, 4], expected[:, 4]) < 1e-4
    assert np.all(same_side | (np.abs(expected[:, 2] - expected[:, 3]) < 2 * PIXEL))
    np.testing.assert_allclose(as_oriented[:, :4], expected[:, :4], rtol=0, atol=2 * PIXEL)


def test_axis_parallel_boxes_become_those_of_the_reference(golden, array):
    fixture = golden("box_transforms")
    fixture.compare("hbb2obb", ops.hboxes_to_boxes(array(fixture["hbb"])), rtol=1e-6, atol=PIXEL)


def test_angles_are_reduced_as_in_the_reference(golden, array):
    fixture = golden("box_transforms")
    angles = fixture["norm_angle/in"]
    boxes = np.zeros((len(angles), 5), np.float32)
    boxes[:, 2:4], boxes[:, 4] = (2, 1), angles
    result = np.asarray(ops.to_le90(array(boxes)))[:, 4]
    # float32 angles up to 7 rad: half a unit in the last place of 8 is 2.4e-7, over two sums.
    assert angle_distance(result, fixture["norm_angle/out_numpy_f64"]).max() < 1e-6
    assert angle_distance(result, fixture["norm_angle/out"]).max() < 1e-6


def test_le90_keeps_the_rectangle_and_its_bounds(array):
    boxes = random_boxes(0, 500)
    result = ops.to_le90(array(boxes))
    out = np.asarray(result)
    assert out.dtype == np.float32
    assert np.all(out[:, 2] >= out[:, 3])
    assert np.all((out[:, 4] >= np.float32(-math.pi / 2)) & (out[:, 4] < np.float32(math.pi / 2)))
    before, after = point_set(ops.boxes_to_corners(boxes)), point_set(ops.boxes_to_corners(out))
    # An angle near 7 has an error of 5e-7 rad, the farthest corner is 210 px away: 1e-4 px beside the rounding.
    np.testing.assert_allclose(after, before, rtol=0, atol=2 * PIXEL)


def test_le90_angle_is_below_a_quarter_turn_at_every_float_near_the_ends(array):
    near = [np.float32(k * math.pi / 2) for k in range(-5, 6)]
    angles = [value for end in near for value in neighbours(end, 40)]
    for sides in ((3, 2), (2, 3)):
        boxes = np.zeros((len(angles), 5), np.float32)
        boxes[:, 2:4], boxes[:, 4] = sides, angles
        result = np.asarray(ops.to_le90(array(boxes)))[:, 4]
        assert np.all((result >= np.float32(-math.pi / 2)) & (result < np.float32(math.pi / 2)))


def neighbours(value, n):
    up, down = [value], [value]
    for _ in range(n):
        up.append(np.nextafter(up[-1], np.float32(np.inf)))
        down.append(np.nextafter(down[-1], np.float32(-np.inf)))
    return up + down[1:]


def test_le90_of_its_own_output_changes_nothing(array):
    once = np.asarray(ops.to_le90(array(random_boxes(1, 300))))
    twice = np.asarray(ops.to_le90(array(once)))
    np.testing.assert_allclose(twice, once, rtol=0, atol=3e-7)  # adding and taking away pi/2 rounds


def test_corners_by_hand(array):
    boxes = array(np.array([[10, 20, 6, 4, 0], [10, 20, 6, 4, -math.pi / 2]], np.float32))
    expected = [
        [[7, 18], [13, 18], [13, 22], [7, 22]],
        [[8, 23], [8, 17], [12, 17], [12, 23]],  # turned by a quarter against the clock: the width points up
    ]
    np.testing.assert_allclose(ops.boxes_to_corners(boxes), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ops.boxes_to_hboxes(boxes), [[7, 18, 13, 22], [8, 17, 12, 23]], rtol=0, atol=1e-5)


def test_enclosing_box_is_the_extent_of_the_corners(array):
    boxes = random_boxes(2, 200)
    corners = np.asarray(ops.boxes_to_corners(array(boxes)))
    expected = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
    np.testing.assert_allclose(ops.boxes_to_hboxes(array(boxes)), expected, rtol=0, atol=PIXEL)


def test_areas(array):
    hboxes = array(np.array([[1, 2, 4, 8], [5, 5, 5, 9], [4, 4, 2, 2]], np.float32))
    np.testing.assert_array_equal(ops.hbox_area(hboxes), [18, 0, 0])
    np.testing.assert_array_equal(ops.box_area(array(np.array([[0, 0, 3, 2, 1]], np.float32))), [6])


def test_leading_axes_and_no_boxes_at_all(array):
    boxes = array(random_boxes(3, 12).reshape(2, 6, 5))
    assert ops.boxes_to_corners(boxes).shape == (2, 6, 4, 2)
    assert ops.boxes_to_hboxes(boxes).shape == (2, 6, 4)
    assert ops.to_le90(boxes[0, 0]).shape == (5,)
    for function, shape in ((ops.to_le90, (0, 5)), (ops.boxes_to_corners, (0, 4, 2)), (ops.boxes_to_hboxes, (0, 4))):
        assert function(array(np.zeros((0, 5), np.float32))).shape == shape
    assert ops.hboxes_to_boxes(array(np.zeros((0, 4), np.float32))).shape == (0, 5)


def test_float64_stays_float64_on_the_host():
    boxes = random_boxes(4, 5).astype(np.float64)
    for function in (ops.to_le90, ops.boxes_to_corners, ops.boxes_to_hboxes):
        assert function(boxes).dtype == np.float64


def test_gradients_of_degenerate_boxes_are_finite_under_jit_and_vmap():
    boxes = jnp.asarray(np.array([[[5, 5, 0, 0, 0]], [[5, 5, 3, 3, -math.pi / 2]]], np.float32))
    chain = jax.jit(jax.vmap(lambda b: ops.boxes_to_corners(ops.hboxes_to_boxes(ops.boxes_to_hboxes(ops.to_le90(b))))))
    gradient = jax.grad(lambda b: (chain(b) ** 2).sum())(boxes)
    assert np.isfinite(gradient).all()
