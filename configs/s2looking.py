"""HAKSNet-T on S2Looking: changes of buildings in side-looking images, 3500/500/1000 pairs of 1024 x 1024 pixels.

The folders of the release are read as they are: `train/{Image1,Image2,label}`. Published: ChangerEx with a ResNet-18
66.28 F1, LSKNet-S 67.52. Ours: not measured yet.

    haksnet train --config=s2looking --config.data.root=S2Looking --config.pretrained=BACKBONE --workdir=runs/s2looking
"""

import ml_collections

from configs import levir_cd


def get_config():
    """All values of the experiment: those of `levir_cd`, but for the lines here."""
    config = levir_cd.get_config()
    with config.unlocked():
        config.name = "s2looking"
        config.num_steps = 80_000
        folders = ("before_dir", "Image1"), ("after_dir", "Image2"), ("masks_dir", "label")
        for split in ("train", "val"):
            config.data[split] = ml_collections.ConfigDict({key: f"{split}/{name}" for key, name in folders})
        config.evaluation.protocol = "S2Looking val, whole images"
    return config.lock()
