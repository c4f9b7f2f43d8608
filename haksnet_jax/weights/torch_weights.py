"""Weights of other programs translated into ours and back, by the tables of names.

`state_dicts` finds the weights in a file and brings their names to upstream's; the table of the backbone and that of
the detector's heads say what becomes of each. Another backbone is one table and one line in TABLES.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from haksnet_jax.weights import detector_table, haksnet_table, resnet_table
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.state_dicts import is_array, upstream_names
from haksnet_jax.weights.stored_tensors import StoredTensor, described, shown_name
from haksnet_jax.weights.tables import Entry

TABLES = {"haksnet": haksnet_table, "resnet": resnet_table}
_BATCH_COUNT = "num_batches_tracked"  # how many batches a norm has seen: nothing that the network computes with
_MAX_ROWS = 1000  # of each list in a report


def table_of(architecture: dict[str, Any]) -> Any:
    """The table of an architecture's backbone."""
    return TABLES[architecture.get("backbone", "haksnet")]


def is_detector(architecture: dict[str, Any]) -> bool:
    """Whether an architecture has a detector's heads."""
    return architecture.get("fpn_channels") is not None


def is_classifier(architecture: dict[str, Any]) -> bool:
    """Whether an architecture is that of an image classifier."""
    return not is_detector(architecture) and architecture.get("num_classes") is not None


def entries(architecture: dict[str, Any]) -> list[Entry]:
    """Every array of a model, in the order of upstream's state_dict.

    Args:
      architecture: dict as from `read_architecture`: with `fpn_channels` a detector, with `num_classes` alone an image
        classifier, else a backbone.

    Returns:
      List of Entry.
    """
    table = table_of(architecture)
    result = table.backbone_entries(architecture)
    if is_detector(architecture):
        result += detector_table.detector_entries(architecture, table.widths(architecture))
    elif is_classifier(architecture):
        result += table.classifier_entries(architecture)
    return result


def classifier_names(architecture: dict[str, Any]) -> Any:
    """Upstream's names of the layer that depends on the number of classes."""
    return detector_table.CLASSIFIER if is_detector(architecture) else table_of(architecture).CLASSIFIER


