"""HAKSNet-T with Oriented R-CNN on DOTA-v1.0, single scale.

Reproduces: upstream's `HAKSNet-T`, single scale: 79.28 AP50 on DOTA's test server (upstream's figure, with its
ImageNet weights, trained on train + val). Ours on this data set: not measured yet.
Upstream's hardware: 8 GPUs, 2 images each, 12 epochs.

Prepare the tiles and the records (see data/README.md), then:

    python -m haksnet_jax.main --config=configs/dota_ss_t.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

import ml_collections

from haksnet_jax.distributed.mesh import MeshSettings
from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.models.detection_loss import AnchorSampling, LossSettings, RoISampling
from haksnet_jax.models.oriented_rcnn import BoxSettings
from haksnet_jax.models.roi_head import DetectionSettings
from haksnet_jax.models.rpn import ProposalSettings
from haksnet_jax.pipeline.detection_rows import Augment
from haksnet_jax.training.optimizer import OptimizerSettings
from haksnet_jax.training.run_settings import RunSettings


def get_config():
    """All values of the experiment; those that no line states are the defaults of the settings named."""
    config = ml_collections.ConfigDict(RunSettings()._asdict())
    config.task = "detection"
    config.name = "dota_ss_t"
    config.num_epochs = 12  # upstream: max_epochs
    config.batch_size_per_device = 2  # upstream: samples_per_gpu
    config.eval_every = 5000  # steps, and at the end; 0: never, the end included
    config.ema_decay = 0.0  # 0: no average of the weights, as upstream

    config.mesh = ml_collections.ConfigDict(MeshSettings()._asdict())

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "haksnet_t"  # a family and its size; a family alone takes the sizes here
    config.model.channels = ()  # empty: those of the named size; upstream: embed_dims
    config.model.depths = ()  # (the same)
    config.model.mlp_ratios = ()  # (the same)
    config.model.fpn_channels = 256
    config.model.hidden = 1024  # upstream: fc_out_channels
    config.model.drop_path_rate = 0.1
    config.model.batch_norm_momentum = 0.9  # share of the running statistics that stays (PyTorch's momentum is 0.1)
    config.model.in_channels = 3  # set by data.bands
    config.model.pixel_mean = PIXEL_MEAN  # RGB, 0..255
    config.model.pixel_std = PIXEL_STD
    config.model.dtype = "bfloat16"  # of the arithmetic; parameters, statistics and boxes are float32
    config.model.remat = False  # recompute blocks in the backward pass instead of storing what is inside them

    config.data = ml_collections.ConfigDict()
    config.data.kind = "tfds"  # tfds, folder or scenes
    config.data.class_names = CLASSES["dota10"]
    config.data.root = ""  # folder that the paths of train and val are in; empty: they stand for themselves
    config.data.bands = ()  # which bands of the images, by number from 1 or by name; empty: red, green and blue
    config.data.limits = ()  # values that become 0 and 255 in images of more than 8 bits; empty: as their bits need
    config.data.nodata = ml_collections.config_dict.placeholder(float)  # value of no data; None: what the files say
    config.data.format = "dota"  # of labels in folders; also auto, yolo-obb, coco, ... (docs/formats.md)
    config.data.allow_unknown_classes = False  # True trains though most labels are of classes that are not named
    config.data.bad_images = "refuse"  # training images that cannot be read; "replace" takes others, counted
    config.data.image_size = (1024, 1024)  # rows, columns of the network's input
    config.data.max_boxes = 1000  # objects of a tile at most; what is cut is counted and logged
    config.data.min_side = 2.0  # pixels: labelled boxes with a shorter side are left out, as upstream's reader; counted
    config.data.filter_empty = True  # leave tiles without objects out of training, as upstream
    config.data.num_workers = 8  # processes that decode and augment, on each host
    config.data.stall_seconds = 60.0  # a batch that takes longer is told of each time; the 10th time is the end
    config.data.train = ml_collections.ConfigDict({"directory": "data/records/dota10_ss", "split": "trainval"})
    config.data.val = ml_collections.ConfigDict({"directory": "data/records/dota10_ss", "split": "val"})

    config.augment = ml_collections.ConfigDict(Augment(quarter_turn_classes=("storage-tank", "roundabout"))._asdict())

    config.optimizer = ml_collections.ConfigDict(OptimizerSettings()._asdict())

    config.boxes = ml_collections.ConfigDict(BoxSettings()._asdict())  # kept with the model
    config.loss = ml_collections.ConfigDict(LossSettings()._asdict())
    config.rpn = ml_collections.ConfigDict(AnchorSampling()._asdict() | ProposalSettings()._asdict())
    config.roi = ml_collections.ConfigDict(RoISampling()._asdict())
    config.detection = ml_collections.ConfigDict(DetectionSettings()._asdict())

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.protocol = "tiles"  # what the figures are of, for the result card
    config.evaluation.batch_size_per_device = 2  # as in training: the same convolutions, tuned and compiled already
    config.evaluation.num_pictures = 8  # validation images that are drawn
    config.evaluation.picture_score = 0.3  # score from which a detection is drawn
    return config.lock()
