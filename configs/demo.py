"""A first run in minutes on two CPU cores: a narrow detector on generated scenes, nothing to download.

The same code as for DOTA with narrow widths and small scenes; it shows that the whole path works, not how good HAKSNet
is. `make demo` runs it.

    python -m haksnet_jax.main --config=configs/demo.py
"""

import ml_collections

from configs import dota_ss_t
from haksnet_jax.pipeline.scene_source import SCENE_CLASSES


def get_config():
    """All values of the experiment: those of `dota_ss_t`, but for the lines here."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.name = "demo"
        config.num_steps = 2000
        config.batch_size_per_device = 4
        config.checkpoint_every = 500
        config.eval_every = 1000
        config.log_every = 20

        config.model.backbone = "haksnet"  # of the widths here
        config.model.channels = (16, 24, 32, 32)
        config.model.depths = (1, 1, 1, 1)
        config.model.mlp_ratios = (2, 2, 2, 2)
        config.model.fpn_channels = 32
        config.model.hidden = 128
        config.model.drop_path_rate = 0.0
        config.model.dtype = "float32"  # CPUs have no fast bfloat16

        config.data.kind = "scenes"
        config.data.class_names = SCENE_CLASSES
        config.data.image_size = (192, 192)
        config.data.max_boxes = 16
        config.data.num_workers = 0  # scenes are drawn in threads of this process
        config.data.train = ml_collections.ConfigDict({"num_scenes": 4000, "size": 192, "seed": 1})
        config.data.val = ml_collections.ConfigDict({"num_scenes": 100, "size": 192, "seed": 2})  # other scenes

        config.augment.rotation_probability = 0.0
        config.augment.quarter_turn_classes = ()

        config.optimizer.learning_rate = 2e-3
        config.optimizer.lr_scaling = "none"
        config.optimizer.max_lr = 2e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 50

        config.rpn.num_samples = 128
        config.rpn.candidates_per_level = 200
        config.rpn.max_proposals = 200
        config.roi.num_samples = 64

        config.detection.max_candidates = 512
        config.detection.max_detections = 100

        config.evaluation.protocol = "generated scenes that training never saw"
        config.evaluation.batch_size_per_device = 4
        config.evaluation.num_pictures = 4
    return config
