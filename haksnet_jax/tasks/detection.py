"""Oriented object detection: Oriented R-CNN, boxes of objects, average precision by polygon overlap."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.inference.detection_evaluator import DetectionEvaluator
from haksnet_jax.kernels.warp import warp_affine
from haksnet_jax.labels import name_lists
from haksnet_jax.labels.classes import read_class_names
from haksnet_jax.labels.label_set import LabelSet, recognise_format
from haksnet_jax.models import architecture, detection_loss
from haksnet_jax.models.detection_loss import AnchorSampling, LossSettings, RoISampling
from haksnet_jax.models.oriented_rcnn import BoxSettings, OrientedRCNN
from haksnet_jax.models.roi_head import DetectionSettings
from haksnet_jax.models.rpn import ProposalSettings
from haksnet_jax.pipeline import bands, sources
from haksnet_jax.pipeline.batches import Batches
from haksnet_jax.pipeline.detection_rows import Augment, TrainingRow
from haksnet_jax.structures import GroundTruth
from haksnet_jax.tasks import settings, streams

BEST = "AP50_voc12"
CURVES = ("loss", "AP")
CLASSIFIER = ("roi_head.logits.",)
COUNTERS = {
    "num_cut": "boxes_cut_by_caps",
    "num_dropped": "boxes_dropped_by_augmentation",
    "num_replaced": "images_replaced_by_others",
}
BAD_IMAGES = ("refuse", "replace")
# Sections of the configuration, and the settings that their keys are.
SETTINGS = (
    ("boxes", BoxSettings),
    ("loss", LossSettings),
    ("rpn", AnchorSampling, ProposalSettings),
    ("roi", RoISampling),
    ("detection", DetectionSettings),
    ("augment", Augment),
)


def prepared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration itself, or a copy with the classes of a classes.txt where it names none, checked.

    The file is looked for in `data.root`, then beside the training images, where the tile splitter puts it.

    Raises:
      UserError: no such file, or a value that cannot be used.
    """
    config = _with_class_names(config)
    if any(side % 32 or side <= 0 for side in config.data.image_size):
        raise UserError(f"data.image_size: expected multiples of 32 above 0, got {tuple(config.data.image_size)}")
    unknown = set(config.augment.quarter_turn_classes) - set(config.data.class_names)
    if unknown:
        raise UserError(f"augment.quarter_turn_classes: {', '.join(sorted(unknown))} not among data.class_names")
    for section, *kinds in SETTINGS:
        settings.read(config, section, *kinds)  # (that no key is unknown)
    architecture.describe_backbone(config.model)  # (that there is such a backbone)
    if config.data.get("bad_images", "refuse") not in BAD_IMAGES:
        raise UserError(f"data.bad_images: expected one of {', '.join(BAD_IMAGES)}, got {config.data.bad_images!r}")
    return _with_bands(config)


def _with_bands(config):
    """The configuration with what its training data say of bands, see `bands.completed`; they need not be there."""
    folder = _places(config, "train").get({"folder": "images_dir", "tfds": "directory"}.get(config.data.kind))
    if folder is None or not os.path.isdir(folder):
        return bands.completed(config)
    return bands.completed(config, records=folder) if config.data.kind == "tfds" else bands.completed(config, (folder,))


def _places(config, split):
    """The settings of a split's source, with paths in `data.root`.

    Folders that other programs lay out otherwise are found too: `images/train` where there is no `train/images`,
    `valid` where there is no `val`, and `labels` where there is no `labelTxt`.
    """
    settings = dict(config.data[split])
    for name in ("directory", "images_dir", "labels_dir"):
        if settings.get(name) and config.data.root:
            settings[name] = files.join(config.data.root, settings[name])
    if settings.get("images_dir") and config.data.root and not os.path.isdir(settings["images_dir"]):
        settings |= _other_layout(config, split)
    labels = settings.get("labels_dir")
    if labels and os.path.basename(labels) == "labelTxt" and not os.path.exists(labels):
        beside = os.path.join(os.path.dirname(labels), "labels")  # as other programs call it
        settings["labels_dir"] = beside if os.path.isdir(beside) else labels
    return settings


