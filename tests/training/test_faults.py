"""What the loop does with updates that are not finite, and which weights it keeps."""

import json

import cv2
import dummy_task
import ml_collections
import numpy as np
import pytest
import training_runs
from test_train import one_program  # noqa: F401 (a fixture of all tests here)
from tiny_config import tiny_config

import haksnet_jax
from haksnet_jax import tasks
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import boxes_to_polygons
from haksnet_jax.training import loop, optimizer
from haksnet_jax.training.state import create_state
from haksnet_jax.weights import model_folder

BEFORE = ("params", "batch_stats", "opt_state", "ema")  # what a step that is not finite leaves as it was


def _assert_same(found, expected, parts):
    names = [name for name in expected if name.split(".")[0] in parts]
    assert len(names) > 100
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_run_whose_updates_stay_not_finite_ends_with_a_sentence_and_the_weights_it_had(tmp_path, caplog, monkeypatch):
    # Of the smallest task: which update is not finite is the step's matter (test_train), what follows the loop's.
    monkeypatch.setitem(tasks.TASKS, "dummy", "dummy_task")
    changes = {"max_skipped_steps": 2, "num_steps": 8, "log_every": 1, "eval_every": 0, "ema_decay": 0.9}
    config = dummy_task.make_config(init=str(tmp_path / "broken"), **changes)
    _, state = create_state(
        lambda rngs: dummy_task.build_model(config, rngs=rngs),
        optimizer.of_config(config),
        devices.data_mesh(),
        seed=0,
        ema=True,
    )
    arrays = {**model_folder.flatten(state.params), **model_folder.flatten(state.batch_stats)}
    arrays = {name: np.array(value) for name, value in arrays.items()}
    arrays["head.bias"][:] = 3e38, -3e38  # (weights that are not finite themselves are refused when they are read)
    model_folder.save_model(tmp_path / "broken", arrays, dummy_task.model_info(config))
    with pytest.raises(
        UserError,
        match=r"step 3: 3 updates in a row were not finite \(limit max_skipped_steps=2\); the images are named above, "
        "the state before them is saved",
    ), caplog.at_level("WARNING"):  # fmt: skip
        loop.run(config, tmp_path / "run")
    assert caplog.text.count("an update was not finite and was left out; images of this host's batch: train_") == 3
    saved = training_runs.state_of(tmp_path / "run", 3)
    assert (int(saved["step"]), int(saved["skipped"]), int(saved["skipped_in_a_row"])) == (3, 3, 3)
    for name, value in arrays.items():
        part = "params" if f"params.{name}" in saved else "batch_stats"
        np.testing.assert_array_equal(saved[f"{part}.{name}"], value, err_msg=name)


def _folder(root, config, train_images, val_images):
    """Writes images, all with one ship, and makes them the data of the configuration. Returns: the configuration."""
    for split, images in (("train", train_images), ("val", val_images)):
        for folder in ("images", "labelTxt"):
            (root / split / folder).mkdir(parents=True)
        for number, image in enumerate(images):
            cv2.imwrite(str(root / split / "images" / f"{split}_{number}.png"), image)
            (root / split / "labelTxt" / f"{split}_{number}.txt").write_text("10 10 40 10 40 30 10 30 ship 0\n")
    with config.unlocked():
        config.data.kind, config.data.root = "folder", str(root)
        config.data.class_names = ("ship", "plane", "a", "b", "c")
        for split in ("train", "val"):
            folders = {"images_dir": f"{split}/images", "labels_dir": f"{split}/labelTxt"}
            config.data[split] = ml_collections.ConfigDict(folders)
    return config


