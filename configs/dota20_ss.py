"""HAKSNet-S with Oriented R-CNN on DOTA-v2.0, single scale: 18 classes.

Reproduces nothing: upstream has no figure for this version. The recipe is its own for v1.0. Ours: not measured yet.

Prepare the tiles and the records (see data/README.md), then:

    python -m haksnet_jax.main --config=configs/dota20_ss.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss`, but for the lines here."""
    config = dota_ss.get_config()
    with config.unlocked():
        config.name = "dota20_ss"
        config.data.class_names = CLASSES["dota20"]
        config.data.train.directory = "data/records/dota20_ss"
        config.data.val.directory = "data/records/dota20_ss"
    return config
