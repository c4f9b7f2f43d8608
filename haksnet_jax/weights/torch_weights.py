"""Upstream's parameter names beside ours, and weights translated from one to the other.

One table says everything: our name, upstream's, how the array is laid out, and its shape in upstream's layout, with
letters for the widths. What loads, what is missing, what does not fit and what nobody asked for all follow from it, and
so does the way back.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert, StoredTensor


class Layout(NamedTuple):
    """How an array of upstream becomes ours, and back. `scope` holds the widths behind the letters of its shape."""

    to_ours: Callable[[np.ndarray, dict], np.ndarray]
    to_torch: Callable[[np.ndarray, dict], np.ndarray]


VECTOR = Layout(lambda x, _: x, lambda x, _: x)
CONV = Layout(lambda x, _: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1))  # [O, I, k, k], [k, k, I, O]
DEPTHWISE = Layout(lambda x, _: x[:, 0].transpose(1, 2, 0), lambda x, _: x.transpose(2, 0, 1)[:, None])
POINTWISE = Layout(lambda x, _: x[:, :, 0, 0].T, lambda x, _: x.T[:, :, None, None])  # [O, I, 1, 1] and [I, O]
LINEAR = Layout(lambda x, _: x.T, lambda x, _: x.T)  # [O, I] and [I, O]
# The first layer of the box head sees features flattened as [C, 7, 7] upstream and as [7, 7, C] here.
POOLED = Layout(
    lambda x, s: x.reshape(-1, s["F"], s["S"], s["S"]).transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, s: x.reshape(s["S"], s["S"], s["F"], -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
)


class Row(NamedTuple):
    """One line of the table. `{i}` is a stage or level, `{i+1}` upstream's count of it, `{j}` a block."""

    theirs: str
    ours: str
    layout: Layout
    shape: tuple  # upstream's; letters: see `_scope`


def _layer(theirs, ours, layout, shape, bias=True):
    rows = [Row(f"{theirs}.weight", f"{ours}.kernel", layout, shape)]
    return [*rows, Row(f"{theirs}.bias", f"{ours}.bias", VECTOR, shape[:1])] if bias else rows


def _layer_norm(theirs, ours):
    return [
        Row(f"{theirs}.weight", f"{ours}.scale", VECTOR, ("C",)),
        Row(f"{theirs}.bias", f"{ours}.bias", VECTOR, ("C",)),
    ]


def _batch_norm(theirs, ours):
    return [
        *_layer_norm(theirs, ours),
        Row(f"{theirs}.running_mean", f"{ours}.mean", VECTOR, ("C",)),
        Row(f"{theirs}.running_var", f"{ours}.var", VECTOR, ("C",)),
    ]


_STAGE = "backbone.stages.{i}"
_BLOCK, _OURS = "backbone.block{i+1}.{j}", f"{_STAGE}.blocks"
_MIX, _SELECTION = f"{_BLOCK}.attn.spatial_mix", f"{_OURS}.attention.kernel_selection"
_CHANNEL, _MIXING = f"{_BLOCK}.attn.channe_mix", f"{_OURS}.attention.channel_mixing"
_BOX_HEAD = "roi_head.bbox_head"

