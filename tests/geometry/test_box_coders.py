import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.geometry import box_coders
from haksnet_jax.geometry.boxes import hboxes_to_boxes, to_le90

encode_midpoint = jax.jit(functools.partial(box_coders.encode_midpoint_offset, stds=(1, 1, 1, 1, 0.5, 0.5)))
decode_midpoint = jax.jit(functools.partial(box_coders.decode_midpoint_offset, stds=(1, 1, 1, 1, 0.5, 0.5)))
encode_delta = jax.jit(functools.partial(box_coders.encode_delta_xywha, stds=(0.1, 0.1, 0.2, 0.2, 0.1)))
decode_delta = jax.jit(functools.partial(box_coders.decode_delta_xywha, stds=(0.1, 0.1, 0.2, 0.2, 0.1)))


def turned(a, b, period=math.pi):
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.abs(difference - period * np.round(difference / period))


def assert_same_boxes(result, expected, relative):
    """Sides and centres within `relative` of the width (or a pixel), angles within `relative` modulo pi."""
    result, expected = np.asarray(result), np.asarray(expected)
    width = np.maximum(expected[:, 2], 1)
    assert (np.abs(result[:, 2:4] - expected[:, 2:4]) / width[:, None]).max() < relative
    # Centres are coordinates up to a few thousand px: their float32 rounding comes on top.
    rounding = 2.5e-7 * np.abs(expected[:, :2])
    assert np.all(np.abs(result[:, :2] - expected[:, :2]) < relative * width[:, None] + rounding)
    square = expected[:, 2] - expected[:, 3] < 1e-3 * width  # either side may be the width
    assert np.where(square, turned(result[:, 4], expected[:, 4], math.pi / 2), 0).max() < relative
    assert np.where(square, 0, turned(result[:, 4], expected[:, 4])).max() < relative


def random_pairs(seed, n):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1000, (n, 2))
    sides = np.sort(rng.uniform(4, 200, (n, 2)), axis=1)[:, ::-1]
    boxes = np.concatenate([centres, sides, rng.uniform(-math.pi / 2, math.pi / 2, (n, 1))], axis=1)
    other = boxes + rng.normal(0, 1, boxes.shape) * [5, 5, 0, 0, 0.5]
    other[:, 2:4] *= np.exp(rng.normal(0, 0.3, (n, 2)))
    size = rng.uniform(10, 200, (n, 2))
    anchors = np.concatenate([centres - size / 2, centres + size / 2], axis=1)
    as_float32 = [x.astype(np.float32) for x in (anchors, boxes, to_le90(other))]
    return as_float32


def decode_midpoint_in_float64(anchor, delta):
    """The definition, point by point: parallelogram, diagonals made equal, sides measured."""
    x1, y1, x2, y2 = anchor.astype(np.float64)
    dx, dy, dw, dh, da, db = delta.astype(np.float64) * [1, 1, 1, 1, 0.5, 0.5]
    limit = -math.log(16 / 1000)
    w, h = (x2 - x1) * math.exp(np.clip(dw, -limit, limit)), (y2 - y1) * math.exp(np.clip(dh, -limit, limit))
    centre = np.array([(x1 + x2) / 2 + (x2 - x1) * dx, (y1 + y2) / 2 + (y2 - y1) * dy])
    top, right = np.array([np.clip(da, -0.5, 0.5) * w, -h / 2]), np.array([w / 2, np.clip(db, -0.5, 0.5) * h])
    radius = max(math.hypot(*top), math.hypot(*right))
    top, right = top / math.hypot(*top) * radius, right / math.hypot(*right) * radius
    sides = sorted([right - top, right + top], key=lambda v: -math.hypot(*v))
    angle = (math.atan2(sides[0][1], sides[0][0]) + math.pi / 2) % math.pi - math.pi / 2
    return [*centre, math.hypot(*sides[0]), math.hypot(*sides[1]), angle]


def test_midpoint_encoding_is_that_of_the_reference(golden):
    fixture = golden("coder_midpoint_offset")
    deltas = encode_midpoint(fixture["encode/anchors"], fixture["encode/gts"])
    # The reference takes differences of float32 coordinates near 1000 px (6e-5 px) over sides from 4 px on, and
    # divides by 0.5; its own distance from float64 is 1.8e-4 by the manifest.
    fixture.compare("encode/deltas", deltas, rtol=1e-5, atol=5e-5)


