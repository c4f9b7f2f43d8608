"""The losses against the reference's recorded values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.models import detection_loss as losses


@pytest.mark.parametrize("name", ["rpn_cls", "roi_cls", "rpn_bbox", "roi_bbox"])
def test_each_loss_and_its_gradient_equal_the_recorded_ones(golden, name):
    fixture = golden("losses")
    divisor = fixture.manifest["avg_factor"]
    weights = jnp.asarray(fixture[f"{name}/weights"])

    def loss(prediction):
        if name == "rpn_cls":  # there the label 0 is the object and 1 the background
            each = losses.sigmoid_cross_entropy(prediction, 1.0 - fixture["rpn_cls/labels"].reshape(prediction.shape))
            return (each * weights.reshape(prediction.shape)).sum() / divisor
        if name == "roi_cls":
            each = losses.softmax_cross_entropy(prediction, jnp.asarray(fixture["roi_cls/labels"]))
            return (each * weights).sum() / divisor
        beta = 1 / 9 if name == "rpn_bbox" else 1.0
        return (losses.smooth_l1(prediction - fixture[f"{name}/target"], beta) * weights).sum() / divisor

    prediction = jnp.asarray(fixture[f"{name}/logits" if name.endswith("cls") else f"{name}/pred"])
    value, gradient = jax.value_and_grad(loss)(prediction)
    # the manifest's rtol 1e-5: sums in another order; atol for gradients that are sums of nearly cancelling terms
    np.testing.assert_allclose(value, fixture.manifest["values"][name], rtol=1e-5)
    np.testing.assert_allclose(gradient, fixture[f"{name}/grad"], rtol=1e-5, atol=1e-8)


def test_cross_entropies_are_finite_for_huge_logits():
    logits = jnp.array([1e4, -1e4])
    gradient = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, jnp.array([0.0, 1.0])).sum())(logits)
    assert np.isfinite(losses.sigmoid_cross_entropy(logits, jnp.array([0.0, 1.0]))).all()
    assert np.isfinite(gradient).all()
