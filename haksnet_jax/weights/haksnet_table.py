"""HAKSNet's names upstream beside ours."""

import re
from collections.abc import Mapping
from typing import Any

from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.tables import (
    CONV,
    DEPTHWISE,
    LINEAR,
    POINTWISE,
    VECTOR,
    Entry,
    Row,
    batch_norm,
    entries,
    first_size,
    layer,
    layer_norm,
)

EXAMPLE = "patch_embed1.proj.weight"
# Where the backbone's names begin in a file, behind whatever stands before them.
ANCHOR = re.compile(r"^(?P<root>.*?)(?P<backbone>backbone\.)?(?:patch_embed|block)[1-9]\.(?:proj|norm|\d+)\.")
OWN_NAME = re.compile(r"(?:patch_embed\d|block\d|norm\d)\.")
CLASSIFIER = ("head.weight", "head.bias")

_STAGE = "backbone.stages.{i}"
_BLOCK, _OURS = "backbone.block{i+1}.{j}", f"{_STAGE}.blocks"
_MIX, _SELECTION = f"{_BLOCK}.attn.spatial_mix", f"{_OURS}.attention.kernel_selection"
_CHANNEL, _MIXING = f"{_BLOCK}.attn.channe_mix", f"{_OURS}.attention.channel_mixing"

# In the order of upstream's state_dict.
_PATCH_EMBEDDING = [
    *layer("backbone.patch_embed{i+1}.proj", f"{_STAGE}.patch_embed.conv", CONV, ("C", "I", "k", "k")),
    *batch_norm("backbone.patch_embed{i+1}.norm", f"{_STAGE}.patch_embed.norm"),
]
_BLOCKS = [
    Row(f"{_BLOCK}.layer_scale_1", f"{_OURS}.layer_scale_1", VECTOR, ("C",)),
    Row(f"{_BLOCK}.layer_scale_2", f"{_OURS}.layer_scale_2", VECTOR, ("C",)),
    *batch_norm(f"{_BLOCK}.norm1", f"{_OURS}.norm1"),
    *batch_norm(f"{_BLOCK}.norm2", f"{_OURS}.norm2"),
    *layer(f"{_MIX}.dw_conv3", f"{_SELECTION}.dw_conv3", DEPTHWISE, ("C", 1, 3, 3)),
    *layer(f"{_MIX}.dw_conv5", f"{_SELECTION}.dw_conv5", DEPTHWISE, ("C", 1, 5, 5)),
    *layer(f"{_MIX}.dw_conv7", f"{_SELECTION}.dw_conv7", DEPTHWISE, ("C", 1, 7, 7)),
    *layer(f"{_MIX}.dw_conv9", f"{_SELECTION}.dw_conv9", DEPTHWISE, ("C", 1, 9, 9)),
    *layer(f"{_MIX}.spatial_fusion", f"{_SELECTION}.spatial_fusion", CONV, (4, 4, 7, 7)),
    *layer(f"{_MIX}.kernel_attn.0", f"{_SELECTION}.kernel_attention_1", POINTWISE, (4, "4C", 1, 1)),
    *layer(f"{_MIX}.kernel_attn.2", f"{_SELECTION}.kernel_attention_2", POINTWISE, (4, 4, 1, 1)),
    *layer(f"{_CHANNEL}.channel_attention.fc.0", f"{_MIXING}.squeeze", POINTWISE, ("C/4", "C", 1, 1)),
    *layer(f"{_CHANNEL}.channel_attention.fc.2", f"{_MIXING}.excite", POINTWISE, ("C", "C/4", 1, 1)),
    *layer(f"{_CHANNEL}.cfam.0", f"{_MIXING}.dw_conv_1", DEPTHWISE, ("C", 1, 3, 3)),
    *layer(f"{_CHANNEL}.cfam.2", f"{_MIXING}.dw_conv_2", DEPTHWISE, ("C", 1, 3, 3)),
    *layer(f"{_BLOCK}.mlp.linear1", f"{_OURS}.mlp.expand", POINTWISE, ("2H", "C", 1, 1)),
    *layer(f"{_BLOCK}.mlp.dwconv", f"{_OURS}.mlp.dw_conv", DEPTHWISE, ("H", 1, 3, 3)),
    *layer(f"{_BLOCK}.mlp.partial_conv3", f"{_OURS}.mlp.partial_conv", CONV, ("C/4", "C/4", 3, 3), bias=False),
    *layer(f"{_BLOCK}.mlp.linear2", f"{_OURS}.mlp.project", POINTWISE, ("C", "H", 1, 1)),
]
_STAGE_END = layer_norm("backbone.norm{i+1}", f"{_STAGE}.norm")
_HEAD = layer("head", "head", LINEAR, ("K", "C"))  # of an image classifier
_DEFAULT_MLP_RATIOS = (8, 8, 4, 4)


