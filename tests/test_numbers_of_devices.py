"""The same run on one device, on eight, in two and four processes, and on one number of devices after another."""

import json
import re
import signal

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow  # each number of devices is a program of its own to compile

NUM_STEPS = 8
FLAGS = (
    f"--config.num_steps={NUM_STEPS}", "--config.checkpoint_every=5", "--config.eval_every=5",
    "--config.evaluation.batch_size_per_device=2", "--config.data.val.num_scenes=5",
)  # fmt: skip


def _run(workdir, **more):
    return runs.run(workdir, *FLAGS, batch=8, **more)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Folder of the run on one device."""
    workdir = tmp_path_factory.mktemp("one_device") / "run"
    statuses, printed = _run(workdir)
    assert statuses == [0], printed
    return workdir


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _assert_same_losses(workdir, expected):
    ours, theirs = _lines(workdir), _lines(expected)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 8]
    for our, their in zip(ours, theirs, strict=True):
        for name in set(their) - {"images_per_second", "waited_for_data"}:
            # Sums over the batch in another order, in float32; equal to 1e-5 was seen.
            assert our[name] == pytest.approx(their[name], rel=1e-3, abs=1e-5), (their["step"], name)


def _assert_same_weights(workdir, expected, step):
    """Equal but for rounding: to a thousandth of each array's largest value.

    After one step the difference is that of float32's sums in another order, some 1e-7. Adam divides small gradients by
    their own size, which enlarges their rounding; after 36 steps on one and on two devices 1e-4 was seen.

    A bias right before a BatchNorm has the gradient 0, of which rounding leaves something, and Adam makes of it steps
    of the learning rate: it wanders. It has no effect, since the BatchNorm takes it away again with its mean.
    """
    found, expected = runs.state_of(workdir, step), runs.state_of(expected, step)
    assert found.keys() == expected.keys()
    compared = 0
    for name, value in expected.items():
        if not name.startswith(("params.", "batch_stats.", "ema.")):
            continue
        if name.endswith((".patch_embed.conv.bias", ".patch_embed.norm.mean")):
            continue
        atol = 1e-3 * np.abs(value).max() + 1e-6
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)
        compared += 1
    assert compared > 300


@pytest.mark.parametrize(("num_hosts", "num_devices"), [(1, 8), (2, 1), (4, 1)])
def test_losses_scores_and_weights_are_those_of_one_device(num_hosts, num_devices, one_device, tmp_path):
    statuses, printed = _run(tmp_path / "run", num_hosts=num_hosts, num_devices=num_devices)
    assert statuses == [0] * num_hosts, printed
    if num_hosts > 1:
        assert f"{num_hosts} of {num_hosts} hosts joined" in printed[0]
    _assert_same_losses(tmp_path / "run", one_device)
    for step in (5, NUM_STEPS):
        _assert_same_weights(tmp_path / "run", one_device, step)
    cards = [json.loads((workdir / "result.json").read_text()) for workdir in (tmp_path / "run", one_device)]
    assert [card["facts"]["global_batch"] for card in cards] == [8, 8]
    gts = [sum(entry["num_gts"] for entry in card["classes"].values()) for card in cards]
    assert gts[0] == gts[1] > 0  # every validation image counted once


def test_a_run_goes_on_on_other_numbers_of_devices_at_the_same_example(one_device, tmp_path):
    workdir = tmp_path / "run"
    at = 0
    for num_devices in (8, 1):
        statuses, (printed,) = _run(workdir, num_devices=num_devices, kill=signal.SIGTERM)
        assert statuses == [runs.TEMPORARY_FAILURE], printed
        assert at == 0 or f"resuming at step {at}, example {8 * at}\n" in printed, printed
        at = int(re.search(r"stopped at step (\d+) of 8", printed)[1])
    statuses, (printed,) = _run(workdir, num_devices=4)
    assert statuses == [0], printed
    assert f"resuming at step {at}, example {8 * at}\n" in printed, printed
    assert "the run so far took" not in printed  # another number of images a step
    # Losses of other examples would be others by more than a tenth.
    _assert_same_losses(workdir, one_device)
    _assert_same_weights(workdir, one_device, NUM_STEPS)