def test_midpoint_decoding_is_that_of_the_reference(golden):
    fixture = golden("coder_midpoint_offset")
    # Rounding of the reference's corner coordinates (6e-5 px) relative to boxes of a few pixels.
    decoded = decode_midpoint(fixture["encode/anchors"], fixture["encode/deltas"])
    assert_same_boxes(decoded, fixture["encode/decoded_back"], 3e-5)
    decoded = decode_midpoint(fixture["decode/anchors"], fixture["decode/deltas"])
    assert_same_boxes(decoded, fixture["decode/boxes"], 3e-5)


def test_midpoint_decoding_is_its_definition_in_float64(golden):
    fixture = golden("coder_midpoint_offset")
    anchors, deltas = fixture["decode/anchors"], fixture["decode/deltas"]
    expected = np.array([decode_midpoint_in_float64(a, d) for a, d in zip(anchors, deltas, strict=True)])
    # Nothing but a dozen float32 operations lies between; the anchor's size is a difference of coordinates.
    assert_same_boxes(decode_midpoint(anchors, deltas), expected, 1e-5)


def test_midpoint_targets_of_a_training_step_are_those_of_the_reference(golden):
    from haksnet_jax.geometry.anchors import anchor_grid

    fixture = golden("train_step_tiny")
    anchors = anchor_grid((512, 512), (4, 8, 16, 32, 64), scale=8.0, ratios=(0.5, 1, 2))[
        fixture["main/img0/rpn/pos_inds_global"]
    ]
    boxes = fixture["main/img0/gt_boxes"][fixture["main/img0/rpn/pos_assigned_gt"]]
    # See above for the tolerance: the coordinates are below 512 px here.
    fixture.compare("main/img0/rpn/pos_bbox_targets", encode_midpoint(anchors, boxes), rtol=1e-5, atol=1e-5)


def test_delta_encoding_is_that_of_the_reference(golden):
    fixture = golden("coder_delta_xywha")
    deltas = np.array(encode_delta(fixture["encode/rois"], fixture["encode/gts"]))
    expected = fixture["encode/deltas"]
    decided_by_rounding = slice(33, 40)  # turned by pi/4 exactly, says the manifest
    deltas[decided_by_rounding] = expected[decided_by_rounding]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6, atol=5e-6)  # divided by 0.1: ten times the rounding


@pytest.mark.parametrize(
    ("image_size", "key"), [(None, "boxes_no_max_shape"), ((900, 1000), "boxes_max_shape_900x1000")]
)
def test_delta_decoding_is_that_of_the_reference(golden, image_size, key):
    fixture = golden("coder_delta_xywha")
    boxes = decode_delta(fixture["decode/rois"], fixture["decode/deltas"], image_size=image_size)
    assert_same_boxes(boxes, fixture[f"decode/{key}"], 1e-5)
    boxes = decode_delta(fixture["encode/rois"], fixture["encode/deltas"])
    assert_same_boxes(boxes, fixture["encode/decoded_back"], 1e-5)


def test_decoding_undoes_encoding():
    anchors, boxes, proposals = random_pairs(0, 500)
    # exp(log(x)) and a few sums: 1e-5 of the width, some tens of units in the last place.
    assert_same_boxes(decode_delta(proposals, encode_delta(proposals, boxes)), boxes, 1e-5)
    # Corners closer than 0.1 px to the top or right side count as on it: nearly axis-parallel boxes come back changed.
    slope = np.abs(np.sin(2 * boxes[:, 4])) * boxes[:, 3] / 2
    clear = slope > 0.2
    assert clear.mean() > 0.9
    assert_same_boxes(decode_midpoint(anchors, encode_midpoint(anchors, boxes))[clear], boxes[clear], 2e-5)


