"""The depthwise kernels in CUDA C++ against shifted sums: on a GPU, and without one by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import depthwise, depthwise_cuda, ptx

AMPERE = 163 << 10  # bytes of shared memory

# Sides of kernels, and [B, H, W, C] that take each kind of region, cut by borders; channels that no block divides; more
# images than a block has; maps smaller than a kernel.
CASES = [
    *((k, (1, 20, 70, 24)) for k in (3, 5, 7, 9)),
    (3, (1, 31, 121, 8)),
    (9, (1, 31, 121, 8)),
    (7, (1, 16, 64, 32)),
    (9, (2, 33, 30, 16)),
    (5, (5, 14, 14, 16)),
    (9, (5, 14, 14, 16)),
    (3, (18, 7, 7, 16)),
    (9, (18, 7, 7, 16)),
    (7, (3, 9, 16, 8)),
    (9, (1, 1, 1, 8)),
]


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "depthwise", tmp_path_factory.mktemp("emulation")):
        yield request.param


def arrays(k, shape):
    """Features, the output's gradient, a kernel that bfloat16 holds, a bias."""
    rng = np.random.default_rng(k)
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((k, k, shape[3])), jnp.bfloat16).astype(jnp.float32)
    return x, gradient, kernel, jnp.asarray(rng.standard_normal(shape[3]), jnp.float32)


def check_weight_gradient(x, gradient, k):
    kernel_gradient, bias_gradient = depthwise_cuda.weight_gradient(x, gradient, k)
    wide = gradient.astype(jnp.float32)
    expected = depthwise.weight_gradient_slices(x.astype(jnp.float32), wide, k)
    # 3,800 additions, each rounded by up to 8e-6 where the sum is near 150, in another order: 5e-4 of a random walk.
    np.testing.assert_allclose(kernel_gradient, expected, atol=1e-3)
    np.testing.assert_allclose(bias_gradient, wide.sum((0, 1, 2)), atol=1e-3)


@pytest.mark.parametrize(("k", "shape"), CASES, ids=str)
def test_kernels_against_shifted_sums(machine, k, shape):
    x, gradient, kernel, bias = arrays(k, shape)
    if not depthwise_cuda.suits(shape, x.dtype, k, AMPERE if machine == "emulation" else ptx.shared_bytes()):
        pytest.skip("this GPU's blocks have too little shared memory")
    exact = depthwise.convolve_slices(x.astype(jnp.float32), kernel) + bias

    got, over_channels, over_positions = depthwise_cuda.convolve(x, kernel, bias, means=True)
    # 2^-8 of the value is half a step of bfloat16; sums of 81 products in float32 add 1e-5 beside zero.
    np.testing.assert_allclose(got.astype(np.float32), exact, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(over_channels, got.astype(np.float32).mean(-1), atol=2e-6)
    np.testing.assert_allclose(over_positions, exact.mean((1, 2)), rtol=1e-6, atol=2e-6)
    assert (depthwise_cuda.convolve(x, kernel, bias) == got).all()
    check_weight_gradient(x, gradient, k)


def test_blocks_that_walk_through_several_regions(machine, monkeypatch):
    monkeypatch.setattr(ptx, "MULTIPROCESSORS", 1)
    jax.clear_caches()
    x, gradient, _, _ = arrays(5, (3, 33, 30, 8))  # six regions
    check_weight_gradient(x, gradient, 5)
    x, gradient, _, _ = arrays(3, (4, 33, 30, 8))  # eight for three blocks
    check_weight_gradient(x, gradient, 3)
    jax.clear_caches()


@pytest.mark.parametrize("k", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(7, 7), (14, 16), (19, 19), (64, 64), (40, 6), (256, 256)])
def test_divisions_by_multiplication_are_exact(size, k):
    # The kernels divide the numbers of what they copy by rows, and by the copies of a row, with these factors.
    region = depthwise_cuda.region(*size)
    layout = depthwise_cuda.layout(region, k, halo=k > 1)
    copies, rows = 2 * layout.row_words, layout.rows * region.images
    items = np.arange(rows * copies + 4 * 256, dtype=np.uint64)
    assert (items * layout.items_inverse >> 20 == items // copies).all() and items[-1] * layout.items_inverse < 2**32
    assert (np.arange(rows) * layout.rows_inverse >> 16 == np.arange(rows) // layout.rows).all()
