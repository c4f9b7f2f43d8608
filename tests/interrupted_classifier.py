"""The configuration of runs of the smallest classifier that tests start as commands: a start takes seconds.

All else is as in every run: images from folders, the loop, its checkpoints (every other step is saved).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from configs import classification_folder
from haksnet_jax.models import architecture


def get_config():
    """All values of the experiment, but for `data.root`."""
    architecture.BACKBONES["meannet"] = "dummy_backbone"
    config = classification_folder.get_config()
    with config.unlocked():
        config.name = "interrupted"
        config.num_steps = 40
        config.checkpoint_every = 2
        config.checkpoints_kept = 3
        config.eval_every = 0
        config.log_every = 1
        config.ema_decay = 0.9
        config.model.backbone = "meannet_one"
        config.model.dtype = "float32"
        config.model.drop_path_rate = 0.0
        config.data.image_size = (32, 32)
        config.data.num_workers = 0
    return config
