"""The UNetFormer decoder's parts against plain loops, and its shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models import dense_layers, unetformer
from haksnet_jax.models.upernet import UPerNet, pooling_matrix

# Sums of a few hundred float32 products in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def reflected(x, rows, columns):
    return np.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="reflect")


def attention_by_loops(module, x):
    """The window branch, one window and one head at a time."""
    x = np.asarray(x, np.float64)
    batch, height, width, channels = x.shape
    x = reflected(x, -height % 8, -width % 8)
    kernel = np.asarray(module.qkv.kernel[...], np.float64)[0, 0]
    bias = np.asarray(module.position_bias[...], np.float64)
    dim = channels // 8
    out = np.zeros(x.shape)
    for b, top, left in np.ndindex(batch, x.shape[1] // 8, x.shape[2] // 8):
        window = x[b, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8].reshape(64, channels)
        q, k, v = np.split(window @ kernel, 3, axis=-1)
        for head in range(8):
            part = slice(head * dim, (head + 1) * dim)
            logits = q[:, part] @ k[:, part].T / np.sqrt(dim)
            for i, j in np.ndindex(64, 64):
                dy, dx = i // 8 - j // 8, i % 8 - j % 8
                logits[i, j] += bias[(dy + 7) * 15 + dx + 7, head]
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            mixed = (weights @ v[:, part]).reshape(8, 8, dim)
            out[b, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8, part] = mixed
    return out[:, :height, :width]


def test_window_attention_is_that_of_loops_over_windows_and_heads():
    module = unetformer.GlobalLocalAttention(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 10, 13, 16)).astype(np.float32)
    np.testing.assert_allclose(module._windows(jnp.asarray(x)), attention_by_loops(module, x), **CLOSE)


def test_strip_means_are_means_of_eight_with_one_reflection_and_zeros():
    x = np.random.default_rng(1).standard_normal((2, 9, 12, 3)).astype(np.float32)
    expected = np.zeros(x.shape)
    for axis in (1, 2):
        moved = np.moveaxis(x, axis, 1)
        size = moved.shape[1]
        padded = np.concatenate([np.zeros_like(moved[:, :3]), moved, moved[:, -2:-1], np.zeros_like(moved[:, :3])], 1)
        means = np.stack([padded[:, i : i + 8].mean(axis=1) for i in range(size)], axis=1)
        expected += np.moveaxis(means, 1, axis)
    np.testing.assert_allclose(unetformer.strip_means(jnp.asarray(x)), expected, **CLOSE)


def test_an_even_depthwise_kernel_reaches_one_further_down_and_right_over_a_reflection():
    module = dense_layers.SeparableConvNorm(4, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    module.pointwise.kernel.set_value(jnp.eye(4)[None, None])
    x = np.random.default_rng(2).standard_normal((1, 9, 11, 4)).astype(np.float32)
    padded = np.pad(reflected(x, 1, 1), ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(module.depthwise[...])
    expected = np.zeros(x.shape)
    for i, j in np.ndindex(9, 11):
        expected[0, i, j] = (padded[0, i : i + 8, j : j + 8] * kernel).sum(axis=(0, 1))
    # (the running statistics at the start: mean 0, variance 1)
    np.testing.assert_allclose(module(jnp.asarray(x), train=False), expected / np.sqrt(1 + 1e-5), **CLOSE)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlarging_is_bilinear_between_pixel_centres(factor):
    x = np.random.default_rng(3).standard_normal((2, 5, 3, 4)).astype(np.float32)
    expected = jax.image.resize(x, (2, 5 * factor, 3 * factor, 4), "linear")  # the same definition, another way
    np.testing.assert_allclose(dense_layers.enlarge(jnp.asarray(x), factor), expected, **CLOSE)
    by_class = dense_layers.enlarge_class_maps(jnp.asarray(x), factor)
    np.testing.assert_allclose(by_class, np.moveaxis(expected, -1, 1), **CLOSE)


def test_enlarging_a_gradient_is_the_transpose_of_interpolation():
    x = jnp.asarray(np.random.default_rng(4).standard_normal((1, 3, 4, 2)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(5).standard_normal((1, 12, 16, 2)), jnp.float32)
    gradient = jax.grad(lambda x: (dense_layers.enlarge(x, 4) * weights).sum())(x)
    rows, columns = dense_layers.interpolation_matrix(3, 12), dense_layers.interpolation_matrix(4, 16)
    expected = np.einsum("oh,pw,bopc->bhwc", rows, columns, weights)
    np.testing.assert_allclose(gradient, expected, **CLOSE)


def maps_of(channels, rows, columns, batch=2):
    rng = np.random.default_rng(6)
    return [
        jnp.asarray(rng.standard_normal((batch, rows // s, columns // s, c)), jnp.float32)
        for s, c in zip((4, 8, 16, 32), channels, strict=True)
    ]


@pytest.mark.parametrize(("decoder", "width", "auxiliary_stride"), [(unetformer.UNetFormer, 16, 8), (UPerNet, 12, 16)])
def test_a_decoder_gives_logits_at_stride_four_and_in_training_auxiliary_ones(decoder, width, auxiliary_stride):
    channels = (4, 6, 8, 10)
    graph, *state = nnx.split(decoder(channels, 5, channels=width, dtype=jnp.float32, rngs=nnx.Rngs(0)), nnx.Param, ...)
    pure = [nnx.as_pure(part) for part in state]

    def run(train):
        def call(pure, maps):
            return nnx.merge(graph, *pure)(maps, train=train, key=jax.random.key(0) if train else None)

        return jax.eval_shape(call, pure, maps_of(channels, 64, 96))

    logits, auxiliary = run(train=True)
    assert logits.shape == (2, 16, 24, 5) and logits.dtype == jnp.float32
    assert auxiliary.shape == (2, 64 // auxiliary_stride, 96 // auxiliary_stride, 5)
    assert run(train=False)[1] is None


def test_the_decoder_for_t_has_half_a_million_parameters():
    decoder = nnx.eval_shape(lambda: unetformer.UNetFormer((32, 64, 160, 256), 6, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder, nnx.Param)))
    assert 0.45e6 < count < 0.55e6  # "about 0.5 M" in the paper


def test_pooling_bins_are_those_of_adaptive_average_pooling():
    # PyTorch's rule for 7 positions and 3 bins: 0..2, 2..4, 4..6
    expected = np.zeros((3, 7))
    expected[0, 0:3] = expected[1, 2:5] = expected[2, 4:7] = 1 / 3
    np.testing.assert_allclose(pooling_matrix(7, 3), expected, rtol=1e-6)
