"""The names of MMRotate's Oriented R-CNN around a backbone beside ours: FPN, RPN and box head."""

from collections.abc import Mapping, Sequence
from typing import Any

from haksnet_jax.weights.tables import CONV, LINEAR, POINTWISE, Entry, Layout, entries, first_size, layer

PREFIXES = ("neck.", "rpn_head.", "roi_head.")
POOL_SIZE = 7
_BOX_HEAD = "roi_head.bbox_head"

# The first layer of the box head sees features flattened as [C, 7, 7] upstream and as [7, 7, C] here.
_POOLED = Layout(
    lambda x, s: x.reshape(-1, s["F"], s["S"], s["S"]).transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, s: x.reshape(s["S"], s["S"], s["F"], -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
)
_LATERAL = layer("neck.lateral_convs.{i}.conv", "fpn.laterals.{i}", POINTWISE, ("F", "C", 1, 1))
_OUTPUT = layer("neck.fpn_convs.{i}.conv", "fpn.outputs.{i}", CONV, ("F", "F", 3, 3))
_HEADS = [
    *layer("rpn_head.rpn_conv", "rpn.conv", CONV, ("F", "F", 3, 3)),
    *layer("rpn_head.rpn_cls", "rpn.logits", POINTWISE, (3, "F", 1, 1)),
    *layer("rpn_head.rpn_reg", "rpn.deltas", POINTWISE, (18, "F", 1, 1)),
    *layer(f"{_BOX_HEAD}.fc_cls", "roi_head.logits", LINEAR, ("K+1", "D")),
    *layer(f"{_BOX_HEAD}.fc_reg", "roi_head.deltas", LINEAR, (5, "D")),
    *layer(f"{_BOX_HEAD}.shared_fcs.0", "roi_head.fc_1", _POOLED, ("D", "FSS")),
    *layer(f"{_BOX_HEAD}.shared_fcs.1", "roi_head.fc_2", LINEAR, ("D", "D")),
]
CLASSIFIER = tuple(row.theirs for row in _HEADS if row.ours.startswith("roi_head.logits"))


def detector_entries(architecture: dict[str, Any], widths: Sequence[int]) -> list[Entry]:
    """Every array around the backbone, in the order of upstream's state_dict. Args: architecture; widths of maps."""
    fpn, pool, num_classes = architecture["fpn_channels"], POOL_SIZE, architecture["num_classes"]
    scope = {
        "F": fpn,
        "S": pool,
        "FSS": fpn * pool * pool,
        "D": architecture["hidden"],
        "K+1": None if num_classes is None else num_classes + 1,
    }
    result = []
    for rows in (_LATERAL, _OUTPUT):
        for stage, width in enumerate(widths):
            result += entries(rows, scope | {"C": width}, stage=stage)
    return result + entries(_HEADS, scope)


def read(shapes_of: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads sizes off shapes. Args: {upstream's name: shape}. Returns: dict: fpn_channels, hidden, num_classes.

    All are None for a backbone alone; num_classes also where the classifier is missing.
    """
    if not any(name.startswith(PREFIXES) for name in shapes_of):
        return {"fpn_channels": None, "hidden": None, "num_classes": None}
    pooled = first_size(shapes_of, (f"{_BOX_HEAD}.shared_fcs.0.weight", 1))
    logits = first_size(shapes_of, *((name, 0) for name in CLASSIFIER))
    fpn = first_size(
        shapes_of,
        *((f"neck.{part}.{i}.conv.weight", 0) for part in ("lateral_convs", "fpn_convs") for i in range(4)),
        *((f"rpn_head.{part}.weight", 1) for part in ("rpn_conv", "rpn_cls", "rpn_reg")),
    )
    hidden = first_size(
        shapes_of,
        (f"{_BOX_HEAD}.shared_fcs.0.weight", 0),
        (f"{_BOX_HEAD}.shared_fcs.1.weight", 0),
        (f"{_BOX_HEAD}.fc_cls.weight", 1),
        (f"{_BOX_HEAD}.fc_reg.weight", 1),
    )
    return {
        "fpn_channels": fpn or (pooled and pooled // POOL_SIZE**2) or 256,
        "hidden": hidden or 1024,
        "num_classes": None if logits is None else logits - 1,
    }
