"""What the result card says of a run (`results.card` writes it)."""

import datetime
from typing import Any

import jax
import ml_collections

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.results.card import code_version
from haksnet_jax.training.evaluation import Evaluation
from haksnet_jax.training.log import RunLog
from haksnet_jax.training.optimizer import RunLength
from haksnet_jax.training.state import TrainState


def result_card(
    task: Any,
    config: ml_collections.ConfigDict,
    state: TrainState,
    length: RunLength,
    log: RunLog,
    evaluation: Evaluation,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The result card of a run.

    Args:
      task, config: of the run.
      state: its last TrainState.
      length: RunLength.
      log: RunLog.
      evaluation: Evaluation.
      about: {name: value} further facts.

    Returns:
      {"facts": what was run, where and with what outcome; the last evaluation, and one of its drawings}.
    """
    counters = getattr(task, "COUNTERS", {})
    result, best, pictures = evaluation.result, evaluation.best, evaluation.pictures
    card = result.to_json() if result else {}
    last = result and result.figures()[task.BEST]
    if last is not None:
        card["last_evaluation"] = {task.BEST: last}
    if pictures:
        card["picture"] = str(pictures[0].path)
    facts = {
        "config": config.name,
        "task": config.get("task", "detection"),
        "date": datetime.date.today().isoformat(),
        "protocol": config.evaluation.get("protocol", ""),
        "steps": length.num_steps,
        "epochs": round(length.num_steps / length.steps_per_epoch, 2),
        "global_batch": length.global_batch,
        "learning_rate": length.peak,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "precision": config.model.dtype,
        "pretrained": config.pretrained or config.init or "none",
        f"best_{task.BEST}": None if best is None else round(best, 4),
        "images_per_second": log.images_per_second(),
        "compile_seconds": log.first_step_seconds,
        "peak_memory_gib": devices.peak_memory_gib(),
        "skipped_steps": int(state.skipped),
        **{counters.get(name, name): total for name, total in log.counts.items()},
        "hardware": devices.hardware(),
        "seed": config.seed,
        "commit": code_version(),
        "jax": jax.__version__,
    }
    return {"facts": facts | about} | card
