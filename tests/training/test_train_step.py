"""One step of training against the recorded one, with its samples; and how the losses are divided."""

import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.geometry.matching import Samples
from haksnet_jax.models import detection_loss as losses
from haksnet_jax.structures import GroundTruth
from haksnet_jax.tools.parity import training
from haksnet_jax.tools.parity.rows import Fixture


def test_a_step_gives_the_recorded_assignments_losses_gradients_and_weights(golden_file):
    # Losses 1e-5 (2e-7 was seen), gradient norms 1e-3 (2e-6), gradients 5e-3 (4e-6), changes of weights 2e-6 where the
    # gradient is above 1e-5 (the first step is almost the learning rate times its sign).
    rows = training.train_step_rows(Fixture(golden_file("train_step_tiny.json").parent, "train_step_tiny"))
    assert {row.what.split(":")[0] for row in rows} == {"main", "empty_second"}
    assert len(rows) == 18
    assert [row for row in rows if not row.passed] == []


def samples_of(positive, valid):
    none = jnp.zeros(len(valid), jnp.int32)
    index = jnp.tile(jnp.arange(len(valid[0]), dtype=jnp.int32), (len(valid), 1))
    return Samples(index, jnp.array(positive), jnp.array(valid), none, none)


@pytest.mark.parametrize(
    ("positive", "expected"),
    [
        ([[True, False], [True, False]], 4),  # samples
        ([[True, False], [False, False]], 5),  # the second image has two negatives, and counts one positive
        ([[True, True], [True, True]], 6),  # and each of these one negative
    ],
)
def test_the_rpn_losses_are_divided_by_at_least_one_positive_and_one_negative_an_image(positive, expected):
    # As recorded in the case empty_second, where 512 anchors are sampled and the divisor is 513.
    boxes = jnp.tile(jnp.array([10.0, 10.0, 8.0, 4.0, 0.0]), (2, 1, 1))
    truth = GroundTruth(boxes, jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool), jnp.full((2, 2), 32))
    anchors = jnp.array([[6.0, 8.0, 14.0, 12.0], [0.0, 0.0, 8.0, 8.0]])
    classification, _ = losses.rpn_losses(
        jnp.zeros((2, 2)),
        jnp.zeros((2, 2, 6)),
        anchors,
        jnp.zeros((2, 2), jnp.int32),
        samples_of(positive, [[True, True]] * 2),
        truth,
        beta=1 / 9,
        stds=(1, 1, 1, 1, 0.5, 0.5),
    )
    # A logit of 0 costs log 2, whatever its target.
    np.testing.assert_allclose(classification, 4 * np.log(2) / expected, rtol=1e-6)


def test_rows_that_are_not_valid_cost_nothing():
    boxes = jnp.array([[[10.0, 10.0, 8.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    truth = GroundTruth(boxes, jnp.zeros((1, 2), jnp.int32), jnp.array([[True, False]]), jnp.array([[32, 32]]))
    samples = samples_of([[True, False, False]], [[True, True, False]])
    rois = jnp.array([[[10.0, 10.0, 8.0, 4.0, 0.0], [20.0, 20.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    logits = jnp.zeros((1, 3, 2))
    classification, regression, accuracy = losses.roi_losses(
        logits, jnp.zeros((1, 3, 5)), rois, jnp.array([[0, 1, 1]]), samples, truth, beta=1.0, stds=(1,) * 5
    )
    np.testing.assert_allclose(classification, np.log(2), rtol=1e-6)
    assert regression == 0 and accuracy == 0.5  # label 0 for all: right for the object, wrong for the background