# In the order of upstream's state_dict.
PATCH_EMBEDDING = [
    *_layer("backbone.patch_embed{i+1}.proj", f"{_STAGE}.patch_embed.conv", CONV, ("C", "I", "k", "k")),
    *_batch_norm("backbone.patch_embed{i+1}.norm", f"{_STAGE}.patch_embed.norm"),
]
BLOCK = [
    Row(f"{_BLOCK}.layer_scale_1", f"{_OURS}.layer_scale_1", VECTOR, ("C",)),
    Row(f"{_BLOCK}.layer_scale_2", f"{_OURS}.layer_scale_2", VECTOR, ("C",)),
    *_batch_norm(f"{_BLOCK}.norm1", f"{_OURS}.norm1"),
    *_batch_norm(f"{_BLOCK}.norm2", f"{_OURS}.norm2"),
    *_layer(f"{_MIX}.dw_conv3", f"{_SELECTION}.dw_conv3", DEPTHWISE, ("C", 1, 3, 3)),
    *_layer(f"{_MIX}.dw_conv5", f"{_SELECTION}.dw_conv5", DEPTHWISE, ("C", 1, 5, 5)),
    *_layer(f"{_MIX}.dw_conv7", f"{_SELECTION}.dw_conv7", DEPTHWISE, ("C", 1, 7, 7)),
    *_layer(f"{_MIX}.dw_conv9", f"{_SELECTION}.dw_conv9", DEPTHWISE, ("C", 1, 9, 9)),
    *_layer(f"{_MIX}.spatial_fusion", f"{_SELECTION}.spatial_fusion", CONV, (4, 4, 7, 7)),
    *_layer(f"{_MIX}.kernel_attn.0", f"{_SELECTION}.kernel_attention_1", POINTWISE, (4, "4C", 1, 1)),
    *_layer(f"{_MIX}.kernel_attn.2", f"{_SELECTION}.kernel_attention_2", POINTWISE, (4, 4, 1, 1)),
    *_layer(f"{_CHANNEL}.channel_attention.fc.0", f"{_MIXING}.squeeze", POINTWISE, ("C/4", "C", 1, 1)),
    *_layer(f"{_CHANNEL}.channel_attention.fc.2", f"{_MIXING}.excite", POINTWISE, ("C", "C/4", 1, 1)),
    *_layer(f"{_CHANNEL}.cfam.0", f"{_MIXING}.dw_conv_1", DEPTHWISE, ("C", 1, 3, 3)),
    *_layer(f"{_CHANNEL}.cfam.2", f"{_MIXING}.dw_conv_2", DEPTHWISE, ("C", 1, 3, 3)),
    *_layer(f"{_BLOCK}.mlp.linear1", f"{_OURS}.mlp.expand", POINTWISE, ("2H", "C", 1, 1)),
    *_layer(f"{_BLOCK}.mlp.dwconv", f"{_OURS}.mlp.dw_conv", DEPTHWISE, ("H", 1, 3, 3)),
    *_layer(f"{_BLOCK}.mlp.partial_conv3", f"{_OURS}.mlp.partial_conv", CONV, ("C/4", "C/4", 3, 3), bias=False),
    *_layer(f"{_BLOCK}.mlp.linear2", f"{_OURS}.mlp.project", POINTWISE, ("C", "H", 1, 1)),
]
STAGE_END = _layer_norm("backbone.norm{i+1}", f"{_STAGE}.norm")
LATERAL = _layer("neck.lateral_convs.{i}.conv", "fpn.laterals.{i}", POINTWISE, ("F", "C", 1, 1))
OUTPUT = _layer("neck.fpn_convs.{i}.conv", "fpn.outputs.{i}", CONV, ("F", "F", 3, 3))
HEADS = [
    *_layer("rpn_head.rpn_conv", "rpn.conv", CONV, ("F", "F", 3, 3)),
    *_layer("rpn_head.rpn_cls", "rpn.logits", POINTWISE, (3, "F", 1, 1)),
    *_layer("rpn_head.rpn_reg", "rpn.deltas", POINTWISE, (18, "F", 1, 1)),
    *_layer(f"{_BOX_HEAD}.fc_cls", "roi_head.logits", LINEAR, ("K+1", "D")),
    *_layer(f"{_BOX_HEAD}.fc_reg", "roi_head.deltas", LINEAR, (5, "D")),
    *_layer(f"{_BOX_HEAD}.shared_fcs.0", "roi_head.fc_1", POOLED, ("D", "FSS")),
    *_layer(f"{_BOX_HEAD}.shared_fcs.1", "roi_head.fc_2", LINEAR, ("D", "D")),
]
CLASSIFIER = tuple(row.theirs for row in HEADS if row.ours.startswith("roi_head.logits"))

