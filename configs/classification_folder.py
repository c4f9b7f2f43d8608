"""HAKSNet-T on images of your own: one folder for each class, `train/CLASS/*.jpg` and `val/CLASS/*.jpg`.

    haksnet validate --class-folders mydata/train mydata/val
    haksnet train --config=configs/classification_folder.py --config.data.root=mydata --config.pretrained=BACKBONE

Classes are the names of the folders. Where there is no `val`, one folder is divided by a seed:

    --config.data.train.folder=. --config.data.train.share=(0.0,0.8) --config.data.val.folder=.
    --config.data.val.share=(0.8,1.0)
"""

import ml_collections

from configs import imagenet_t


def get_config():
    """All values of the experiment: those of `imagenet_t`, but for the lines here."""
    config = imagenet_t.get_config()
    with config.unlocked():
        config.name = "classification_folder"
        config.num_epochs = 100
        config.batch_size_per_device = 64
        config.checkpoint_every = 2000
        config.eval_every = 1000
        config.log_every = 50
        config.ema_decay = 0.999

        config.data.kind = "folder"
        config.data.class_names = ()
        config.data.root = "mydata"
        config.data.cache_mib = 256
        config.data.num_workers = 8
        everything = {"share": (0.0, 1.0), "seed": 0, "image_list": None}
        config.data.train = ml_collections.ConfigDict({"folder": "train", **everything})
        config.data.val = ml_collections.ConfigDict({"folder": "val", **everything})

        config.augment.crop_scale = (0.3, 1.0)
        config.augment.flip_probabilities = (0.5, 0.5)
        config.augment.quarter_turns = True
        config.augment.rand_augment_magnitude = 0.0  # it changes colours, which tell much in images from above
        config.augment.colour_jitter = 0.2

        config.optimizer.learning_rate = 5e-4
        config.optimizer.reference_batch = 64
        config.optimizer.max_lr = 2e-3
        config.optimizer.clip_norm = 5.0  # from random weights, squares of features make rare steps large
        config.optimizer.warmup_steps = 300

        config.evaluation.protocol = "whole images of val"
        config.evaluation.crop_share = 1.0
    return config
