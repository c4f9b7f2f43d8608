"""HAKSNet-T on a part of LEVIR-CD (30 pairs for training, 6 for validation), from random weights, in minutes on a GPU.

The pairs carry names of the official test set: no figure of theirs is comparable with published ones. Beside them: a
PyTorch siamese U-Net with a ResNet-34, trained for two minutes on an H200, reaches an F1 of change of 0.780.

    haksnet train --config=levir_cd_part --config.data.root=FOLDER --workdir=runs/levir_cd_part
"""

from configs import change_folder


def get_config():
    """All values of the experiment: those of `change_folder`, but for the lines here."""
    config = change_folder.get_config()
    with config.unlocked():
        config.name = "levir_cd_part"
        config.num_steps = 8000
        config.batch_size_per_device = 32
        config.checkpoint_every = 4000
        config.eval_every = 2000
        config.log_every = 100
        config.ema_decay = 0.998

        config.data.image_size = (256, 256)
        config.data.num_workers = 12

        config.augment.scale_range = (0.6, 1.7)
        config.augment.brightness = 0.2
        config.augment.contrast = 0.3

        config.optimizer.learning_rate = 1e-3

        config.evaluation.protocol = "LEVIR-CD part, whole images of val"
        config.evaluation.batch_size_per_device = 4
    return config.lock()
