"""Change detection: two dates through one backbone, changed or not for every pixel, F1 of change on whole images."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.inference.dense_evaluator import DenseEvaluator
from haksnet_jax.models.change_detector import HEADS, ChangeDetector, ChangerHead
from haksnet_jax.pipeline import bands
from haksnet_jax.pipeline.dense_sources import CHANGE_CLASSES, PairFolder, PairScenes
from haksnet_jax.results.dense_maps import CHANGE_COLOURS
from haksnet_jax.tasks import dense

BEST = "f1_change"
CURVES = ("loss", "accuracy", "f1_", "iou_", "precision_", "recall_")
CLASSIFIER = ("head.logits.", "head.head.logits.", "head.auxiliary_head.logits.")
COUNTERS = dense.COUNTERS

train_batches = dense.train_batches
log_line = dense.log_line


def prepared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration, checked. Raises: UserError, a value that cannot be used."""
    if config.model.head not in HEADS:
        raise UserError(f"model.head: expected one of {', '.join(HEADS)}, got {config.model.head!r}")
    return dense.with_bands(dense.checked(config), ("before_dir", "after_dir"))


def open_source(config: ml_collections.ConfigDict, split: str) -> PairFolder | PairScenes:
    """The examples of a split. Args: config; split, "train" or "val". Returns: PairFolder or PairScenes."""
    if config.data.kind == "scenes":
        return PairScenes(**config.data[split])
    folders = (dense.folder_of(config, split, name) for name in ("before_dir", "after_dir", "masks_dir"))
    return PairFolder(
        *folders,
        cache_gib=config.data.cache_gib,
        image_settings=bands.settings_of(config),
        keep_unreadable=split == "val",
    )


def batch_arrays(config: ml_collections.ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The arrays of one example: crops of both dates, and what has changed (1) and has not (0; 255: no label)."""
    image = (dense.image_shape(config), np.uint8)
    return {"before": image, "after": image, "mask": (tuple(config.data.image_size), np.uint8)}


def build_model(config: ml_collections.ConfigDict, *, rngs: nnx.Rngs) -> ChangeDetector:
    """The change detector of a configuration. Args: config; rngs. Returns: ChangeDetector."""
    return dense.build_model(config, model_info(config), rngs=rngs)


def model_info(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `model.json` says of the run's model."""
    heads = {name: config.model[name] for name in ("head", "head_channels")}
    return dense.model_info(config, "change", CHANGE_CLASSES, CHANGE_COLOURS, **heads)


def loss(config: ml_collections.ConfigDict) -> Callable[..., Any]:
    """The function of (model, batch, key) that gives the loss and its parts, see `dense_loss`."""
    given = dense.loss_settings(config)

    def loss_of(model, batch, key):
        outputs = model(batch["before"], batch["after"], train=True, key=key)
        strides = (4, None if isinstance(model.head, ChangerHead) else model.head.auxiliary_stride)
        return dense.loss_of(outputs, batch["mask"], strides, given)

    return loss_of


def make_evaluator(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, source: Any, mesh: jax.sharding.Mesh
) -> DenseEvaluator:
    """The confusion matrix of a split's whole images. Args: config; graph, of the model; source; mesh."""
    del mesh  # every host looks at its own part of the images, on its own devices
    return dense.make_evaluator(config, graph, source, CHANGE_COLOURS)


def kept_at_random(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Prefixes of the names of parameters that a pre-trained backbone does not fill."""
    del config
    return ("head.",)
