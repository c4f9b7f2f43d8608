"""ResNet-50 with Oriented R-CNN on DOTA-v1.0, single scale: the baseline that the field compares with.

Reproduces nothing yet: data, schedule and optimiser are those of `dota_ss_t`, so that backbones are compared alone; the
published baseline trains with SGD. Ours on this data set: not measured yet.

As the field does, the stem and the first stage stay as they came from ImageNet, and normalisation uses the statistics
that it came with; its scales and biases are trained.

Prepare the tiles and the records (see data/README.md) and convert torchvision's ImageNet weights, then:

    python -m haksnet_jax.main --config=configs/dota_ss_r50.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss_t


def get_config():
    """All values of the experiment: those of `dota_ss_t`, but for the lines here."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.name = "dota_ss_r50"
        config.model.backbone = "resnet_50"
        config.model.drop_path_rate = 0.0
        config.model.frozen_stages = 2  # the stem and the first stage; upstream counts this as 1
        config.model.norm_eval = True
    return config
