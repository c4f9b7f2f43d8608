"""Forms of layers for GPUs, whose gradients are written out, against JAX's own in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.models import layers


@pytest.fixture
def on_gpu(monkeypatch):
    """Layers choose what they compute on GPUs."""
    monkeypatch.setattr(layers, "platform", lambda: "gpu")


def test_gelu_and_its_gradient_are_those_of_jax(on_gpu):
    x = jnp.linspace(-6, 6, 1001).astype(jnp.bfloat16)
    exact = x.astype(jnp.float32)
    value, pull_back = jax.vjp(layers.gelu, x)
    expected, pull_expected_back = jax.vjp(functools.partial(jax.nn.gelu, approximate=False), exact)
    assert value.dtype == jnp.bfloat16
    # One rounding; 1 + erf, which x multiplies, is rounded to 6e-8.
    rounding = {"rtol": 2.0**-8, "atol": 1e-6}
    np.testing.assert_allclose(value.astype(jnp.float32), expected, **rounding)
    (gradient,), (expected,) = pull_back(jnp.ones_like(x)), pull_expected_back(jnp.ones_like(exact))
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, **rounding)


@pytest.mark.parametrize(("platform", "dtype"), [("gpu", jnp.float32), ("cpu", jnp.bfloat16), ("tpu", jnp.bfloat16)])
def test_gelu_is_that_of_jax_elsewhere_and_in_float32(monkeypatch, platform, dtype):
    monkeypatch.setattr(layers, "platform", lambda: platform)
    x = jnp.linspace(-6, 6, 101).astype(dtype)
    expected = functools.partial(jax.nn.gelu, approximate=False)
    assert str(jax.make_jaxpr(layers.gelu)(x)) == str(jax.make_jaxpr(expected)(x))


def test_sums_over_positions_in_two_steps_are_those_in_one(on_gpu):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.bfloat16)
    expected = np.asarray(x, np.float64).sum((1, 2))
    # 35 float32 additions of numbers of about 1, each rounded by up to 6e-8 times the sum so far.
    np.testing.assert_allclose(layers.sum_over_positions(x), expected, rtol=1e-5, atol=1e-5)
