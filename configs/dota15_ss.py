"""HAKSNet-S with Oriented R-CNN on DOTA-v1.5, single scale.

Reproduces: 73.12 AP50 (upstream's figure, on DOTA's test server, with its ImageNet weights, trained on train + val).
Ours on this data set: not measured yet. Upstream's hardware: 8 GPUs, 12 epochs.

Prepare the tiles and the records (see data/README.md), then:

    python -m haksnet_jax.main --config=configs/dota15_ss.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss`, but for the lines here."""
    config = dota_ss.get_config()
    with config.unlocked():
        config.name = "dota15_ss"
        config.data.class_names = CLASSES["dota15"]
        config.data.train.directory = "data/records/dota15_ss"
        config.data.val.directory = "data/records/dota15_ss"
    return config
