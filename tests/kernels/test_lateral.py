"""A pyramid's top-down step: in one kernel against the same written out, and its two ways of doubling."""

import functools

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.kernels import lateral, lateral_triton, triton

needs_triton = pytest.mark.skipif(triton.plgpu is None, reason="this JAX has no Triton backend of Pallas")


def written_out(x, kernel, bias, coarser):
    """In float32, of rounded factors."""
    height, width = x.shape[1:3]
    return x @ kernel + bias + coarser.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


def arguments(height, width, channels_in=16, channels=64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, channels_in)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(channels_in, channels)) / 4, jnp.bfloat16).astype(jnp.float32)
    bias = jnp.asarray(rng.normal(size=channels), jnp.float32)
    coarser = jnp.asarray(rng.normal(size=(2, -(-height // 2), -(-width // 2), channels)), jnp.float32)
    return x, kernel, bias, coarser


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(form, inputs, cotangents):
    results, pull_back = jax.vjp(form, *inputs)
    return results, pull_back(cotangents)


@needs_triton
def test_the_kernel_serves_narrow_maps_in_bfloat16_on_nvidia_gpus(monkeypatch):
    monkeypatch.setattr(triton, "usable", lambda: True)
    with cuda_machine.gpus():
        for channels_in, dtype, kernels in ((32, jnp.bfloat16, 1), (128, jnp.bfloat16, 0), (32, jnp.float32, 0)):
            x, *others = arguments(6, 8, channels_in=channels_in)
            step = functools.partial(lateral.lateral_sum, exact=False)
            assert str(jax.make_jaxpr(step)(x.astype(dtype), *others)).count("pallas_call[") == kernels


@needs_triton
@pytest.mark.parametrize(("height", "width", "exact"), [(6, 8, False), (5, 71, False), (5, 7, True)])
def test_the_kernels_and_their_gradients_are_those_of_what_is_written_out(monkeypatch, height, width, exact):
    monkeypatch.setattr(lateral_triton, "_NUM_PROGRAMS", 5)  # of 12 tiles two or three each at the largest size
    inputs = arguments(height, width)
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(2, height, width, 64)).astype(np.float32) for _ in range(2))
    cotangents = jnp.asarray(first, jnp.bfloat16), second if exact else None
    one_kernel = functools.partial(lateral.lateral_sum_triton, exact=exact, interpret=True)
    (rounded, unrounded), gradients = value_and_gradients(one_kernel, inputs, cotangents)
    assert rounded.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in gradients] == [x.dtype for x in inputs]

    inputs = tuple(x.astype(jnp.float32) for x in inputs)
    cotangent = cotangents[0].astype(jnp.float32) + (second if exact else 0)
    expected, expected_gradients = value_and_gradients(written_out, inputs, cotangent)
    # One rounding of neighbouring float32 sums; sums of 18 float32 terms in another order.
    np.testing.assert_allclose(rounded.astype(jnp.float32), expected, rtol=2.0**-8, atol=1e-5)
    assert (unrounded is not None) == exact
    if exact:
        np.testing.assert_allclose(unrounded, expected, rtol=1e-5, atol=1e-5)
    for name, gradient, wanted in zip(("x", "kernel", "bias", "coarser"), gradients, expected_gradients, strict=True):
        # JAX's gradient to a kernel that is rounded to the type of x is rounded too.
        is_rounded = name == "x" or (name == "kernel" and exact)
        atol = (2.0**-8 if is_rounded else 1e-5) * np.abs(wanted).max()
        np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, rtol=0, atol=atol, err_msg=name)


@needs_triton
def test_devices_take_their_share_of_the_images_and_add_up_the_weights_gradients():
    x, kernel, bias, coarser = inputs = arguments(5, 7)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 7, 64)), jnp.bfloat16)
    one_kernel = functools.partial(lateral.lateral_sum_triton, exact=False, interpret=True)
    expected = value_and_gradients(one_kernel, inputs, (cotangent, None))
    mesh = devices.data_mesh(jax.devices()[:2])
    with jax.set_mesh(mesh):
        x, coarser, cotangent = jax.device_put((x, coarser, cotangent), devices.batch_sharding(mesh))
        kernel, bias = jax.device_put((kernel, bias), devices.replicated(mesh))
        found = value_and_gradients(one_kernel, (x, kernel, bias, coarser), (cotangent, None))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # The same arithmetic; the weights' gradients are sums over two images in another order.
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-5, atol=1e-5)


def test_only_widths_that_fill_the_kernels_blocks_suit():
    def suit(channels_in, channels, dtype=jnp.bfloat16):
        return lateral_triton.suits(jnp.zeros((1, 1, 1, channels_in), dtype), jnp.zeros((channels_in, channels)))

    assert suit(32, 256) and suit(64, 256) and suit(16, 64)
    assert not (suit(48, 256) or suit(128, 256) or suit(8, 256) or suit(32, 192) or suit(32, 512))
    assert not suit(32, 256, jnp.float32)
    assert lateral_triton.suits_gradient(jnp.zeros((32, 256)))
    assert not lateral_triton.suits_gradient(jnp.zeros((64, 256)))


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
def test_the_two_ways_of_doubling_are_one_with_one_gradient(height, width):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5)), jnp.float32)
    gradient = jnp.asarray(rng.standard_normal((2, height, width, 5)), jnp.float32)
    results = []
    for form in (lateral.doubled_by_repetition, lateral.doubled_by_product):
        result, pull_back = jax.vjp(functools.partial(form, height=height, width=width), x)
        results.append((result, *pull_back(gradient)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)  # sums of four in another order
    np.testing.assert_array_equal(results[0][0][1, 4, 6], x[1, 2, 3])
