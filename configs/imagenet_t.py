"""HAKSNet-T on ImageNet-1k: the weights that every other task starts from.

Reproduces: the recipe of the siblings whose code upstream's checkpoint names point to (VAN, LSKNet: 8 GPUs x 128
images, 300 epochs). Upstream states no accuracy; VAN-B0 of like size (4.1 M parameters) reaches 75.4 top-1. Ours: not
measured.
Cost: 300 epochs of 1,281,167 images are 384 million; docs/pretraining.md has speeds, hours and the plan for TPUs.

Prepare `imagenet2012` with TFDS as ArrayRecord (docs/pretraining.md), then:

    haksnet train --config=configs/imagenet_t.py --config.data.root=FOLDER_OF_TFDS
"""

import ml_collections
from ml_collections import config_dict

from haksnet_jax.distributed.mesh import MeshSettings
from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.labels.imagenet import CLASSES
from haksnet_jax.models.classification_loss import Mixing
from haksnet_jax.pipeline.classification_transforms import Augment
from haksnet_jax.training.optimizer import OptimizerSettings
from haksnet_jax.training.run_settings import RunSettings


def get_config():
    """All values of the experiment; those that no line states are the defaults of the settings named."""
    config = ml_collections.ConfigDict(RunSettings()._asdict())
    config.task = "classification"
    config.name = "imagenet_t"
    config.num_epochs = 300
    config.batch_size_per_device = 128
    config.checkpoint_every = 5000  # steps
    config.eval_every = 12500  # steps
    config.log_every = 100  # steps
    config.ema_decay = 0.9998

    config.mesh = ml_collections.ConfigDict(MeshSettings()._asdict())

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "haksnet_t"
    config.model.channels = ()  # empty: those of the named size; upstream: embed_dims
    config.model.depths = ()  # (the same)
    config.model.mlp_ratios = ()  # (the same)
    config.model.in_channels = 3  # set by data.bands
    config.model.drop_path_rate = 0.1
    config.model.batch_norm_momentum = 0.9  # share of the running statistics that stays (PyTorch's momentum is 0.1)
    config.model.pixel_mean = PIXEL_MEAN  # RGB, 0..255
    config.model.pixel_std = PIXEL_STD
    config.model.dtype = "bfloat16"  # of the arithmetic; parameters and statistics are float32
    config.model.remat = False  # recompute blocks in the backward pass instead of storing what is inside them

    config.data = ml_collections.ConfigDict()
    config.data.kind = "tfds"  # tfds, folder or scenes
    config.data.class_names = CLASSES  # empty: the names of the folders, or the data set's own
    config.data.root = ""  # folder that the paths of train and val are in; empty: they stand for themselves
    config.data.bands = ()  # which bands of the images, by number from 1 or by name; empty: red, green and blue
    config.data.limits = ()  # values that become 0 and 255 where samples have more than 8 bits; empty: by the images
    config.data.nodata = config_dict.placeholder(float)  # value of pixels without data; none: what each image says
    config.data.image_size = (224, 224)  # rows, columns of the network's input
    config.data.cache_mib = 0  # decoded images that each process keeps in memory, of a small set of folders
    config.data.num_workers = 16  # processes that decode and augment, on each host
    config.data.stall_seconds = 60.0  # a batch that takes longer is told of each time; the 10th time is the end
    config.data.train = ml_collections.ConfigDict({"directory": "imagenet2012/5.1.0", "split": "train"})
    config.data.val = ml_collections.ConfigDict({"directory": "imagenet2012/5.1.0", "split": "validation"})

    # timm: rand-m9-mstd0.5-inc1; its recipe names a colour jitter of 0.4, which its code leaves out beside RandAugment.
    config.augment = ml_collections.ConfigDict(Augment(rand_augment_magnitude=9.0)._asdict())
    config.mixing = ml_collections.ConfigDict(Mixing()._asdict())

    config.optimizer = ml_collections.ConfigDict(OptimizerSettings()._asdict())
    config.optimizer.learning_rate = 1e-3
    config.optimizer.reference_batch = 1024
    config.optimizer.max_lr = 4e-3
    config.optimizer.decay_kernels_alone = True
    config.optimizer.clip_norm = 1e6  # the recipe clips nothing
    config.optimizer.schedule = "cosine"
    config.optimizer.drop_epochs = ()
    config.optimizer.final_ratio = 1e-3  # to 1e-6
    config.optimizer.warmup_steps = 6256  # 5 epochs of 1,024 images
    config.optimizer.warmup_ratio = 1e-3  # from 1e-6

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.protocol = "centre crop of 0.875, top-1 and top-5 on the validation set"
    config.evaluation.batch_size_per_device = 128
    config.evaluation.crop_share = 0.875  # of the shorter side, that the centre crop keeps
    config.evaluation.num_views = 1  # 2: mirrored too; 8: quarter turns too, for images from above
    config.evaluation.num_pictures = 16  # of the surest mistakes, on one sheet
    return config.lock()
