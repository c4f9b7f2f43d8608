"""The command that brings released weights over, and takes them back.

    python -m haksnet_jax.convert --input=FILE.pth --output=DIR        a checkpoint for train, evaluate and predict
    python -m haksnet_jax.convert --input=DIR --to=FILE.safetensors    upstream's names again (FILE.pth needs PyTorch)

Files are read without PyTorch, and nothing that they name is run. Prints which names were loaded, missing, unexpected
or of another shape. Exit status: 0 done; 1 refused, 130 stopped, and nothing is left at the output; 2 wrong use.
"""

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
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.weights import file_settings
from haksnet_jax.weights.budget import MAX_BYTES
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.state_dicts import select_state_dict, upstream_names
from haksnet_jax.weights.stored_tensors import shown_name
from haksnet_jax.weights.torch_reader import read_checkpoint
from haksnet_jax.weights.torch_weights import (
    Report,
    classifier_names,
    entries,
    from_torch,
    is_classifier,
    is_detector,
    read_architecture,
    shapes,
    to_torch,
)


class ConversionError(UserError):
    """Weights that cannot become the wanted model, told in one sentence.

    Attributes:
      report: text of the report, where the conversion came that far; else None.
    """

    def __init__(self, message: str, report: Any | None = None) -> None:
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

    def text(self) -> str:
        """The report: what the model is, notes, and every name."""
        return _header(self.info, self.notes) + (self.report.text() if self.report else "")


