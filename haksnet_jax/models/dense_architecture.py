"""Segmenters and change detectors from the description that `model.json` holds."""

import jax.numpy as jnp

from haksnet_jax.errors import UserError
from haksnet_jax.models import architecture as architecture_of
from haksnet_jax.models.change_detector import ChangeDetector, ChangerHead
from haksnet_jax.models.segmenter import Segmenter
from haksnet_jax.models.unetformer import UNetFormer
from haksnet_jax.models.upernet import UPerNet

DECODERS = {"unetformer": UNetFormer, "upernet": UPerNet}
HEADS = ("difference", "exchange")
TASKS = ("segmentation", "change")


def describe(model, num_classes, *, head=None):
    """The description of a model. Args: model, `config.model`; num_classes; head, for change. Returns: dict."""
    description = architecture_of.describe_backbone(model) | {
        "decoder": model.decoder,
        "decoder_channels": model.decoder_channels,
        "num_classes": num_classes,
    }
    return description | ({"head": head, "head_channels": model.head_channels} if head else {})


def build(
    task,
    architecture,
    *,
    pixel_mean,
    pixel_std,
    dtype=jnp.float32,
    backbone_options=None,
    dropout=0.0,
    auxiliary=True,
    rngs,
):
    """Builds the model of a task.

    Args:
      task: "segmentation" or "change".
      architecture: dict, see `describe`.
      pixel_mean, pixel_std: normalisation, one number a band.
      dtype: of the arithmetic.
      backbone_options: keyword arguments of `architecture.build_backbone`.
      dropout: of channels before the logits.
      auxiliary: whether there is an auxiliary head.
      rngs: source of the initial parameters.

    Returns:
      Segmenter or ChangeDetector.

    Raises:
      UserError: a decoder or head that there is not.
    """
    backbone = architecture_of.build_backbone(architecture, dtype=dtype, rngs=rngs, **(backbone_options or {}))
    if len(backbone.channels) != 4:
        raise UserError(
            f"architecture: dense decoders take four maps, this backbone has {len(backbone.channels)} stages"
        )
    settings = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
    normalisation = {"pixel_mean": pixel_mean, "pixel_std": pixel_std}
    head = architecture.get("head", "difference")
    if task == "change" and head not in HEADS:
        raise UserError(f"model.head: expected one of {', '.join(HEADS)}, got {head!r}")
    if task == "change" and head == "exchange":
        changer = ChangerHead(
            backbone.channels, architecture["num_classes"], channels=architecture["head_channels"], **settings
        )
        return ChangeDetector(backbone, changer, **normalisation)
    if architecture["decoder"] not in DECODERS:
        raise UserError(f"model.decoder: expected one of {', '.join(DECODERS)}, got {architecture['decoder']!r}")
    decoder = DECODERS[architecture["decoder"]](
        backbone.channels,
        architecture["num_classes"],
        channels=architecture["decoder_channels"],
        auxiliary=auxiliary,
        **settings,
    )
    return {"segmentation": Segmenter, "change": ChangeDetector}[task](backbone, decoder, **normalisation)
