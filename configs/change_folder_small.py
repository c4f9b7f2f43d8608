"""A small change detector of your own folder of pairs, in minutes on two CPU cores: the first try before a GPU.

The narrow network of `demo_change` from random weights, on the data of `change_folder`, which trains
HAKSNet-T and is what to take on a GPU.

    haksnet train --config=change_folder_small --config.data.root=FOLDER --workdir=runs/mine
"""

from configs import change_folder, demo_segmentation


def get_config():
    """All values of the experiment: those of `change_folder`, but for the lines here."""
    config = change_folder.get_config()
    with config.unlocked():
        config.name = "change_folder_small"
        demo_segmentation.small(config)
        config.data.image_size = (128, 128)
        config.data.num_workers = 2
        config.evaluation.tile = 256
        config.evaluation.overlap = 64
    return config.lock()
