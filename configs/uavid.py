"""HAKSNet-T + UNetFormer on UAVid (eight classes, oblique views of streets), LSKNet's recipe in its essentials.

200 images of 3840 x 2160 pixels and more for training, 70 for validation; those of the test set are scored by a server.
Published there: LSKNet-T 69.3 mean IoU, UNetFormer with a ResNet-18 67.6. Ours: not measured yet.

    python -m data.dense_sets uavid --source=UAVid --output=data/uavid
    haksnet train --config=uavid --config.pretrained=BACKBONE --workdir=runs/uavid
"""

from configs import segmentation_folder


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "uavid"
        config.num_epochs = 40
        config.batch_size_per_device = 6
        config.ema_decay = 0.0

        config.data.root = "data/uavid"
        config.data.image_size = (1024, 1024)
        config.data.cache_gib = 0.0

        config.augment.scale_range = (1.0, 1.0)
        config.augment.quarter_turns = False
        config.augment.max_class_share = 1.0
        config.augment.mosaic = 0.25

        config.optimizer.learning_rate = 1e-3
        config.optimizer.reference_batch = 6
        config.optimizer.weight_decay = 0.01

        config.evaluation.protocol = "UAVid val, whole images"
    return config.lock()
