"""The command that brings released weights over, and takes them back.

    python -m haksnet_jax.convert --input=FILE.pth --output=DIR        a checkpoint for train, evaluate and predict
    python -m haksnet_jax.convert --input=DIR --to=FILE.safetensors    upstream's names again (FILE.pth needs PyTorch)

Files are read without PyTorch, and nothing that they name is run. Prints which names were loaded, missing, unexpected
or of another shape. Exit status: 0 done; 1 refused, 130 stopped, and nothing is left at the output; 2 wrong use.
"""

import ast
import dataclasses
import errno
import fnmatch
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.labels.dota import CLASSES
from haksnet_jax.weights.budget import MAX_BYTES
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert
from haksnet_jax.weights.torch_reader import read_checkpoint
from haksnet_jax.weights.torch_weights import (
    CLASSIFIER,
    Report,
    entries,
    from_torch,
    read_architecture,
    select_state_dict,
    shapes,
    to_torch,
    upstream_names,
)

# What upstream trains with, for files that do not say.
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB
PIXEL_STD = (58.395, 57.12, 57.375)
INPUT_SIZE = (1024, 1024)
PADDING_DIVISOR = 32


class ConversionError(UserError):
    """Weights that cannot become the wanted model, told in one sentence.

    Attributes:
      report: text of the report, where the conversion came that far; else None.
    """

    def __init__(self, message, report=None):
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights under our names, and what `model.json` says of them.

    Attributes:
      params: {our name: float32 array}.
      info: dict, see `model.json`.
      report: what became of every name; None for a checkpoint of ours.
      notes: sentences that the user should see.
    """

    params: dict[str, np.ndarray]
    info: dict
    report: Report | None
    notes: tuple[str, ...] = ()

    def text(self):
        """The report: what the model is, notes, and every name."""
        return _header(self.info, self.notes) + (self.report.text() if self.report else "")


def read_torch_model(
    path, *, ema=False, allow_missing=(), class_names=None, reinitialize_classifier=False, max_bytes=MAX_BYTES
):
    """Reads weights of upstream's as a model of ours.

    Args:
      path: `.pth`, `.pth.tar`, `.pt` or `.safetensors`.
      ema: take the averaged weights of a timm training.
      allow_missing: patterns (`roi_head.*`) of names, upstream's or ours, that need no value.
      class_names: names of the classes; None takes those of the file, or the DOTA list of as many classes.
      reinitialize_classifier: start the classifier anew (needed for another number of classes).
      max_bytes: the most bytes that the file's tensors may claim.

    Returns:
      Model.

    Raises:
      CheckpointError: the file cannot be read or is not HAKSNet's.
      ConversionError: a parameter has no value and `allow_missing` does not name it, or the classes do not fit.
    """
    checkpoint = read_checkpoint(path, max_bytes=max_bytes)
    try:
        stored, where = select_state_dict(checkpoint.tree, ema=ema)
        weights, _, backbone_prefix = upstream_names(stored)
        architecture = read_architecture(weights)
        meta = _meta(checkpoint)
        file_names = _file_class_names(meta)
        notes = []
        is_detector = architecture["fpn_channels"] is not None
        fresh = is_detector and reinitialize_classifier
        if is_detector:
            names, note = _class_names(class_names, file_names, architecture["num_classes"], reinitialize_classifier)
            notes += note
            if fresh or architecture["num_classes"] is None:
                architecture["num_classes"] = len(names) or None
        else:
            if class_names or reinitialize_classifier:
                raise ConversionError("it holds a backbone alone, which has no classes and no classifier to start anew")
            names = ()
        if fresh:
            stored = {
                name: value
                for name, value in stored.items()
                if not (isinstance(name, str) and name.endswith(CLASSIFIER))
            }
        params, report = from_torch(stored, architecture)
    except (CheckpointError, ConversionError) as error:
        raise type(error)(f"{path}: {error}") from error

    if fresh:
        params |= _new_classifier(architecture)
        report.missing = [name for name in report.missing if name not in CLASSIFIER]
        report.left_out = [name for name in report.left_out if name not in params]
        notes.append(f"the classifier starts anew with {architecture['num_classes']} classes: train it before use")
    if re.findall(r"to_rgb\s*=\s*(True|False)", _config_text(meta))[-1:] == ["False"]:
        notes.append("its configuration feeds images as B, G, R; here they are R, G, B: expect other results")
    if checkpoint.placeholders:
        shown = ", ".join(name[:60] for name in checkpoint.placeholders[:10])
        notes.append(f"objects of these classes were not built, only their plain data read: {shown}")

    counts = report.batch_counts
    same = len(set(counts.values())) == 1
    info = {
        "architecture": architecture,
        "class_names": list(names),
        **_image_settings(meta),
        "source": {
            "file": pathlib.Path(path).name,
            "sha256": _sha256(path),
            "weights": where,
            "backbone_prefix": backbone_prefix,
            # Counters that the network does not use, kept so that the way back is exact.
            "num_batches_tracked": next(iter(counts.values())) if same else counts,
        },
    }
    ours = {entry.theirs: entry.ours for entry in entries(architecture)}
    wanting = [name for name in [*report.missing, *report.mismatched] if not _allowed(name, ours, allow_missing)]
    unused = [
        pattern
        for pattern in allow_missing
        if not any(fnmatch.fnmatchcase(name, pattern) for pair in ours.items() for name in pair)
    ]
    notes += [f"--allow-missing={pattern} matches no parameter of this model" for pattern in unused]
    if report.left_out:
        info["without_value"] = report.left_out
    if report.not_finite:
        notes.append(f"{len(report.not_finite)} parameters hold numbers that are not finite (listed below)")
    model = Model(params, info, report, tuple(notes))
    if wanting:
        shown = ", ".join(wanting[:3]) + (f" and {len(wanting) - 3} more" if len(wanting) > 3 else "")
        raise ConversionError(
            f"{path}: {len(wanting)} parameters of the model have no value of the right shape in the file: {shown} "
            "(--allow-missing=PATTERN leaves them out)",
            model.text(),
        )
    return model


def convert(source, output, **options):
    """Writes a checkpoint of ours from a file of upstream's.

    Args:
      source: `.pth`, `.pth.tar`, `.pt` or `.safetensors`.
      output: folder to write, whole or not at all. A converted model that is there already is replaced.
      **options: of `read_torch_model`.

    Returns:
      Model.

    Raises:
      CheckpointError, ConversionError: nothing is left at `output`.
    """
    output = files.absolute(output)
    is_other_folder = output.is_dir() and any(output.iterdir()) and not (output / "model.json").exists()
    if is_other_folder or (output.exists() and not output.is_dir()):
        raise ConversionError(f"{output} is there already and is not a converted model: name another --output")
    model = read_torch_model(source, **options)

    from haksnet_jax.weights import model_folder

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Asked before, because the library that writes arrays fills pages when it runs out of space.
        needed = sum(array.nbytes for array in model.params.values())
        free = needed if files.is_bucket(output) else shutil.disk_usage(output.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed >> 20} MiB are needed and {free >> 20} MiB free on its disk")
        model_folder.save_model(output, model.params, model.info)
    except (OSError, ValueError) as error:  # the latter from the library that writes arrays
        raise ConversionError(f"cannot write {output}: {_system_reason(error)}") from error
    return model


def _system_reason(error):
    """Why writing failed: the system's words, also where a library wraps them in its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os[ _]error(?:_code=')? ?(\d+)", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0][:300]


