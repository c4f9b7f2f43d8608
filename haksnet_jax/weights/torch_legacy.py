"""The older container of `torch.save`: five pickles in a row, then the bytes of all storages."""

import struct
from typing import Any

import numpy as np

from haksnet_jax.weights import budget as costs
from haksnet_jax.weights.budget import Budget
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Storage, StoredBytes, described, sizes
from haksnet_jax.weights.torch_pickle import Unpickler

_MAGIC = 0x1950A86A20F9469CFC6C
_START = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")  # LONG1 of ten bytes, right after PROTO


def begins(start: bytes) -> bool:
    """Whether a file that starts with these bytes is of the older form."""
    return start[:1] == b"\x80" and _START in (start[2:14], start[11:23])  # protocol 4 puts a FRAME between


def read(contents: Any, budget: Budget) -> tuple[Any, tuple[str, ...]]:
    """Reads a file. Args: contents; budget. Returns: (tree, names of what became Inert). Raises: CheckpointError."""
    storages = {}  # root storages by key: (StoredBytes, dtype, elements claimed)

    def storage(dtype, key, count, view):
        if key not in storages:
            budget.charge(costs.ENTRY + 4 * costs.OBJECT)
            storages[key] = (StoredBytes(f"storage {key!r}"), dtype, count)
        known = storages[key]
        if known[1:] != (dtype, count):
            raise CheckpointError(f"storage {key!r} is described in two ways")
        first = 0
        if view is not None:
            if not isinstance(view, tuple) or len(view) != 3:
                raise CheckpointError(f"the view of storage {key!r} is not described by key, offset and size")
            first, size = sizes(view[1:], "the view of a storage")
            if first + size > count:
                raise CheckpointError(f"a view of storage {key!r} ends past its end")
            count = size
        return Storage(known[0], dtype, first, count)

    unpickler = Unpickler(memoryview(contents), 0, storage, budget)
    unpickler.run()  # the magic number, which brought us here
    protocol, system = unpickler.run(), unpickler.run()
    if type(protocol) is not int or protocol != 1001:
        raise CheckpointError(f"it is of version {described(protocol)} of torch's older form, expected 1001")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine; save it again on a little-endian one")
    tree = unpickler.run()
    keys = unpickler.run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its list of storages is damaged")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise CheckpointError(f"it stores {len(keys)} storages, its tensors use {len(storages)} others or other ones")
    _find_storages(contents, unpickler.position, keys, storages)
    return tree, unpickler.placeholders()


def _find_storages(contents, position, keys, storages):
    """Gives each storage its bytes, which follow each other behind the pickles."""
    for key in keys:
        held, dtype, claimed = storages[key]
        if position + 8 > len(contents):
            raise CheckpointError(f"it ends before storage {key!r}: it was cut short, download or copy it again")
        (count,) = struct.unpack_from("<q", contents, position)
        if count != claimed:
            raise CheckpointError(f"storage {key!r} claims {claimed:,} elements and holds {count:,}")
        position += 8
        size = count * dtype.itemsize
        if position + size > len(contents):
            raise CheckpointError(f"it ends inside storage {key!r}: it was cut short, download or copy it again")
        held.data = np.frombuffer(contents, np.uint8, count=size, offset=position)
        position += size
