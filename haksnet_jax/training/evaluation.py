"""The evaluations of a run: the task's evaluator, its figures in the log, and the best weights so far in `best/`."""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.training import resume
from haksnet_jax.training.log import RunLog
from haksnet_jax.training.state import TrainState
from haksnet_jax.weights import model_folder


class Evaluation:
    """Evaluates the state of a run, and keeps the weights in `best/` where no evaluation was better.

    Args:
      task: the run's task.
      config: the experiment, prepared.
      workdir: folder of the run.
      graph: graph definition of the model.
      source: examples of the validation split.
      mesh: of the run.
      log: RunLog.
      first_step: steps that were taken before this start.

    Attributes:
      result: of the last evaluation since the start, see `tasks`; None before.
      best: the metric `task.BEST` of the weights in `best/`; None where there are none.
      pictures: what the last evaluation drew.
    """

    def __init__(
        self,
        task: Any,
        config: ml_collections.ConfigDict,
        workdir: epath.Path,
        graph: nnx.GraphDef,
        source: Any,
        mesh: jax.sharding.Mesh,
        log: RunLog,
        *,
        first_step: int,
    ) -> None:
        self._task, self._config, self._workdir, self._mesh, self._log = task, config, workdir, mesh, log
        self._evaluator = task.make_evaluator(config, graph, source, mesh)
        self.result: Any = None
        self.best = resume.best_so_far(task, workdir, first_step)

    @property
    def pictures(self) -> Sequence[Any]:
        return self._evaluator.pictures

    def __call__(self, state: TrainState, done: int) -> None:
        """Evaluates after a step. Args: state, TrainState; done, steps taken. All hosts take part."""
        variables = devices.gather(self._mesh, _variables(state))
        self.result = self._evaluator(variables, pictures=self._workdir / "pictures")
        self._log.evaluated(done, self.result, self.pictures)
        figures = self.result.figures()
        value = figures[self._task.BEST]
        if value is None or (self.best is not None and value <= self.best):  # the same on all hosts
            return
        self.best = value
        arrays = model_folder.flatten(variables["params"]) | model_folder.flatten(variables["batch_stats"])
        if jax.process_index() == 0:
            info = self._task.model_info(self._config) | {"step": done, **figures}
            model_folder.save_model(self._workdir / "best", arrays, info)

    def once_more(self, state: TrainState) -> None:
        """Evaluates a run that had no step left, for its result card: nothing is logged or kept. Args: state."""
        self.result = self._evaluator(_variables(state), pictures=self._workdir / "pictures")


def _variables(state):
    """What is evaluated: the averages where the run keeps some."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}
