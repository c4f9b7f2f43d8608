"""The choice of a form by platform: which forms are traced."""

import jax
import jax.numpy as jnp
import pytest

from haksnet_jax import target as platforms
from haksnet_jax.target import by_platform


def choose(traced):
    """2 x on CPUs, 3 x on TPUs, 4 x elsewhere; the names of the forms that are traced are added to `traced`."""

    def form(name, factor):
        def run(x):
            traced.add(name)
            return factor * x

        return run

    return lambda x: by_platform(x, cpu=form("cpu", 2.0), tpu=form("tpu", 3.0), default=form("default", 4.0))


@pytest.mark.parametrize(
    ("platform", "factor", "expected"), [("cpu", 2.0, "cpu"), ("tpu", 3.0, "tpu"), ("gpu", 4.0, "default")]
)
def test_the_ambient_mesh_says_which_form_is_traced(platform, factor, expected):
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), auto, abstract_device=device)
    traced = set()
    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.jit(choose(traced)).trace(x)
        jax.jit(jax.shard_map(choose(traced), in_specs=jax.P("data"), out_specs=jax.P("data"))).trace(x)
    assert traced == {expected}  # on each device's share too
    assert f"mul {factor}" in str(program.jaxpr)


def test_a_process_without_accelerators_traces_every_form_since_it_may_compile_for_others():
    traced = set()
    lowered = jax.jit(choose(traced)).trace(jnp.ones(3)).lower(lowering_platforms=("tpu",))
    assert traced == {"cpu", "tpu", "default"}
    assert "3.0" in lowered.as_text()


@pytest.mark.parametrize(("here", "expected"), [("cpu", {"cpu", "default"}), ("tpu", {"tpu", "default"})])
def test_a_process_with_accelerators_traces_the_forms_for_what_it_has(monkeypatch, here, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(platforms, "_is_here", lambda platform: platform == here)
    traced = set()
    assert jax.jit(choose(traced))(1.0) == (2.0 if here == "cpu" else 4.0)
    assert traced == expected
