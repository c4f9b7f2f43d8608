"""HAKSNet-T + UNetFormer on ISPRS Vaihingen (near infrared, red, green; 9 cm), as `potsdam` but for the lines here.

Published: LSKNet-T 84.9 mean IoU, UNetFormer with a ResNet-18 82.5, both with ImageNet weights. Ours: not measured yet.

    python -m data.dense_sets vaihingen --images=top --masks=gts --eroded=gts_eroded --output=data/vaihingen
    haksnet train --config=vaihingen --config.pretrained=BACKBONE --workdir=runs/vaihingen
"""

from configs import potsdam


def get_config():
    """All values of the experiment: those of `potsdam`, but for the lines here."""
    config = potsdam.get_config()
    with config.unlocked():
        config.name = "vaihingen"
        config.num_epochs = 105
        config.data.root = "data/vaihingen"
        config.data.image_size = (512, 512)
        config.augment.scale_range = (0.5, 1.5)
        config.optimizer.learning_rate = 4e-4
        config.evaluation.protocol = "Vaihingen test split, whole images, eroded borders, clutter left out of means"
    return config.lock()
