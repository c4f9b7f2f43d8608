"""Losses of dense maps against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from haksnet_jax.models import dense_loss

rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((2, 4, 6, 5)).astype(np.float32) * 2
LABELS = rng.integers(0, 4, (2, 6, 5))
LABELS[0, :2] = 255


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def losses_by_loops(smoothing):
    found = []
    log_probabilities = log_softmax(LOGITS.astype(np.float64))
    for b, i, j in np.ndindex(*LABELS.shape):
        if LABELS[b, i, j] == 255:
            continue
        target = np.full(4, smoothing / 4)
        target[LABELS[b, i, j]] += 1 - smoothing
        found.append(-(target * log_probabilities[b, :, i, j]).sum())
    return np.array(found)


def test_cross_entropy_is_the_mean_over_labelled_pixels_with_smoothed_targets():
    for smoothing in (0.0, 0.05):
        found = dense_loss.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing=smoothing)
        np.testing.assert_allclose(found, losses_by_loops(smoothing).mean(), rtol=1e-5)


def test_hard_pixels_are_those_below_the_probability_or_the_least_probable_ones():
    each = losses_by_loops(0.0)
    hard = each[each >= -np.log(0.7)]
    assert 10 < len(hard) < len(each)
    found = dense_loss.hard_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), min_pixels=1)
    np.testing.assert_allclose(found, hard.mean(), rtol=1e-5)
    most = np.sort(each)[-(len(hard) + 3) :]  # three more than are hard
    found = dense_loss.hard_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), min_pixels=len(hard) + 3)
    np.testing.assert_allclose(found, most.mean(), rtol=1e-5)
    everything = dense_loss.hard_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), min_pixels=10**6)
    np.testing.assert_allclose(everything, each.mean(), rtol=1e-5)


def test_dice_is_the_mean_over_the_classes_that_are_there():
    labels = np.where(LABELS == 3, 2, LABELS)  # class 3 is not there
    probabilities = np.exp(log_softmax(LOGITS.astype(np.float64)))
    valid = labels != 255
    coefficients = []
    for k in range(3):
        overlap = probabilities[:, k][labels == k].sum()
        coefficients.append((2 * overlap + 0.05) / (probabilities[:, k][valid].sum() + (labels == k).sum() + 0.05))
    found = dense_loss.dice_loss(jnp.asarray(LOGITS), jnp.asarray(labels))
    np.testing.assert_allclose(found, 1 - np.mean(coefficients), rtol=1e-5)


def test_without_a_label_losses_and_gradients_are_zero():
    nothing = jnp.full(LABELS.shape, 255)
    for loss in (dense_loss.cross_entropy, dense_loss.dice_loss, dense_loss.hard_cross_entropy):
        value, gradient = jax.value_and_grad(lambda logits, loss=loss: loss(logits, nothing))(jnp.asarray(LOGITS))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_the_whole_loss_adds_its_parts_by_their_weights():
    coarse = jnp.asarray(rng.standard_normal((2, 3, 4, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (2, 12, 16)))
    loss, parts = dense_loss.dense_loss(
        (coarse, coarse[:, ::1]), labels, strides=(4, 4), settings=dense_loss.LossSettings(dice_weight=0.5)
    )
    expected = parts["loss_ce"] + 0.5 * parts["loss_dice"] + 0.4 * parts["loss_auxiliary"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(parts["loss_ce"], parts["loss_auxiliary"], rtol=1e-6)  # of the same logits here
