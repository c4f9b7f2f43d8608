"""The convolution of few channels by band matrices against the library's, and where each of them runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.ops.narrow_conv import (
    narrow_conv,
    narrow_conv_bands,
    narrow_conv_bands_gradients,
    space_to_depth_conv,
)


def library(x, kernel):
    k = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), ((k // 2, k // 2),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(k, shape, channels_out, dtype=np.float32):
    """Input, kernel and gradient of the output, such that dtype holds them exactly."""
    rng = np.random.default_rng(0)
    shapes = shape, (k, k, shape[-1], channels_out), (*shape[:-1], channels_out)
    return tuple(jnp.asarray(rng.standard_normal(one), dtype) for one in shapes)


# maps that no side of divides another, one smaller than the kernel
@pytest.mark.parametrize(("k", "shape"), [(3, (2, 5, 6, 3)), (7, (1, 9, 11, 4)), (7, (2, 3, 2, 4))])
def test_bands_are_the_convolution_and_their_gradients_its_derivatives(k, shape):
    x, kernel, gradient = arrays(k, shape, channels_out=5)
    want, pull_back = jax.vjp(library, x, kernel)
    # float32 sums of up to 245 products of size 1, in another order
    got = jax.jit(functools.partial(narrow_conv_bands, dtype=jnp.float32))(x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=3e-5)
    for ours, theirs in zip(
        jax.jit(narrow_conv_bands_gradients)(x, kernel, gradient), pull_back(gradient), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=5e-5)


def test_bfloat16_is_summed_in_float32_and_rounded_once():
    x, kernel, _ = arrays(7, (1, 9, 11, 4), 4, jnp.bfloat16)
    want = library(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(narrow_conv_bands(x, kernel, jnp.float32), want, rtol=1e-5, atol=3e-5)
    got = narrow_conv_bands(x, kernel, jnp.bfloat16)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=3e-5)


def test_it_and_its_gradients_are_those_of_the_function_for_other_platforms():
    x, kernel, gradient = arrays(3, (1, 5, 6, 3), 3)
    want, pull_back = jax.vjp(library, x, kernel)
    got, own_pull_back = jax.vjp(jax.jit(lambda x, kernel: narrow_conv(x, kernel, library)), x, kernel)
    np.testing.assert_array_equal(got, want)
    for ours, theirs in zip(own_pull_back(gradient), pull_back(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "expected"), [(16, {"cpu": (1, 0), "tpu": (0, 1)}), (17, {"tpu": (1, 0)})])
def test_the_form_is_chosen_for_the_platform_of_the_lowering(channels, expected):
    x, kernel, _ = arrays(3, (1, 5, 6, channels), channels)
    traced = jax.jit(lambda x, kernel: narrow_conv(x, kernel, library)).trace(x, kernel)
    for platform, operations in expected.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")) == operations


@pytest.mark.parametrize("size, stride, shape", [(7, 4, (16, 24)), (7, 4, (13, 18)), (3, 2, (13, 18)), (1, 1, (5, 6))])
def test_convolution_of_blocks_is_the_strided_convolution(size, stride, shape):
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, *shape, 3), (size, size, 3, 5)])
    )

    def strided(x, kernel):
        padding = ((size // 2, size // 2),) * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.jit
    def both(x, kernel):
        expected, pull_back = jax.vjp(strided, x, kernel)
        found, found_pull_back = jax.vjp(lambda x, kernel: space_to_depth_conv(x, kernel, stride), x, kernel)
        cotangent = jax.random.normal(jax.random.key(2), expected.shape)
        return (found, *found_pull_back(cotangent)), (expected, *pull_back(cotangent))

    for ours, theirs in zip(*both(x, kernel), strict=True):
        # The same products in another order: up to 147 of them, 144 outputs for a weight.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
