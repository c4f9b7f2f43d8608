"""What `model.json` may say, checked before anything is built from it."""

import collections
from typing import Any

from haksnet_jax import json_files
from haksnet_jax.weights.errors import CheckpointError


def _whole(low, high):
    return {"type": "integer", "minimum": low, "maximum": high, "description": f"a whole number from {low} to {high}"}


def _list(items, low, high, what):
    return {
        "type": "array",
        "minItems": low,
        "maxItems": high,
        "items": items,
        "description": f"{what} (a list of {low if low == high else f'{low} to {high}'})",
    }


def _or_null(schema):
    return {**schema, "type": [schema["type"], "null"], "description": f"{schema['description']}, or null"}


_NUMBER = {"type": "number", "minimum": -1e9, "maximum": 1e9, "description": "a number of common size"}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9, "description": "a positive number"}
_TEXT = {"type": "string", "maxLength": 1000, "description": "a short text"}
_NAME = {
    "type": "string",
    "minLength": 1,
    "maxLength": 500,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
    "description": "a name of 1 to 500 letters without control characters",
}
_SCALAR_OR_LIST = {
    "anyOf": [
        {"type": ["number", "string", "boolean", "null"], "maxLength": 1000, "minimum": -1e9, "maximum": 1e9},
        {"type": "array", "maxItems": 1000, "items": {"type": ["number", "string", "boolean", "null"]}},
    ],
    "description": "a number, a text, true, false, null, or a list of these",
}
_SETTINGS = {
    "type": "object",
    "maxProperties": 100,
    "additionalProperties": {"type": ["number", "boolean", "null"], "minimum": -1e9, "maximum": 1e9,
                             "description": "a number, true, false or null"},
    "description": "settings by name",
}  # fmt: skip

_STAGES = 16
SCHEMA = {
    "type": "object",
    "description": "an object that describes a model",
    "required": ["architecture"],
    "properties": {
        "task": {"type": "string", "pattern": r"^[a-z_]{1,40}$", "description": "the name of a task"},
        "architecture": {
            "type": "object",
            "maxProperties": 100,
            "description": "an object that describes the network",
            "properties": {
                "channels": _list(_whole(1, 65536), 1, _STAGES, "widths of the stages"),
                "depths": _list(_whole(0, 1000), 1, _STAGES, "numbers of blocks in the stages"),
                "mlp_ratios": _list({**_POSITIVE, "maximum": 1000}, 1, _STAGES, "MLP ratios of the stages"),
                "fpn_channels": _or_null(_whole(1, 65536)),
                "hidden": _or_null(_whole(1, 1_000_000)),
                "num_classes": _or_null(_whole(0, 1_000_000)),
                "in_channels": _whole(1, 10_000),
                "backbone": {"type": ["string", "object"], "maxLength": 100, "description": "the name of a backbone"},
            },
            "additionalProperties": _SCALAR_OR_LIST,
        },
        "class_names": {
            "type": "array",
            "maxItems": 50_000,
            "items": _NAME,
            "description": "names of the classes (a list of at most 50,000)",
        },
        "pixel_mean": _list({**_NUMBER, "description": "a number"}, 1, 10_000, "the mean of each band"),
        "pixel_std": _list(_POSITIVE, 1, 10_000, "the standard deviation of each band"),
        "input_size": _list(_whole(1, 32768), 2, 2, "rows and columns of the network's input"),
        "keep_ratio": {"type": "boolean", "description": "true or false"},
        "padding_divisor": _whole(1, 32768),
        "crop_share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "a share up to 1"},
        "num_views": _whole(1, 64),
        "overlap": {"type": "number", "minimum": 0, "maximum": 65536, "description": "a number from 0"},
        "images": {"type": "object", "description": "settings of images"},
        "proposals": _SETTINGS,
        "detections": _SETTINGS,
        "without_value": {
            "type": "array",
            "maxItems": 50_000,
            "items": _TEXT,
            "description": "names of parameters (a list of at most 50,000)",
        },
        "source": {"type": "object", "description": "an object that says where the weights come from"},
    },
}
# What a detector cannot be run without.
_OF_A_DETECTOR = ("class_names", "pixel_mean", "pixel_std", "input_size", "keep_ratio", "padding_divisor")


def check(info: dict[str, Any], where: str) -> None:
    """Compares the content of a `model.json` with its schema.

    Keys that are not known here (of other tasks, of later versions) are left to those who use them, as long as what
    the architecture says is numbers, texts and lists of these.

    Args:
      info: as read.
      where: the file, for messages.

    Raises:
      CheckpointError: a sentence with the file, the path inside it, what is there and what was expected.
    """
    json_files.check(info, SCHEMA, where=where, error=CheckpointError)
    architecture = info["architecture"]
    if info.get("task", "detection") == "detection" and architecture.get("fpn_channels") is not None:
        missing = [name for name in _OF_A_DETECTOR if name not in info]
        missing += [f"architecture.{name}" for name in ("channels", "depths", "mlp_ratios") if name not in architecture
                    and "backbone" not in architecture]  # fmt: skip
        if missing:
            raise CheckpointError(f"{where}: {missing[0]} is missing")
    lengths = {name: len(architecture[name]) for name in ("channels", "depths", "mlp_ratios") if name in architecture}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise CheckpointError(f"{where}: architecture describes different numbers of stages ({shown})")
    means, stds = info.get("pixel_mean"), info.get("pixel_std")
    if means is not None and stds is not None and len(means) != len(stds):
        raise CheckpointError(f"{where}: pixel_mean has {len(means)} bands and pixel_std {len(stds)}")
    names = info.get("class_names", [])
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise CheckpointError(f"{where}: class_names has {json_files.quoted(twice)} twice")
