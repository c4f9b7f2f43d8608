"""HAKSNet-T + UNetFormer on LoveDA (seven classes, 0.3 m), the recipe of LSKNet's authors in its essentials.

2,522 images of 1024 x 1024 pixels for training, 1,669 for validation; those of the test set are scored by a server.
Published there: LSKNet-T 53.2 mean IoU, UNetFormer with a ResNet-18 53.0, both with ImageNet weights. Ours: not
measured yet. Left out of the published recipe: Lookahead around AdamW.

    python -m data.dense_sets loveda --source=LoveDA --output=data/loveda
    haksnet train --config=loveda --config.pretrained=BACKBONE --workdir=runs/loveda
"""

from configs import segmentation_folder


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "loveda"
        config.num_epochs = 30
        config.batch_size_per_device = 16
        config.ema_decay = 0.0

        config.data.root = "data/loveda"
        config.data.class_names = ("background", "building", "road", "water", "barren", "forest", "agriculture")
        config.data.mask_values = (1, 2, 3, 4, 5, 6, 7)
        config.data.ignored_values = (0,)
        config.data.cache_gib = 0.0

        config.augment.scale_range = (0.75, 1.5)
        config.augment.vertical_flip = 0.0
        config.augment.quarter_turns = False
        config.augment.mosaic = 0.25

        config.optimizer.learning_rate = 4e-4
        config.optimizer.weight_decay = 0.01

        config.evaluation.protocol = "LoveDA val, whole images"
    return config.lock()
