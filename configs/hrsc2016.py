"""HAKSNet-S with Oriented R-CNN on HRSC2016: ships in harbours, one class.

Reproduces nothing: no figure of HAKSNet's is published for this data set. Image size, epochs and the rates of flips and
rotations are those of upstream's configuration for it. Ours: not measured yet.

Build the records (`python -m data.hrsc2016 --help`), convert the released ImageNet backbone, then:

    python -m haksnet_jax.main --config=configs/hrsc2016.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss`, but for the lines here."""
    config = dota_ss.get_config()
    with config.unlocked():
        config.name = "hrsc2016"
        config.num_epochs = 72
        config.batch_size_per_device = 2
        config.eval_every = 1000

        config.data.class_names = CLASSES["hrsc2016"]
        config.data.image_size = (800, 800)
        config.data.max_boxes = 64
        config.data.train.directory = "data/records/hrsc2016"
        config.data.train.split = "train+val"  # as the published results
        config.data.val.directory = "data/records/hrsc2016"
        config.data.val.split = "test"

        config.augment.quarter_turn_classes = ()
        config.optimizer.drop_epochs = (48, 66)
        config.evaluation.protocol = "HRSC2016 test, trained on train + val; all ships one class"
        config.evaluation.batch_size_per_device = 2
    return config
