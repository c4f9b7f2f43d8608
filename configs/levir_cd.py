"""HAKSNet-T on LEVIR-CD: changes of buildings, 445/64/128 pairs of 1024 x 1024 pixels.

The folders of the release, `train/{A,B,label}` and `val/{A,B,label}`, are read as they are. Published for the test set:
ChangerEx with a ResNet-18 91.8 F1, with pre-trained weights. Recipe of open-cd in its essentials: 512-pixel crops, 40k
steps of 8 pairs, test on whole images. Ours: not measured yet.

    haksnet train --config=levir_cd --config.data.root=FOLDER --config.pretrained=BACKBONE --workdir=runs/levir_cd
"""

from configs import change_folder


def get_config():
    """All values of the experiment: those of `change_folder`, but for the lines here."""
    config = change_folder.get_config()
    with config.unlocked():
        config.name = "levir_cd"
        config.num_steps = 40_000
        config.batch_size_per_device = 8
        config.checkpoint_every = 4000
        config.eval_every = 4000
        config.data.image_size = (512, 512)
        config.data.cache_gib = 0.0
        config.optimizer.learning_rate = 5e-4
        config.optimizer.reference_batch = 8
        config.optimizer.warmup_steps = 1000
        config.evaluation.protocol = "LEVIR-CD val, whole images"
    return config.lock()