def test_zero_deltas_give_the_proposal_and_the_anchor_midpoint_rhombus():
    proposals = np.array([[50, 60, 30, 10, 0.3]], np.float32)
    np.testing.assert_allclose(decode_delta(proposals, np.zeros((1, 5), np.float32)), proposals, rtol=1e-6)
    # The reference's `gw > gh` names a square's sides the other way round.
    square = np.array([[50, 60, 10, 10, 0.3]], np.float32)
    decoded = decode_delta(square, np.zeros((1, 5), np.float32))
    np.testing.assert_allclose(decoded, [[50, 60, 10, 10, 0.3 - math.pi / 2]], rtol=1e-6)
    # Midpoints of the sides of a 40 x 20 anchor: half diagonals of 20 and 10 px, both made 20: a square of side 28.28.
    decoded = decode_midpoint(np.array([[0, 0, 40, 20]], np.float32), np.zeros((1, 6), np.float32))
    np.testing.assert_allclose(decoded[0, :4], [20, 10, 20 * math.sqrt(2), 20 * math.sqrt(2)], rtol=1e-6)


def test_axis_parallel_boxes_have_both_offsets_at_one_half():
    hboxes = np.array([[10, 20, 50, 40], [10, 20, 30, 90]], np.float32)
    deltas = encode_midpoint(hboxes, hboxes_to_boxes(hboxes))
    np.testing.assert_allclose(deltas, [[0, 0, 0, 0, 1, 1]] * 2, atol=1e-5)  # 0.5 over the std 0.5
    assert_same_boxes(decode_midpoint(hboxes, deltas), hboxes_to_boxes(hboxes), 1e-5)


def test_delta_of_the_same_rectangle_in_another_description_is_zero():
    proposals = np.array([[5, 6, 30, 10, 0.3], [5, 6, 30, 10, -1.5]], np.float32)
    described = np.array([[5, 6, 10, 30, 0.3 + math.pi / 2], [5, 6, 30, 10, -1.5 + math.pi]], np.float32)
    np.testing.assert_allclose(encode_delta(proposals, described), np.zeros((2, 5)), atol=5e-6)  # angle rounding / 0.1


def test_sides_change_at_most_by_the_ratio_and_only_centres_are_clipped():
    proposal, anchor = np.array([[5, 5, 8, 4, 0]], np.float32), np.array([[0, 0, 8, 4]], np.float32)
    huge = np.full((1, 5), 1000, np.float32)
    box = np.asarray(decode_delta(proposal, huge, image_size=(40, 30)))[0]
    np.testing.assert_allclose(box[:4], [29, 39, 500, 250], rtol=1e-5)  # 1000 / 16 = 62.5 times
    box = np.asarray(decode_midpoint(anchor, np.array([[0, 0, -99, -99, 9, 9]], np.float32)))[0]
    np.testing.assert_allclose(box[2:4], [8 * 0.016, 4 * 0.016], rtol=1e-5)


@pytest.mark.parametrize("coder", [encode_midpoint, decode_midpoint, encode_delta, decode_delta])
def test_degenerate_boxes_give_finite_values_and_gradients_under_jit_and_vmap(coder):
    first = 4 if coder in (encode_midpoint, decode_midpoint) else 5
    second = 6 if coder is decode_midpoint else 5
    firsts = np.zeros((2, 3, first), np.float32)
    seconds = np.zeros((2, 3, second), np.float32)
    firsts[1] = 7  # no extent away from the origin; oriented: turned by 7 rad
    seconds[0, 1], seconds[1, 2] = -3, 1  # sides below zero; offsets that fold the rectangle to a line
    function = jax.vmap(coder)
    values = function(firsts, seconds)
    gradients = jax.grad(lambda a, b: (function(a, b) ** 2).sum(), argnums=(0, 1))(jnp.asarray(firsts), seconds)
    assert all(np.isfinite(x).all() for x in (values, *gradients))


def test_a_parallelogram_folded_to_a_line_is_a_box_without_height():
    anchor, fold = np.array([[0, 0, 8, 4]], np.float32), np.array([[0, 0, 0, 0, 1, -1]], np.float32)
    np.testing.assert_allclose(decode_midpoint(anchor, fold)[0, 2:4], [math.hypot(8, 4), 0], atol=1e-5)
    gradient = jax.grad(lambda deltas: decode_midpoint(anchor, deltas).sum())(fold)
    assert np.isfinite(gradient).all()