def export(source, target, **options):
    """Writes a file with upstream's names.

    Args:
      source: checkpoint folder of ours, or a file that `convert` takes.
      target: `.safetensors`, or `.pth` / `.pt` where PyTorch is installed.
      **options: of `read_torch_model`, for a file.

    Returns:
      Model.

    Raises:
      CheckpointError, ConversionError: nothing is left at `target`.
    """
    target = epath.Path(target)
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConversionError(f"{target}: expected a name that ends in .safetensors, .pth or .pt")
    if target.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise ConversionError(f"{target}: writing it needs PyTorch, which is not installed; write .safetensors instead")
    model = _read_own(source) if pathlib.Path(source).is_dir() else read_torch_model(source, **options)
    origin = model.info.get("source", {})
    is_detector = model.info["architecture"]["fpn_channels"] is not None
    weights = to_torch(
        model.params,
        model.info["architecture"],
        batch_counts=origin.get("num_batches_tracked", 0),
        backbone_prefix=is_detector or origin.get("backbone_prefix", False),
    )
    names = model.info["class_names"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as temporary:
            if target.suffix == ".safetensors":
                save_file(weights, temporary, metadata={"format": "pt", "classes": json.dumps(names)})
            else:
                import torch

                tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
                torch.save({"meta": {"CLASSES": tuple(names)}, "state_dict": tensors}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's and safetensors' own beside the system's
        raise ConversionError(f"cannot write {target}: {_system_reason(error)}") from error
    return model


def _read_own(directory):
    """A checkpoint of ours as Model; a run's too."""
    from haksnet_jax.weights import model_folder

    try:
        params, info = model_folder.load_model(directory)
    except CheckpointError as error:
        raise ConversionError(str(error)) from error
    try:
        expected = shapes(info["architecture"])
        names_given = isinstance(info["class_names"], list)
    except (KeyError, TypeError, IndexError) as error:
        raise ConversionError(f"{directory}: its model.json does not describe a HAKSNet ({error!r})") from error
    if not names_given:
        raise ConversionError(f"{directory}: class_names in its model.json is not a list")
    wrong = [name for name in params if name not in expected or params[name].shape != expected[name]]
    lost = [name for name in expected if name not in params and name not in info.get("without_value", ())]
    if wrong or lost:
        raise ConversionError(
            f"{directory}: its weights do not fit the architecture in its model.json "
            f"({', '.join([*wrong, *lost][:3])}; {len(wrong) + len(lost)} names in all)"
        )
    return Model(params, info, None)


# ------------------------------------------------------------------------------------------------------ what files say


def _meta(checkpoint):
    """The part of a file that is not weights, as a dict."""
    tree = checkpoint.tree
    if checkpoint.kind == "safetensors":
        try:
            return {"CLASSES": json.loads(checkpoint.metadata["classes"])}
        except (KeyError, ValueError, RecursionError):
            return {}
    meta = tree.get("meta") if isinstance(tree, dict) else None
    if isinstance(meta, Inert):
        meta = meta.items or meta.attributes
    return meta if isinstance(meta, dict) else {}


def _file_class_names(meta):
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


def _class_names(wanted, in_file, num_classes, reinitialize):
    """Decides on the class names. Returns: (names, notes)."""
    if wanted is not None:
        if num_classes is not None and len(wanted) != num_classes and not reinitialize:
            raise ConversionError(
                f"its classifier has {num_classes} classes and --classes names {len(wanted)}: "
                "add --reinit-classifier to start the classifier anew"
            )
        return tuple(wanted), []
    if in_file is not None:
        if num_classes is not None and len(in_file) != num_classes:
            raise ConversionError(
                f"its classifier has {num_classes} classes and its metadata name {len(in_file)}: "
                "say which with --classes"
            )
        return in_file, []
    if num_classes is None:
        if reinitialize:
            raise ConversionError("a new classifier needs its classes: name them with --classes")
        return (), ["the file has neither a classifier nor class names"]
    for dataset in ("dota10", "dota15", "dota20"):
        if len(CLASSES[dataset]) == num_classes:
            note = f"the file has no class names: those of {dataset} are taken, which has as many ({num_classes})"
            return CLASSES[dataset], [f"{note}; say others with --classes"]
    names = tuple(f"class-{index}" for index in range(num_classes))
    return names, [f"the file has no class names: they are called class-0 to {names[-1]}; name them with --classes"]


def _config_text(meta):
    """The configuration that a file carries as text, or nothing."""
    return meta["config"] if isinstance(meta.get("config"), str) else ""


def _image_settings(meta):
    """Normalisation and size of images, out of the configuration text in a file, else upstream's."""
    text = _config_text(meta)
    number = r"\s*(-?[\d.]+(?:e-?\d+)?)\s*"
    three = rf"[\[(]{number},{number},{number},?\s*[\])]"

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


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_classifier(architecture):
    """Xavier normal weights and zero biases, as upstream starts its classifier; the same at every call."""
    hidden, outputs = architecture["hidden"], architecture["num_classes"] + 1
    draw = np.random.default_rng(0).standard_normal((hidden, outputs))
    return {
        "roi_head.logits.kernel": (draw * math.sqrt(2 / (hidden + outputs))).astype(np.float32),
        "roi_head.logits.bias": np.zeros(outputs, np.float32),
    }


def _allowed(theirs, ours, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in (theirs, ours[theirs]))


def _header(info, notes):
    architecture, source = info["architecture"], info.get("source")
    lines = []
    if source:
        lines.append(f"{source['file']}  sha256 {source['sha256']}")
    kind = "backbone" if architecture["fpn_channels"] is None else f"detector of {len(info['class_names'])} classes"
    lines.append(
        f"HAKSNet {kind}: channels {architecture['channels']}, depths {architecture['depths']}, "
        f"mlp ratios {architecture['mlp_ratios']}"
    )
    if info["class_names"]:
        lines.append(f"classes: {', '.join(info['class_names'])}")
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines) + "\n"


def printable(text):
    """Text for a terminal: names come out of files, and control characters in them could do anything there."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
