"""The RPN's head by one kernel against its composed form."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models.rpn import OrientedRPN


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "rpn", tmp_path_factory.mktemp("emulation")):
        yield


def test_scores_are_those_of_the_composed_form(machine):
    rpn = OrientedRPN(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for part in (rpn.conv, rpn.logits, rpn.deltas):  # as they start, the outputs are nearly 0
        part.kernel.set_value(part.kernel[...] * 5)
        part.bias.set_value(jnp.linspace(-1, 1, part.bias.shape[0]))
    # Tiles are of 24 x 8 positions: one more row and column, one less, and levels of a single position.
    shapes = ((25, 9), (2, 7), (1, 1), (1, 1), (1, 1))
    levels = tuple(
        jax.random.normal(jax.random.key(i), (1, *shape, 256), jnp.bfloat16) for i, shape in enumerate(shapes)
    )
    with jax.default_matmul_precision("highest"):
        expected = rpn._level_by_level(levels, rounded=False)
    for found, exact in zip(rpn._on_hopper(levels), expected, strict=True):
        assert (found.dtype, found.shape) == (jnp.float32, exact.shape)
        # Sums in another order; of the hidden layer and the outputs' factors 16 bits count.
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * np.abs(exact).max())
