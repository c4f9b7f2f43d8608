"""HAKSNet-T from random weights on SSDD: ships in radar images, oriented boxes, in minutes on one GPU.

No pre-training and no other data. The recipe is ours: the published ones start from ImageNet. What was measured with it
stands in docs/results.md.

Data: the official release's RBox labels in DOTA's format, `SPLIT/images` and `SPLIT/labelTxt` below --config.data.root
(`haksnet build ssdd --as-dota` writes them, split as data/README.md says).

    python -m haksnet_jax.main --config=configs/ssdd.py --config.data.root=DIR
"""

import ml_collections

from configs import dota_ss_t
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss_t`, but for the lines here."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.name = "ssdd"
        config.num_epochs = 76
        config.batch_size_per_device = 16
        config.checkpoint_every = 0  # a run is minutes long; the best evaluation's weights and the end are kept
        config.eval_every = 600
        config.ema_decay = 0.998

        config.data.kind = "folder"
        config.data.class_names = CLASSES["ssdd"]
        config.data.root = "data/ssdd"
        config.data.image_size = (608, 608)  # upstream's size for SSDD; images are up to 653 x 526
        config.data.max_boxes = 64
        config.data.min_side = 0.0
        config.data.num_workers = 12
        config.data.train = ml_collections.ConfigDict({"images_dir": "train/images", "labels_dir": "train/labelTxt"})
        config.data.val = ml_collections.ConfigDict({"images_dir": "val/images", "labels_dir": "val/labelTxt"})

        config.augment.quarter_turn_classes = ()
        config.augment.min_side = 0.0  # the smallest ships are 4 pixels wide

        # From random weights a larger step is needed and, with a decay to zero, survives.
        config.optimizer.learning_rate = 6e-4
        config.optimizer.max_lr = 2e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 200
        config.optimizer.warmup_ratio = 0.05
        config.optimizer.clip_norm = 10.0

        # 2.2 ships an image: fewer proposals and samples say as much.
        config.rpn.candidates_per_level = 1000
        config.rpn.max_proposals = 512
        config.roi.num_samples = 128
        config.detection.max_candidates = 512
        config.detection.max_detections = 200
        config.detection.score_threshold = 0.01  # the tail of the precision-recall curve counts for AP
        config.evaluation.protocol = "SSDD val: 114 images of the official training split"
        config.evaluation.batch_size_per_device = 16
    return config
