"""HAKSNet-S on ImageNet-1k; see `imagenet_t`. Upstream states no accuracy; VAN-B1 of like size reaches 81.1 top-1.

haksnet train --config=configs/imagenet_s.py --config.data.root=FOLDER_OF_TFDS
"""

from configs import imagenet_t


def get_config():
    """All values of the experiment: those of `imagenet_t`, but for the lines here."""
    config = imagenet_t.get_config()
    with config.unlocked():
        config.name = "imagenet_s"
        config.model.backbone = "haksnet_s"
    return config
