"""The block's MLP in CUDA C++ against its steps in float32: on a Hopper GPU, and without one by an emulation."""

import re

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import gated_mlp, gated_mlp_cuda, gated_mlp_triton, ptx, triton

HOPPER = 227 << 10  # bytes of shared memory


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "gated_mlp", tmp_path_factory.mktemp("emulation")):
        yield


def arrays(shape, num_hidden):
    """Features, the output's gradient, weights that bfloat16 holds."""
    rng = np.random.default_rng(0)
    num_channels = shape[3]
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    weights = gated_mlp.GatedMLPWeights(
        expand_kernel=rng.standard_normal((num_channels, 2 * num_hidden)) / num_channels**0.5,
        expand_bias=rng.standard_normal(2 * num_hidden),
        depthwise_kernel=rng.standard_normal((3, 3, num_hidden)) / 3,
        depthwise_bias=rng.standard_normal(num_hidden),
        project_kernel=rng.standard_normal((num_hidden, num_channels)) / num_hidden**0.5,
        project_bias=rng.standard_normal(num_channels),
    )
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16).astype(jnp.float32), weights)
    return x, gradient, rounded


def distance(got, expected):
    """Of two arrays, relative to the second."""
    got, expected = (np.asarray(array, np.float64) for array in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


# Two images, whose rows are neighbours in memory alone; the last 64 positions are not all there; hidden channels of one
# and two turns. On the emulation, whose blocks are few, each has several turns.
CASES = [((2, 5, 13, 32), 128), ((1, 9, 60, 32), 256), ((2, 6, 17, 64), 128), ((1, 2, 1, 32), 128)]


# Hidden values are rounded to bfloat16, half a step of which is 2^-9 on average: three such steps after one another
# come to 0.0034, and gradients have a fourth.
@pytest.mark.parametrize(("shape", "num_hidden"), CASES, ids=str)
def test_kernels_against_the_steps_in_float32(machine, monkeypatch, shape, num_hidden):
    monkeypatch.setattr(ptx, "MULTIPROCESSORS", 2)
    x, gradient, weights = arrays(shape, num_hidden)
    expected, pull_back = jax.vjp(gated_mlp.gated_mlp_plain, x.astype(jnp.float32), weights)
    if shape[3] == 32:
        assert gated_mlp_cuda.suits(x, weights, HOPPER)
        assert distance(gated_mlp_cuda.forward(x, weights), expected) < 0.004

    assert gated_mlp_cuda.gradients_suit(x, weights, HOPPER)
    x_expected, weights_expected = pull_back(gradient.astype(jnp.float32))
    x_gradient, weights_gradient = gated_mlp_cuda.gradients(x, weights, gradient)
    assert distance(x_gradient, x_expected) < 0.005
    for name, got in weights_gradient._asdict().items():
        assert distance(got, getattr(weights_expected, name)) < 0.005, name


def test_what_the_kernels_take():
    x, _, weights = arrays((1, 8, 8, 32), 128)
    both = gated_mlp_cuda.suits, gated_mlp_cuda.gradients_suit
    for suits in both:
        assert suits(x, weights, HOPPER)
        assert not suits(x.astype(jnp.float32), weights, HOPPER)
        assert not suits(x, weights, 0)  # no Hopper GPU
        assert not suits(x, weights, 99 << 10)
        assert not suits(x[:, :1], weights, HOPPER)  # one row: its inverse has 33 bits
        assert not suits(x, arrays((1, 8, 8, 32), 32)[2], HOPPER)
    wide, _, weights = arrays((1, 8, 8, 64), 128)
    assert [suits(wide, weights, HOPPER) for suits in both] == [False, True]
    # (traced, not made: 2^33 bytes)
    large = jax.ShapeDtypeStruct((1, 1 << 16, 1 << 10, 64), jnp.bfloat16)
    assert not gated_mlp_cuda.gradients_suit(large, weights, HOPPER)


@pytest.mark.parametrize(
    ("shape", "num_hidden", "hopper", "forward", "gradients"),
    [
        ((8, 16, 16, 32), 256, True, gated_mlp_cuda.forward, gated_mlp_cuda.gradients),
        ((8, 16, 16, 64), 512, True, gated_mlp_triton.gated_mlp_triton, gated_mlp_cuda.gradients),
        ((8, 16, 16, 128), 512, True, gated_mlp.gated_mlp_plain, None),
        ((8, 16, 16, 32), 256, False, gated_mlp_triton.gated_mlp_triton, gated_mlp_triton.gated_mlp_triton_gradients),
        # Sixteen devices have 8 images each; as one batch they would have more places than 32 bits count.
        ((128, 256, 256, 32), 256, True, gated_mlp_cuda.forward, gated_mlp_cuda.gradients),
    ],
)
def test_which_kernels_serve_an_nvidia_gpu(monkeypatch, shape, num_hidden, hopper, forward, gradients):
    monkeypatch.setattr(ptx, "on_hopper", lambda: hopper)
    monkeypatch.setattr(ptx, "shared_bytes", lambda: HOPPER)
    monkeypatch.setattr(triton, "usable", lambda: True)
    _, _, weights = arrays((1, 1, 1, shape[3]), num_hidden)
    with cuda_machine.gpus(16 if shape[0] == 128 else 1):
        chosen = gated_mlp._forms(jax.ShapeDtypeStruct(shape, jnp.bfloat16), weights)["cuda"]
    assert chosen[0] == forward and (gradients is None or chosen[1] == gradients)  # (None: derived)


def test_each_device_of_a_mesh_takes_its_images():
    _, _, weights = arrays((1, 1, 1, 32), 128)
    x = jax.ShapeDtypeStruct((8, 16, 16, 32), jnp.bfloat16)
    with cuda_machine.gpus(2):
        forward = jax.jit(gated_mlp_cuda.forward).trace(x, weights).jaxpr
        gradients = jax.jit(gated_mlp_cuda.gradients).trace(x, weights, x).jaxpr
    results = re.findall(r"((?:\w+:\S+\s+)+)= ffi_call\[", f"{forward}\n{gradients}")
    found = [re.findall(r":(\S+)", each) for each in results]
    tiles = 4 * 16 * 18 // 64  # of a device's four images; as many programs as there are tiles for each of two chunks
    sums = [f"f32[{tiles},128,{columns}]" for columns in (16, 32, 8, 32, 288)]
    assert found == [["bf16[4,16,16,32]"], ["bf16[4,16,16,128]", "bf16[4,16,16,2,32]", *sums]]


def test_registers_of_products_are_left_alone_while_these_run():
    """PTX ISA, wgmma: factors and sums in registers are written before the fence and read after the wait."""
    text = (cuda_machine.SOURCES / "gated_mlp.ptx").read_text()
    parts = re.findall(r"wgmma\.fence\.sync\.aligned;(.*?)wgmma\.wait_group", text, flags=re.DOTALL)
    assert len(parts) == text.count("wgmma.fence.sync") > 0
    for part in parts:
        lines = part.splitlines()
        products = [line for line in lines if line.startswith("wgmma.mma_async")]
        in_use = {name for line in products for braces in re.findall(r"{(.*?)}", line) for name in braces.split(", ")}
        others = [line for line in lines if line not in products]
        touched = {name for line in others for name in re.findall(r"%\w+", line)}
        assert len(products) >= 4 and not in_use & touched


@pytest.mark.parametrize("size", [(8, 256, 256), (1, 2, 1), (64, 3, 150), (2000, 2, 1022), (2, 40_000, 208)])
def test_divisions_by_multiplication_are_exact(size):
    # (The last two are close to the most that is let in: more rows would be refused.)
    _, _, weights = arrays((1, 1, 1, 32), 64)
    assert gated_mlp_cuda.gradients_suit(jax.ShapeDtypeStruct((*size, 32), jnp.bfloat16), weights, HOPPER)
    numbers = gated_mlp_cuda._numbers((*size, 32), 256)
    most = numbers["TILES"] * 64 + 64
    for name, divisor, count in (("PITCH", size[2] + 2, most), ("HEIGHT", size[1], most // (size[2] + 2) + 1)):
        values = np.arange(count, dtype=np.uint64)
        assert (values * np.uint64(numbers[f"{name}_INVERSE"]) >> np.uint64(32) == values // divisor).all()
