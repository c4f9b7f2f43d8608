"""Strided convolution and the product that it is on TPUs against the library's convolution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels.strided_conv import (
    blocks_by_slices,
    blocks_by_transposition,
    convolve_columns,
    strided_conv,
)


def library(x, kernel, stride):
    padding = ((len(kernel) // 2, len(kernel) // 2),) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def columns(x, kernel, stride):
    return convolve_columns(x, kernel, stride, (len(kernel) // 2, len(kernel) // 2))


# sides that the stride does and does not divide; three colours, which are laid together, and more channels
@pytest.mark.parametrize(
    ("form", "size", "stride", "shape"),
    [
        (strided_conv, 7, 4, (16, 24, 3)),
        (strided_conv, 7, 4, (13, 18, 3)),
        (strided_conv, 3, 2, (13, 18, 3)),
        (strided_conv, 1, 1, (5, 6, 3)),
        (strided_conv, 3, 2, (13, 18, 8)),
        (columns, 3, 2, (13, 18, 8)),
        (columns, 3, 2, (12, 17, 8)),
        (columns, 3, 1, (5, 6, 4)),
        (columns, 7, 4, (14, 16, 3)),
        (columns, 7, 4, (5, 2, 3)),
    ],
)
def test_it_and_its_gradients_are_those_of_the_library(form, size, stride, shape):
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, *shape), (size, size, shape[-1], 5)])
    )

    @jax.jit
    def both(x, kernel):
        expected, pull_back = jax.vjp(functools.partial(library, stride=stride), x, kernel)
        found, found_pull_back = jax.vjp(functools.partial(form, stride=stride), x, kernel)
        cotangent = jax.random.normal(jax.random.key(2), expected.shape)
        return (found, *found_pull_back(cotangent)), (expected, *pull_back(cotangent))

    for ours, theirs in zip(*both(x, kernel), strict=True):
        # The same products in another order: up to 147 of them, 144 outputs for a weight.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_columns_of_bfloat16_are_summed_in_float32_and_rounded_once():
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate([(1, 5, 6, 8), (3, 3, 8, 4)])
    )
    want = library(x.astype(jnp.float32), kernel.astype(jnp.float32), 1)
    # 72 products of size 1 in another order
    np.testing.assert_allclose(convolve_columns(x, kernel, 1, (1, 1), dtype=jnp.float32), want, rtol=0, atol=3e-5)
    got = columns(x, kernel, 1)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=3e-5)


@pytest.mark.parametrize(("platform", "operations"), [("cpu", (3, 0, 0)), ("tpu", (0, 3, 2))])
def test_on_tpus_it_is_a_product_whose_columns_are_made_again_for_the_gradient(platform, operations):
    x, kernel = jnp.zeros((1, 8, 8, 8)), jnp.zeros((3, 3, 8, 4))
    traced = jax.jit(jax.grad(lambda x, kernel: jnp.square(strided_conv(x, kernel, 2)).sum(), (0, 1))).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    names = ("stablehlo.convolution", "stablehlo.dot_general", "stablehlo.concatenate")
    assert tuple(text.count(name) for name in names) == operations


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_both_forms_lay_the_same_pixels_side_by_side(stride):
    x = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    expected = np.empty((2, 8 // stride, 12 // stride, stride * stride * 3), np.float32)
    for row, column in itertools.product(range(8), range(12)):
        place = 3 * ((row % stride) * stride + column % stride)
        expected[:, row // stride, column // stride, place : place + 3] = x[:, row, column]
    np.testing.assert_array_equal(blocks_by_slices(jnp.asarray(x), stride), expected)
    np.testing.assert_array_equal(blocks_by_transposition(jnp.asarray(x), stride), expected)