def _other_layout(config, split):
    """The folders of images and labels of a split as other tools lay them out, or {} where there are no images."""
    if tuple(config.data[split].get(name) for name in ("images_dir", "labels_dir")) != (
        f"{split}/images",
        f"{split}/labelTxt",
    ):
        return {}  # the user named folders
    names = (split, "valid") if split == "val" else (split,)
    layouts = [
        tuple(files.join(config.data.root, place) for place in places)
        for name in names
        for labels in ("labelTxt", "labels")
        for places in ((f"{name}/images", f"{name}/{labels}"), (f"images/{name}", f"{labels}/{name}"))
    ]
    layouts = [layout for layout in layouts if os.path.isdir(layout[0])]
    # Without labels the first is named in the sentence that says so.
    images, labels = next((layout for layout in layouts if os.path.isdir(layout[1])), (layouts or [(None, None)])[0])
    return {"images_dir": images, "labels_dir": labels} if images else {}


def _with_class_names(config):
    if config.data.class_names:
        return config
    beside_images = os.path.dirname(config.data.train.get("images_dir", ""))
    places = [files.join(config.data.root, *folder, "classes.txt") for folder in ((), (beside_images,))]
    found = next((place for place in places if epath.Path(place).exists()), None)
    names = _names_in_labels(config) if found is None else read_class_names(found)
    if names is None:
        yaml_list = _yaml_of_yolo(config)
        if yaml_list is not None:
            raise UserError(
                f"data.class_names is empty, and there is no {places[0]}, but {yaml_list}: labels of YOLO-OBB, "
                "whose classes it names, are read by --set data.format=yolo-obb"
            )
        raise UserError(
            f"data.class_names is empty, and there is no {places[0]} and no {places[1]}: write the names of the "
            "classes into one of them, one a line, or set data.class_names=ship,plane"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.class_names = names
    return config


def _yaml_of_yolo(config):
    """The .yaml file in data.root that lists classes, where the labels are read as DOTA's but are YOLO-OBB; or None."""
    labels = _places(config, "train").get("labels_dir")
    if config.data.get("format", "dota") != "dota" or not config.data.root or not labels or not os.path.isdir(labels):
        return None
    try:
        if recognise_format(pathlib.Path(labels)) != "yolo-obb":
            return None
    except UserError:  # of no format at all
        return None
    found = sorted(path for path in pathlib.Path(config.data.root).glob("*.y*ml") if path.is_file())
    return next((path for path in found if name_lists.names_of_any_yaml(path) is not None), None)


def _names_in_labels(config):
    """The classes that the training labels list themselves (YOLO's data.yaml, COCO's categories), or None."""
    format, labels = config.data.get("format", "dota"), _places(config, "train").get("labels_dir")
    if config.data.kind != "folder" or format == "dota" or not labels:
        return None
    return LabelSet(labels, format).class_names


def open_source(config: ml_collections.ConfigDict, split: str) -> Any:
    """The examples of a split. Args: config; split, "train" or "val". Returns: a source, see `pipeline.sources`."""
    data = config.data
    arguments = _places(config, split)
    if data.kind == "folder":
        arguments["image_settings"] = bands.settings_of(config)
        arguments["format"] = data.get("format", "dota")
        arguments["allow_unknown_classes"] = data.get("allow_unknown_classes", False)
    if data.kind != "scenes":  # which have no small objects to leave out, and none that are empty
        arguments["min_side"] = data.min_side
    if split == "train":
        arguments["filter_empty"] = data.filter_empty
    source = sources.open_source(data.kind, tuple(data.class_names), **arguments)
    if data.kind == "folder":
        replace = data.get("bad_images", "refuse") == "replace"
        # A validation image that cannot be read is named and passed over: what is seen of the others stays comparable.
        source.check_images(bad_images="leave_out" if split == "val" else "keep" if replace else "refuse")
    return source


def batch_arrays(config: ml_collections.ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The arrays of one example, see `pipeline.detection_rows`."""
    max_boxes = config.data.max_boxes
    turned_later = settings.read(config, "augment", Augment).rotate_on == "device"
    return {
        "image": ((*config.data.image_size, config.model.get("in_channels", None) or 3), np.uint8),
        "boxes": ((max_boxes, 5), np.float32),
        "labels": ((max_boxes,), np.int32),
        "valid": ((max_boxes,), np.bool_),
        "image_size": ((2,), np.int32),
        **({"turn": ((2, 3), np.float32)} if turned_later else {}),
    }


def train_batches(config: ml_collections.ConfigDict, source: Any, **where: Any) -> Batches:
    """Augmented batches in random order without end. Args: as of `streams.train_batches`."""
    row = TrainingRow(
        image_size=config.data.image_size,
        max_boxes=config.data.max_boxes,
        class_names=source.class_names,
        augment=settings.read(config, "augment", Augment),
    )
    replace_bad = config.data.get("bad_images", "refuse") == "replace"
    return streams.train_batches(config, source, row, replace_bad=replace_bad, **where)


def build_model(config: ml_collections.ConfigDict, *, rngs: nnx.Rngs) -> OrientedRCNN:
    """The detector of a configuration. Args: config; rngs. Returns: OrientedRCNN."""
    model = config.model
    return architecture.build(
        model_info(config),
        dtype=jnp.dtype(model.dtype),
        rngs=rngs,
        backbone_options=architecture.backbone_options(model),
    )


def model_info(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `model.json` says of the run's model."""
    model, detections = config.model, settings.read(config, "detection", DetectionSettings)
    boxes = settings.read(config, "boxes", BoxSettings)
    heads = {
        "fpn_channels": model.fpn_channels,
        "hidden": model.hidden,
        "num_classes": len(config.data.class_names),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in boxes._asdict().items()},
    }
    return {
        "task": "detection",
        "architecture": architecture.describe_backbone(model) | heads,
        "class_names": list(config.data.class_names),
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        "input_size": list(config.data.image_size),
        "keep_ratio": True,
        "padding_divisor": 32,
        "proposals": settings.read(config, "rpn", AnchorSampling, ProposalSettings)[1]._asdict(),
        "detections": {name: getattr(detections, name) for name in ("iou_threshold", "max_detections")},
        **bands.model_info(config),
    }


def loss(config: ml_collections.ConfigDict) -> Callable[..., Any]:
    """The function of (model, batch, key) that gives the loss and its parts, see `detection_loss`."""
    anchor_sampling, proposal_settings = settings.read(config, "rpn", AnchorSampling, ProposalSettings)
    given = {
        "proposal_settings": proposal_settings,
        "anchor_sampling": anchor_sampling,
        "roi_sampling": settings.read(config, "roi", RoISampling),
        "loss_settings": settings.read(config, "loss", LossSettings),
    }

    def loss_of(model, batch, key):
        truth = GroundTruth(batch["boxes"], batch["labels"], batch["valid"], batch["image_size"])
        images = batch["image"]
        if "turn" in batch:
            images = warp_affine(images, batch["turn"], batch["image_size"])
        return detection_loss.detection_loss(model, images, truth, key, **given)

    return loss_of


def make_evaluator(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, source: Any, mesh: jax.sharding.Mesh
) -> DetectionEvaluator:
    """Average precision on a split. Args: config; graph, of the model; source; mesh. Returns: DetectionEvaluator."""
    return DetectionEvaluator(
        graph,
        source,
        mesh,
        proposal_settings=settings.read(config, "rpn", AnchorSampling, ProposalSettings)[1],
        detection_settings=settings.read(config, "detection", DetectionSettings),
        image_size=config.data.image_size,
        batch_size_per_device=config.evaluation.batch_size_per_device,
        num_workers=config.data.num_workers,
        stall_seconds=config.data.stall_seconds,
        num_pictures=config.evaluation.num_pictures,
        picture_score=config.evaluation.picture_score,
    )


def kept_at_random(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Prefixes of the names of parameters that a pre-trained backbone does not fill."""
    del config
    return ("fpn.", "rpn.", "roi_head.")


def log_line(means: Mapping[str, float]) -> str:
    """The losses. Args: means, {name: float}."""
    rpn = f"rpn {means['loss_rpn_cls']:.3f} + {means['loss_rpn_box']:.3f}"
    roi = f"roi {means['loss_roi_cls']:.3f} + {means['loss_roi_box']:.3f}"
    return f"loss {means['loss']:.4f} ({rpn}, {roi})"
