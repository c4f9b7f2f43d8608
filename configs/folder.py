"""HAKSNet-T on a data set of your own: folders of images with labels in DOTA's format (docs/own_data.md).

    python -m haksnet_jax.main --config=configs/folder.py --config.data.root=mydata --config.init=DIR_OF_A_DETECTOR

Class names come from `classes.txt` in data.root, or from --config.data.class_names. With `init`, a detector that was
trained on other classes starts this one, its classifier anew.
"""

import ml_collections

from configs import dota_ss_t


def get_config():
    """All values of the experiment: those of `dota_ss_t`, but for the lines here."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.name = "folder"
        config.num_epochs = 36  # small data sets want more than DOTA's 12
        config.eval_every = 1000
        config.init_new_classes = True
        config.ema_decay = 0.998

        config.data.kind = "folder"
        config.data.class_names = ()  # empty: the lines of data.root/classes.txt
        config.data.root = "mydata"
        config.data.train = ml_collections.ConfigDict({"images_dir": "train/images", "labels_dir": "train/labelTxt"})
        config.data.val = ml_collections.ConfigDict({"images_dir": "val/images", "labels_dir": "val/labelTxt"})

        config.augment.quarter_turn_classes = ()  # name what looks alike after any turn: round things
        config.optimizer.schedule = "cosine"
        config.evaluation.protocol = "val"
    return config
