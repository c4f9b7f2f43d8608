"""The configuration of the runs that test_interruptions.py kills: steps of milliseconds, a checkpoint every third."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from test_train import _tiny_config


def get_config():
    """All values of the experiment."""
    config = _tiny_config(num_steps=36, checkpoint_every=3, eval_every=1000, log_every=1)
    with config.unlocked():
        config.name = "interrupted"
    return config.lock()
