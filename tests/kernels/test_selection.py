"""The largest values of parts of rows against a stable sort: as XLA finds them, and the kernel for NVIDIA GPUs."""

import itertools

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import selection


@pytest.fixture(scope="module", params=["xla", "emulation", "gpu"])
def machine(request, tmp_path_factory):
    if request.param == "xla":
        yield
        return
    folder = tmp_path_factory.mktemp("emulation")
    with cuda_machine.machine(request.param, "selection", folder), cuda_machine.nvidia_gpu(request.param):
        yield


def by_sorting(values, bounds, k):
    top, index = np.full((len(bounds) - 1, k), -np.inf, np.float32), np.zeros((len(bounds) - 1, k), np.int32)
    for part, (start, end) in enumerate(itertools.pairwise(bounds)):
        order = np.argsort(-values[start:end], kind="stable")[:k]
        top[part, : len(order)], index[part, : len(order)] = values[start:end][order], start + order
    return top, index


def values_of(kind, n):
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    if kind == "ties":
        values = np.round(values, 1) + np.float32(0)  # (no -0)
    if kind == "equal":
        values[:] = 0.5
    if kind == "sorted":
        values = np.sort(values)
    if kind == "few":  # as scores of classes: most of them below what counts
        values = np.where(values > 2.4, values, np.float32(0))
    if kind == "rounded":  # as scores in bfloat16
        values = np.asarray(jnp.asarray(values - 5).astype(jnp.bfloat16).astype(jnp.float32))
    if kind == "near":  # large ones beside each other, all different, as where an object is
        values = values + 9 * (np.arange(n) // 500 % 4 == 1)
    if kind == "spread":  # every eighth value large, all different
        values = values + np.float32(9) * (np.arange(n) % 8 == 3)
    if kind == "chosen":  # as numbers drawn by few
        values = np.where(np.arange(n) % 97 == 5, np.abs(values), np.float32(-1))
    if kind == "infinite":
        values[::3] = -np.inf
    return values


@pytest.mark.parametrize(
    ("kind", "bounds", "k"),
    [
        ("random", (0, 300), 20),
        ("random", (0, 20_000, 20_001, 20_001, 30_000), 2000),  # parts of one value and of none
        ("random", (3, 8195, 25_000), 2000),  # as many as can be sorted at once, more
        ("ties", (0, 30_000), 2000),  # tens of thousands of values not below the bound
        ("equal", (0, 20_000), 2048),
        ("sorted", (0, 30_001), 1),
        ("infinite", (0, 12_000), 2000),
        ("few", (0, 3, 15_003), 4096),
        ("few", (5, 20_001), 900),  # by groups, of which too many are not below the bound
        ("rounded", (0, 40_000, 60_000), 500),  # many equal to the last one, by groups
        ("near", (7, 40_000), 1000),  # fewer groups than there is room for, too many values in them
        ("spread", (0, 40_000), 1000),  # too many groups, all of their maxima different
        ("chosen", (0, 30_000, 60_000), 256),  # more are drawn than wanted
        ("chosen", (0, 8000, 9000), 256),  # fewer, and the first of the others beside them
    ],
)
def test_largest_values_are_those_of_a_stable_sort(machine, kind, bounds, k):
    values = values_of(kind, bounds[-1])
    got = jax.jit(selection.top_k_of_parts, static_argnums=(1, 2))(values, bounds, k)
    for ours, expected in zip(got, by_sorting(values, bounds, k), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_rows_under_vmap(machine):
    values = values_of("random", 4 * 9000).reshape(2, 2, 9000)
    top, index = jax.jit(jax.vmap(jax.vmap(lambda row: selection.top_k(row, 30))))(values)
    for row in np.ndindex(2, 2):
        expected = by_sorting(values[row], (0, 9000), 30)
        np.testing.assert_array_equal(top[row], expected[0][0])
        np.testing.assert_array_equal(index[row], expected[1][0])


def test_the_order_of_numbers_is_that_of_top_k(machine):
    values = np.array([0.0, -0.0, 1.0, np.nan, -np.inf, -0.0, np.inf, 0.0, -1.0, np.nan], np.float32)
    got = jax.jit(selection.top_k_of_parts, static_argnums=(1, 2))(values, (0, len(values)), len(values))
    # XLA's on a CPU, whatever the machine is: NaN first, then infinity, 0 before -0, equal ones by their places.
    cpu = jax.local_devices(backend="cpu")[0]
    for ours, expected in zip(got, jax.lax.top_k(jax.device_put(values, cpu), len(values)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[0], expected)


def test_places_from_the_largest_on(machine):
    values = values_of("ties", 3 * 1000).reshape(3, 1000)
    values[1, ::2], values[2, ::3] = -np.inf, -0.0
    places = jax.jit(jax.vmap(selection.descending))(values)
    np.testing.assert_array_equal(places, np.argsort(-values, axis=1, kind="stable"))
