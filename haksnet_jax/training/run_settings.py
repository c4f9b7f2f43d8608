"""What a run of any task is told at the top of its configuration, beside what each task states for itself.

A task's base configuration states `task`, `name`, `num_epochs`, `batch_size_per_device`, `eval_every` and `ema_decay`
too: of these there is no default that would do for all.
"""

from typing import NamedTuple


class RunSettings(NamedTuple):
    """Length, saving, logging and beginning of a run."""

    seed: int = 0  # of the weights, of the order of the images and of all that is drawn
    num_steps: int = 0  # if not 0, the length of the run instead of num_epochs
    accumulate_steps: int = 1  # micro-batches of batch_size_per_device whose gradients are averaged for one update
    checkpoint_every: int = 1000  # steps; 0: none on the way. The end of a run is always saved
    checkpoints_kept: int = 3
    log_every: int = 50  # steps
    trackers: tuple[str, ...] = ()  # "wandb", "mlflow": told the metrics too, each by the extra of its name
    pretrained: str = ""  # folder of a backbone: a converted one, or a run of any task
    init: str = ""  # folder of a whole model of this task, converted or trained here
    init_new_classes: bool = False  # whether a classifier of other classes may start anew with `init`
    max_skipped_steps: int = 20  # steps in a row without finite gradients after which the run stops
