"""The squeeze-excite gate in CUDA C++ and its gradient against JAX's: on a GPU, and without one by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import ptx, squeeze_excite_cuda


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "squeeze_excite", tmp_path_factory.mktemp("emulation")):
        yield request.param


def plain(row_sums, parameters, width):
    means = row_sums.sum(1) / (row_sums.shape[1] * width)
    with jax.default_matmul_precision("highest"):
        hidden = jax.nn.relu(means @ parameters.squeeze + parameters.squeeze_bias)
        return jax.nn.sigmoid(hidden @ parameters.excite + parameters.excite_bias), means, hidden


def example(shape, width):
    rng = np.random.default_rng(0)
    num_channels = shape[-1]
    parameters = squeeze_excite_cuda.Parameters(
        *(
            jnp.asarray(scale * rng.standard_normal(size), jnp.float32)
            for scale, size in (
                (num_channels**-0.5, (num_channels, num_channels // 4)),
                (2 * num_channels**-0.5, (num_channels // 4, num_channels)),
                (0.1, num_channels // 4),
                (1, num_channels),
            )
        )
    )
    row_sums = jnp.asarray(width * (shape[1] ** 0.5 * rng.standard_normal(shape) + 0.2), jnp.float32)
    return row_sums, parameters, jnp.asarray(rng.standard_normal(shape), jnp.float32)


# One image, shared by four blocks; several, a width that is no power of two, and more rows than threads take at once;
# the most channels; two rounds of a thread's images. As where there are many images: two blocks for each, and eight
# threads for a sum over the images; then one block and two threads.
@pytest.mark.parametrize(
    ("shape", "multiprocessors", "images_of_thread"),
    [
        ((1, 9, 32), 132, 16),
        ((2, 130, 160), 132, 16),
        ((1, 7, 512), 132, 16),
        ((9, 2, 32), 132, 16),
        ((9, 2, 64), 18, 1),
        ((2, 700, 32), 2, 1),
    ],
    ids=str,
)
def test_the_gate_and_its_gradients_are_those_of_jax(machine, monkeypatch, shape, multiprocessors, images_of_thread):
    monkeypatch.setattr(ptx, "MULTIPROCESSORS", multiprocessors)
    monkeypatch.setattr(squeeze_excite_cuda, "_IMAGES_OF_THREAD", images_of_thread)
    width = 5
    row_sums, parameters, of_gate = example(shape, width)
    assert squeeze_excite_cuda.suits(shape[0], shape[2])
    packed = squeeze_excite_cuda.pack(parameters)
    got = squeeze_excite_cuda.gate(row_sums, packed, width=width)
    of_features, of_packed = squeeze_excite_cuda.gradient(of_gate, *got, packed, width=width)

    want, pull_back = jax.vjp(lambda *arrays: plain(*arrays, width), row_sums, parameters)
    zeros = jnp.zeros_like(want[1]), jnp.zeros_like(want[2])
    of_row_sums, of_parameters = pull_back((of_gate.sum(1), *zeros))
    named = {"of_features": (of_features, of_row_sums[:, 0])}
    named |= {name: pair for name, *pair in zip(("gate", "means", "hidden"), got, want, strict=True)}
    named |= {
        f"of_{name}": pair
        for name, *pair in zip(
            parameters._fields, squeeze_excite_cuda.unpack(of_packed, shape[2]), of_parameters, strict=True
        )
    }
    assert 0.2 < (np.asarray(want[2]) > 0).mean() < 0.8
    for name, (ours, theirs) in named.items():
        # Sums of up to 700 float32 numbers in another order: each addition rounds by up to 6e-8 of a partial sum, and
        # three such sums stand behind each other.
        atol = 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol, err_msg=name)


def test_what_is_not_finite_is_not_hidden(machine):
    row_sums, parameters, of_gate = example((2, 4, 32), 4)
    packed = squeeze_excite_cuda.pack(parameters)
    gate, means, hidden = squeeze_excite_cuda.gate(row_sums.at[1, 2, 3].set(np.nan), packed, width=4)
    assert np.isfinite(gate[0]).all() and np.isnan(gate[1]).all() and np.isnan(hidden[1]).all()
    _, of_packed = squeeze_excite_cuda.gradient(of_gate, gate, means, hidden, packed, width=4)
    assert np.isnan(squeeze_excite_cuda.unpack(of_packed, 32).excite).all()
    # An exponential that overflows is a gate that is shut.
    shut = squeeze_excite_cuda.pack(parameters._replace(excite_bias=jnp.full(32, -200.0)))
    assert (np.asarray(squeeze_excite_cuda.gate(row_sums, shut, width=4)[0]) == 0).all()


def test_channels_that_the_kernels_do_not_take():
    assert not squeeze_excite_cuda.suits(8, 48) and not squeeze_excite_cuda.suits(8, 544)
    assert not squeeze_excite_cuda.suits(2**16, 32)