def _scope(architecture, stage):
    """The values of the letters in a row's shape."""
    channels = architecture["channels"]
    width = channels[stage]
    hidden = round(width * architecture["mlp_ratios"][stage])
    return {
        "C": width,
        "4C": 4 * width,
        "C/4": width // 4,
        "I": channels[stage - 1] if stage else architecture.get("in_channels", 3),
        "k": 3 if stage else 7,
        "H": hidden,
        "2H": 2 * hidden,
        "K": architecture.get("num_classes"),
    }


def backbone_entries(architecture: dict[str, Any]) -> list[Entry]:
    """Every array of the backbone, in the order of upstream's state_dict. Returns: list of Entry."""
    result = []
    for stage in range(len(architecture["channels"])):
        scope = _scope(architecture, stage)
        result += entries(_PATCH_EMBEDDING, scope, stage=stage)
        for block in range(architecture["depths"][stage]):
            result += entries(_BLOCKS, scope, stage=stage, block=block)
        result += entries(_STAGE_END, scope, stage=stage)
    return result


def classifier_entries(architecture: dict[str, Any]) -> list[Entry]:
    """The arrays of an image classifier's last layer. Args: architecture. Returns: list of Entry."""
    return entries(_HEAD, _scope(architecture, len(architecture["channels"]) - 1))


def widths(architecture: dict[str, Any]) -> list[int]:
    """Channels of the feature maps."""
    return architecture["channels"]


def read(shapes_of: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the backbone's sizes off shapes.

    Args:
      shapes_of: {upstream's name: shape}.

    Returns:
      dict: channels, depths, mlp_ratios (one number a stage); in_channels where images do not have three bands.

    Raises:
      CheckpointError: a stage is missing.
    """
    channels, depths, ratios = [], [], []
    for stage in range(1, 5):
        blocks = [
            int(match[1])
            for name in shapes_of
            if (match := re.match(rf"backbone\.block{stage}\.([0-9]{{1,3}})\.", name))
        ]
        width = first_size(
            shapes_of,
            (f"backbone.patch_embed{stage}.proj.weight", 0),
            (f"backbone.norm{stage}.weight", 0),
            *((f"backbone.block{stage}.{j}.norm1.weight", 0) for j in blocks[:1]),
            (f"neck.lateral_convs.{stage - 1}.conv.weight", 1),
        )
        if width is None or not blocks:
            raise CheckpointError(f"stage {stage} of the backbone is missing (no backbone.block{stage}.* with weights)")
        hidden = first_size(
            shapes_of,
            *(
                (f"backbone.block{stage}.{j}.mlp.{name}", 0)
                for j in set(blocks)
                for name in ("dwconv.weight", "dwconv.bias")
            ),
            *((f"backbone.block{stage}.{j}.mlp.linear2.weight", 1) for j in set(blocks)),
        )
        ratio = _DEFAULT_MLP_RATIOS[stage - 1] if hidden is None else hidden / width
        channels.append(width)
        depths.append(1 + max(blocks))
        ratios.append(int(ratio) if ratio == int(ratio) else ratio)
    bands = first_size(shapes_of, ("backbone.patch_embed1.proj.weight", 1)) or 3
    found = {"channels": channels, "depths": depths, "mlp_ratios": ratios}
    return found if bands == 3 else found | {"in_channels": bands}
