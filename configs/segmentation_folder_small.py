"""A small segmenter of your own folder of masks, in minutes on two CPU cores: the first try before a GPU.

The narrow network of `demo_segmentation` from random weights, on the data of `segmentation_folder`, which trains
HAKSNet-T and is what to take on a GPU.

    haksnet train --config=segmentation_folder_small --config.data.root=FOLDER --workdir=runs/mine
"""

from configs import demo_segmentation, segmentation_folder


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "segmentation_folder_small"
        demo_segmentation.small(config)
        config.data.image_size = (128, 128)
        config.data.num_workers = 2
        config.evaluation.tile = 256
        config.evaluation.overlap = 64
    return config.lock()
