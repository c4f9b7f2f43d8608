"""The gradient of a mixture's weights in CUDA C++ against numpy: on a GPU, and without one by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import gates_cuda


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "gates", tmp_path_factory.mktemp("emulation")):
        yield request.param


# Several vectors of channels for each of four threads, not as many for all; cut blocks; fewer positions than one has;
# eight threads for each position.
@pytest.mark.parametrize("shape", [(2, 17, 19, 40), (1, 5, 7, 8), (1, 16, 16, 160), (2, 9, 15, 128)], ids=str)
def test_the_kernel_against_numpy(machine, shape):
    rng = np.random.default_rng(0)
    of_mixed, *maps = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(5))
    spatial = jax.nn.sigmoid(jnp.asarray(rng.standard_normal((*shape[:3], 4)), jnp.bfloat16))
    kernel = jnp.asarray(rng.uniform(size=(shape[0], 4)), jnp.float32)
    of_logits, of_kernel, of_bias = gates_cuda.gradient(of_mixed, maps, spatial, kernel)
    gate = np.asarray(spatial, np.float64)
    of_weights = np.stack([np.sum(np.asarray(m, np.float64) * np.asarray(of_mixed, np.float64), -1) for m in maps], -1)
    want = of_weights * np.asarray(kernel, np.float64)[:, None, None] * gate * (1 - gate)
    # 2^-8 of the value is half a step of bfloat16; sums of up to 160 products in float32 add 1e-5 beside zero.
    np.testing.assert_allclose(np.asarray(of_logits, np.float64), want, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(of_kernel.sum(2), (of_weights * gate).sum((1, 2)), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(of_bias.sum(2), want.sum((1, 2)), rtol=1e-5, atol=1e-3)
