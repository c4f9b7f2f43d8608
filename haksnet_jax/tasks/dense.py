"""What segmentation and change detection have in common: sources, crops, loss, evaluation on whole images."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.inference import dense_session
from haksnet_jax.inference.dense_evaluator import DenseEvaluator
from haksnet_jax.models import architecture, dense_loss
from haksnet_jax.models.segmenter import DECODERS
from haksnet_jax.pipeline import bands
from haksnet_jax.pipeline.batches import Batches
from haksnet_jax.pipeline.dense_transforms import Augment, Augmentation
from haksnet_jax.tasks import settings, streams

COUNTERS = {
    "num_unknown": "mask_pixels_of_no_class",
    "num_empty": "crops_without_a_label",
}
KINDS = ("folder", "scenes")
_MIN_SIDE = 64  # of what the network gets: the coarsest map needs two rows for its reflections


def with_bands(config: ml_collections.ConfigDict, names: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration with what its training images say of bands, see `bands.completed`; they need not be there.

    Args:
      config: the experiment.
      names: of the keys of `data.train` that name folders of images.

    Raises:
      UserError: settings that cannot be used, or bands whose mean and deviation are known nowhere.
    """
    folders: tuple[str, ...] = ()
    if config.data.kind == "folder":
        folders = tuple(folder_of(config, "train", name) for name in names)
    return bands.completed(config, folders if all(map(os.path.isdir, folders)) else ())


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Raises UserError for values of a configuration that no dense task can use; gives the configuration back."""
    sides = (("data.image_size", side) for side in config.data.image_size)
    for name, side in (*sides, ("evaluation.tile", config.evaluation.tile)):
        if side % 32 or side < _MIN_SIDE:
            raise UserError(f"{name}: expected multiples of 32, {_MIN_SIDE} or more, got {side}")
    if not 0 <= config.evaluation.overlap < config.evaluation.tile:
        raise UserError(
            f"evaluation.overlap: expected 0 or more and less than evaluation.tile={config.evaluation.tile}, "
            f"got {config.evaluation.overlap}"
        )
    if config.data.kind not in KINDS:
        raise UserError(f"data.kind: expected one of {', '.join(KINDS)}, got {config.data.kind!r}")
    if config.model.decoder not in DECODERS:
        raise UserError(f"model.decoder: expected one of {', '.join(DECODERS)}, got {config.model.decoder!r}")
    architecture.describe_backbone(config.model)  # (that there is such a backbone)
    loss_settings(config)  # (that no key is unknown)
    augment = settings.read(config, "augment", Augment)
    least, largest = augment.scale_range
    if not 0 < least <= largest:
        raise UserError(f"augment.scale_range: expected a least and a largest factor above 0, got {(least, largest)}")
    if not config.evaluation.scales:
        raise UserError("evaluation.scales: expected at least one factor, got none; (1.0,) looks at images as they are")
    for name in ("horizontal_flip", "vertical_flip", "mosaic", "exchange"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UserError(f"augment.{name}: expected a probability, got {getattr(augment, name)}")
    return config


def folder_of(config: ml_collections.ConfigDict, split: str, name: str) -> str:
    """The path of one of a split's folders. Raises: UserError, the configuration does not name it."""
    path = config.data[split].get(name, "")
    if not path:
        raise UserError(f"data.{split}.{name} is empty: name the folder")
    return files.join(config.data.root, path) if config.data.root else path


def find_beside(config: ml_collections.ConfigDict, name: str) -> pathlib.Path | None:
    """A file beside the folders of images, which says what all of them share, or None.

    It is looked for in `data.root`, then in the folder above that of the training images, and in the one above that.
    """
    places = [pathlib.Path(config.data.root)] if config.data.root else []
    images = config.data.train.get("images_dir", "")
    if images:
        above = pathlib.Path(files.join(config.data.root, images) if config.data.root else images).parent
        places += [above, above.parent]
    return next((place / name for place in places if (place / name).is_file()), None)


