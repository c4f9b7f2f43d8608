"""Segmentation in minutes on two CPU cores: a narrow network on generated scenes, nothing to download.

It shows that the whole path works, not how good HAKSNet is.

    haksnet train --config=demo_segmentation --workdir=runs/demo_segmentation
"""

import ml_collections

from configs import segmentation_folder


def small(config):
    """Makes a network and a run of it small enough for two CPU cores. Args: config, unlocked."""
    config.num_steps = 300
    config.batch_size_per_device = 4
    config.checkpoint_every = 100
    config.eval_every = 150
    config.log_every = 20
    config.ema_decay = 0.98

    config.model.backbone = "haksnet"
    config.model.channels = (16, 24, 32, 48)
    config.model.depths = (1, 1, 1, 1)
    config.model.mlp_ratios = (2, 2, 2, 2)
    config.model.decoder_channels = 32
    config.model.drop_path_rate = 0.0
    config.model.dropout = 0.0
    config.model.dtype = "float32"  # CPUs have no fast bfloat16

    config.augment.scale_range = (0.8, 1.25)
    config.augment.max_class_share = 1.0

    config.optimizer.learning_rate = 4e-3
    config.optimizer.lr_scaling = "none"
    config.optimizer.warmup_steps = 20

    config.evaluation.batch_size_per_device = 4
    config.evaluation.num_pictures = 4


def on_scenes(config):
    """Makes generated scenes the data. Args: config, unlocked."""
    config.data.kind = "scenes"
    config.data.image_size = (128, 128)
    config.data.num_workers = 0  # scenes are drawn in threads of this process
    config.data.train = ml_collections.ConfigDict({"num_scenes": 2000, "size": 160, "seed": 1})
    config.data.val = ml_collections.ConfigDict({"num_scenes": 24, "size": 192, "seed": 2})  # other scenes

    config.evaluation.protocol = "generated scenes that training never saw"
    config.evaluation.tile = 192
    config.evaluation.overlap = 64


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "demo_segmentation"
        small(config)
        on_scenes(config)
    return config.lock()
