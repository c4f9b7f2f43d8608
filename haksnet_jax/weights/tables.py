"""What a table of names is made of: layouts of arrays, rows, and the entries that rows become for one architecture.

One table says everything: our name, upstream's, how the array is laid out, and its shape in upstream's layout, with
letters for the widths. What loads, what is missing, what does not fit and what nobody asked for all follow from it, and
so does the way back. A backbone's table is one file (`haksnet_table`, `resnet_table`), the detector's heads another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How an array of upstream becomes ours, and back. `scope` holds the widths behind the letters of its shape."""

    to_ours: Callable[[np.ndarray, dict], np.ndarray]
    to_torch: Callable[[np.ndarray, dict], np.ndarray]


VECTOR = Layout(lambda x, _: x, lambda x, _: x)
CONV = Layout(lambda x, _: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1))  # [O, I, k, k], [k, k, I, O]
DEPTHWISE = Layout(lambda x, _: x[:, 0].transpose(1, 2, 0), lambda x, _: x.transpose(2, 0, 1)[:, None])
POINTWISE = Layout(lambda x, _: x[:, :, 0, 0].T, lambda x, _: x.T[:, :, None, None])  # [O, I, 1, 1] and [I, O]
LINEAR = Layout(lambda x, _: x.T, lambda x, _: x.T)  # [O, I] and [I, O]


class Row(NamedTuple):
    """One line of a table. `{i}` is a stage or level, `{i+1}` upstream's count of it, `{j}` a block."""

    theirs: str
    ours: str
    layout: Layout
    shape: tuple  # upstream's: sizes, or letters that the scope explains


def layer(theirs: str, ours: str, layout: Layout, shape: Any, bias: bool = True) -> list[Row]:
    """Rows of a convolution or linear layer."""
    rows = [Row(f"{theirs}.weight", f"{ours}.kernel", layout, shape)]
    return [*rows, Row(f"{theirs}.bias", f"{ours}.bias", VECTOR, shape[:1])] if bias else rows


def layer_norm(theirs: str, ours: str, width: str = "C") -> list[Row]:
    """Rows of a layer normalisation."""
    return [
        Row(f"{theirs}.weight", f"{ours}.scale", VECTOR, (width,)),
        Row(f"{theirs}.bias", f"{ours}.bias", VECTOR, (width,)),
    ]


def batch_norm(theirs: str, ours: str, width: str = "C") -> list[Row]:
    """Rows of a batch normalisation."""
    return [
        *layer_norm(theirs, ours, width),
        Row(f"{theirs}.running_mean", f"{ours}.mean", VECTOR, (width,)),
        Row(f"{theirs}.running_var", f"{ours}.var", VECTOR, (width,)),
    ]


class Entry(NamedTuple):
    """One array of upstream's: names, place in our stack of blocks (None: not stacked), layout, shape, letters."""

    theirs: str
    ours: str
    block: int | None
    layout: Layout
    shape: tuple
    scope: dict


def entries(
    rows: Sequence[Row], scope: dict[str, Any], *, stage: int = 0, block: int | None = None, stacked: bool = True
) -> list[Entry]:
    """The entries of some rows.

    Args:
      rows: list of Row.
      scope: {letter: size}.
      stage, block: what `{i}` and `{j}` stand for.
      stacked: whether the blocks of a stage are one array of ours.

    Returns:
      List of Entry, in the rows' order.
    """
    result = []
    for row in rows:
        theirs, ours = (
            name.replace("{i+1}", str(stage + 1)).replace("{i}", str(stage)).replace("{j}", str(block))
            for name in (row.theirs, row.ours)
        )
        shape = tuple(scope[size] if isinstance(size, str) else size for size in row.shape)
        result.append(Entry(theirs, ours, block if stacked else None, row.layout, shape, scope))
    return result


def first_size(shapes_of: Mapping[str, tuple[int, ...]], *places: Any) -> int | None:
    """The first size found among (name, axis). Args: {name: shape}; places. Returns: int or None."""
    for name, axis in places:
        shape = shapes_of.get(name, ())
        if len(shape) > axis and shape[axis] > 0:
            return shape[axis]
    return None
