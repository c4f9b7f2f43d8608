"""HAKSNet-T on CLCD: changes of cropland, 360/120/120 pairs of 512 x 512 pixels.

The folders of the release are read as they are: `train/{time1,time2,label}`. Ours: not measured yet.

    haksnet train --config=clcd --config.data.root=CLCD --config.pretrained=BACKBONE --workdir=runs/clcd
"""

import ml_collections

from configs import levir_cd


def get_config():
    """All values of the experiment: those of `levir_cd`, but for the lines here."""
    config = levir_cd.get_config()
    with config.unlocked():
        config.name = "clcd"
        config.num_steps = 10_000
        config.data.cache_gib = 4.0
        folders = ("before_dir", "time1"), ("after_dir", "time2"), ("masks_dir", "label")
        for split in ("train", "val"):
            config.data[split] = ml_collections.ConfigDict({key: f"{split}/{name}" for key, name in folders})
        config.evaluation.tile = 512
        config.evaluation.overlap = 128
        config.evaluation.protocol = "CLCD val, whole images"
    return config.lock()
