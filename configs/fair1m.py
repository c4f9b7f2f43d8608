"""HAKSNet-S with Oriented R-CNN on FAIR1M: 37 fine-grained classes, tiles of 1024 pixels.

Reproduces nothing: no figure of HAKSNet's is published for this data set. The recipe is that of DOTA, single scale.
Ours: not measured yet.

Write the scenes in DOTA's format, cut them, build the records (data/README.md), then:

    python -m data.fair1m --source=DIR --as_dota --output=fair1m
    python -m data.dota.split --images=fair1m/train/images --labels=fair1m/train/labelTxt --output=tiles_fair1m/train
    python -m data.dota.split --images=fair1m/validation/images --labels=fair1m/validation/labelTxt \\
        --output=tiles_fair1m/validation
    python -m data.dota.build --source=tiles_fair1m --classes=fair1m --output=data/records/fair1m_ss
    python -m haksnet_jax.main --config=configs/fair1m.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss`, but for the lines here."""
    config = dota_ss.get_config()
    with config.unlocked():
        config.name = "fair1m"
        config.data.class_names = CLASSES["fair1m"]
        config.data.train.directory = "data/records/fair1m_ss"
        config.data.train.split = "train"
        config.data.val.directory = "data/records/fair1m_ss"
        config.data.val.split = "validation"
        config.augment.quarter_turn_classes = ("Roundabout",)
        config.evaluation.protocol = "tiles of FAIR1M's validation, trained on train"
    return config
