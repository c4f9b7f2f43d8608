"""HAKSNet-S with Oriented R-CNN on DIOR-R: 20 classes in images of 800 pixels.

Reproduces upstream's recipe (images enlarged to 1024 pixels, learning rate 2e-4 for 8 images, 12 epochs, no pre-trained
backbone), for which no figure is published. Ours: not measured yet. Upstream's hardware: 8 GPUs, 1 image each.

Build the records (`python -m data.dior_r --help`), then:

    python -m haksnet_jax.main --config=configs/dior_r.py
"""

from configs import dota_ss
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss`, but for the lines here."""
    config = dota_ss.get_config()
    with config.unlocked():
        config.name = "dior_r"
        config.data.class_names = CLASSES["dior_r"]
        config.data.train.directory = "data/records/dior_r"
        config.data.train.split = "train+val"
        config.data.val.directory = "data/records/dior_r"
        config.data.val.split = "test"

        # Upstream names classes 9 and 11, which are DOTA's storage tanks and roundabouts; DIOR-R has only the former.
        config.augment.quarter_turn_classes = ("storagetank",)
        config.optimizer.learning_rate = 2e-4
        config.evaluation.protocol = "DIOR-R test, trained on train + val"
    return config
