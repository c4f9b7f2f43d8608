"""The container of safetensors: a header in JSON, then the bytes of all tensors without gaps."""

import math
import re
from typing import Any

import numpy as np

from haksnet_jax import json_files
from haksnet_jax.weights import budget as costs
from haksnet_jax.weights.budget import Budget
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import (
    DTYPES,
    Inert,
    StoredBytes,
    StoredTensor,
    contiguous,
    described,
    shown_name,
    shown_sizes,
    sizes,
)

MAX_HEADER_BYTES = 2 << 20  # 15,000 tensors; objects of that JSON take up to 25 times as much

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read(contents: Any, header_bytes: int, budget: Budget) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Reads a file.

    Args:
      contents: of the whole file.
      header_bytes: size of its header, as its first eight bytes say.
      budget: Budget.

    Returns:
      ({name: StoredTensor, or Inert where the dtype is none of ours}, metadata, names of the Inert).

    Raises:
      CheckpointError: the header is not one, or the tensors do not fill the file without gaps and overlaps.
    """
    header = _header(contents, header_bytes)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("the metadata of its safetensors header are not strings")
    data = np.frombuffer(contents, np.uint8, offset=8 + header_bytes)
    tree, places = {}, []
    for name, entry in header.items():
        budget.charge(costs.TENSOR)
        tree[name], place = _tensor(name, entry, data, budget)
        places.append((*place, name))
    budget.look_at_the_clock()
    _require_no_gaps(places, len(data))
    unread = {value.name for value in tree.values() if isinstance(value, Inert)}
    return tree, metadata, tuple(sorted(unread))


def _header(contents, header_bytes):
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its safetensors header claims {header_bytes:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
        )
    if 8 + header_bytes > len(contents):
        raise CheckpointError("it ends inside its safetensors header: it was cut short, download or copy it again")
    try:
        header = json_files.parse(contents[8 : 8 + header_bytes], where="header", error=CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"its safetensors header is not the JSON it should be ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"its safetensors header is {described(header)}, expected an object")
    return header


def _tensor(name, entry, data, budget):
    """Returns: (StoredTensor or Inert, (first byte, byte after the last))."""
    where = f"tensor '{shown_name(name)}'"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
    kind = entry["dtype"]
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,15}", kind):
        raise CheckpointError(f"the dtype of {where} is {described(kind)}, expected a name such as F32")
    shape = sizes(entry["shape"], f"the shape of {where}")
    place = sizes(entry["data_offsets"], f"the place of {where}")
    found = f"its place {shown_sizes(place)} in the file's {len(data):,} bytes of data"
    if len(place) != 2 or not place[0] <= place[1] <= len(data):
        place = None
    if kind not in _DTYPES:
        if place is None:
            raise CheckpointError(f"{where} cannot have {found}")
        return Inert(f"safetensors {kind}"), place
    dtype = DTYPES[_DTYPES[kind]]
    size = math.prod(shape) * dtype.itemsize
    if place is None or place[1] - place[0] != size:
        raise CheckpointError(f"{where} needs {described(size)} bytes, {found} has others")
    budget.take(size)
    # Offsets of safetensors need not be multiples of the element size: each tensor gets its own bytes.
    own = StoredBytes(where, data[place[0] : place[1]])
    return StoredTensor(shape, dtype, contiguous(shape), 0, own), place


def _require_no_gaps(places, num_bytes):
    """The format asks for it: what overlaps are two meanings of the same bytes, what no tensor names is hidden."""
    position, before = 0, None
    for first, end, name in sorted(places):
        if first < position:
            raise CheckpointError(f"tensor '{shown_name(name)}' overlaps tensor '{shown_name(before)}'")
        if first > position:
            raise CheckpointError(
                f"no tensor has the {first - position:,} bytes of data before tensor '{shown_name(name)}'"
            )
        position, before = end, name
    if position < num_bytes:
        raise CheckpointError(f"no tensor has the last {num_bytes - position:,} bytes of its data")
