"""HAKSNet-T on WHU-CD: new buildings after an earthquake, 6096/762 pairs of 256 x 256 pixels.

The folders are those of LEVIR-CD: `train/{A,B,label}`, `val/{A,B,label}`; several splits circulate. Ours: not
measured yet.

    haksnet train --config=whu_cd --config.data.root=WHU-CD --config.pretrained=BACKBONE --workdir=runs/whu_cd
"""

from configs import levir_cd


def get_config():
    """All values of the experiment: those of `levir_cd`, but for the lines here."""
    config = levir_cd.get_config()
    with config.unlocked():
        config.name = "whu_cd"
        config.batch_size_per_device = 32
        config.data.image_size = (256, 256)
        config.optimizer.reference_batch = 32
        config.evaluation.tile = 256
        config.evaluation.overlap = 64
        config.evaluation.batch_size_per_device = 32
        config.evaluation.protocol = "WHU-CD val, images of 256 pixels"
    return config.lock()
