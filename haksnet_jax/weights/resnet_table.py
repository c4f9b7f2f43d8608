"""torchvision's names of a ResNet's parameters beside ours.

The last, fully connected layer (`fc.`) is no part of a backbone and is named as left out.
"""

import re

import numpy as np

from haksnet_jax.weights.errors import CheckpointError

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_INSIDE = {"downsample.0": "projection", "downsample.1": "projection_norm"}


def is_resnet(names):
    """Whether names of a state_dict are those of a torchvision ResNet with bottlenecks. Args: iterable of names."""
    return {"conv1.weight", "layer1.0.conv3.weight"} <= {name.removeprefix("backbone.") for name in names}


def our_name(theirs):
    """Our name of one of torchvision's parameters; None where it is no part of a backbone.

    Args:
      theirs: "layer1.0.bn2.running_mean", with or without "backbone." in front.
    """
    name = theirs.removeprefix("backbone.")
    match = re.fullmatch(r"(?:layer([1-9])\.([0-9]{1,3})\.)?(conv[1-3]|bn[1-3]|downsample\.[01])\.([a-z_]+)", name)
    if match is None or match[4] == "num_batches_tracked":
        return None
    stage, block, layer, kind = match.groups()
    place = "backbone." if stage is None else f"backbone.stages.{int(stage) - 1}.{block}."
    is_norm = layer.startswith("bn") or layer == "downsample.1"
    kinds = _NORM if is_norm else {"weight": "kernel"}
    if kind not in kinds:
        return None
    return f"{place}{_INSIDE.get(layer, layer.replace('bn', 'norm'))}.{kinds[kind]}"


def read_architecture(state_dict):
    """The description of a ResNet from the shapes of its state_dict.

    Args:
      state_dict: {torchvision's name: array}.

    Returns:
      dict, see `models.architecture.describe_backbone`.

    Raises:
      CheckpointError: a stage is missing, or blocks are not bottlenecks.
    """
    blocks = {}
    for name in state_dict:
        if match := re.match(r"(?:backbone\.)?layer([1-9])\.([0-9]{1,3})\.conv3\.weight$", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(blocks) != list(range(1, len(blocks) + 1)) or not blocks:
        raise CheckpointError("expected a ResNet with bottlenecks (layer1.0.conv3 and so on); stages are missing")
    depths = [max(blocks[stage]) + 1 for stage in sorted(blocks)]
    if any(len(blocks[stage]) != depth for stage, depth in zip(sorted(blocks), depths, strict=True)):
        raise CheckpointError("expected a whole ResNet; blocks of a stage are missing")
    stem = next(value for name, value in state_dict.items() if name.removeprefix("backbone.") == "conv1.weight")
    width, bands = np.shape(stem)[:2]
    return {"backbone": "resnet", "in_channels": int(bands), "depths": depths, "width": int(width)}


def from_torch(state_dict):
    """Our arrays of a torchvision state_dict.

    Args:
      state_dict: {torchvision's name: array}.

    Returns:
      ({our name: array}, names that are no part of a backbone).
    """
    arrays, left_out = {}, []
    for theirs, value in state_dict.items():
        ours = our_name(theirs)
        if ours is None:
            if not theirs.endswith("num_batches_tracked"):
                left_out.append(theirs)
            continue
        value = np.asarray(value, np.float32)
        arrays[ours] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value  # [O, I, k, k] to [k, k, I, O]
    return arrays, left_out


def to_torch(arrays, *, prefix=""):
    """torchvision's state_dict of our arrays. Args: {our name: array}; prefix of the names. Returns: {name: array}."""
    kinds = {ours: theirs for theirs, ours in _NORM.items()}
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    result = {}
    for ours, value in arrays.items():
        match = re.fullmatch(r"backbone\.(?:stages\.([0-9]+)\.([0-9]+)\.)?([a-z_]+[1-3]?)\.([a-z]+)", ours)
        if match is None:
            continue
        stage, block, layer, kind = match.groups()
        place = "" if stage is None else f"layer{int(stage) + 1}.{block}."
        layer = inside.get(layer, layer.replace("norm", "bn"))
        value = np.asarray(value)
        result[f"{prefix}{place}{layer}.{'weight' if kind == 'kernel' else kinds[kind]}"] = (
            value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        )
    return result