POOL_SIZE = 7
_DEFAULT_MLP_RATIOS = (8, 8, 4, 4)
_BATCH_COUNT = "num_batches_tracked"  # how many batches a norm has seen: nothing that the network computes with


def _scope(architecture, stage):
    """The values of the letters in a row's shape."""
    channels = architecture["channels"]
    width = channels[stage]
    hidden = round(width * architecture["mlp_ratios"][stage])
    fpn, num_classes, pool = architecture["fpn_channels"], architecture["num_classes"], POOL_SIZE
    return {
        "C": width,
        "4C": 4 * width,
        "C/4": width // 4,
        "I": channels[stage - 1] if stage else 3,
        "k": 3 if stage else 7,
        "H": hidden,
        "2H": 2 * hidden,
        "F": fpn,
        "S": pool,
        "FSS": fpn and fpn * pool * pool,
        "D": architecture["hidden"],
        "K+1": None if num_classes is None else num_classes + 1,
    }


class Entry(NamedTuple):
    """One array of upstream's: names, place in our stack of blocks (None: not stacked), layout, shape, letters."""

    theirs: str
    ours: str
    block: int | None
    layout: Layout
    shape: tuple
    scope: dict


def entries(architecture):
    """Every array of a model, in the order of upstream's state_dict.

    Args:
      architecture: dict as from `read_architecture`; the heads are left out where `fpn_channels` is None.

    Returns:
      List of Entry.
    """
    result = []

    def add(rows, stage, block=None):
        scope = _scope(architecture, stage)
        for row in rows:
            theirs, ours = (
                name.replace("{i+1}", str(stage + 1)).replace("{i}", str(stage)).replace("{j}", str(block))
                for name in (row.theirs, row.ours)
            )
            shape = tuple(scope[size] if isinstance(size, str) else size for size in row.shape)
            result.append(Entry(theirs, ours, block, row.layout, shape, scope))

    stages = range(len(architecture["channels"]))
    for stage in stages:
        add(PATCH_EMBEDDING, stage)
        for block in range(architecture["depths"][stage]):
            add(BLOCK, stage, block)
        add(STAGE_END, stage)
    if architecture["fpn_channels"] is not None:
        for rows in (LATERAL, OUTPUT):
            for stage in stages:
                add(rows, stage)
        add(HEADS, 0)
    return result


def shapes(architecture):
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


# ------------------------------------------------------------------------------------------------ finding the weights


def select_state_dict(tree, *, ema=False):
    """Finds the weights in what a checkpoint holds.

    Args:
      tree: `Checkpoint.tree`.
      ema: take the averaged weights that a timm training stores beside the others.

    Returns:
      ({name: value} as stored, where they were found: "state_dict", "state_dict_ema", ... or "" for a bare dict).

    Raises:
      CheckpointError: there are none.
    """
    if isinstance(tree, Inert) and tree.items:
        tree = tree.items
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"the file holds {_kind(tree)}, expected a dictionary of weights or one with a state_dict"
        )
    wanted = ("state_dict_ema", "model_ema") if ema else ("state_dict", "model")
    for key in wanted:
        if key in tree:
            found = tree[key].items if isinstance(tree[key], Inert) and tree[key].items else tree[key]
            if not isinstance(found, dict):
                raise CheckpointError(f"the file's {key} is {_kind(found)}, expected a dictionary of weights")
            return found, key
    keys = ", ".join(str(key)[:60] for key in list(tree)[:8])
    if ema:
        raise CheckpointError(f"the file has no averaged weights (state_dict_ema); it has {keys}")
    if any(isinstance(value, (StoredTensor, np.ndarray)) for value in tree.values()):
        return tree, ""
    raise CheckpointError(f"the file has no state_dict and no weights; it has {keys or 'nothing'}")


