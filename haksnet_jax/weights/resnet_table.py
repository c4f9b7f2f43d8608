"""ResNet's names in torchvision (and in MMRotate, behind `backbone.`) beside ours."""

import re
from collections.abc import Mapping
from typing import Any

from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.tables import CONV, LINEAR, Entry, batch_norm, entries, first_size, layer

EXAMPLE = "layer1.0.conv1.weight"
ANCHOR = re.compile(r"^(?P<root>.*?)(?P<backbone>backbone\.)?layer[1-4]\.\d+\.(?:conv|bn)[1-3]\.")
OWN_NAME = re.compile(r"(?:conv1|bn1|layer[1-4])\.")
CLASSIFIER = ("fc.weight", "fc.bias")

_EXPANSION = 4
_THEIRS, _OURS = "backbone.layer{i+1}.{j}", "backbone.stages.{i}.{j}"
_STEM = [
    *layer("backbone.conv1", "backbone.conv1", CONV, ("W", "B", 7, 7), bias=False),
    *batch_norm("backbone.bn1", "backbone.norm1", "W"),
]
_BLOCK = [
    *layer(f"{_THEIRS}.conv1", f"{_OURS}.conv1", CONV, ("C", "I", 1, 1), bias=False),
    *batch_norm(f"{_THEIRS}.bn1", f"{_OURS}.norm1"),
    *layer(f"{_THEIRS}.conv2", f"{_OURS}.conv2", CONV, ("C", "C", 3, 3), bias=False),
    *batch_norm(f"{_THEIRS}.bn2", f"{_OURS}.norm2"),
    *layer(f"{_THEIRS}.conv3", f"{_OURS}.conv3", CONV, ("4C", "C", 1, 1), bias=False),
    *batch_norm(f"{_THEIRS}.bn3", f"{_OURS}.norm3", "4C"),
]
_PROJECTION = [
    *layer(f"{_THEIRS}.downsample.0", f"{_OURS}.projection", CONV, ("4C", "I", 1, 1), bias=False),
    *batch_norm(f"{_THEIRS}.downsample.1", f"{_OURS}.projection_norm", "4C"),
]
_HEAD = layer("fc", "head", LINEAR, ("K", "C"))  # of an image classifier


def widths(architecture: dict[str, Any]) -> list[int]:
    """Channels of the feature maps."""
    return [_EXPANSION * architecture["width"] * 2**stage for stage in range(len(architecture["depths"]))]


def backbone_entries(architecture: dict[str, Any]) -> list[Entry]:
    """Every array of the backbone, in the order of torchvision's state_dict."""
    width = architecture["width"]
    result = entries(_STEM, {"W": width, "B": architecture.get("in_channels", 3)})
    channels_in = width
    for stage, depth in enumerate(architecture["depths"]):
        inner = width * 2**stage
        for block in range(depth):
            scope = {"C": inner, "4C": _EXPANSION * inner, "I": channels_in}
            rows = _BLOCK if block else _BLOCK + _PROJECTION
            result += entries(rows, scope, stage=stage, block=block, stacked=False)
            channels_in = _EXPANSION * inner
    return result


def classifier_entries(architecture: dict[str, Any]) -> list[Entry]:
    """The arrays of an image classifier's last layer."""
    return entries(_HEAD, {"K": architecture["num_classes"], "C": widths(architecture)[-1]})


def read(shapes_of: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the sizes off shapes. Args, Returns, Raises: as of `haksnet_table.read`."""
    width = first_size(shapes_of, ("backbone.conv1.weight", 0), ("backbone.layer1.0.conv1.weight", 0))
    depths = []
    for stage in range(1, 5):
        pattern = re.compile(rf"backbone\.layer{stage}\.([0-9]{{1,3}})\.")
        blocks = [int(match[1]) for name in shapes_of if (match := pattern.match(name))]
        if not blocks:
            raise CheckpointError(f"stage {stage} of the backbone is missing (no backbone.layer{stage}.*)")
        depths.append(1 + max(blocks))
    if width is None:
        raise CheckpointError("the first layer of the backbone is missing (no backbone.conv1.weight)")
    if "backbone.layer1.0.conv3.weight" not in shapes_of:
        raise CheckpointError("its blocks have two convolutions (ResNet-18 or -34), and only those of three are known")
    inner = first_size(shapes_of, ("backbone.layer1.0.conv2.weight", 0))
    if (inner is not None and inner != width) or len(shapes_of.get("backbone.layer1.0.conv2.weight", ())) != 4:
        raise CheckpointError("its blocks are wider inside than ResNet's (ResNeXt or Wide ResNet), which is not known")
    bands = first_size(shapes_of, ("backbone.conv1.weight", 1)) or 3
    found = {"backbone": "resnet", "depths": depths, "width": width}
    return found if bands == 3 else found | {"in_channels": bands}
