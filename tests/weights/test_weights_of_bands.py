"""A first convolution for other bands than it was trained on."""

import numpy as np
import pytest

from haksnet_jax.weights.bands import bands_of, carried_over

KERNEL = np.random.default_rng(0).standard_normal((7, 7, 3, 5)).astype(np.float32)


def test_bands_of_the_same_name_are_copied_and_others_get_the_mean():
    kernel, copied = carried_over(KERNEL, ("red", "green", "blue"), ("nir", "Red", "green", 5))
    assert kernel.shape == (7, 7, 4, 5) and copied == ["Red", "green"]
    np.testing.assert_array_equal(kernel[:, :, 1:3], KERNEL[:, :, :2])
    for place in (0, 3):
        np.testing.assert_allclose(kernel[:, :, place], KERNEL.mean(axis=2), rtol=1e-6)


def test_bands_in_another_order_keep_their_weights():
    kernel, _ = carried_over(KERNEL, ("red", "green", "blue"), ("blue", "green", "red"))
    np.testing.assert_array_equal(kernel, KERNEL[:, :, ::-1])


def test_a_model_says_its_bands():
    assert bands_of({"architecture": {}}) == ("red", "green", "blue")
    assert bands_of({"architecture": {"in_channels": 4}}) == (1, 2, 3, 4)
    assert bands_of({"architecture": {"in_channels": 2}, "images": {"bands": ["vv", "vh"]}}) == ("vv", "vh")


def test_a_kernel_of_another_number_of_bands_is_refused():
    with pytest.raises(ValueError, match="4 bands"):
        carried_over(KERNEL, (1, 2, 3, 4), ("red",))
