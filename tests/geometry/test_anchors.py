import numpy as np
import pytest

from haksnet_jax.geometry.anchors import anchor_grid, inside_image, level_shapes

STRIDES = (4, 8, 16, 32, 64)
PUBLISHED = {"strides": STRIDES, "scale": 8.0, "ratios": (0.5, 1, 2)}


def split_levels(rows, shapes):
    ends = np.cumsum([3 * height * width for height, width in shapes])
    assert ends[-1] == len(rows)
    return np.split(rows, ends[:-1])


@pytest.mark.parametrize(("case", "image_shape"), [("square", (1024, 1024)), ("odd", (148, 200))])
def test_anchors_are_those_of_the_reference_bit_for_bit(golden, case, image_shape):
    fixture = golden("anchors")
    shapes = level_shapes(image_shape, STRIDES)
    assert [list(shape) for shape in shapes] == fixture.manifest["cases"][case]
    for i, anchors in enumerate(split_levels(anchor_grid(image_shape, **PUBLISHED), shapes)):
        # Exact: which anchors tie for an object's best overlap depends on the last bit.
        np.testing.assert_array_equal(fixture.sampled(f"{case}/level{i}", anchors), fixture[f"{case}/level{i}"].ravel())
        np.testing.assert_array_equal(anchors[:24], fixture[f"{case}/level{i}_first24"])
        np.testing.assert_array_equal(anchors[-24:], fixture[f"{case}/level{i}_last24"])


def test_inside_flags_are_those_of_the_reference(golden):
    fixture = golden("anchors")
    inside = inside_image(anchor_grid((148, 200), **PUBLISHED), (140, 190))
    for i, flags in enumerate(split_levels(inside, level_shapes((148, 200), STRIDES))):
        np.testing.assert_array_equal(flags, fixture[f"flags/level{i}_inside"].astype(bool))


def test_inside_anchors_of_a_training_step_are_those_of_the_reference(golden):
    fixture = golden("train_step_tiny")
    inside = np.flatnonzero(inside_image(anchor_grid((512, 512), **PUBLISHED), np.array([512, 512])))
    np.testing.assert_array_equal(inside, fixture["main/rpn/inside_anchor_index"])


def test_an_image_of_1024_pixels_has_261888_anchors():
    anchors = anchor_grid((1024, 1024), **PUBLISHED)  # 3 * (256^2 + 128^2 + 64^2 + 32^2 + 16^2)
    assert anchors.shape == (261_888, 4)
    assert anchors.dtype == np.float32


def test_areas_and_ratios_by_hand():
    anchors = anchor_grid((16, 16), strides=(16,), scale=2.0, ratios=(0.25, 1, 4))
    np.testing.assert_array_equal(anchors, [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]])


def test_an_anchor_that_ends_on_the_last_column_is_outside():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 9.5, 9.5], [-0.1, 0, 5, 5], [0, 0, 5, 10]], np.float32)
    np.testing.assert_array_equal(inside_image(anchors, (10, 11)), [False, True, False, False])
