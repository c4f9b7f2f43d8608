"""Kernel selection's small layers in CUDA C++ against JAX: on a GPU, and without one by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import attention_cuda, narrow_conv_cuda
from haksnet_jax.kernels.attention_cuda import Attention, Layers

FIRST = 12  # of the parameters are not the layers'


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "attention", tmp_path_factory.mktemp("emulation")):
        yield request.param


def plain(means, parameters):
    """(weights, hidden layer) by means [B, 4 C]."""
    layers, _ = attention_cuda.take_apart(parameters[FIRST:])
    with jax.default_matmul_precision("highest"):  # (a GPU would round factors to 11 bits)
        hidden = jax.nn.relu(means @ layers.kernel_1 + layers.bias_1)
        return jax.nn.softmax(hidden @ layers.kernel_2 + layers.bias_2), hidden


def random_parameters(rng, num_channels):
    """Of layers whose hidden units are now on, now off, and of a convolution, behind numbers that are others'."""
    shapes = Layers((4 * num_channels, 4), (4,), (4, 4), (4,))
    spreads = Layers((4 * num_channels) ** -0.5, 0.5, 1, 1)
    layers = [spread * rng.standard_normal(shape) for shape, spread in zip(shapes, spreads, strict=True)]
    fusion = rng.standard_normal(788)
    parts = [np.full(FIRST, np.nan), *(layer.ravel() for layer in layers), fusion]
    return jnp.asarray(np.concatenate(parts), jnp.float32)


# [B, blocks, C], [blocks, H, W]: several threads for a channel, and not as many blocks for each; more positions than
# threads; one block; as many channels that a thread has several; fewer blocks than there are threads for.
@pytest.mark.parametrize(
    ("of_positions", "of_channels"),
    [((2, 21, 16), (1, 33, 37)), ((1, 1, 272), (17, 3, 5)), ((2, 3, 24), (2, 9, 8))],
    ids=str,
)
def test_the_means_and_the_weights_against_numpy(machine, of_positions, of_channels):
    rng = np.random.default_rng(0)
    num_images, _, num_channels = of_positions
    _, height, width = of_channels
    positions = height * width * rng.standard_normal((4, *of_positions)).astype(np.float32)
    channels = num_channels * rng.standard_normal((4, num_images, *of_channels)).astype(np.float32)
    parameters = random_parameters(rng, num_channels)
    got = attention_cuda.forward(positions, channels, parameters, FIRST)
    want_channels = np.moveaxis(channels.astype(np.float64).sum(2) / num_channels, 0, -1)
    # 2^-8 of the value is half a step of bfloat16; sums of up to 21 numbers near 1 in float32 add 1e-5 beside zero.
    np.testing.assert_allclose(np.asarray(got.channel_means, np.float64), want_channels, rtol=2**-8, atol=1e-5)
    want = positions.astype(np.float64).sum(2) / (height * width)
    want = np.moveaxis(want, 0, 1).reshape(num_images, -1)
    np.testing.assert_allclose(got.means, want, rtol=1e-6, atol=1e-5)
    # 1,088 products of numbers near 1 and 0.03, added in another order, and an exponential of two more digits.
    for of_ours, of_plain in zip(
        (got.weights, got.hidden), plain(jnp.asarray(want, jnp.float32), parameters), strict=True
    ):
        np.testing.assert_allclose(of_ours, of_plain, rtol=1e-5, atol=1e-5)
    kernel = attention_cuda.take_apart(parameters)[1].kernel
    assert (got.fusion[0] == narrow_conv_cuda.arranged(kernel)).all()
    assert (got.fusion_turned[0] == narrow_conv_cuda.arranged(kernel[::-1, ::-1].swapaxes(2, 3))).all()


# More images than a block has at once; more columns than a block has; more blocks' sums than a warp adds at once.
@pytest.mark.parametrize(("num_images", "num_channels", "blocks"), [(133, 8, 3), (2, 40, 70), (1, 272, 1)])
def test_the_gradient_against_what_jax_derives(machine, num_images, num_channels, blocks):
    rng = np.random.default_rng(1)
    means = jnp.asarray(rng.standard_normal((num_images, 4 * num_channels)), jnp.float32)
    parameters = random_parameters(rng, num_channels)
    (weights, hidden), pull_back = jax.vjp(plain, means, parameters)
    assert num_images < 100 or 0 < (hidden > 0).mean() < 1
    of_weights = jnp.asarray(rng.standard_normal((num_images, 4, blocks)), jnp.float32)
    of_logits = jnp.asarray(rng.standard_normal(of_weights.shape), jnp.float32)
    of_fusion = jnp.asarray(rng.standard_normal((blocks, 7, 7, 4, 4)), jnp.float32)
    attention = Attention(None, means, hidden, weights, None, None)
    arrays = of_weights, of_logits, of_fusion, attention, parameters
    of_means, of_parameters = attention_cuda.gradient(*arrays, FIRST)
    of_layers, of_convolution = attention_cuda.take_apart(of_parameters)
    want_means, want_parameters = pull_back((of_weights.sum(2), jnp.zeros_like(hidden)))
    want_layers, _ = attention_cuda.take_apart(want_parameters[FIRST:])
    # Sums of up to 70 numbers near 1 for each weight, and of 133 images, in another order: 1e-7 of sizes up to 50.
    np.testing.assert_allclose(of_means, want_means, rtol=1e-5, atol=1e-5)
    for of_ours, of_plain in zip(of_layers, want_layers, strict=True):
        np.testing.assert_allclose(of_ours, of_plain, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(of_convolution.kernel, of_fusion.sum(0), atol=2e-5)
    np.testing.assert_allclose(of_convolution.bias, of_logits.sum((0, 2)), atol=2e-5)
    assert (of_parameters == attention_cuda.gradient(*arrays, FIRST)[1]).all()
