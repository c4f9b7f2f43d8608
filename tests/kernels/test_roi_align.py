"""Rotated RoIAlign against the reference's fixtures, a plain loop over samples, and what must hold for any boxes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_weights import make_input

from haksnet_jax.kernels import roi_align
from haksnet_jax.kernels.roi_align import _chunked_sum, _unrolled_sum, roi_levels, rotated_roi_align

STATIC = ("strides", "output_size", "samples_per_bin")
STRIDES = (4, 8, 16, 32)
SHAPES = ((16, 18), (8, 9), (4, 5), (2, 3))
# Sums of 16 products of float32 whose positions are rounded to 1e-5 of a feature for the largest coordinates here.
ATOL = 1e-5

align = jax.jit(rotated_roi_align, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=STATIC)
def gradient_of(features, boxes, levels, cotangent, valid=None, **settings):
    pooled = functools.partial(rotated_roi_align, boxes=boxes, levels=levels, valid=valid, **settings)
    return jax.vjp(pooled, features)[1](cotangent)[0]


def plain_roi_align(features, boxes, levels, strides, rows, columns, samples):
    """Float64 loops over boxes, bins, samples and neighbours; and the same walk for the gradient."""
    channels = features[0].shape[-1]
    pooled = np.zeros((len(boxes), rows, columns, channels))
    terms = []  # (level, y, x, box, row, column, weight)
    for i, (box, level) in enumerate(zip(boxes.astype(np.float64), levels, strict=True)):
        feature = features[level].astype(np.float64)
        height, width = feature.shape[:2]
        cx, cy, w, h = box[:4] / strides[level]
        cos, sin = math.cos(box[4]), math.sin(box[4])
        for row, column, s, t in np.ndindex(rows, columns, samples, samples):
            v = -h / 2 + (row + (s + 0.5) / samples) * h / rows
            u = -w / 2 + (column + (t + 0.5) / samples) * w / columns
            x, y = cx - 0.5 + u * cos - v * sin, cy - 0.5 + u * sin + v * cos
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            for yy in {math.floor(y), min(math.floor(y) + 1, height - 1)}:
                for xx in {math.floor(x), min(math.floor(x) + 1, width - 1)}:
                    weight = (1 - abs(y - yy)) * (1 - abs(x - xx)) / samples**2
                    pooled[i, row, column] += weight * feature[yy, xx]
                    terms.append((level, yy, xx, i, row, column, weight))
    return pooled, terms


def scene(seed, num_boxes, channels=3):
    """Features of four levels, and boxes of all sizes: some partly or wholly outside, of zero size, or huge."""
    rng = np.random.default_rng(seed)
    features = tuple(rng.normal(size=(*shape, channels)).astype(np.float32) for shape in SHAPES)
    boxes = np.stack(
        [
            rng.uniform(-10, 82, num_boxes),
            rng.uniform(-10, 74, num_boxes),
            rng.uniform(0, 60, num_boxes),
            rng.uniform(0, 60, num_boxes),
            rng.uniform(-math.pi / 2, math.pi / 2, num_boxes),
        ],
        axis=1,
    ).astype(np.float32)
    boxes[0] = [30, 30, 0, 0, 0.3]
    boxes[1] = [-200, 30, 20, 10, 0.3]
    boxes[2] = [30, 30, 3000, 2000, 0.3]
    boxes[3] = [0, 0, 20, 10, -0.5]
    return features, boxes, rng.integers(0, 4, num_boxes).astype(np.int32)


def fixture_settings(settings):
    return {"strides": (8,), "output_size": tuple(settings["output_size"]), "samples_per_bin": 2}


@pytest.mark.parametrize("case", ["config", "rect", "ccw"])
def test_pooled_features_and_gradients_are_those_of_the_fixture(golden, case):
    fixture = golden("roi_align_rotated")
    settings = fixture_settings(fixture.manifest["cases"][case])
    features, rois = np.moveaxis(fixture["features"], 1, -1), fixture["rois"]
    boxes = rois[:, 1:] * ([1, 1, 1, 1, -1] if case == "ccw" else 1)  # counter-clockwise: our angle with the other sign
    boxes = boxes.astype(np.float32)
    levels = np.zeros(len(rois), np.int32)
    entry = fixture.manifest["arrays"][f"{case}/output"]["shape"]
    if case == "rect":
        cotangent = make_input(fixture.manifest["cases"][case]["grad_output_seed"], entry)
    else:
        cotangent = fixture["grad_output"]
    pooled, gradients = np.zeros(entry, np.float32), []
    for image in range(2):
        mine = rois[:, 0] == image
        result = align((features[image],), boxes, levels, **settings)
        pooled[mine] = np.moveaxis(np.asarray(result), -1, 1)[mine]
        gradient = gradient_of((features[image],), boxes, levels, np.moveaxis(cotangent, 1, -1), valid=mine, **settings)
        gradients.append(np.moveaxis(np.asarray(gradient[0]), -1, 0))
    # The fixture asks for 1e-4 and 1e-3; its own float32 noise is 4e-6 forward.
    fixture.compare(f"{case}/output", pooled, rtol=0, atol=ATOL)
    fixture.compare(f"{case}/grad_features", np.stack(gradients), rtol=0, atol=5e-5)


def test_levels_and_pooling_over_levels_are_those_of_the_fixture(golden):
    fixture = golden("roi_extractor")
    rois = fixture["rois"]
    boxes, levels = rois[:, 1:], np.asarray(roi_levels(rois[:, 1:]))
    np.testing.assert_array_equal(levels, fixture["levels"])
    manifest = fixture.manifest
    features = [
        np.moveaxis(make_input(seed, shape), 1, -1)
        for seed, shape in zip(manifest["feature_seeds"], manifest["feature_shapes"], strict=True)
    ]
    cotangent = np.moveaxis(make_input(manifest["grad_output"]["seed"], manifest["grad_output"]["shape"]), 1, -1)
    valid = rois[:, 0] == np.arange(2)[:, None]

    @jax.jit
    def both_images(features, cotangent):
        def pool(features):
            pooled = jax.vmap(lambda f, v: rotated_roi_align(f, boxes, levels, valid=v))(features, valid)
            return pooled.sum(axis=0)  # each RoI is valid in one image

        pooled, pull_back = jax.vjp(pool, features)
        return pooled, pull_back(cotangent)[0]

    pooled, gradients = both_images(tuple(features), cotangent)
    # Positions near 70 features are rounded to 4e-6, several times, on both sides. The fixture asks for 1e-4.
    fixture.compare("output", np.moveaxis(np.asarray(pooled), -1, 1), rtol=0, atol=3e-5)
    for level, gradient in enumerate(gradients):
        # Sums of up to some hundred terms, up to 13 in size.
        fixture.compare(f"grad_level{level}", np.moveaxis(np.asarray(gradient), -1, 1), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("output_size", "samples_per_bin"), [(7, 2), ((2, 3), 1), (3, 3)])
def test_pooled_features_and_gradients_are_those_of_the_plain_loop(output_size, samples_per_bin):
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    settings = {"strides": STRIDES, "output_size": output_size, "samples_per_bin": samples_per_bin}
    features, boxes, levels = scene(0, 24)
    expected, terms = plain_roi_align(features, boxes, levels, STRIDES, rows, columns, samples_per_bin)
    np.testing.assert_allclose(align(features, boxes, levels, **settings), expected, rtol=0, atol=ATOL)
    cotangent = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    expected_gradients = [np.zeros(feature.shape) for feature in features]
    for level, y, x, box, row, column, weight in terms:
        expected_gradients[level][y, x] += weight * cotangent[box, row, column]
    for gradient, expected_gradient in zip(
        gradient_of(features, boxes, levels, cotangent, **settings), expected_gradients, strict=True
    ):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=5e-5)


def test_an_upright_box_on_a_linear_ramp_gives_the_positions_of_its_bin_centres():
    # Bilinear sampling of a linear function is exact, and the mean over a bin is the value in its middle.
    y, x = np.mgrid[0:16, 0:16].astype(np.float32)
    ramp = np.stack([x, y], axis=-1)
    box = np.array([[34, 30, 28, 14, 0]], np.float32)
    pooled = align((ramp,), box, np.zeros(1, np.int32), strides=(4,))[0]
    bins = (np.arange(7) + 0.5) / 7 - 0.5
    expected_x, expected_y = (34 + 28 * bins) / 4 - 0.5, (30 + 14 * bins) / 4 - 0.5
    np.testing.assert_allclose(pooled[..., 0], np.broadcast_to(expected_x, (7, 7)), rtol=0, atol=ATOL)
    np.testing.assert_allclose(pooled[..., 1], np.broadcast_to(expected_y[:, None], (7, 7)), rtol=0, atol=ATOL)
    # A quarter turn clockwise: the box's first axis now runs down the image, its second to the left.
    box[0, 4] = math.pi / 2
    pooled = align((ramp,), box, np.zeros(1, np.int32), strides=(4,))[0]
    expected_x, expected_y = (34 - 14 * bins) / 4 - 0.5, (30 + 28 * bins) / 4 - 0.5
    np.testing.assert_allclose(pooled[..., 0], np.broadcast_to(expected_x[:, None], (7, 7)), rtol=0, atol=ATOL)
    np.testing.assert_allclose(pooled[..., 1], np.broadcast_to(expected_y, (7, 7)), rtol=0, atol=ATOL)


def test_levels_change_at_powers_of_two_of_the_finest_scale():
    sides = np.array([0, 10, 111, 113, 223, 225, 447, 449, 5000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides * 2, sides / 2, 0 * sides], axis=1)
    np.testing.assert_array_equal(roi_levels(boxes), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(roi_levels(boxes, num_levels=2), [0, 0, 0, 1, 1, 1, 1, 1, 1])


def test_boxes_outside_or_not_valid_or_not_finite_give_zeros_and_no_gradient():
    features, _, _ = scene(1, 4)
    boxes = np.array([[-500, 0, 9, 9, 0], [30, 30, 9, 9, 0], [np.nan, 30, 9, 9, 0], [30, 30, np.inf, 9, 0]], np.float32)
    levels = np.array([0, 1, 2, 3], np.int32)
    valid = np.array([True, False, True, True])
    np.testing.assert_array_equal(align(features, boxes, levels, valid=valid), 0)
    for gradient in gradient_of(features, boxes, levels, np.ones((4, 7, 7, 3), np.float32), valid=valid):
        np.testing.assert_array_equal(gradient, 0)


def test_rows_that_are_not_valid_do_not_change_the_others():
    features, boxes, levels = scene(2, 12)
    valid = np.arange(12) < 7
    alone = align(features, boxes, levels, valid=valid)[:7]
    np.testing.assert_array_equal(alone, align(features, boxes, levels, valid=np.ones(12, bool))[:7])
    # Without the argument it is another program, whose positions may be rounded otherwise.
    np.testing.assert_allclose(alone, align(features, boxes, levels, valid=None)[:7], rtol=0, atol=ATOL)


def test_a_map_of_a_single_feature_gives_its_value():
    feature = np.full((1, 1, 2), 3.0, np.float32)
    pooled = align((feature,), np.array([[16, 16, 20, 10, 0.4]], np.float32), np.zeros(1, np.int32), strides=(32,))
    np.testing.assert_allclose(pooled, 3, rtol=1e-6)


def test_gradients_of_a_sum_count_the_weight_of_every_sample():
    # The weights of a sample that lies inside add up to one.
    features = tuple(np.zeros((*shape, 1), np.float32) for shape in SHAPES)
    boxes = np.array([[32, 32, 30, 12, 0.7], [20, 40, 10, 8, -1.2]], np.float32)
    gradients = gradient_of(features, boxes, np.array([0, 1], np.int32), np.ones((2, 7, 7, 1), np.float32))
    np.testing.assert_allclose([float(np.sum(g)) for g in gradients], [49, 49, 0, 0], rtol=1e-5)


def test_no_gradient_flows_to_boxes():
    features, boxes, levels = scene(3, 6)
    gradient = jax.jit(jax.grad(lambda boxes: jnp.sum(rotated_roi_align(features, boxes, levels) ** 2)))(boxes)
    np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_features_are_summed_in_float32():
    features, boxes, levels = scene(4, 40)
    rounded = tuple(jnp.asarray(feature, jnp.bfloat16) for feature in features)
    exact = tuple(feature.astype(jnp.float32) for feature in rounded)
    pooled = align(rounded, boxes, levels)
    assert pooled.dtype == jnp.bfloat16
    # One rounding of the result to 8 bits, of neighbouring float32 sums: equal but for ties.
    expected = np.asarray(align(exact, boxes, levels).astype(jnp.bfloat16), np.float32)
    np.testing.assert_allclose(np.asarray(pooled, np.float32), expected, rtol=2**-7, atol=1e-6)
    cotangent = jnp.ones(pooled.shape, jnp.bfloat16)
    gradients = gradient_of(rounded, boxes, levels, cotangent)
    expected = gradient_of(exact, boxes, levels, cotangent.astype(jnp.float32))
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, np.float32), expected_gradient, rtol=2**-8, atol=1e-6)


def test_vmap_over_images_gives_each_image_its_own_result():
    scenes = [scene(seed, 10) for seed in (5, 6)]
    features, boxes, levels = jax.tree.map(lambda *x: np.stack(x), *scenes)
    cotangent = np.random.default_rng(7).normal(size=(2, 10, 7, 7, 3)).astype(np.float32)

    @jax.jit
    def together(features, cotangent):
        pooled, pull_back = jax.vjp(lambda f: jax.vmap(rotated_roi_align)(f, boxes, levels), features)
        return pooled, pull_back(cotangent)[0]

    pooled, gradients = together(features, cotangent)
    for i, image in enumerate(scenes):
        np.testing.assert_allclose(pooled[i], align(*image), rtol=0, atol=1e-6)
        for gradient, expected in zip(gradients, gradient_of(*image, cotangent[i]), strict=True):
            # The order of the additions may differ.
            np.testing.assert_allclose(gradient[i], expected, rtol=0, atol=1e-5)


def test_all_forms_of_the_sum_agree(monkeypatch):
    monkeypatch.setattr(roi_align, "_CHUNK", 16)  # three chunks of 16 for 40 bins
    rng = np.random.default_rng(9)
    table = rng.normal(size=(30, 5)).astype(np.float32)
    index, weight = rng.integers(0, 31, (16, 40)).astype(np.int32), rng.uniform(size=(16, 40)).astype(np.float32)
    weight[index == 30] = 0  # one row too many: samples outside
    expected = np.einsum("kp,kpc->pc", weight, np.concatenate([table, table[:1]])[index])
    for form in (_unrolled_sum, _chunked_sum):
        np.testing.assert_allclose(jax.jit(form)(table, index, weight), expected, rtol=0, atol=ATOL)


def test_one_stride_a_feature_map_is_asked_for():
    features, boxes, levels = scene(8, 4)
    with pytest.raises(ValueError, match="one stride a feature map; got 4 maps and strides=\\(4, 8\\)"):
        rotated_roi_align(features, boxes, levels, strides=(4, 8))
