"""The pyramid (and the RPN on it) against the recorded reference, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models.fpn import FPN
from haksnet_jax.tools.parity import detectors
from haksnet_jax.tools.parity.rows import Fixture


def test_pyramid_and_rpn_give_the_recorded_outputs_for_even_and_odd_sizes(golden_file):
    # Relative to a tensor's largest value 1e-4; 1e-6 was seen.
    rows = detectors.neck_rpn_rows(Fixture(golden_file("neck_rpn.json").parent, "neck_rpn"))
    assert len(rows) == 6  # pyramid and RPN of three cases
    assert [row for row in rows if not row.passed] == []


@pytest.fixture(scope="module")
def pyramid():
    """A pyramid that adds up: laterals are identities, output convolutions pass their middle on."""
    fpn = FPN((1, 1, 1, 1), 1, rngs=nnx.Rngs(0))
    for lateral, output in zip(fpn.laterals, fpn.outputs, strict=True):
        lateral.kernel.set_value(jnp.ones((1, 1)))
        output.kernel.set_value(jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0))
    return fpn


def test_each_level_is_the_sum_of_what_is_coarser(pyramid):
    maps = [jnp.full((1, size, size, 1), value) for size, value in ((8, 1.0), (4, 10.0), (2, 100.0), (1, 1000.0))]
    levels = pyramid(maps)
    assert [level.shape[1] for level in levels] == [8, 4, 2, 1, 1]
    for level, expected in zip(levels, (1111, 1110, 1100, 1000, 1000), strict=True):
        np.testing.assert_array_equal(level, expected)


def test_a_coarser_value_reaches_the_two_by_two_places_below_it_and_is_cut_at_odd_sizes(pyramid):
    maps = [jnp.zeros((1, size, size, 1)) for size in (9, 5, 3, 2)]
    maps[1] = maps[1].at[0, 4, 1, 0].set(1.0)
    finest = np.asarray(pyramid(maps)[0])[0, ..., 0]
    assert np.argwhere(finest).tolist() == [[8, 2], [8, 3]]  # row 9 would be the other one, and is cut


def test_the_fifth_level_takes_every_second_place_of_the_fourth(pyramid):
    maps = [jnp.zeros((1, size, size, 1)) for size in (40, 20, 10, 5)]
    maps[3] = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(pyramid(maps)[4][0, ..., 0], [[0, 2, 4], [10, 12, 14], [20, 22, 24]])
