"""Kernel selection and channel mixing in the form for NVIDIA GPUs against the plain one, on a GPU or emulated."""

import functools

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.kernels import depthwise_cuda, ptx
from haksnet_jax.models import cascades
from haksnet_jax.models.backbones import haksnet


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("emulation") for _ in range(4)]
    with (
        cuda_machine.machine(request.param, "depthwise", folders[0]),
        cuda_machine.machine(request.param, "narrow", folders[1]),
        cuda_machine.machine(request.param, "gates", folders[2]),
        cuda_machine.machine(request.param, "attention", folders[3]),
        cuda_machine.nvidia_gpu(request.param),
    ):
        yield request.param


def result_and_gradients(module, x, gradient):
    """The module's output and its gradients, by name, in float32."""
    graph, state = nnx.split(module)
    out, pull_back = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
    of_state, of_x = pull_back(gradient.astype(out.dtype))
    named = {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(of_state)}
    return {name: np.asarray(value, np.float32) for name, value in {"out": out, "x": of_x, **named}.items()}


# Several regions cut by borders, with channels that no block divides; several images, more than one in a region.
@pytest.mark.parametrize("shape", [(1, 17, 40, 24), (5, 9, 14, 8)], ids=str)
@pytest.mark.parametrize("part", [haksnet.KernelSelection, haksnet.ChannelMixing])
def test_the_form_for_gpus_gives_what_the_plain_one_does(machine, monkeypatch, part, shape):
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    module = part(shape[-1], dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    for name, part_of_it in vars(module).items():
        if name.startswith("dw_conv"):
            part_of_it.bias[...] = jnp.asarray(rng.standard_normal(shape[-1]), jnp.float32)
        if name.startswith("kernel_attention"):  # the ReLU lets something through, and no kernel has all the weight
            part_of_it.kernel[...] *= 0.05
            part_of_it.bias[...] += 1
    assert cascades.suits(x, cascades.SIDES)
    got = result_and_gradients(module, x, gradient)
    monkeypatch.setattr(cascades, "suits", lambda x, sides: False)
    plain = result_and_gradients(module, x, gradient)
    wide = part(shape[-1], dtype=jnp.float32, rngs=nnx.Rngs(1))
    nnx.update(wide, nnx.state(module))
    exact = result_and_gradients(wide, x.astype(jnp.float32), gradient.astype(jnp.float32))
    if part is haksnet.KernelSelection:
        # The kernels' weights differ in float32's last digits, and for that a number in 10,000 is rounded to another of
        # bfloat16's, in the mixture and again in the product with x: steps of up to 2^-7.
        assert (got["out"] != plain["out"]).mean() < 1e-3
        np.testing.assert_allclose(got["out"], plain["out"], rtol=2**-6)
    for name, want in exact.items():
        ours, theirs = (np.sqrt(np.mean(np.square(of[name] - want))) for of in (got, plain))
        # As near to float32 as the plain form, which rounds twice what is rounded once here. Few numbers, as the
        # gradients of biases are, are nearer or farther by chance: bfloat16's 2^-8, of sums.
        chance = 1e-6 if want.size > 1000 else 2**-8
        assert ours <= 1.1 * theirs + chance * np.abs(want).max(), name
        assert np.abs(want).max() > 0, name
        assert np.abs(got[name] - plain[name]).max() < 2**-6 * np.abs(want).max(), name


def test_gradients_of_parameters_are_sums_over_the_devices_of_a_mesh(machine, monkeypatch):
    if machine == "gpu":
        pytest.skip("a mesh of CPUs is there for certain")
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.standard_normal((2, 5, 9, 8)), jnp.bfloat16) for _ in range(2))
    module = haksnet.KernelSelection(8, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    module.kernel_attention_1.bias[...] += 1
    alone = result_and_gradients(module, x, gradient)
    monkeypatch.setattr(cascades, "known_platform", lambda: "gpu")
    # What all devices do alike the emulation must be told to do on each; a GPU's compiler sees to that.
    bands = depthwise_cuda.cascade_bands
    everywhere = functools.partial(jax.shard_map, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    monkeypatch.setattr(
        depthwise_cuda,
        "cascade_bands",
        lambda flat, sides, channels: everywhere(lambda flat: bands(flat, sides, channels))(flat),
    )
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        x, gradient = jax.device_put((x, gradient), jax.NamedSharding(mesh, jax.P("data")))
        shared = result_and_gradients(module, x, gradient)
    for name, want in alone.items():
        if name in ("out", "x"):  # an image's numbers ask nothing of other images
            assert (shared[name] == want).all(), name
        else:  # sums of 90 float32 numbers, in another order
            np.testing.assert_allclose(shared[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=name)


def test_each_device_of_a_mesh_takes_its_images(monkeypatch):
    monkeypatch.setattr(cascades.ptx, "shared_bytes", lambda: 227 << 10)
    x = jax.ShapeDtypeStruct((8, 64, 64, 16), jnp.bfloat16)

    for part, num_maps, num_sums in ((haksnet.KernelSelection, 8, 2), (haksnet.ChannelMixing, 4, 1)):
        graph, state = nnx.split(part(16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))

        def loss(state, x, graph=graph):
            return nnx.merge(graph, state)(x).astype(jnp.float32).sum()

        with cuda_machine.gpus(2):
            text = str(jax.jit(jax.grad(loss, (0, 1))).trace(state, x).jaxpr)
        calls = [line for line in text.splitlines() if " = ffi_call[" in line]
        # One for each convolution and its gradient, of the device's four images; weights' gradients meet once.
        assert sum("bf16[4,64,64,16]" in call for call in calls) == num_maps
        assert not any("[8,64,64" in call for call in calls)
        assert text.count(" = psum[") == num_sums  # (and those of the convolution of four channels)


def test_without_a_mesh_of_gpus_the_plain_form_serves(monkeypatch):
    """What is traced without one may be lowered for the host, whose compiler knows no PTX."""
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 163 << 10)  # an A100's
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jax.ShapeDtypeStruct((1, 16, 16, 32), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # (other tests' GPU is left alone)
        assert not cascades.suits(x, cascades.SIDES)
    with cuda_machine.gpus(1):
        assert cascades.suits(x, cascades.SIDES)
