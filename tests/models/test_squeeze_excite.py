"""Channel mixing's gate in the form for NVIDIA GPUs against the plain one, on a GPU or emulated."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.kernels import ptx
from haksnet_jax.models import squeeze_excite
from haksnet_jax.models.backbones import haksnet


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with (
        cuda_machine.machine(request.param, "squeeze_excite", tmp_path_factory.mktemp("emulation")),
        cuda_machine.nvidia_gpu(request.param),
    ):
        yield request.param


def example(shape):
    rng = np.random.default_rng(0)
    module = haksnet.ChannelMixing(shape[-1], dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    for layer in (module.squeeze, module.excite):
        layer.bias[...] = jnp.asarray(rng.standard_normal(layer.bias.shape), jnp.float32)
    return module, *(jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))


def square_and_gradients(module, x, gradient):
    """The gated square and its gradients, by name, in float32."""
    graph, state = nnx.split(module)
    out, pull_back = jax.vjp(lambda state, x: nnx.merge(graph, state)._gated_square(x), state, x)
    assert out.dtype == x.dtype
    of_state, of_x = pull_back(gradient.astype(out.dtype))
    named = {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(of_state)}
    named = {name: value for name, value in named.items() if "dw_conv" not in name}
    return {name: np.asarray(value, np.float32) for name, value in {"out": out, "x": of_x, **named}.items()}


def check(got, exact):
    assert len(got) == 6
    for name, want in exact.items():
        assert np.abs(want).max() > 0, name
        if name in ("out", "x"):  # one rounding to bfloat16
            np.testing.assert_allclose(got[name], want, rtol=2.0**-8, atol=1e-6, err_msg=name)
        else:  # sums of some hundred float32 numbers, in another order
            np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=name)


def test_the_form_for_gpus_gives_what_the_plain_one_does(machine, monkeypatch):
    module, x, gradient = example((3, 5, 7, 32))
    assert squeeze_excite.suits(x)
    got = square_and_gradients(module, x, gradient)
    wide = [array.astype(jnp.float32) for array in (x, gradient)]
    assert not squeeze_excite.suits(wide[0])
    with jax.default_matmul_precision("highest"):
        check(got, square_and_gradients(module, *wide))


def test_gradients_of_parameters_are_sums_over_the_devices_of_a_mesh(monkeypatch, tmp_path):
    module, x, gradient = example((2, 3, 5, 32))
    exact = square_and_gradients(module, x.astype(jnp.float32), gradient.astype(jnp.float32))
    monkeypatch.setattr(squeeze_excite, "known_platform", lambda: "gpu")
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 227 << 10)
    monkeypatch.setattr(ptx, "MULTIPROCESSORS", 1)  # one block an image: less to emulate
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with cuda_machine.machine("emulation", "squeeze_excite", tmp_path), jax.set_mesh(mesh):
        assert squeeze_excite.suits(x)
        x, gradient = jax.device_put((x, gradient), jax.NamedSharding(mesh, jax.P("data")))
        check(square_and_gradients(module, x, gradient), exact)


def test_each_device_of_a_mesh_takes_its_images(monkeypatch):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 227 << 10)
    graph, state = nnx.split(haksnet.ChannelMixing(32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((8, 64, 64, 32), jnp.bfloat16)
    with cuda_machine.gpus(2):
        loss = jax.grad(lambda state, x: nnx.merge(graph, state)(x).astype(jnp.float32).sum(), (0, 1))
        text = str(jax.jit(loss).trace(state, x).jaxpr)
    calls = [line for line in text.splitlines() if " = ffi_call[" in line]
    assert sum("f32[4,8]" in call for call in calls) == 2  # the hidden values and their gradient
    assert not any("[8,32]" in call.split(" = ")[0] for call in calls)
    assert text.count(" = psum[") == 2  # of the gate's parameters, and of the two convolutions'


def test_other_features_take_the_plain_form(monkeypatch):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 163 << 10)
    x = jax.ShapeDtypeStruct((2, 16, 16, 32), jnp.bfloat16)
    assert not squeeze_excite.suits(x)  # what is traced without a mesh may be lowered for the host
    with cuda_machine.gpus(1):
        assert squeeze_excite.suits(x)
        assert not squeeze_excite.suits(x.update(dtype=jnp.float32))
        assert not squeeze_excite.suits(x.update(shape=(2, 16, 16, 24)))