def train_batches(config: ml_collections.ConfigDict, source: Any, **where: Any) -> Batches:
    """Augmented crops in random order without end. Args: as of `streams.train_batches`."""
    row = Augmentation(source, crop=config.data.image_size, augment=settings.read(config, "augment", Augment))
    return streams.train_batches(config, source, row, **where)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(rows, columns, channels) of a crop."""
    return (*config.data.image_size, config.model.in_channels)


def loss_settings(config: ml_collections.ConfigDict) -> dense_loss.LossSettings:
    """dense_loss.LossSettings of a configuration."""
    return settings.read(config, "loss", dense_loss.LossSettings)


def loss_of(outputs: Any, labels: jax.Array, strides: tuple[int, int | None], given: dense_loss.LossSettings) -> Any:
    """`dense_loss.dense_loss` of labels as they come in a batch, uint8."""
    return dense_loss.dense_loss(outputs, labels.astype(np.int32), strides=strides, settings=given)


def inference_settings(config: ml_collections.ConfigDict) -> Any:
    """dense_session.Settings of a configuration's evaluation."""
    evaluation = config.evaluation
    return dense_session.Settings(
        evaluation.tile, evaluation.overlap, tuple(evaluation.scales), evaluation.flip, evaluation.turns
    )


def make_evaluator(
    config: ml_collections.ConfigDict, graph: nnx.GraphDef, source: Any, colours: Sequence[Sequence[int]] | None = None
) -> DenseEvaluator:
    """DenseEvaluator of a configuration, on this host's devices."""
    mesh = devices.data_mesh(jax.local_devices())
    batch_size = config.evaluation.batch_size_per_device * mesh.devices.size
    return evaluator_of(config, dense_session.Session(graph, mesh, batch_size=batch_size), source, colours)


def evaluator_of(
    config: ml_collections.ConfigDict, session: Any, source: Any, colours: Sequence[Sequence[int]] | None = None
) -> DenseEvaluator:
    """DenseEvaluator of a configuration with a session."""
    return DenseEvaluator(
        session,
        source,
        inference_settings(config),
        left_out=tuple(config.evaluation.left_out),
        num_pictures=config.evaluation.num_pictures,
        colours=colours,
    )


def build_model(config: ml_collections.ConfigDict, info: dict[str, Any], *, rngs: nnx.Rngs) -> Any:
    """The model of a configuration. Args: config; info, what model.json says; rngs. Returns: nnx.Module."""
    return architecture.build(
        info,
        dtype=jnp.dtype(config.model.dtype),
        rngs=rngs,
        backbone_options=architecture.backbone_options(config.model),
        dropout=config.model.dropout,
    )


def model_info(
    config: ml_collections.ConfigDict,
    task: str,
    class_names: Sequence[str],
    colours: Sequence[Sequence[int]] | None = None,
    **heads: Any,
) -> dict[str, Any]:
    """What `model.json` says of a dense model. Args: heads, members of the architecture beside the decoder."""
    decoder = {"decoder": config.model.decoder, "decoder_channels": config.model.decoder_channels}
    info = {
        "task": task,
        "architecture": architecture.describe_backbone(config.model)
        | decoder
        | heads
        | {"num_classes": len(class_names)},
        "class_names": list(class_names),
        "pixel_mean": list(config.model.pixel_mean),
        "pixel_std": list(config.model.pixel_std),
        "input_size": [config.evaluation.tile] * 2,
        "overlap": config.evaluation.overlap,
        **bands.model_info(config),
    }
    return info | ({"colours": [list(colour) for colour in colours]} if colours else {})


def log_line(means: Mapping[str, float]) -> str:
    """The losses and the share of pixels that are right. Args: means, {name: float}."""
    parts = [f"{name.removeprefix('loss_')} {means[name]:.3f}" for name in means if name.startswith("loss_")]
    return f"loss {means['loss']:.4f} ({', '.join(parts)})  pixels right {100 * means['accuracy']:.1f} %"
