"""Compiled steps that are kept: equal results without tracing; nothing is read that others could have written."""

import logging
import os
import shutil

import dummy_task
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from haksnet_jax import tasks
from haksnet_jax.training import executables, loop
from haksnet_jax.weights import model_folder


@pytest.fixture(autouse=True)
def compiled_here():
    """Without JAX's own cache: what XLA's CPU compiler reads from there, it does not write again as a whole."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """(folder of steps, key, arguments, mesh) of a step that was compiled and saved; tracing it again would raise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = NamedSharding(mesh, jax.P()), NamedSharding(mesh, jax.P("data"))
    state = {"weight": jax.device_put(np.arange(6, dtype=np.float32), whole)}
    batch = {"image": jax.device_put(np.ones((8, 6), np.float32), split)}
    arguments = (state, batch, jax.ShapeDtypeStruct((), jnp.float32))

    def step(state, batch, rate):
        loss = (batch["image"] @ state["weight"]).mean()
        return {"weight": state["weight"] - rate * batch["image"].sum(0)}, {"loss": loss, "finite": loss < 1e9}

    compiled = jax.jit(step).lower(*arguments).compile()
    key = executables.key_of({"a": 1}, arguments, mesh)
    executables.save(key, compiled, ["loss", "finite"])
    return executables.folder(), key, arguments, mesh


def test_a_kept_step_gives_what_the_compiled_one_gave(kept):
    _, key, arguments, mesh = kept
    step = executables.load(key, arguments, mesh)
    state, metrics = step(*arguments[:2], np.float32(0.5))
    np.testing.assert_array_equal(state["weight"], np.arange(6) - 4.0)  # each of 8 rows of ones, times 0.5
    assert float(metrics["loss"]) == 15.0 and bool(metrics["finite"])


def test_the_key_follows_settings_shapes_code_and_environment(kept, monkeypatch):
    _, key, arguments, mesh = kept
    assert executables.key_of({"a": 1}, arguments, mesh) == key
    other = (*arguments[:2], jax.ShapeDtypeStruct((), jnp.bfloat16))
    assert len({key, executables.key_of({"a": 2}, arguments, mesh), executables.key_of({"a": 1}, other, mesh)}) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the same device by another number
    assert executables.key_of({"a": 1}, arguments, mesh) == key
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_math=false")
    assert executables.key_of({"a": 1}, arguments, mesh) != key


@pytest.mark.parametrize("writable", ["folder", "file"])
def test_what_others_could_have_written_is_not_read(kept, caplog, writable):
    folder, key, arguments, mesh = kept
    (folder if writable == "folder" else folder / key).chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert executables.load(key, arguments, mesh) is None
    assert "others may write it" in caplog.text


def test_a_changed_byte_is_said_and_the_step_compiled_again(kept, caplog):
    folder, key, arguments, mesh = kept
    data = bytearray((folder / key).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / key).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert executables.load(key, arguments, mesh) is None
    assert "not as it was written" in caplog.text


def test_the_folder_is_the_users_alone_and_keeps_the_newest(kept, monkeypatch):
    folder, _, arguments, _ = kept
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(executables, "MAX_KEPT", 1)
    compiled = jax.jit(lambda state, batch, rate: (state, {})).lower(*arguments).compile()
    executables.save("newer", compiled, [])
    assert [path.name for path in folder.iterdir()] == ["newer"]


def test_a_run_goes_on_with_the_step_that_it_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(executables, "_are_kept", lambda mesh: True)  # on CPUs too

    monkeypatch.setitem(tasks.TASKS, "dummy", "dummy_task")
    last = tmp_path / "run" / "checkpoints" / "4"

    def run():
        with caplog.at_level(logging.INFO):
            caplog.clear()
            card = loop.run(dummy_task.make_config(num_steps=4), tmp_path / "run")
        assert card["facts"]["steps"] == 4
        return [record.getMessage() for record in caplog.records], model_folder.restore_numpy(last / "state")

    _, whole = run()
    shutil.rmtree(last)
    monkeypatch.setattr(loop, "make_train_step", lambda *_, **__: None)  # nothing is traced any more
    told, resumed = run()
    assert any("resuming at step 2" in line for line in told)
    assert any("the compiled training step of an earlier start, read" in line for line in told)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize("name", ["loop.py", "kernels/cuda/kernel.ptx"])
def test_the_key_of_a_step_changes_with_code_and_kernels(tmp_path, monkeypatch, name):
    monkeypatch.setattr(executables.haksnet_jax, "__file__", str(tmp_path / "__init__.py"))
    source = tmp_path / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("one")
    before = executables._digest_of_code()
    assert executables._digest_of_code() == before
    source.write_text("another")
    assert executables._digest_of_code() != before
