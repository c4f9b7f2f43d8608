"""HAKSNet-T + UNetFormer on ISPRS Potsdam (RGB, 5 cm), the recipe of LSKNet's authors in its essentials.

Training on tiles of 1024 pixels with whole masks; test on the 14 whole images of the usual split, with eroded borders.
Mean IoU and F1 leave clutter out, overall accuracy keeps it. Published: LSKNet-T 86.7 mean IoU, UNetFormer with a
ResNet-18 86.5, both with ImageNet weights. Ours: not measured yet. Left out of the published recipe: Lookahead, and
restarts of the cosine.

    python -m data.dense_sets potsdam --images=2_Ortho_RGB --masks=5_Labels_all --eroded=5_Labels_all_noBoundary \
        --output=data/potsdam
    haksnet train --config=potsdam --config.pretrained=BACKBONE --workdir=runs/potsdam
"""

from configs import segmentation_folder


def get_config():
    """All values of the experiment: those of `segmentation_folder`, but for the lines here."""
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.name = "potsdam"
        config.num_epochs = 45
        config.batch_size_per_device = 8
        config.ema_decay = 0.0

        config.data.root = "data/potsdam"
        config.data.image_size = (768, 768)
        config.data.cache_gib = 0.0

        config.augment.scale_range = (0.75, 1.5)
        config.augment.mosaic = 0.25

        config.optimizer.learning_rate = 8e-4
        config.optimizer.reference_batch = 8
        config.optimizer.weight_decay = 0.01

        config.evaluation.protocol = "Potsdam test split, whole images, eroded borders, clutter left out of means"
        config.evaluation.left_out = ("clutter",)
    return config.lock()
