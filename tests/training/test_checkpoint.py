"""Checkpoints of a run that are damaged, and those that do not fit."""

import resource
import shutil
import time

import jax
import numpy as np
import pytest

from haksnet_jax.training import checkpoint
from haksnet_jax.weights import sums


def _largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut_off(step):
    path = _largest(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(step):
    # One bit of the numbers: Orbax 0.12.8 read 25 of 25 such changes without a word.
    path = _largest(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def without_metadata(step):
    (step / "state" / "_METADATA").unlink()


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


@pytest.mark.parametrize("damage", [cut_off, changed, without_metadata, without_an_array, without_position, emptied])
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


@pytest.mark.parametrize("damage", [cut_off, without_an_array, without_position])
def test_damage_is_found_without_a_manifest_too(damage, tmp_path):
    _saved(tmp_path)
    (tmp_path / "checkpoints" / "2" / sums.MANIFEST_FILE).unlink()
    damage(tmp_path / "checkpoints" / "2")
    assert checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0)))[0] == 1


def test_a_checkpoint_without_a_manifest_is_used(tmp_path):
    _saved(tmp_path)
    for step in (1, 2):  # both have one, though the second save began at once
        (tmp_path / "checkpoints" / str(step) / sums.MANIFEST_FILE).unlink()
    assert checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0)))[0] == 2


def test_a_step_that_is_damaged_twice_is_set_aside_twice(tmp_path):
    for _ in range(2):
        _saved(tmp_path)
        changed(tmp_path / "checkpoints" / "2")
        assert checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0)))[0] == 1
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2.unusable", "2.unusable.1"}


def test_a_save_that_finds_no_space_is_an_error_soon_and_leaves_the_one_before(tmp_path):
    checkpoints = checkpoint.RunCheckpoints(tmp_path)
    checkpoints.save(1, _state(1, size=500_000), {"examples": 1})
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        checkpoints._finish()
        # No file may grow beyond half a megabyte now; the array has two.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, former[1]))
        with pytest.raises(
            checkpoint.CheckpointError, match=r"checkpoints/2 could not be written \(.*; checkpoints that"
        ):
            checkpoints.save(2, _state(2, size=500_000), {"examples": 2})
            until = time.monotonic() + 20
            while time.monotonic() < until:  # the lines of a log
                checkpoints.check()
                time.sleep(0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    checkpoints.close()
    step, state, _ = checkpoint.RunCheckpoints(tmp_path).restore_newest(_abstract(_state(0, size=500_000)))
    assert step == 1
    np.testing.assert_array_equal(state["params"]["kernel"], _state(1, size=500_000)["params"]["kernel"])


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
