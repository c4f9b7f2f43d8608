"""The convolution of a map's first channels against XLA's in float32: on an NVIDIA GPU, and by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import partial_conv_cuda, ptx
from haksnet_jax.kernels.partial_conv import partial_conv, with_identity

A100 = 163 << 10  # bytes of shared memory of a block


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulation")
    with cuda_machine.machine(request.param, "partial_conv", folder), cuda_machine.nvidia_gpu(request.param):
        yield


def arrays(shape, num_convolved):
    """Features, the output's gradient, weights that bfloat16 holds."""
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    kernel = rng.standard_normal((3, 3, num_convolved, num_convolved)) / (3 * num_convolved**0.5)
    return x, gradient, jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32)


def expected_output(x, kernel):
    """In float32."""
    num_convolved = kernel.shape[-1]
    convolved = jax.lax.conv_general_dilated(
        x[..., :num_convolved], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return jnp.concatenate([convolved, x[..., num_convolved:]], axis=-1)


# Regions of 8 x 32 positions that are whole, cut off at the right and below, and alone.
SHAPES = [((2, 11, 37, 32), 8), ((1, 8, 32, 64), 16), ((1, 3, 5, 128), 32), ((1, 9, 33, 160), 40), ((1, 4, 8, 256), 64)]


@pytest.mark.parametrize(("shape", "num_convolved"), SHAPES, ids=str)
def test_kernels_against_a_convolution_in_float32(machine, monkeypatch, shape, num_convolved):
    monkeypatch.setattr(ptx, "MULTIPROCESSORS", 1)  # so that blocks have several regions
    x, gradient, kernel = arrays(shape, num_convolved)
    assert partial_conv_cuda.suits(shape, x.dtype, num_convolved, A100)
    out, pull_back = jax.vjp(partial_conv, x, kernel)
    expected, expected_pull_back = jax.vjp(expected_output, x.astype(jnp.float32), kernel)
    x_expected, kernel_expected = expected_pull_back(gradient.astype(jnp.float32))
    x_gradient, kernel_gradient = pull_back(gradient)
    # Exact products and float32 sums, rounded once to the eight bits of bfloat16.
    for got, right in ((out, expected), (x_gradient, x_expected)):
        np.testing.assert_allclose(np.asarray(got, np.float32), right, rtol=2**-8, atol=1e-5)
    np.testing.assert_array_equal(out[..., num_convolved:], x[..., num_convolved:])
    np.testing.assert_allclose(kernel_gradient, kernel_expected, rtol=1e-4, atol=1e-4)


def test_the_library_s_form_is_the_same():
    x, gradient, kernel = arrays((1, 5, 6, 24), 6)
    out, pull_back = jax.vjp(partial_conv, x, kernel)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected_output(x.astype(jnp.float32), kernel), rtol=2**-7)
    np.testing.assert_array_equal(out, with_identity(x, kernel))
    x_gradient, kernel_gradient = pull_back(gradient)
    x_expected, kernel_expected = jax.vjp(with_identity, x, kernel)[1](gradient)
    np.testing.assert_allclose(np.asarray(x_gradient, np.float32), np.asarray(x_expected, np.float32), rtol=2**-7)
    np.testing.assert_allclose(kernel_gradient, kernel_expected, rtol=2**-7, atol=0.01)


def test_what_the_kernels_take():
    suits = partial_conv_cuda.suits
    assert suits((8, 256, 256, 32), jnp.bfloat16, 8, A100)
    assert not suits((8, 256, 256, 32), jnp.float32, 8, A100)
    assert not suits((8, 256, 256, 32), jnp.bfloat16, 16, A100)  # not a quarter
    assert not suits((8, 32, 32, 512), jnp.bfloat16, 128, A100)  # factors that do not fit
    assert not suits((8, 256, 256, 32), jnp.bfloat16, 8, 0)  # no GPU of NVIDIA's
    assert not suits((1, 1 << 14, 1 << 13, 32), jnp.bfloat16, 8, A100)  # places beyond 32 bits


@pytest.mark.parametrize("num_devices", [1, 2])
def test_devices_of_a_mesh_take_their_images(monkeypatch, num_devices):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: A100)
    _, _, kernel = arrays((1, 1, 1, 1), 8)
    with cuda_machine.gpus(num_devices):
        trace = jax.jit(partial_conv).trace(jax.ShapeDtypeStruct((4, 16, 16, 32), jnp.bfloat16), kernel)
    assert f"bf16[{4 // num_devices},16,16,32] = ffi_call" in str(trace.jaxpr).replace("\n", " ")
