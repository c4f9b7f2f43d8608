"""Classification of whole images, and with it the pre-training of the backbone that every other task takes."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import settings as image_settings
from haksnet_jax.inference.classification_evaluator import ClassificationEvaluator
from haksnet_jax.models import architecture, classification_loss
from haksnet_jax.models.classifier import Classifier
from haksnet_jax.pipeline import bands
from haksnet_jax.pipeline import classification_sources as sources
from haksnet_jax.pipeline.batches import Batches
from haksnet_jax.pipeline.classification_transforms import Augment, EvaluationRow, TrainingRow
from haksnet_jax.tasks import settings, streams

BEST = "top1"
CURVES = ("loss", "top")
CLASSIFIER = ("head.",)
KINDS = ("folder", "tfds", "scenes")


def prepared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with its classes, checked.

    Where `data.class_names` is empty, they are the names of the folders of training images, or the data set's own.

    Raises:
      UserError: a value that cannot be used, or no such data.
    """
    data, augment = config.data, settings.read(config, "augment", Augment)
    settings.read(config, "mixing", classification_loss.Mixing)  # (that no key is unknown)
    if data.kind not in KINDS:
        raise UserError(f"data.kind: expected one of {', '.join(KINDS)}, got {data.kind!r}")
    if min(data.image_size) < 32:
        raise UserError(f"data.image_size: expected at least 32 pixels a side, got {tuple(data.image_size)}")
    config = _with_bands(config)
    num_bands = config.model.in_channels
    if num_bands != 3 and (augment.rand_augment_magnitude or augment.colour_jitter):
        raise UserError(
            "augment.rand_augment_magnitude and augment.colour_jitter are of red, green and blue: set both to 0 for "
            f"images of {num_bands} bands"
        )
    if augment.quarter_turns and data.image_size[0] != data.image_size[1]:
        raise UserError(f"augment.quarter_turns: expected a square data.image_size, got {tuple(data.image_size)}")
    if config.evaluation.num_views not in (1, 2, 8):
        raise UserError(f"evaluation.num_views: expected 1, 2 or 8, got {config.evaluation.num_views}")
    least, largest = augment.crop_scale
    if not 0 < least <= largest <= 1:
        raise UserError(f"augment.crop_scale: expected (from, to) with 0 < from <= to <= 1, got {(least, largest)}")
    if not config.data.class_names:
        with config.unlocked():
            config.data.class_names = _open(config, "train").class_names
    if len(config.data.class_names) < 2:
        raise UserError(f"data.class_names: expected at least two classes, got {tuple(config.data.class_names)}")
    return config


def _with_bands(config):
    """The configuration with what its training images say of bands, see `bands.completed`; they need not be there."""
    data = config.data
    if data.kind != "folder":
        if bands.settings_of(config) != image_settings.DEFAULT:
            raise UserError(f"data.bands, data.limits, data.nodata: expected none for data.kind={data.kind!r}")
        return bands.completed(config)
    folder = _path(data, data.train.folder)
    if not os.path.isdir(folder):
        return bands.completed(config)
    return bands.completed(config, [os.path.join(folder, name) for name in sources.class_folders(folder)])


def _path(data, path):
    return files.join(data.root, path) if data.root else path


def open_source(config: ml_collections.ConfigDict, split: str) -> Any:
    """The examples of a split. Args: config; split, "train" or "val". Returns: see `classification_sources`."""
    return _open(config, split)


def _open(config, split):
    data = config.data
    arguments = dict(data[split])
    for name in ("directory", "folder", "image_list"):
        if arguments.get(name) is not None:
            arguments[name] = _path(data, arguments[name])
    class_names = tuple(data.class_names) or None
    if data.kind == "folder":
        arguments["settings"] = bands.settings_of(config)
        names = class_names or sources.class_folders(arguments["folder"])
        # Images of the two splits may have the same names; in one folder that is divided, each has one split alone.
        arguments["prefix"] = "" if data[split].folder == "." else data[split].folder
        arguments["may_lack_classes"] = split == "val"
        return sources.ClassFolderSource(class_names=names, cache_mib=data.cache_mib, **arguments)
    if data.kind == "tfds":
        return sources.TfdsClassificationSource(class_names=class_names, **arguments)
    return sources.SceneClassSource(class_names=class_names or sources.SCENE_CLASSES, **arguments)


def batch_arrays(config: ml_collections.ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The arrays of one example."""
    return {
        "image": ((*config.data.image_size, config.model.in_channels), np.uint8),
        "label": ((), np.int32),
    }


def train_batches(config: ml_collections.ConfigDict, source: Any, **where: Any) -> Batches:
    """Augmented batches in random order without end. Args: as of `streams.train_batches`."""
    row = TrainingRow(size=config.data.image_size, augment=settings.read(config, "augment", Augment))
    return streams.train_batches(config, source, row, **where)


def build_model(config: ml_collections.ConfigDict, *, rngs: nnx.Rngs) -> Classifier:
    """The classifier of a configuration. Args: config; rngs. Returns: Classifier."""
    return architecture.build(
        model_info(config),
        dtype=jnp.dtype(config.model.dtype),
        rngs=rngs,
        backbone_options=architecture.backbone_options(config.model),
    )


def model_info(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `model.json` says of the run's model."""
    model = config.model
    return {
        "task": "classification",
        "architecture": architecture.describe_backbone(model) | {"num_classes": len(config.data.class_names)},
        "class_names": list(config.data.class_names),
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        **bands.model_info(config),
        "input_size": list(config.data.image_size),
        "crop_share": config.evaluation.crop_share,
        "num_views": config.evaluation.num_views,
    }


def loss(config: ml_collections.ConfigDict) -> Callable[..., Any]:
    """The function of (model, batch, key) that gives the loss and its parts, see `classification_loss`."""
    mixing = settings.read(config, "mixing", classification_loss.Mixing)

    def loss_of(model, batch, key):
        return classification_loss.classification_loss(model, batch["image"], batch["label"], key, mixing=mixing)

    return loss_of


def make_evaluator(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, source: Any, mesh: jax.sharding.Mesh
) -> ClassificationEvaluator:
    """Top-1, top-5 and confusion on a split. Returns: ClassificationEvaluator."""
    evaluation = config.evaluation
    return ClassificationEvaluator(
        graph,
        source,
        mesh,
        row=EvaluationRow(
            size=tuple(config.data.image_size), share=evaluation.crop_share, num_bands=config.model.in_channels
        ),
        batch_size=evaluation.batch_size_per_device,
        # Threads decode a few thousand images sooner than processes for it start.
        num_workers=config.data.num_workers if len(source) > 5000 else 0,
        stall_seconds=config.data.stall_seconds,
        num_views=evaluation.num_views,
        num_pictures=evaluation.num_pictures,
    )


def kept_at_random(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Prefixes of the names of parameters that a pre-trained backbone does not fill."""
    del config
    return ("head.",)


def log_line(means: Mapping[str, float]) -> str:
    """The loss. Args: means, {name: float}."""
    return f"loss {means['loss']:.4f}  top-1 {100 * means['top1']:.1f} % (of mixed images)"
