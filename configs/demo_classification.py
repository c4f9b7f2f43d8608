"""A first classifier in minutes on two CPU cores: a narrow backbone on generated scenes of one class each.

It shows that the whole path works, not how good HAKSNet is.

    haksnet train --config=configs/demo_classification.py
"""

import ml_collections

from configs import imagenet_t
from haksnet_jax.pipeline.scene_source import SCENE_CLASSES


def get_config():
    """All values of the experiment: those of `imagenet_t`, but for the lines here."""
    config = imagenet_t.get_config()
    with config.unlocked():
        config.name = "demo_classification"
        config.num_steps = 600
        config.batch_size_per_device = 16
        config.checkpoint_every = 300
        config.eval_every = 300
        config.log_every = 20
        config.ema_decay = 0.99

        config.model.backbone = "haksnet"
        config.model.channels = (16, 24, 32, 32)
        config.model.depths = (1, 1, 1, 1)
        config.model.mlp_ratios = (2, 2, 2, 2)
        config.model.drop_path_rate = 0.0
        config.model.dtype = "float32"  # CPUs have no fast bfloat16

        config.data.kind = "scenes"
        config.data.class_names = SCENE_CLASSES
        config.data.image_size = (64, 64)
        config.data.num_workers = 0  # scenes are drawn in threads of this process
        config.data.train = ml_collections.ConfigDict({"num_scenes": 1000, "size": 64, "seed": 1})
        config.data.val = ml_collections.ConfigDict({"num_scenes": 200, "size": 64, "seed": 2})  # other scenes

        config.augment.crop_scale = (0.6, 1.0)
        config.augment.flip_probabilities = (0.5, 0.5)
        config.augment.quarter_turns = True
        config.augment.rand_augment_magnitude = 0.0
        config.mixing.mixup = config.mixing.cutmix = config.mixing.erasing = 0.0

        config.optimizer.learning_rate = 3e-3
        config.optimizer.lr_scaling = "none"
        config.optimizer.warmup_steps = 50

        config.evaluation.protocol = "generated scenes that training never saw"
        config.evaluation.batch_size_per_device = 20
        config.evaluation.crop_share = 1.0
    return config
