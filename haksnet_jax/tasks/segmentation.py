"""Semantic segmentation: a backbone and a decoder, the class of every pixel, mean IoU of whole images."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.inference.dense_evaluator import DenseEvaluator
from haksnet_jax.labels import masks
from haksnet_jax.labels.classes import read_class_names
from haksnet_jax.models.segmenter import Segmenter
from haksnet_jax.pipeline import bands
from haksnet_jax.pipeline.dense_sources import SCENE_COLOURS, SCENE_MASK_CLASSES, MaskFolder, MaskScenes
from haksnet_jax.tasks import dense

BEST = "mean_iou"
CURVES = ("loss", "accuracy", "mean_", "iou:")
CLASSIFIER = ("decoder.head.logits.", "decoder.auxiliary_head.logits.")
COUNTERS = dense.COUNTERS

train_batches = dense.train_batches
log_line = dense.log_line


def prepared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration itself, or a copy with the classes of palette.txt or classes.txt where it names none, checked.

    The files are looked for in `data.root`, then in the folder above that of the training images, and above that.

    Raises:
      UserError: no such file, or a value that cannot be used.
    """
    if not config.data.class_names:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.class_names = _class_names(config)
    if len(config.data.class_names) > masks.MAX_CLASSES:
        raise UserError(
            f"data.class_names: at most {masks.MAX_CLASSES} classes fit a mask, got {len(config.data.class_names)}"
        )
    unknown = set(config.evaluation.left_out) - set(config.data.class_names)
    if unknown:
        raise UserError(f"evaluation.left_out: {', '.join(sorted(unknown))} not among data.class_names")
    return dense.with_bands(dense.checked(config), ("images_dir",))


def _class_names(config):
    if config.data.kind == "scenes":
        return SCENE_MASK_CLASSES
    palette = _palette(config)
    if palette is not None:
        return palette[0]
    found = dense.find_beside(config, "classes.txt")
    if found is None:
        raise UserError(
            "data.class_names is empty, and beside the folders of data.train there is neither a palette.txt (lines "
            "like '8429F6 land') nor a classes.txt (one name a line, in the order of the values): write one, or set "
            "--config.data.class_names"
        )
    return read_class_names(str(found))


def _palette(config):
    """(names, Legend) of the palette of colours that belongs to the data, or None where masks hold numbers."""
    if config.data.kind == "scenes":
        return None
    if config.data.colours:
        return masks.parse_palette(config.data.colours, "data.colours")
    path = config.data.palette or dense.find_beside(config, "palette.txt")
    return masks.read_palette(path) if path else None


def _legend(config):
    palette = _palette(config)
    if palette is None:
        return masks.number_legend(
            len(config.data.class_names), tuple(config.data.mask_values), tuple(config.data.ignored_values)
        )
    names, legend = palette
    if tuple(names) != tuple(config.data.class_names):
        raise UserError(
            f"data.class_names are {', '.join(config.data.class_names)}, the palette names {', '.join(names)}: leave "
            "data.class_names empty, or make them the same"
        )
    return legend


def colours(config: ml_collections.ConfigDict) -> Any:
    """The colour of each class as the palette has it, or None."""
    if config.data.kind == "scenes":
        return list(SCENE_COLOURS)
    palette = _palette(config)
    if palette is None:
        return None
    by_label: dict[int, tuple[int, ...]] = {}
    for colour, label in palette[1].colours.items():
        by_label.setdefault(label, colour)
    return [by_label[label] for label in range(len(palette[0]))]


def open_source(config: ml_collections.ConfigDict, split: str) -> MaskFolder | MaskScenes:
    """The examples of a split. Args: config; split, "train" or "val". Returns: MaskFolder or MaskScenes."""
    if config.data.kind == "scenes":
        return MaskScenes(**config.data[split])
    return MaskFolder(
        dense.folder_of(config, split, "images_dir"),
        dense.folder_of(config, split, "masks_dir"),
        config.data.class_names,
        _legend(config),
        cache_gib=config.data.cache_gib,
        image_settings=bands.settings_of(config),
        keep_unreadable=split == "val",  # as images: named and passed over by each evaluation
    )


def batch_arrays(config: ml_collections.ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The arrays of one example: a crop and its labels (255: none)."""
    return {
        "image": (dense.image_shape(config), np.uint8),
        "mask": (tuple(config.data.image_size), np.uint8),
    }


def build_model(config: ml_collections.ConfigDict, *, rngs: nnx.Rngs) -> Segmenter:
    """The segmenter of a configuration. Args: config; rngs. Returns: Segmenter."""
    return dense.build_model(config, model_info(config), rngs=rngs)


def model_info(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `model.json` says of the run's model."""
    return dense.model_info(config, "segmentation", config.data.class_names, colours(config))


def loss(config: ml_collections.ConfigDict) -> Callable[..., Any]:
    """The function of (model, batch, key) that gives the loss and its parts, see `dense_loss`."""
    given = dense.loss_settings(config)

    def loss_of(model, batch, key):
        strides = (model.decoder.stride, model.decoder.auxiliary_stride)
        return dense.loss_of(model(batch["image"], train=True, key=key), batch["mask"], strides, given)

    return loss_of


def make_evaluator(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, source: Any, mesh: jax.sharding.Mesh
) -> DenseEvaluator:
    """The confusion matrix of a split's whole images. Args: config; graph, of the model; source; mesh."""
    del mesh  # every host looks at its own part of the images, on its own devices
    return dense.make_evaluator(config, graph, source, colours(config))


def kept_at_random(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Prefixes of the names of parameters that a pre-trained backbone does not fill."""
    del config
    return ("decoder.",)
