"""From logits to detections, by hand; the recorded reference is in test_oriented_rcnn.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models.roi_head import DetectionSettings, RotatedRoIHead, select_detections
from haksnet_jax.structures import Proposals

SIZE = np.array([[100, 100]], np.int32)


@functools.partial(jax.jit, static_argnames=("max_candidates", "max_detections", "score_threshold"))
def select(logits, proposals, *, scale=None, **caps):
    deltas = jnp.zeros((*logits.shape[:2], 5))
    stds = (0.1, 0.1, 0.2, 0.2, 0.1)
    return select_detections(logits, deltas, proposals, SIZE, scale, stds=stds, settings=DetectionSettings(**caps))


def scene(*objects, num_classes=2):
    """Args: (box, {label: probability}). Returns: logits and Proposals of one image."""
    logits = np.zeros((1, len(objects), num_classes + 1), np.float32)
    for row, (_, scores) in enumerate(objects):
        probabilities = np.array([scores.get(label, 1e-6) for label in range(num_classes)])
        logits[0, row] = np.log([*probabilities, 1 - probabilities.sum()])
    boxes = np.array([[box for box, _ in objects]], np.float32)
    return logits, Proposals(boxes, np.ones(boxes.shape[:2], np.float32), np.ones(boxes.shape[:2], bool))


LEFT, NEAR_LEFT, RIGHT = [20, 50, 20, 10, 0.2], [21, 50, 20, 10, 0.2], [70, 50, 20, 10, 0.2]


def test_the_better_of_two_overlapping_boxes_of_a_class_stays():
    found = select(*scene((LEFT, {0: 0.6}), (NEAR_LEFT, {0: 0.8}), (RIGHT, {0: 0.3})))
    np.testing.assert_allclose(found.scores[0, :3], [0.8, 0.3, 0], rtol=1e-5)
    np.testing.assert_allclose(found.boxes[0, :2], [NEAR_LEFT, RIGHT], rtol=1e-5)
    assert found.valid[0].sum() == 2 and found.num_cut[0] == 0


def test_one_box_can_be_of_two_classes():
    found = select(*scene((LEFT, {0: 0.4, 1: 0.5})))
    np.testing.assert_array_equal(found.labels[0, :2], [1, 0])
    assert found.valid[0].sum() == 2


def test_scores_at_or_below_the_threshold_and_rows_that_are_not_valid_are_no_detections():
    logits, proposals = scene((LEFT, {0: 0.04}), (RIGHT, {1: 0.9}))
    assert select(logits, proposals).valid[0].sum() == 1
    assert not select(logits, proposals._replace(valid=np.zeros((1, 2), bool))).valid.any()
    assert select(logits, proposals, score_threshold=0.01).valid[0].sum() == 2


@pytest.mark.parametrize("caps", [{"max_candidates": 1}, {"max_detections": 1}])
def test_what_a_cap_leaves_out_is_counted(caps):
    found = select(*scene((LEFT, {0: 0.6}), (RIGHT, {0: 0.8})), **caps)
    assert found.valid[0].sum() == 1 and found.num_cut[0] == 1
    np.testing.assert_allclose(found.scores[0, 0], 0.8, rtol=1e-5)


def test_centres_are_clipped_to_the_content():
    found = select(*scene(([150, -20, 20, 10, 0.2], {0: 0.6})))
    np.testing.assert_allclose(found.boxes[0, 0, :2], [99, 0])


def test_overlaps_count_in_the_image_and_not_in_its_resized_copy():
    # Standing boxes, one above the other with 2 px between them in the resized copy. Undoing its factor of y brings the
    # centres to 21 px of each other, and the reference divides the width, which stands, by the factor of x: 40 px.
    upper, lower = [20, 30, 40, 10, -np.pi / 2], [20, 72, 40, 10, -np.pi / 2]
    logits, proposals = scene((upper, {0: 0.6}), (lower, {0: 0.8}))
    assert select(logits, proposals).valid[0].sum() == 2
    found = select(logits, proposals, scale=np.array([[1, 2]], np.float32))
    assert found.valid[0].sum() == 1
    np.testing.assert_allclose(found.boxes[0, 0], [20, 36, 40, 5, -np.pi / 2], rtol=1e-6)


def test_rows_that_are_not_valid_get_the_same_whatever_their_box():
    head = RotatedRoIHead(2, channels=4, hidden=8, rngs=nnx.Rngs(0))
    features = [jax.random.normal(jax.random.key(i), (1, 32 >> i, 32 >> i, 4)) for i in range(4)]
    boxes = np.array([[LEFT, RIGHT]], np.float32)
    valid = np.array([[True, False]])
    others = boxes.copy()
    others[0, 1] = np.nan
    for one, other in zip(head(features, boxes, valid), head(features, others, valid), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()
