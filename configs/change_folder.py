"""HAKSNet-T on your own folder of pairs of images and masks of change.

The folder (docs/change_detection.md): `train/A`, `train/B`, `train/label`, `val/A`, `val/B`, `val/label`.

    haksnet train --config=change_folder --config.data.root=FOLDER --workdir=runs/mine

The head is the difference of the dates' features through the UNetFormer decoder; --config.model.head=exchange chooses
ChangerEx' exchange and flow alignment, for which --config.loss.hard_pixels=True belongs to the published recipe.
"""

import ml_collections

from configs import segmentation_folder


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "change_folder"
        config.task = "change"

        config.model.head = "difference"  # difference, or exchange (ChangerEx)
        config.model.head_channels = 128  # of "exchange"

        for name in ("class_names", "palette", "colours", "mask_values", "ignored_values"):
            del config.data[name]
        config.data.image_size = (256, 256)
        folders = ("before_dir", "A"), ("after_dir", "B"), ("masks_dir", "label")
        config.data.train = ml_collections.ConfigDict({key: f"train/{name}" for key, name in folders})
        config.data.val = ml_collections.ConfigDict({key: f"val/{name}" for key, name in folders})

        config.augment.exchange = 0.5  # probability that the dates change places
        config.augment.max_degrees = 20.0
        config.augment.max_class_share = 1.0  # most of the ground stays as it is

        config.loss.smoothing = 0.0
        config.batch_size_per_device = 32
    return config.lock()
