"""Checkpoints of a run that are damaged, and those that do not fit."""

import shutil

import jax
import numpy as np
import pytest

from haksnet_jax import checkpoint


def _largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut_off(step):
    path = _largest(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_an_array(step):
    _largest(step / "state").unlink()


def without_position(step):
    shutil.rmtree(step / "data")


def emptied(step):
    for path in step.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _state(seed, size=5000):
    return {"params": {"kernel": jax.random.normal(jax.random.key(seed), (size,))}, "step": np.int32(seed)}


def _abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), state)


def _saved(workdir):
    checkpoints = checkpoint.RunCheckpoints(workdir)
    for step in (1, 2):
        checkpoints.save(step, _state(step), {"examples": step})
    checkpoints.close()


@pytest.mark.parametrize("damage", [cut_off, without_an_array, without_position, emptied])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(damage, tmp_path, caplog):
    _saved(tmp_path)
    damage(tmp_path / "checkpoints" / "2")
    checkpoints = checkpoint.RunCheckpoints(tmp_path)
    step, state, position = checkpoints.restore_newest(_abstract(_state(0)))
    assert (step, position) == (1, {"examples": 1})
    np.testing.assert_array_equal(state["params"]["kernel"], _state(1)["params"]["kernel"])
    assert (tmp_path / "checkpoints" / "2.unusable").exists()
    checkpoints.save(2, _state(2), {"examples": 2})  # the step is reached again
    checkpoints.close()
    assert checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0)))[0] == 2


def test_a_checkpoint_of_another_shape_is_an_error_and_stays(tmp_path):
    _saved(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/2 does not fit this configuration"):
        checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0, size=6000)))
    assert (tmp_path / "checkpoints" / "2").exists()


def test_what_an_unfinished_save_leaves_is_not_a_checkpoint(tmp_path):
    _saved(tmp_path)
    # As Orbax names a folder while it writes it; a killed process leaves it so.
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-7")
    assert checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0)))[0] == 1
