"""HAKSNet-T with the UNetFormer decoder on your own folder of images and masks.

The folder (docs/segmentation.md): `train/images`, `train/masks`, `val/images`, `val/masks`, and a `palette.txt` where
masks hold colours, or a `classes.txt` where they hold the classes' numbers.

    haksnet train --config=segmentation_folder --config.data.root=FOLDER --workdir=runs/mine

The loss is that of the LSKNet configurations of GeoSeg (label smoothing 0.05, Dice, auxiliary head 0.4); the schedule
is one for a few thousand images and less.
"""

import ml_collections

from haksnet_jax.distributed.mesh import MeshSettings
from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.models.dense_loss import LossSettings
from haksnet_jax.pipeline.dense_transforms import Augment
from haksnet_jax.training.optimizer import OptimizerSettings
from haksnet_jax.training.run_settings import RunSettings


def get_config():
    """All values of the experiment; those that no line states are the defaults of the settings named."""
    config = ml_collections.ConfigDict(RunSettings()._asdict())
    config.name = "segmentation_folder"
    config.task = "segmentation"
    config.num_epochs = 100
    config.batch_size_per_device = 16
    config.eval_every = 1000  # steps
    config.ema_decay = 0.998

    config.mesh = ml_collections.ConfigDict(MeshSettings()._asdict())

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "haksnet_t"
    config.model.channels = ()  # empty: those of the named size
    config.model.depths = ()
    config.model.mlp_ratios = ()
    config.model.in_channels = 3  # set by data.bands
    config.model.decoder = "unetformer"  # unetformer or upernet
    config.model.decoder_channels = 64  # upernet: 512
    config.model.dropout = 0.1  # of channels before the logits
    config.model.drop_path_rate = 0.1
    config.model.pixel_mean = PIXEL_MEAN  # of each band, 0..255
    config.model.pixel_std = PIXEL_STD
    config.model.dtype = "bfloat16"  # of the arithmetic; parameters, statistics and logits are float32
    config.model.remat = False  # recompute blocks in the backward pass instead of storing what is inside them

    config.data = ml_collections.ConfigDict()
    config.data.kind = "folder"  # folder or scenes
    config.data.class_names = ()  # empty: those of palette.txt or classes.txt beside the folders
    config.data.root = ""  # folder that the paths of train and val are in; empty: they stand for themselves
    config.data.palette = ""  # file of colours and classes; empty: palette.txt beside the folders, if there is one
    config.data.colours = ()  # lines like those of a palette.txt, instead of a file
    config.data.mask_values = ()  # value of each class in masks of numbers; empty: 0, 1, 2, ...
    config.data.ignored_values = (255,)  # values of pixels that have no label
    config.data.bands = ()  # which bands of the images, by number from 1 or by name; empty: red, green and blue
    config.data.limits = ()  # values that become 0 and 255 in images of more than 8 bits; empty: as they need
    config.data.nodata = ml_collections.config_dict.placeholder(float)  # value of no data; None: what the files say
    config.data.image_size = (512, 512)  # rows, columns of the crops
    config.data.cache_gib = 4.0  # GiB of decoded images that each process keeps in memory
    config.data.num_workers = 8  # processes that decode and augment, on each host
    config.data.stall_seconds = 60.0  # a batch that takes longer is told of each time; the 10th time is the end
    config.data.train = ml_collections.ConfigDict({"images_dir": "train/images", "masks_dir": "train/masks"})
    config.data.val = ml_collections.ConfigDict({"images_dir": "val/images", "masks_dir": "val/masks"})

    config.augment = ml_collections.ConfigDict(Augment()._asdict())
    config.loss = ml_collections.ConfigDict(LossSettings()._asdict())

    config.optimizer = ml_collections.ConfigDict(OptimizerSettings()._asdict())
    config.optimizer.learning_rate = 1e-3
    config.optimizer.lr_scaling = "sqrt"
    config.optimizer.max_lr = 4e-3
    config.optimizer.clip_norm = 5.0
    config.optimizer.schedule = "cosine"
    config.optimizer.drop_epochs = ()
    config.optimizer.warmup_steps = 300
    config.optimizer.warmup_ratio = 0.01

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.protocol = "whole images in blended windows"  # what the figures are of, for the result card
    config.evaluation.tile = 1024  # side of the windows
    config.evaluation.overlap = 256  # pixels that neighbouring windows share at least
    config.evaluation.scales = (1.0,)  # factors at which windows are looked at besides; probabilities are averaged
    config.evaluation.flip = False  # whether their mirror images are looked at too
    config.evaluation.turns = False  # whether they are looked at in four directions
    config.evaluation.left_out = ()  # classes that the means leave out
    config.evaluation.batch_size_per_device = 4
    config.evaluation.num_pictures = 8  # validation images that are drawn
    return config.lock()