def read_torch_model(
    path: str | os.PathLike[str],
    *,
    ema: bool = False,
    part: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_nonfinite: bool = False,
    class_names: Sequence[str] | None = None,
    reinitialize_classifier: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Model:
    """Reads weights of upstream's as a model of ours.

    Args:
      path: `.pth`, `.pth.tar`, `.pt` or `.safetensors`.
      ema: take the averaged weights that a training keeps beside the others.
      part: which model, where the file holds several ("teacher", "student").
      allow_missing: patterns (`roi_head.*`) of names, upstream's or ours, that need no value.
      allow_nonfinite: take weights that are NaN or infinite.
      class_names: names of the classes; None takes those of the file, or the DOTA list of as many classes.
      reinitialize_classifier: start the classifier anew (needed for another number of classes).
      max_bytes: the most bytes that the file's tensors may claim.

    Returns:
      Model.

    Raises:
      CheckpointError: the file cannot be read or is of no known model.
      ConversionError: a parameter has no value and `allow_missing` does not name it, or is not finite, or the classes
        do not fit.
    """
    checkpoint = read_checkpoint(pathlib.Path(path), max_bytes=max_bytes)
    try:
        stored, where = select_state_dict(checkpoint.tree, ema=ema)
        weights, _, backbone_prefix = upstream_names(stored, part=part)
        architecture = read_architecture(weights)
        meta = file_settings.meta_of(checkpoint)
        described = file_settings.own_description(meta)
        if described is not None:
            architecture = _same_architecture(architecture, described["architecture"])
        names, notes, fresh = _classes(
            architecture, class_names, (described or {}).get("class_names") or file_settings.class_names(meta),
            reinitialize_classifier,
        )  # fmt: skip
        if fresh:
            architecture["num_classes"] = len(names)
            stored = {
                name: value
                for name, value in stored.items()
                if not (isinstance(name, str) and name.endswith(classifier_names(architecture)))
            }
        params, report = from_torch(stored, architecture, part=part)
    except (CheckpointError, ConversionError) as error:
        raise type(error)(f"{path}: {error}") from error

    if fresh:
        params |= _new_classifier(architecture)
        report.missing = [name for name in report.missing if name not in classifier_names(architecture)]
        report.left_out = [name for name in report.left_out if name not in params]
        notes.append(f"the classifier starts anew with {architecture['num_classes']} classes: train it before use")
    if file_settings.is_fed_bgr(meta):
        notes.append("its configuration feeds images as B, G, R; here they are R, G, B: expect other results")
    if checkpoint.placeholders:
        shown = ", ".join(name[:60] for name in checkpoint.placeholders[:10])
        notes.append(f"objects of these classes were not built, only their plain data read: {shown}")
    source = _source(path, where, part, backbone_prefix, report.batch_counts, described)
    info = _description(architecture, names, described, meta, checkpoint.tree) | {"source": source}
    ours = {entry.theirs: entry.ours for entry in entries(architecture)}
    wanting = [name for name in [*report.missing, *report.mismatched] if not _allowed(name, ours, allow_missing)]
    notes += [
        f"--allow-missing={pattern} matches no parameter of this model"
        for pattern in allow_missing
        if not any(fnmatch.fnmatchcase(name, pattern) for pair in ours.items() for name in pair)
    ]
    if report.left_out:
        info["without_value"] = report.left_out
    if report.not_finite:
        notes.append(f"{len(report.not_finite)} parameters hold numbers that are not finite (listed below)")
    model = Model(params, info, report, tuple(notes))
    _require_usable(path, model, wanting, allow_nonfinite=allow_nonfinite)
    return model


def _require_usable(path, model, wanting, *, allow_nonfinite):
    """Raises ConversionError where a parameter lacks a value or is not finite, or bands lack their normalisation."""
    report = model.report
    if wanting:
        raise ConversionError(
            f"{path}: {len(wanting)} parameters of the model have no value of the right shape in the file: "
            f"{_first_three(wanting)} (--allow-missing=PATTERN leaves them out)",
            model.text(),
        )
    if report.not_finite and not allow_nonfinite:
        raise ConversionError(
            f"{path}: {len(report.not_finite)} parameters hold numbers that are not finite: "
            f"{_first_three(list(report.not_finite))}; no result could be trusted (--allow-nonfinite takes them)",
            model.text(),
        )
    num_bands = model.info["architecture"].get("in_channels", 3)
    if len(model.info.get("pixel_mean", ())) != num_bands:
        raise ConversionError(
            f"{path}: its first layer takes {num_bands} bands and it does not say how they are "
            "normalised: only files with three bands, or those that this program wrote, can be converted"
        )


def _first_three(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _same_architecture(found, described):
    """The description in a file of ours, after comparing it with the shapes of the weights beside it."""
    for key, value in found.items():
        if value is not None and described.get(key, {"backbone": "haksnet", "in_channels": 3}.get(key)) != value:
            raise ConversionError(
                f"the model's description in its metadata has {key} {described.get(key)}, its weights {value}"
            )
    return {key: value for key, value in found.items() if value is not None or key in described} | described


def _description(architecture, names, described, meta, tree):
    """What `model.json` says of a model, but for its source. `architecture` gets what goes without saying in files."""
    if described is not None:
        known = {key: value for key, value in described.items() if key not in ("source", "without_value")}
        return known | {"architecture": architecture, "class_names": list(names)}
    for key, value in (("in_channels", 3), ("backbone", "haksnet")):
        architecture[key] = architecture.get(key, value)
    if is_classifier(architecture):
        of_a_detector = ("fpn_channels", "hidden")
        return {
            "task": "classification",
            "architecture": {key: value for key, value in architecture.items() if key not in of_a_detector},
            "class_names": list(names),
            **file_settings.classifier_settings(tree),
        }
    task = {"task": "detection"} if is_detector(architecture) else {}
    return task | {
        "architecture": architecture,
        "class_names": list(names),
        **file_settings.detector_settings(meta),
    }


def _source(path, where, part, backbone_prefix, counts, described):
    """Where the weights come from."""
    same = len(set(counts.values())) == 1
    source = {
        "file": pathlib.Path(path).name,
        "sha256": _sha256(path),
        "weights": where,
        "backbone_prefix": backbone_prefix,
        # Counters that the network does not use, kept so that the way back is exact.
        "num_batches_tracked": next(iter(counts.values())) if same else counts,
    }
    if part is not None:
        source["part"] = part
    origin = (described or {}).get("source")
    if isinstance(origin, dict):  # of the file that the weights came from before
        source["origin"] = {key: origin[key] for key in ("file", "sha256") if key in origin}
    return source


def convert(source: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any) -> Model:
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


def export(source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any) -> Model:
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
    if pathlib.Path(source).is_dir():
        model = _read_own(source, options.get("allow_nonfinite", False))
    else:
        model = read_torch_model(source, **options)
    origin = model.info.get("source", {})
    architecture = model.info["architecture"]
    weights = to_torch(
        model.params,
        architecture,
        batch_counts=origin.get("num_batches_tracked", 0),
        backbone_prefix=is_detector(architecture) or origin.get("backbone_prefix", False),
    )
    names = model.info["class_names"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as temporary:
            if target.suffix == ".safetensors":
                metadata = {"format": "pt", "classes": json.dumps(names), file_settings.OWN_KEY: json.dumps(model.info)}
                save_file(weights, temporary, metadata=metadata)
            else:
                import torch

                tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
                meta = {"CLASSES": tuple(names), file_settings.OWN_KEY: json.dumps(model.info)}
                torch.save({"meta": meta, "state_dict": tensors}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's and safetensors' own beside the system's
        raise ConversionError(f"cannot write {target}: {_system_reason(error)}") from error
    return model


def _read_own(directory, allow_nonfinite):
    """A checkpoint of ours as Model; a run's too."""
    from haksnet_jax.weights import model_folder

    params, info = model_folder.load_model(directory, allow_nonfinite=allow_nonfinite)
    task = info.get("task", "detection")
    if task not in ("detection", "classification"):
        raise ConversionError(f"{directory}: it is a model for {task}, whose names upstream's formats do not have")
    try:
        expected = shapes(info["architecture"])
        names_given = isinstance(info["class_names"], list)
    except (KeyError, TypeError, IndexError) as error:
        raise ConversionError(f"{directory}: its model.json describes no detector or backbone ({error!r})") from error
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


def _classes(architecture, wanted, in_file, reinitialize):
    """Decides on the class names. Returns: (names, notes, whether the classifier starts anew)."""
    if not is_detector(architecture) and not is_classifier(architecture):
        if wanted or reinitialize:
            raise ConversionError("it holds a backbone alone, which has no classes and no classifier to start anew")
        return (), [], False
    names, notes = _class_names(wanted, in_file, architecture["num_classes"], reinitialize)
    return names, notes, reinitialize


def _class_names(wanted, in_file, num_classes, reinitialize):
    """Returns: (names, notes)."""
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


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_classifier(architecture):
    """Random weights and zero biases, as upstream starts its classifiers; the same at every call.

    Xavier normal in a detector, normal of 0.02 in an image classifier.
    """
    weight, bias = (entry for entry in entries(architecture) if entry.theirs in classifier_names(architecture))
    outputs, inputs = weight.shape
    deviation = math.sqrt(2 / (inputs + outputs)) if is_detector(architecture) else 0.02
    draw = np.random.default_rng(0).standard_normal((inputs, outputs))
    return {weight.ours: (draw * deviation).astype(np.float32), bias.ours: np.zeros(outputs, np.float32)}


def _allowed(theirs, ours, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in (theirs, ours[theirs]))


def _header(info, notes):
    architecture, source = info["architecture"], info.get("source")
    lines = []
    if source:
        lines.append(f"{source['file']}  sha256 {source['sha256']}")
    count = f"of {len(info['class_names'])} classes"
    kind = f"detector {count}" if is_detector(architecture) else "backbone"
    if is_classifier(architecture):
        kind = f"image classifier {count}"
    sizes = ", ".join(
        f"{name.replace('_', ' ').replace('mlp', 'MLP')} {architecture[name]}"
        for name in ("channels", "depths", "width", "mlp_ratios")
        if name in architecture
    )
    family = {"haksnet": "HAKSNet", "resnet": "ResNet"}[architecture.get("backbone", "haksnet")]
    lines.append(f"{family} {kind}: {sizes}")
    if info["class_names"]:
        shown = ", ".join(shown_name(name) for name in info["class_names"][:100])
        lines.append(f"classes: {shown}{', ...' if len(info['class_names']) > 100 else ''}")
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines) + "\n"


def printable(text: str) -> str:
    """Text for a terminal: names come out of files, and control characters in them could do anything there."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
