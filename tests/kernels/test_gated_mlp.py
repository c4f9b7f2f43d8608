"""The forms of the block's MLP against its definition in float64, borders and gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import gated_mlp_triton, triton
from haksnet_jax.kernels.gated_mlp import (
    GatedMLPWeights,
    gated_mlp,
    gated_mlp_columns,
    gated_mlp_columns_gradients,
    gated_mlp_composed,
    gated_mlp_plain,
)


@jax.custom_vjp
def columns(x, weights):
    """The columns form with its own gradient, as TPUs run it."""
    return gated_mlp_columns(x, weights)


columns.defvjp(
    lambda x, weights: (gated_mlp_columns(x, weights), (x, weights)),
    lambda saved, gradient: gated_mlp_columns_gradients(*saved, gradient),
)

FORMS = {"plain": gated_mlp_plain, "composed": gated_mlp_composed, "columns": columns, "chosen": gated_mlp}
each_form = pytest.mark.parametrize("form", FORMS)


def arrays(channels=3, hidden=5, shape=(2, 5, 6), seed=0):
    """Input, weights (biases far from 0, so that a border that sees them shows) and gradient of the output."""
    rng = np.random.default_rng(seed)
    sizes = [(channels, 2 * hidden), (2 * hidden,), (3, 3, hidden), (hidden,), (hidden, channels), (channels,)]
    weights = GatedMLPWeights(*(rng.standard_normal(size).astype(np.float32) for size in sizes))
    x, gradient = (rng.standard_normal((*shape, channels)).astype(np.float32) for _ in range(2))
    return x, weights, gradient


def defined(x, weights):
    """The definition, in float64, position by position."""
    x, weights = np.asarray(x, np.float64), GatedMLPWeights(*(np.asarray(w, np.float64) for w in weights))
    expanded = x @ weights.expand_kernel + weights.expand_bias
    hidden = weights.depthwise_bias.shape[0]
    padded = np.pad(expanded[..., :hidden], ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros after the bias, not before
    out = np.zeros(x.shape)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = padded[:, i : i + 3, j : j + 3]
            filtered = (window * weights.depthwise_kernel).sum((1, 2)) + weights.depthwise_bias
            out[:, i, j] = (filtered * expanded[:, i, j, hidden:]) @ weights.project_kernel + weights.project_bias
    return out


@each_form
def test_it_is_what_its_definition_says(form):
    x, weights, _ = arrays()
    expected = defined(x, weights)
    # Sums of about 30 products of three numbers, rounded to float32.
    np.testing.assert_allclose(jax.jit(FORMS[form])(x, weights), expected, atol=2e-5 * np.abs(expected).max())


@each_form
def test_its_gradients_are_the_derivatives(form):
    x, weights, gradient = arrays(channels=2, hidden=3, shape=(1, 3, 4))
    found = jax.jit(lambda x, w, g: jax.vjp(FORMS[form], x, w)[1](g))(x, weights, gradient)
    leaves, structure = jax.tree.flatten((x, weights))
    for which, leaf in enumerate(leaves):
        numeric = np.zeros(leaf.shape)
        for place in np.ndindex(leaf.shape):
            moved = []
            for step in (1e-4, -1e-4):  # central differences in float64: exact to 1e-8 for this cubic function
                changed = [np.array(other, np.float64) for other in leaves]
                changed[which][place] += step
                moved.append((defined(*jax.tree.unflatten(structure, changed)) * gradient).sum())
            numeric[place] = (moved[0] - moved[1]) / 2e-4
        np.testing.assert_allclose(
            jax.tree.leaves(found)[which], numeric, atol=2e-5 * max(1, np.abs(numeric).max()), err_msg=str(which)
        )


def test_in_bfloat16_the_forms_differ_by_rounding_alone():
    x, weights, _ = arrays(channels=16, hidden=64, shape=(1, 8, 8))
    expected = defined(jnp.asarray(x, jnp.bfloat16).astype(np.float32), weights)
    for form in FORMS:
        found = np.asarray(jax.jit(FORMS[form])(jnp.asarray(x, jnp.bfloat16), weights), np.float64)
        # Three roundings to 8 bits one after another, in sums of hundreds of terms that partly cancel.
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max(), form


def test_columns_in_chunks_on_several_devices_are_the_plain_form_and_meet_once():
    x, weights, gradient = arrays(channels=4, hidden=256, shape=(8, 5, 6))  # two chunks, two images a device
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.device_put((x, gradient), jax.NamedSharding(mesh, jax.P("data")))
    want, pull_back = jax.vjp(gated_mlp_plain, x, weights)
    with jax.set_mesh(mesh):
        got = jax.jit(gated_mlp_columns)(shared[0], weights)
        compiled = jax.jit(gated_mlp_columns_gradients).lower(shared[0], weights, shared[1]).compile()
        gradients = compiled(shared[0], weights, shared[1])
    text = compiled.as_text()
    assert "all-gather" not in text
    assert text.count(" all-reduce(") == text[text.index("ENTRY") :].count(" all-reduce(")  # none in a loop
    assert got.sharding.spec == gradients[0].sharding.spec == jax.P("data")
    leaves = jax.tree.leaves((got, gradients)), jax.tree.leaves((want, pull_back(gradient)))
    for ours, theirs in zip(*leaves, strict=True):
        # float32 sums of 256 hidden channels or of 240 positions, in another order
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.skipif(triton.plgpu is None, reason="this JAX has no Triton backend of Pallas")
@pytest.mark.parametrize("keeps_taps", [False, True])
def test_the_kernels_do_what_the_plain_form_does(keeps_taps):
    # 63 positions an image in tiles of 32: tiles end in the middle of rows and of images; two chunks of hidden channels
    x, weights, gradient = arrays(channels=16, hidden=64, shape=(2, 7, 9))
    x, gradient = (jnp.asarray(array, jnp.bfloat16) for array in (x, gradient))
    assert gated_mlp_triton.suits(x, weights)
    options = {"tile": gated_mlp_triton.Tile(32, 32, 4, 1, keeps_taps), "interpret": True}
    found = gated_mlp_triton.gated_mlp_triton(x, weights, **options)
    expected = defined(x.astype(jnp.float32), weights)
    # Factors and the gated hidden values are rounded to 8 bits, sums are float32.
    assert np.abs(np.asarray(found, np.float64) - expected).max() < 0.01 * np.abs(expected).max()
    found = jax.tree.leaves(gated_mlp_triton.gated_mlp_triton_gradients(x, weights, gradient, **options))
    exact = jax.vjp(gated_mlp_plain, x.astype(jnp.float32), weights)[1](gradient.astype(jnp.float32))
    for which, (got, want) in enumerate(zip(found, jax.tree.leaves(exact), strict=True)):
        assert np.linalg.norm(np.float64(got) - want) < 0.01 * np.linalg.norm(want), which