def shapes(architecture: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a whole model.

    Args:
      architecture: dict as from `read_architecture`.

    Returns:
      {our name: shape} of every parameter and statistic, blocks stacked in front; the classifier only if num_classes is
      known.
    """
    result = {}
    for entry in entries(architecture):
        if None in entry.shape:
            continue
        one = entry.layout.to_ours(np.broadcast_to(np.float32(0), entry.shape), entry.scope).shape
        result[entry.ours] = one if entry.block is None else (entry.block + 1, *one)
    return result


def read_architecture(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Reads widths and depths off the shapes.

    Args:
      state_dict: {upstream's name: value with .shape}, see `upstream_names`.

    Returns:
      dict: the backbone's sizes (of HAKSNet channels, depths, mlp_ratios; others also name their `backbone`), and
      fpn_channels, hidden, num_classes. Without a detector the first two are None, and num_classes is an image
      classifier's; it is None where there is no classifier.

    Raises:
      CheckpointError: a width cannot be read off any parameter.
    """
    shapes_of = {name: tuple(value.shape) for name, value in state_dict.items() if is_array(value)}
    table = next((one for one in TABLES.values() if any(map(one.ANCHOR.match, shapes_of))), haksnet_table)
    architecture = {**table.read(shapes_of), **detector_table.read(shapes_of)}
    if not is_detector(architecture):
        logits = next((shapes_of[name][:1] for name in table.CLASSIFIER if name in shapes_of), ())
        architecture["num_classes"] = logits[0] if logits and logits[0] > 0 else None
    return architecture


# -------------------------------------------------------------------------------------------------------- translating


@dataclasses.dataclass
class Report:
    """What became of every name.

    Attributes:
      loaded: upstream's names that were taken over.
      missing: upstream's names of the model that the file lacks.
      mismatched: {upstream's name: what it is and what was expected}.
      unexpected: {stored name: why it was not used}.
      not_finite: {upstream's name: how many of its numbers are not finite}. The translation has them all the same.
      left_out: our names that got no value, whole stacks of blocks included.
      batch_counts: {upstream's name: count} of the norms' num_batches_tracked, which the network does not use.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    mismatched: dict[str, str] = dataclasses.field(default_factory=dict)
    unexpected: dict[str, str] = dataclasses.field(default_factory=dict)
    not_finite: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    batch_counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """The report for people: counts first, then every name that is not simply loaded, then those that are."""
        counts = [
            f"{len(self.loaded)} loaded",
            f"{len(self.missing)} missing",
            f"{len(self.unexpected)} unexpected",
            f"{len(self.mismatched)} mismatched",
        ]
        lines = [", ".join(counts)]

        def section(title, rows):
            if rows:
                more = [f"  ... and {len(rows) - _MAX_ROWS} more"] if len(rows) > _MAX_ROWS else []
                lines.extend(["", f"{title} ({len(rows)}):", *(f"  {row}" for row in rows[:_MAX_ROWS]), *more])

        section("missing", self.missing)
        section("mismatched", [f"{name}: {text}" for name, text in self.mismatched.items()])
        section("unexpected", [f"{shown_name(name)}: {text}" for name, text in self.unexpected.items()])
        section("not finite", [f"{name}: {count} numbers" for name, count in self.not_finite.items()])
        section("without a value in the output", self.left_out)
        section("loaded", self.loaded)
        if self.batch_counts:
            lines.extend(["", f"not needed: {len(self.batch_counts)} counters of batches ({_BATCH_COUNT})"])
        return "\n".join(lines) + "\n"


def from_torch(
    state_dict: Mapping[str, Any], architecture: dict[str, Any] | None = None, *, part: str | None = None
) -> Any:
    """Translates upstream's weights into ours.

    Args:
      state_dict: {stored name: StoredTensor or numpy array}, prefixes as they come.
      architecture: the model to fill, as `read_architecture` gives it; None reads it off the weights.
      part: which model, where there are several (`upstream_names`).

    Returns:
      ({our name: float32 array}, Report). A name of ours is in the first only if all of it got a value.

    Raises:
      CheckpointError: these are not HAKSNet's weights, or the file is damaged.
    """
    values, stored, _ = upstream_names(state_dict, part=part)
    architecture = architecture or read_architecture(values)
    report = Report()
    parts: dict[str, Any] = {}
    wanting = set()
    for entry in entries(architecture):
        value = _take(values.pop(entry.theirs, None), entry, report)
        if value is None:
            wanting.add(entry.ours)
        else:
            parts.setdefault(entry.ours, []).append((entry.block, entry.layout.to_ours(value, entry.scope)))
    params = {}
    for name in [name for name in parts if name not in wanting]:
        blocks = parts.pop(name)
        stacked = blocks[0][1] if blocks[0][0] is None else np.stack([array for _, array in blocks])
        params[name] = np.ascontiguousarray(stacked)
    report.left_out = sorted(wanting)
    norms = {entry.theirs for entry in entries(architecture) if entry.theirs.endswith("running_var")}
    for name, value in values.items():
        is_count = name.replace(_BATCH_COUNT, "running_var") in norms and is_array(value) and value.dtype.kind in "iu"
        if is_count and math.prod(value.shape) == 1:
            report.batch_counts[name] = int(np.asarray(_read(value, name)).reshape(()))
        else:
            report.unexpected[stored[name]] = _reason(name, value, architecture)
    return params, report


def _take(value, entry, report):
    """The float32 array of one entry, or None with a line in the report."""
    if value is None:
        report.missing.append(entry.theirs)
        return None
    expected = " x ".join(map(str, entry.shape))
    if not is_array(value):
        report.mismatched[entry.theirs] = f"is {described(value)}, expected an array {expected}"
        return None
    if tuple(value.shape) != entry.shape:
        found = " x ".join(map(str, value.shape)) or "a single number"
        report.mismatched[entry.theirs] = f"has shape {found}, expected {expected}"
        return None
    array = _read(value, entry.theirs)
    if array.dtype.kind in "iub":
        report.mismatched[entry.theirs] = f"has whole numbers ({array.dtype}), expected floating point"
        return None
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, and is reported as not finite
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array.sum(dtype=np.float64)):
        report.not_finite[entry.theirs] = int(array.size - np.isfinite(array).sum())
    report.loaded.append(entry.theirs)
    return array


def _read(value, name):
    try:
        return value.numpy() if isinstance(value, StoredTensor) else value
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _reason(name, value, architecture):
    if not is_array(value):
        return f"it is {described(value)}, not an array"
    if re.search(r"(^|\.)(head|fc)\.(weight|bias)$", name):
        return "the classifier of an image classification training, which a detector does not have"
    if name.startswith("ema_"):
        return "the other set of weights that averaging while training keeps; --ema takes it"
    if not is_detector(architecture) and name.startswith(detector_table.PREFIXES):
        return "part of a detector, and only the backbone is wanted"
    return "no parameter of this model"


def to_torch(
    params: Mapping[str, Any],
    architecture: dict[str, Any],
    *,
    batch_counts: int | Mapping[str, int] = 0,
    backbone_prefix: bool = True,
) -> dict[str, np.ndarray]:
    """Translates our weights into upstream's: the exact inverse of `from_torch`.

    Args:
      params: {our name: array}; names may be missing.
      architecture: of the model.
      batch_counts: num_batches_tracked of every norm, or {upstream's name: count}.
      backbone_prefix: whether names of the backbone begin with `backbone.`, as in a detector.

    Returns:
      {upstream's name: float32 array}, with num_batches_tracked int64, in the order of upstream's state_dict.

    Raises:
      ValueError: an array does not have the model's shape.
    """
    result = {}
    expected = shapes(architecture)
    for entry in entries(architecture):
        if entry.ours not in params:
            continue
        array = np.asarray(params[entry.ours], np.float32)
        if array.shape != expected[entry.ours]:
            raise ValueError(f"{entry.ours} has shape {array.shape}, expected {expected[entry.ours]}")
        if entry.block is not None:
            array = array[entry.block]
        name = entry.theirs if backbone_prefix else entry.theirs.removeprefix("backbone.")
        result[name] = np.ascontiguousarray(entry.layout.to_torch(array, entry.scope))
        if entry.theirs.endswith(".running_var"):
            count_name = entry.theirs.replace("running_var", _BATCH_COUNT)
            count = batch_counts.get(count_name, 0) if isinstance(batch_counts, dict) else batch_counts
            result[name.replace("running_var", _BATCH_COUNT)] = np.array(count, np.int64)
    return result
