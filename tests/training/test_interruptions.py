"""Real runs that are killed at random moments and go on: they end with the weights of a run that was not."""

import json
import random
import re
import signal

import pytest
import training_runs
from class_folders import write_classes


def _assert_same_end(workdir, undisturbed, num_steps, more_than=300):
    training_runs.assert_same_state(workdir, undisturbed, num_steps, more_than=more_than)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, num_steps + 1))
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    # checkpoints_kept, and nothing that a killed save left
    assert names == {str(num_steps - 4), str(num_steps - 2), str(num_steps)}


def _kill(workdir, num_kills, *flags, config="interrupted_config.py"):
    """Starts the run and kills it, again and again, at moments that are others at each call of the tests.

    After one to five own steps, of which every other one is saved. A save has to be whole before the next one begins,
    so that a kill at the fifth leaves a checkpoint for certain, and one at the second leaves a torn one as a rule.
    """
    for _ in range(num_kills):
        # Within a tenth of a second are all places of a step and of a save.
        moment = {"steps": random.randint(1, 5), "wait": random.uniform(0, 0.1)}
        statuses, printed = training_runs.run(workdir, *flags, config=config, kill=signal.SIGKILL, **moment)
        assert statuses == [-signal.SIGKILL], (moment, printed)


def test_a_folder_that_cannot_be_written_to_is_an_error_of_one_sentence(tmp_path):
    # Where nobody makes folders, not even root.
    statuses, (printed,) = training_runs.run("/sys/run", logs=tmp_path / "run")
    assert statuses == [1]
    assert re.search(r"^error: .*/sys/run", printed, re.M) and "Traceback" not in printed, printed


def test_a_run_that_is_killed_and_stopped_ends_as_if_it_had_not_been(tmp_path):
    for split in ("train", "val"):
        write_classes(tmp_path / "data" / split, {"forest": 12, "lake": 12, "town": 12}, size=(32, 32))
    workdir, flags = tmp_path / "run", [f"--config.data.root={tmp_path / 'data'}"]
    config = {"config": "interrupted_classifier.py"}
    # Beside each other: a start is mostly the work of one core. Saved at the end alone: saving takes longer than a
    # step, and is nothing that training may depend on.
    with training_runs.Run(tmp_path / "undisturbed", *flags, "--config.checkpoint_every=40", **config) as undisturbed:
        _kill(workdir, 3, *flags, **config)
        statuses, (printed,) = training_runs.run(workdir, *flags, kill=signal.SIGTERM, **config)
        assert statuses == [training_runs.TEMPORARY_FAILURE], printed
        stopped = re.search(
            r"stopped at step (\d+) of 40, which is saved; the same command goes on from there", printed
        )
        statuses, (printed,) = training_runs.run(workdir, *flags, **config)
        assert statuses == [0], printed
        assert f"resuming at step {stopped[1]}, example {4 * int(stopped[1])}" in printed
        assert undisturbed.end() == [0], undisturbed.printed()
    # Weights, two moments and the average of ten arrays.
    _assert_same_end(workdir, tmp_path / "undisturbed", 40, more_than=4 * 10)


@pytest.mark.slow  # as the test before, more often and with a detector
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path):
    num_steps = "--config.num_steps=124"  # more than six for each kill
    with training_runs.Run(tmp_path / "undisturbed", num_steps, "--config.checkpoint_every=124") as undisturbed:
        _kill(tmp_path / "run", 20, num_steps)
        statuses, (printed,) = training_runs.run(tmp_path / "run", num_steps)
        assert statuses == [0], printed
        assert "resuming at step" in printed  # none of twenty kills at a fifth step: one chance in a hundred
        assert undisturbed.end() == [0], undisturbed.printed()
    _assert_same_end(tmp_path / "run", tmp_path / "undisturbed", 124)
