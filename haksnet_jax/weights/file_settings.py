"""What a file of weights says beside them: classes, normalisation and size of images, or a `model.json` of ours."""

import ast
import json
import math
import re
from typing import Any

from haksnet_jax import json_files
from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.weights import model_schema
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert

# What upstream trains with, for files that do not say.
INPUT_SIZE = (1024, 1024)
PADDING_DIVISOR = 32
CLASSIFIER_INPUT_SIZE = 224
CROP_SHARE = 0.875  # of the shorter side, that the centre crop keeps: timm's

OWN_KEY = "haksnet_jax"  # of the metadata in files that we write: the model's description, as JSON
_LONGEST_TEXT = 1 << 20  # of a configuration that is looked through; those of the framework have some 10,000 letters


def meta_of(checkpoint: Any) -> dict[str, Any]:
    """The part of a file that is not weights, as a dict."""
    tree = checkpoint.tree
    if checkpoint.kind == "safetensors":
        own = {OWN_KEY: checkpoint.metadata[OWN_KEY]} if OWN_KEY in checkpoint.metadata else {}
        try:
            return own | {"CLASSES": json.loads(checkpoint.metadata["classes"])}
        except (KeyError, ValueError, RecursionError):
            return own
    meta = tree.get("meta") if isinstance(tree, dict) else None
    if isinstance(meta, Inert):
        meta = meta.items or meta.attributes
    return meta if isinstance(meta, dict) else {}


def own_description(meta: dict[str, Any]) -> dict[str, Any] | None:
    """The `model.json` that a file of ours carries, or None. Raises: CheckpointError, it is not one."""
    text = meta.get(OWN_KEY)
    if not isinstance(text, str):
        return None
    where = f"the model's description in its metadata ({OWN_KEY})"
    info = json_files.parse(text, where=where, error=CheckpointError)
    model_schema.check(info, where)
    return info


def class_names(meta: dict[str, Any]) -> Any:
    """Class names that a file carries, or None."""
    found = meta.get("CLASSES", meta.get("classes"))
    inner = meta.get("dataset_meta")  # later releases of the framework
    if found is None and isinstance(inner, dict):
        found = inner.get("classes", inner.get("CLASSES"))
    if isinstance(found, str):
        found = (found,)
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
        return None
    return tuple(found)


def _config_text(meta):
    """The configuration that a file carries as text, or nothing."""
    text = meta.get("config")
    return text if isinstance(text, str) and len(text) <= _LONGEST_TEXT else ""


def is_fed_bgr(meta: dict[str, Any]) -> bool:
    """Whether a file's configuration feeds images as B, G, R."""
    return re.findall(r"to_rgb\s*=\s*(True|False)", _config_text(meta))[-1:] == ["False"]


def detector_settings(meta: dict[str, Any]) -> dict[str, Any]:
    """Normalisation and size of images of a detector, out of the configuration text in a file, else upstream's."""
    text = _config_text(meta)
    number = r"\s*(-?[\d.]{1,30}(?:e-?\d{1,3})?)\s*"
    # (what may stand after the last number is said without two neighbours that both take blanks)
    three = rf"[\[(]{number},{number},{number}(?:,\s*)?[\])]"

    def last(pattern, default):
        found = re.findall(pattern, text)
        try:
            values = [ast.literal_eval(value) for value in (found[-1] if isinstance(found[-1], tuple) else found[-1:])]
        except (IndexError, ValueError, SyntaxError):
            return list(default)
        return values if all(math.isfinite(value) and value > 0 for value in values) else list(default)

    kept = re.findall(r"keep_ratio\s*=\s*(True|False)", text)
    width, height = last(r"img_scale\s*=\s*\(\s*(\d{2,5})\s*,\s*(\d{2,5})\s*\)", INPUT_SIZE[::-1])
    return {
        "pixel_mean": last(rf"\bmean\s*=\s*{three}", PIXEL_MEAN),
        "pixel_std": last(rf"\bstd\s*=\s*{three}", PIXEL_STD),
        "input_size": [height, width],
        # The framework's resizing of oriented boxes always keeps the ratio, and does not name it then.
        "keep_ratio": "RResize" in text or not kept or kept[-1] == "True",
        "padding_divisor": last(r"size_divisor\s*=\s*(\d{1,4})\b", (PADDING_DIVISOR,))[0],
    }


def classifier_settings(tree: Any) -> dict[str, Any]:
    """Normalisation and size of images of an image classifier, out of the arguments that timm stores.

    Args:
      tree: `Checkpoint.tree`.
    """
    arguments = tree.get("args") if isinstance(tree, dict) else None
    arguments = (arguments.attributes or {}) if isinstance(arguments, Inert) else {}
    size, crop = arguments.get("img_size"), arguments.get("crop_pct")

    def three(name, default):  # timm's are of pixels from 0 to 1
        values = arguments.get(name)
        if not isinstance(values, list | tuple) or len(values) != 3:
            return list(default)
        if not all(type(value) is float and 0 < value < 1 for value in values):
            return list(default)
        return [round(255 * value, 6) for value in values]

    return {
        "pixel_mean": three("mean", PIXEL_MEAN),
        "pixel_std": three("std", PIXEL_STD),
        "input_size": [size if type(size) is int and 16 <= size <= 4096 else CLASSIFIER_INPUT_SIZE] * 2,
        "crop_share": crop if type(crop) is float and 0.1 <= crop <= 1 else CROP_SHARE,
    }
