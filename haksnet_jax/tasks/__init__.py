"""What the training loop, the plan, the benchmark and evaluation ask of a task; a task is a file of functions.

`config.task` names it (absent: detection). A task's module has:

  prepared(config) -> config        completes it (class names from a file, values of keys that older files lack) and
                                    checks it; raises UserError with the config key.
  open_source(config, split)        the examples of "train" or "val": `len`, `image_ids`, `class_names`, `summary()`,
                                    and `source[i]`, a dict.
  batch_arrays(config)              {name: (shape, dtype)} of the arrays of ONE example that go to the devices.
  train_batches(config, source, *, batch_size, first_example, process_index, process_count)
                                    endless batches with `start()` and `close()` (`pipeline.batches.Batches`): dicts of
                                    those arrays, `image_index`, and counters named `num_*`, which the log adds up.
  build_model(config, *, rngs)      the nnx.Module, with its initial parameters.
  model_info(config)                what model.json says: "task", "architecture", "class_names", normalisation, sizes.
  loss(config)                      function of (model, batch, key) that gives (scalar, {name: scalar}), inside jit; the
                                    batch statistics of the model are updated by it.
  make_evaluator(config, graph, source, mesh)
                                    a function of (variables, pictures=folder or None) that gives a result with
                                    `figures() -> {name: float | None}`, `table() -> str`, `to_json() -> dict`; its
                                    attribute `pictures` lists what was drawn last (image_id, path, image).
  kept_at_random(config)            prefixes of the names of parameters that `pretrained` leaves at random: the heads.
  log_line(means) -> str            what a line of progress says of the metrics.
  BEST                              the metric, larger is better, by which the weights in `best/` are chosen.
  CURVES                            prefixes of names of metrics; each is drawn as one diagram of curves.png.

and, where they apply, CLASSIFIER (prefixes of the names of the parameters that `init_new_classes` starts anew) and
COUNTERS ({name of a counter of the batches: what the result card calls it}).

A new task is one file here and one line in TASKS.
"""

import importlib
from typing import Any

from haksnet_jax.errors import UserError

TASKS = {
    "detection": "haksnet_jax.tasks.detection",
    "segmentation": "haksnet_jax.tasks.segmentation",
    "change": "haksnet_jax.tasks.change",
    "classification": "haksnet_jax.tasks.classification",
}


def of(config: Any) -> Any:
    """The task's module. Args: config, or anything with `get`. Raises: UserError, no such task."""
    name = config.get("task", None) or "detection"
    if name not in TASKS:
        raise UserError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return importlib.import_module(TASKS[name])
