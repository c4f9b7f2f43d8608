"""Weights & Biases and MLflow, without a network; each where it is installed."""

import json
import os

import dummy_task
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.training import trackers

CARD = {"facts": {"config": "dummy", "steps": 4, "seed": None}, "mean": {"AP50": 0.5}, "classes": {}}


def config_of(*names):
    config = dummy_task.make_config().unlock()
    config.trackers = names
    return config


def told(config, workdir):
    """Tells all trackers of a config what a run tells them. Returns: Trackers."""
    workdir.mkdir(exist_ok=True)
    one = trackers.Trackers(config, workdir)
    one.tell("log", 1, {"loss": 2.0})
    one.tell("picture", 2, "pictures/a", np.full((8, 8, 3), 200, np.uint8))
    one.tell("log", 2, {"loss": 1.5, "iou:land": 0.25})
    one.tell("card", CARD)
    one.tell("close")
    return one


def test_a_tracker_that_is_none_or_not_installed_is_a_sentence(monkeypatch):
    trackers.check(config_of())
    trackers.check(dummy_task.make_config())  # of before there were trackers
    with pytest.raises(UserError, match="trackers: expected some of wandb, mlflow, got 'tensorboard'"):
        trackers.check(config_of("tensorboard"))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'haksnet_jax\[wandb\]'"):
        trackers.check(config_of("wandb"))


def test_a_tracker_that_fails_is_told_of_once_and_left_out(monkeypatch, tmp_path, caplog):
    seen = []

    class Failing:
        def __init__(self, config, workdir):
            del config, workdir

        def log(self, step, metrics):
            seen.append(step)
            raise ConnectionError("no answer\nfrom there")

    class Listening(Failing):
        def log(self, step, metrics):
            seen.append(metrics["loss"])

        picture = card = close = lambda self, *arguments: seen.append(len(arguments))

    monkeypatch.setattr(trackers, "TRACKERS", {"bad": Failing, "good": Listening})
    told(config_of("bad", "good"), tmp_path / "run")
    assert seen == [1, 2.0, 3, 1.5, 1, 0]
    warnings = [record.getMessage() for record in caplog.records if "bad" in record.getMessage()]
    assert warnings == ["bad fails and is told no more of this run (ConnectionError: no answer)"]


def test_weights_and_biases_keeps_a_run_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    for name, value in {
        "MODE": "offline",
        "SILENT": "true",
        "CACHE_DIR": str(tmp_path),
        "CONFIG_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    one = told(config_of("wandb"), tmp_path / "run")
    assert list(one._open) == ["wandb"]  # nothing failed
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    content = next(folder.glob("*.wandb")).read_bytes()
    assert b"iou:land" in content and b"card/steps" in content


def test_mlflow_keeps_a_run_in_a_folder(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases ask for it
    one = told(config_of("mlflow"), tmp_path / "run")
    assert list(one._open) == ["mlflow"]
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert run.data.metrics == {"loss": 1.5, "iou_land": 0.25} and run.info.status == "FINISHED"
    assert run.data.params["steps"] == "4"
    artifacts = [os.path.basename(entry.path) for entry in client.list_artifacts(run.info.run_id)]
    assert artifacts == ["config.json", "pictures", "result.md"]
    path = client.download_artifacts(run.info.run_id, "config.json")
    with open(path) as file:
        assert json.load(file)["name"] == "dummy"
