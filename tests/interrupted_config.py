"""The configuration of the runs that tests start as commands: steps of milliseconds, every other one saved."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from tiny_config import tiny_config


def get_config():
    """All values of the experiment."""
    config = tiny_config(num_steps=20, checkpoint_every=2, eval_every=0, log_every=1)
    with config.unlocked():
        config.name = "interrupted"
    return config.lock()
