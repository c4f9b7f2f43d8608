"""The convolution of few channels by band matrices against the library's, and where each of them runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import triton
from haksnet_jax.kernels.narrow_conv import (
    narrow_conv,
    narrow_conv_bands,
    narrow_conv_bands_gradients,
    narrow_conv_triton,
    narrow_conv_triton_gradients,
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


@pytest.mark.skipif(triton.plgpu is None, reason="this jax has no Triton backend")
@pytest.mark.parametrize(("k", "shape"), [(7, (1, 9, 11, 4)), (3, (2, 3, 20, 2))])
def test_the_kernel_of_pairs_is_the_convolution_and_its_gradients_the_derivatives(k, shape):
    x, kernel, gradient = arrays(k, shape, channels_out=4)
    want, pull_back = jax.vjp(library, x, kernel)
    # float32 sums of up to 196 products of size 1, in another order
    np.testing.assert_allclose(narrow_conv_triton(x, kernel, jnp.float32, interpret=True), want, rtol=1e-5, atol=3e-5)
    got = narrow_conv_triton_gradients(x, kernel, gradient, interpret=True)
    for ours, theirs in zip(got, pull_back(gradient), strict=True):
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


@pytest.mark.parametrize(
    ("channels", "expected"),
    # For TPUs: bands in a loop over kernel rows, one product of columns, the library's convolution.
    [
        (7, {"cpu": (1, 0, 0), "tpu": (0, 1, 1)}),
        (8, {"cpu": (1, 0, 0), "tpu": (0, 1, 0)}),
        (16, {"cpu": (1, 0, 0), "tpu": (0, 1, 0)}),
        (17, {"tpu": (1, 0, 0)}),
    ],
)
def test_the_form_is_chosen_for_the_platform_of_the_lowering(channels, expected):
    x, kernel, _ = arrays(3, (1, 5, 6, channels), channels)
    traced = jax.jit(lambda x, kernel: narrow_conv(x, kernel, library)).trace(x, kernel)
    for platform, operations in expected.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        names = ("stablehlo.convolution", "stablehlo.dot_general", "stablehlo.while")
        assert tuple(text.count(name) for name in names) == operations


@pytest.mark.parametrize("channels", [4, 8])
def test_products_of_float32_are_exact_on_tpus(channels):
    x, kernel, _ = arrays(3, (1, 5, 6, channels), channels)

    def loss(x, kernel):
        return jnp.square(narrow_conv(x, kernel, library)).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
    products = [
        line for line in traced.lower(lowering_platforms=("tpu",)).as_text().splitlines() if "dot_general" in line
    ]
    assert len(products) == 3 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