@pytest.mark.slow  # a normalisation of its own is a program of its own to compile
def test_one_image_that_makes_an_update_not_finite_is_named_and_changes_no_weight(tmp_path, caplog):
    changes = {"num_steps": 6, "checkpoint_every": 1, "checkpoints_kept": 6, "log_every": 1}
    # Where the standard deviation is next to 0, what is not of the mean colour is infinite.
    images = np.full((12, 64, 64, 3), 128, np.uint8)
    images[7, 20, 20] = 255
    config = _folder(tmp_path / "data", tiny_config(**changes), images, images[:2])
    config.model.pixel_mean, config.model.pixel_std = (128.0,) * 3, (1e-37,) * 3
    with caplog.at_level("WARNING"):
        card = loop.run(config, tmp_path / "run")
    # Six steps of four images are two rounds through twelve: the image comes up twice.
    assert card["facts"]["skipped_steps"] == 2
    named = [record.getMessage() for record in caplog.records if "an update was not finite" in record.getMessage()]
    assert len(named) == 2 and all("train_7" in message and message.count("train_") == 4 for message in named)
    states = {step: training_runs.state_of(tmp_path / "run", step) for step in range(1, 7)}
    counts = {step: int(state["skipped"]) for step, state in states.items()}
    bad = [step for step in range(2, 7) if counts[step] > counts[step - 1]]
    assert bad and counts[6] == 2
    for step in range(2, 7):
        if step in bad:
            _assert_same(states[step], states[step - 1], BEFORE)
        else:
            assert any(
                np.any(value != states[step - 1][name])
                for name, value in states[step].items()
                if name.startswith("params.")
            )
    assert all(np.isfinite(value).all() for name, value in states[6].items() if name.startswith(BEFORE))

    # The same where one bad step is one too many.
    config.max_skipped_steps = 0
    first = next(step for step in range(1, 7) if counts[step])
    with pytest.raises(UserError, match=f"step {first}: 1 updates in a row were not finite"):
        loop.run(config, tmp_path / "strict")
    _assert_same(training_runs.state_of(tmp_path / "strict", first), states[first], BEFORE)


@pytest.mark.slow  # two runs
def test_the_best_evaluation_stays_though_later_ones_are_worse(tmp_path):
    changes = {"num_steps": 5, "eval_every": 1, "checkpoint_every": 1, "log_every": 1}
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3)).astype(np.uint8)
    config = _folder(tmp_path / "data", tiny_config(**changes, checkpoints_kept=5), noise, noise[:3])
    config.optimizer.learning_rate = config.optimizer.max_lr = 0.02  # each step's detections are others
    loop.run(config, tmp_path / "first")

    # What the second step's weights find becomes the truth of the validation images; no training sees these.
    detector = haksnet_jax.load(tmp_path / "first" / "checkpoints" / "2")
    for number in range(3):
        found = detector(tmp_path / "data" / "val" / "images" / f"val_{number}.png")
        keep = np.flatnonzero((found["boxes"][:, 2:4] > 8).all(axis=1))[:4]
        corners = boxes_to_polygons(found["boxes"][keep])
        lines = [
            " ".join(f"{x:.2f}" for x in polygon.ravel()) + f" {config.data.class_names[label]} 0\n"
            for polygon, label in zip(corners, found["labels"][keep], strict=True)
        ]
        (tmp_path / "data" / "val" / "labelTxt" / f"val_{number}.txt").write_text("".join(lines))
    with config.unlocked():
        config.checkpoints_kept = 2
    loop.run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = {line["step"]: line["AP50_voc12"] for line in lines if "AP50_voc12" in line}
    assert list(figures) == [1, 2, 3, 4, 5]
    assert figures[2] > max(figures[step] for step in (1, 3, 4, 5)), figures

    # By count, the newest two are there; by figure, the weights of the second step, which are not among them.
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "5"}
    arrays, info = model_folder.load_model(tmp_path / "run")
    assert (info["step"], info["AP50_voc12"]) == (2, figures[2])
    expected = training_runs.state_of(tmp_path / "first", 2)  # the run before took the same steps
    for name, value in arrays.items():
        part = "params" if f"ema.params.{name}" in expected else "batch_stats"
        np.testing.assert_array_equal(value, expected[f"ema.{part}.{name}"], err_msg=name)