_ANCHOR = re.compile(r"^(?P<root>.*?)(?P<backbone>backbone\.)?(?:patch_embed|block)[1-9]\.(?:proj|norm|\d+)\.")
_BACKBONE_NAME = re.compile(r"(?:patch_embed\d|block\d|norm\d)\.")


def upstream_names(state_dict):
    """Brings stored names to upstream's: without `module.` or other prefixes, with `backbone.`.

    Args:
      state_dict: {stored name: value}.

    Returns:
      ({upstream's name: value}, {upstream's name: stored name}, whether the stored names had `backbone.`).

    Raises:
      CheckpointError: no name is HAKSNet's, or two names become one.
    """
    names = [name for name in state_dict if isinstance(name, str)]
    match = next(filter(None, map(_ANCHOR.match, names)), None)
    if match is None:
        shown = ", ".join(name[:60] for name in names[:3])
        raise CheckpointError(
            f"none of the {len(names)} names is HAKSNet's (expected backbone.patch_embed1.proj.weight and the like; "
            f"the first ones are {shown or 'missing'})"
        )
    root, has_backbone = match["root"], match["backbone"] is not None
    values, stored = {}, {}
    for name in names:
        clean = name.removeprefix(root)
        if not has_backbone and name.startswith(root) and _BACKBONE_NAME.match(clean):
            clean = f"backbone.{clean}"
        if clean in values:
            raise CheckpointError(f"{name[:80]} and {stored[clean][:80]} are the same parameter")
        values[clean], stored[clean] = state_dict[name], name
    return values, stored, has_backbone


