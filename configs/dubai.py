"""HAKSNet-T + UNetFormer on the Dubai aerial imagery (five classes), from random weights, in minutes on one GPU.

Classes, by colour: land, water, building, vegetation, road; unlabelled pixels are left out of loss and score. The
folder holds `train/{images,masks}` and `val/{images,masks}`. Beside it: a PyTorch U-Net with a ResNet-34, trained for
two minutes on an H200, reaches a mean IoU of 0.733.

    haksnet train --config=dubai --config.data.root=FOLDER --workdir=runs/dubai
"""

from configs import segmentation_folder

PALETTE = (
    "8429F6 land",
    "E2A929 water",
    "3C1098 building",
    "FEDD3A vegetation",
    "6EC1E4 road",
    "9B9B9B ignored",
    "000000 ignored",
)


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "dubai"
        config.num_steps = 10000
        config.batch_size_per_device = 16
        config.checkpoint_every = 4000
        config.eval_every = 2000
        config.log_every = 100
        config.ema_decay = 0.998

        config.data.colours = PALETTE
        config.data.image_size = (512, 512)
        config.data.num_workers = 12

        config.augment.scale_range = (0.5, 2.0)
        config.augment.max_degrees = 15.0
        config.augment.mosaic = 0.25

        config.optimizer.learning_rate = 1.5e-3

        config.evaluation.flip = True
        config.evaluation.turns = True
        config.evaluation.protocol = (
            "Dubai part, whole images of val, in windows of 1024 pixels, in all eight directions"
        )
        config.evaluation.batch_size_per_device = 4
    return config.lock()
