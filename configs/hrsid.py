"""HAKSNet-T from random weights on HRSID: ships in radar images of 800 pixels.

Reproduces nothing: no figure of HAKSNet's is published for this data set. The recipe is ours for SSDD, the other set of
ships in radar images. The oriented boxes are the smallest rectangles around the released outlines. Ours: not measured
yet.

Build the records (`python -m data.hrsid --help`), then:

    python -m haksnet_jax.main --config=configs/hrsid.py
"""

import ml_collections

from configs import ssdd
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `ssdd`, but for the lines here."""
    config = ssdd.get_config()
    with config.unlocked():
        config.name = "hrsid"
        config.num_epochs = 36
        config.batch_size_per_device = 8
        config.eval_every = 1000

        config.data.kind = "tfds"
        config.data.class_names = CLASSES["hrsid"]
        config.data.root = ""
        config.data.image_size = (800, 800)
        config.data.max_boxes = 256
        config.data.train = ml_collections.ConfigDict({"directory": "data/records/hrsid", "split": "train"})
        config.data.val = ml_collections.ConfigDict({"directory": "data/records/hrsid", "split": "test"})

        config.rpn.max_proposals = 1000
        config.detection.max_detections = 500
        config.evaluation.protocol = "HRSID test, trained on train"
        config.evaluation.batch_size_per_device = 8
    return config