def read_architecture(state_dict):
    """Reads widths and depths off the shapes.

    Args:
      state_dict: {upstream's name: value with .shape}, see `upstream_names`.

    Returns:
      dict: channels, depths, mlp_ratios (one number a stage), and of a detector fpn_channels, hidden, num_classes;
      these are None for a backbone alone, and num_classes also where the classifier is missing.

    Raises:
      CheckpointError: a width cannot be read off any parameter.
    """
    shapes_of = {name: tuple(value.shape) for name, value in state_dict.items() if _is_array(value)}

    def size(*places):
        """The first size found among (name, axis)."""
        for name, axis in places:
            shape = shapes_of.get(name, ())
            if len(shape) > axis and shape[axis] > 0:
                return shape[axis]
        return None

    channels, depths, ratios = [], [], []
    for stage in range(1, 5):
        blocks = [
            int(match[1]) for name in shapes_of if (match := re.match(rf"backbone\.block{stage}\.(\d{{1,3}})\.", name))
        ]
        width = size(
            (f"backbone.patch_embed{stage}.proj.weight", 0),
            (f"backbone.norm{stage}.weight", 0),
            *((f"backbone.block{stage}.{j}.norm1.weight", 0) for j in blocks[:1]),
            (f"neck.lateral_convs.{stage - 1}.conv.weight", 1),
        )
        if width is None or not blocks:
            raise CheckpointError(f"stage {stage} of the backbone is missing (no backbone.block{stage}.* with weights)")
        hidden = size(
            *(
                (f"backbone.block{stage}.{j}.mlp.{layer}", 0)
                for j in set(blocks)
                for layer in ("dwconv.weight", "dwconv.bias")
            ),
            *((f"backbone.block{stage}.{j}.mlp.linear2.weight", 1) for j in set(blocks)),
        )
        ratio = _DEFAULT_MLP_RATIOS[stage - 1] if hidden is None else hidden / width
        channels.append(width)
        depths.append(1 + max(blocks))
        ratios.append(int(ratio) if ratio == int(ratio) else ratio)

    detector = {"fpn_channels": None, "hidden": None, "num_classes": None}
    if any(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in shapes_of):
        pooled = size((f"{_BOX_HEAD}.shared_fcs.0.weight", 1))
        logits = size(*((name, 0) for name in CLASSIFIER))
        fpn = size(
            *((f"neck.{part}.{i}.conv.weight", 0) for part in ("lateral_convs", "fpn_convs") for i in range(4)),
            *((f"rpn_head.{part}.weight", 1) for part in ("rpn_conv", "rpn_cls", "rpn_reg")),
        )
        detector = {
            "fpn_channels": fpn or (pooled and pooled // POOL_SIZE**2) or 256,
            "hidden": size(
                (f"{_BOX_HEAD}.shared_fcs.0.weight", 0),
                (f"{_BOX_HEAD}.shared_fcs.1.weight", 0),
                (f"{_BOX_HEAD}.fc_cls.weight", 1),
                (f"{_BOX_HEAD}.fc_reg.weight", 1),
            )
            or 1024,
            "num_classes": None if logits is None else logits - 1,
        }
    return {"channels": channels, "depths": depths, "mlp_ratios": ratios, **detector}


def _is_array(value):
    return isinstance(value, (StoredTensor, np.ndarray))


def _kind(value):
    return f"a {value.name[:80]} object" if isinstance(value, Inert) else f"a {type(value).__name__}"


# -------------------------------------------------------------------------------------------------------- translating


@dataclasses.dataclass
class Report:
    """What became of every name.

    Attributes:
      loaded: upstream's names that were taken over.
      missing: upstream's names of the model that the file lacks.
      mismatched: {upstream's name: what it is and what was expected}.
      unexpected: {stored name: why it was not used}.
      not_finite: {upstream's name: how many of its numbers are not finite}. They are taken over all the same.
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

    def text(self):
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
                lines.extend(["", f"{title} ({len(rows)}):", *(f"  {row}" for row in rows)])

        section("missing", self.missing)
        section("mismatched", [f"{name}: {text}" for name, text in self.mismatched.items()])
        section("unexpected", [f"{name}: {text}" for name, text in self.unexpected.items()])
        section("not finite", [f"{name}: {count} numbers" for name, count in self.not_finite.items()])
        section("without a value in the output", self.left_out)
        section("loaded", self.loaded)
        if self.batch_counts:
            lines.extend(["", f"not needed: {len(self.batch_counts)} counters of batches ({_BATCH_COUNT})"])
        return "\n".join(lines) + "\n"


def from_torch(state_dict, architecture=None):
    """Translates upstream's weights into ours.

    Args:
      state_dict: {stored name: StoredTensor or numpy array}, prefixes as they come.
      architecture: the model to fill, as `read_architecture` gives it; None reads it off the weights.

    Returns:
      ({our name: float32 array}, Report). A name of ours is in the first only if all of it got a value.

    Raises:
      CheckpointError: these are not HAKSNet's weights, or the file is damaged.
    """
    values, stored, _ = upstream_names(state_dict)
    architecture = architecture or read_architecture(values)
    report = Report()
    parts, wanting = {}, set()
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
    for name, value in values.items():
        is_count = name.endswith(f".{_BATCH_COUNT}") and _is_array(value) and value.dtype.kind in "iu"
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
    if not _is_array(value):
        report.mismatched[entry.theirs] = f"is {_kind(value)}, expected an array {expected}"
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
    if not _is_array(value):
        return f"it is {_kind(value)}, not an array"
    if re.search(r"(^|\.)head\.(weight|bias)$", name):
        return "the classifier of an image classification training, which a detector does not have"
    if name.startswith("ema_"):
        return "the other set of weights that averaging while training keeps; the one under the plain names is used"
    if architecture["fpn_channels"] is None and name.startswith(("neck.", "rpn_head.", "roi_head.")):
        return "part of a detector, and only the backbone is wanted"
    return "no parameter of this model"


def to_torch(params, architecture, *, batch_counts=0, backbone_prefix=True):
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
