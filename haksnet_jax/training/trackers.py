"""Where the metrics of a run go besides its folder: Weights & Biases and MLflow, each where it is asked for.

`config.trackers` names them. Both are told the configuration, the metrics of every line, a drawing of each evaluation
and the result card. They take their settings from their own environment variables (WANDB_MODE=offline sends nothing;
MLFLOW_TRACKING_URI says where MLflow writes).
"""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import cv2
import ml_collections
import numpy as np
from absl import logging

from haksnet_jax.errors import UserError
from haksnet_jax.results import card as cards

PROJECT = "haksnet_jax"  # where the environment names no other


class WeightsAndBiases:
    """A run of Weights & Biases. Args: config, of the experiment; workdir, of the run."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> None:
        wandb = importlib.import_module("wandb")
        name = pathlib.PurePath(str(workdir)).name
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, dir=_local(workdir), config=config.to_dict()
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step. Args: step; metrics, {name: number}."""
        self._run.log(metrics, step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A drawing. Args: step; name; image [H, W, 3] uint8."""
        self._run.log({name: self._image(image)}, step=step)

    def card(self, card: dict[str, Any]) -> None:
        """The result card, see `results.card`."""
        self._run.summary.update({f"card/{name}": value for name, value in card["facts"].items() if value is not None})
        self._run.summary["card/text"] = cards.as_markdown(card)

    def close(self, finished: bool) -> None:
        """Ends the run. Args: finished, whether it got to its end."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow. Args: as WeightsAndBiases."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> None:
        self._client = importlib.import_module("mlflow").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=pathlib.PurePath(str(workdir)).name).info.run_id
        self._client.log_dict(self._id, config.to_dict(), "config.json")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step. Args: step; metrics, {name: number}."""
        for name, value in metrics.items():
            self._client.log_metric(self._id, name.replace(":", "_"), value, step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A drawing. Args: step; name; image [H, W, 3] uint8."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"step_{step}_{name.replace('/', '_')}.jpg"
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            self._client.log_artifact(self._id, str(path), "pictures")

    def card(self, card: dict[str, Any]) -> None:
        """The result card, see `results.card`."""
        for name, value in card["facts"].items():
            self._client.log_param(self._id, name, str(value)[:500])
        self._client.log_text(self._id, cards.as_markdown(card), "result.md")

    def close(self, finished: bool) -> None:
        """Ends the run. Args: finished, whether it got to its end."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check(config: ml_collections.ConfigDict) -> None:
    """Finds before any work whether what `config.trackers` names is there.

    Raises:
      UserError: no such tracker, or its package is not installed.
    """
    for name in config.get("trackers", ()):
        if name not in TRACKERS:
            raise UserError(f"trackers: expected some of {', '.join(TRACKERS)}, got {name!r}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed: pip install 'haksnet_jax[{name}]', or leave it out")


class Trackers:
    """All trackers of a run; one that fails is told of once and left out, since the run has its own records.

    Args:
      config: of the experiment.
      workdir: of the run.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> None:
        self._open = {}
        for name in config.get("trackers", ()):
            with self._left_out_if_failing(name):
                self._open[name] = TRACKERS[name](config, workdir)

    def tell(self, what: str, *arguments: Any) -> None:
        """Calls `log`, `picture`, `card` or `close` of each. Args: what, the name of it; arguments."""
        for name in list(self._open):
            with self._left_out_if_failing(name):
                getattr(self._open[name], what)(*arguments)

    @contextlib.contextmanager
    def _left_out_if_failing(self, name):
        try:
            yield
        except Exception as error:  # (of a service elsewhere, which must not end a training)
            first = (str(error).splitlines() or [""])[0]
            logging.warning("%s fails and is told no more of this run (%s: %s)", name, type(error).__name__, first)
            self._open.pop(name, None)


def _local(workdir):
    """The folder itself, or None where it is one of a bucket: the tracker then chooses its own."""
    return None if "://" in str(workdir) else str(workdir)
