"""What the dates exchange, and warping by a flow, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models import change_detector as change
from haksnet_jax.models.unetformer import UNetFormer


def test_dates_exchange_every_second_column_then_every_second_channel():
    first, second = jnp.zeros((2, 3, 4, 6)), jnp.ones((2, 3, 4, 6))
    both = change.interleave(first, second)
    np.testing.assert_array_equal(change.exchange_between_dates(both, 1), both)
    columns_first, columns_second = change.dates(change.exchange_between_dates(both, 2))
    np.testing.assert_array_equal(columns_first[0, 0, :, 0], [1, 0, 1, 0])
    np.testing.assert_array_equal(columns_second[1, 2, :, 5], [0, 1, 0, 1])
    for stage in (3, 4):
        channels_first, channels_second = change.dates(change.exchange_between_dates(both, stage))
        np.testing.assert_array_equal(channels_first[1, 1, 2], [1, 0, 1, 0, 1, 0])
        np.testing.assert_array_equal(channels_second[0, 0, 0], [0, 1, 0, 1, 0, 1])


def test_exchanging_twice_gives_everything_back():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 5, 7)))
    for stage in (1, 2, 3, 4):
        twice = change.exchange_between_dates(change.exchange_between_dates(x, stage), stage)
        np.testing.assert_array_equal(twice, x)


def test_warping_looks_up_between_pixels_and_zeros_outside():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    flow = rng.uniform(-3, 3, (2, 5, 6, 2)).astype(np.float32)
    expected = np.zeros(x.shape)
    for b, i, j in np.ndindex(2, 5, 6):
        column, row = j + flow[b, i, j, 0], i + flow[b, i, j, 1]
        for dy, dx in np.ndindex(2, 2):
            r, c = int(np.floor(row)) + dy, int(np.floor(column)) + dx
            if 0 <= r < 5 and 0 <= c < 6:
                expected[b, i, j] += x[b, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    np.testing.assert_allclose(change.warp(jnp.asarray(x), jnp.asarray(flow)), expected, rtol=1e-4, atol=1e-5)


class Pooled(nnx.Module):
    """In the place of a backbone: means over the strides, repeated to the widths."""

    channels = (4, 6, 8, 10)

    def __call__(self, images, *, train=False, key=None, after_stage=None):
        maps = []
        for stage, (stride, width) in enumerate(zip((4, 8, 16, 32), self.channels, strict=True), 1):
            batch, height, width_in, bands = images.shape
            x = images.reshape(batch, height // stride, stride, width_in // stride, stride, bands).mean((2, 4))
            x = jnp.tile(x, 4)[..., :width] * jnp.arange(1, width + 1)
            maps.append(x if after_stage is None else after_stage(x, stage))
        return tuple(maps)


@pytest.mark.parametrize("head", ["difference", "exchange"])
def test_a_detector_gives_probabilities_of_pixels_pair_by_pair(head):
    settings = {"channels": 16, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    heads = {"difference": UNetFormer, "exchange": change.ChangerHead}
    model = change.ChangeDetector(
        Pooled(), heads[head](Pooled.channels, 2, **settings), pixel_mean=(120,) * 3, pixel_std=(60,) * 3
    )
    rng = np.random.default_rng(2)
    before, after = rng.integers(0, 256, (2, 2, 64, 64, 3), np.uint8)
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, before, after: nnx.merge(graph, state).probabilities(before, after))
    found = run(state, before, after)
    assert found.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert float(jnp.ptp(found[:, 1])) > 1e-3
    # Pairs of a batch do not see each other; sums of another order round differently.
    np.testing.assert_allclose(run(state, before[::-1], after[::-1]), found[::-1], rtol=1e-3, atol=1e-4)
    if head == "difference":  # which date is the first does not matter to
        np.testing.assert_allclose(run(state, after, before), found, rtol=1e-3, atol=1e-4)
