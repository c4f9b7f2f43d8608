"""Finding the weights in what a file of PyTorch holds, under upstream's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from haksnet_jax.weights import haksnet_table, resnet_table
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert, StoredTensor, described, shown_name

_EMA = "ema_"  # before the name of an average, in which mmcv writes an underscore for each dot
_TABLES = (haksnet_table, resnet_table)


def is_array(value: Any) -> bool:
    """Whether a value of a file is a tensor."""
    return isinstance(value, (StoredTensor, np.ndarray))


def select_state_dict(tree: Any, *, ema: bool = False) -> Any:
    """Finds the weights in what a checkpoint holds.

    Args:
      tree: `Checkpoint.tree`.
      ema: take the averaged weights: those that timm and MMEngine store beside the others (`state_dict_ema`,
        `model_ema`, `ema_state_dict`), or that mmcv stores among them (`ema_backbone_...`).

    Returns:
      ({name: value} as stored, where they were found: "state_dict", "state_dict_ema", ... or "" for a bare dict).

    Raises:
      CheckpointError: there are none.
    """
    if isinstance(tree, Inert) and tree.items:
        tree = tree.items
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"the file holds {described(tree)}, expected a dictionary of weights or one with a state_dict"
        )
    if ema:
        found = _first(tree, ("state_dict_ema", "model_ema", "ema_state_dict"))
        if found is None:
            plain = _first(tree, ("state_dict", "model")) or (tree, "")
            averages = _averages(plain[0])
            if averages is None:
                raise CheckpointError(
                    "the file has no averaged weights (no state_dict_ema, and no names that begin with ema_); it has "
                    f"{_keys(tree)}"
                )
            found = averages, f"{plain[1]} ({_EMA}*)"
        return found
    found = _first(tree, ("state_dict", "model"))
    if found is not None:
        return found
    if any(map(is_array, tree.values())):
        return tree, ""
    raise CheckpointError(f"the file has no state_dict and no weights; it has {_keys(tree)}")


def _first(tree, keys):
    for key in keys:
        if key in tree:
            found = tree[key].items if isinstance(tree[key], Inert) and tree[key].items else tree[key]
            if not isinstance(found, dict):
                raise CheckpointError(f"the file's {key} is {described(found)}, expected a dictionary of weights")
            return found, key
    return None


def _keys(tree):
    shown = ", ".join(shown_name(key) if isinstance(key, str) else described(key) for key in list(tree)[:8])
    return shown or "nothing"


def _averages(stored):
    """The averages that mmcv keeps among the weights, under the plain names; None where there are none.

    It averages parameters alone: what a norm counts comes from the plain names.
    """
    names = [name for name in stored if isinstance(name, str) and not name.startswith(_EMA)]
    averages = {name: stored.get(_EMA + name.replace(".", "_")) for name in names}
    if not any(map(is_array, averages.values())):
        return None
    return {name: stored[name] if averages[name] is None else averages[name] for name in names}


def upstream_names(state_dict: Mapping[str, Any], *, part: str | None = None) -> Any:
    """Brings stored names to upstream's: without `module.` or other prefixes, with `backbone.`.

    Args:
      state_dict: {stored name: value}.
      part: where the file holds several models (`teacher.`, `student.`), the prefix of the one that is meant.

    Returns:
      ({upstream's name: value}, {upstream's name: stored name}, whether the stored names had `backbone.`).

    Raises:
      CheckpointError: no name is of a known backbone, several models are there, or two names become one.
    """
    names = [name for name in state_dict if isinstance(name, str)]
    found: dict[str, Any] = {}  # root: (table, whether with `backbone.`)
    for table in _TABLES:
        for match in filter(None, map(table.ANCHOR.match, names)):
            found.setdefault(match["root"], (table, match["backbone"] is not None))
        if found:
            break
    if not found:
        shown = ", ".join(map(shown_name, names[:3]))
        raise CheckpointError(
            f"none of the {len(names)} names is HAKSNet's or ResNet's (expected backbone.{haksnet_table.EXAMPLE}, "
            f"backbone.{resnet_table.EXAMPLE} and the like; the first ones are {shown or 'missing'})"
        )
    root = _one_root(found, part)
    table, has_backbone = found[root]
    others = tuple(other for other in found if other.startswith(root) and other != root)
    values: dict[str, Any] = {}
    stored: dict[str, str] = {}
    for name in names:
        if others and name.startswith(others):
            clean = name  # of another model of the file
        else:
            clean = name.removeprefix(root)
            if not has_backbone and name.startswith(root) and table.OWN_NAME.match(clean):
                clean = f"backbone.{clean}"
        if clean in values:
            raise CheckpointError(f"{shown_name(name)} and {shown_name(stored[clean])} are the same parameter")
        values[clean], stored[clean] = state_dict[name], name
    return values, stored, has_backbone


def _one_root(found, part):
    """The prefix of the model that is meant."""
    if part is not None:
        wanted = f"{part.rstrip('.')}." if part else ""
        fitting = [root for root in found if root == wanted or root.startswith(wanted)]
        if len(fitting) != 1:
            raise CheckpointError(f"it holds no model {shown_name(part)}: it has {_roots(found)} (--part)")
        return fitting[0]
    if len(found) > 1:
        raise CheckpointError(f"it holds several models: {_roots(found)}; say which with --part, as --part=teacher")
    return next(iter(found))


def _roots(found):
    return ", ".join(f"'{shown_name(root)}'" for root in list(found)[:8])
