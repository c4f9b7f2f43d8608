"""The container of `torch.save` since 2020: a zip file without compression, one member a storage."""

import dataclasses
import itertools
import struct
import sys
import zlib
from typing import Any

import numpy as np

from haksnet_jax.weights import budget as costs
from haksnet_jax.weights.budget import Budget
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Storage, StoredBytes, shown_name
from haksnet_jax.weights.torch_pickle import Unpickler

MAX_DIRECTORY_BYTES = 8 << 20  # the list of members of a zip: 50,000 storages


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    header: int  # position of its local header
    size: int
    crc32: int
    compressed: bool


def read(contents: Any, budget: Budget) -> tuple[Any, tuple[str, ...]]:
    """Reads a file. Args: contents; budget. Returns: (tree, names of what became Inert). Raises: CheckpointError."""
    members = _members(contents, budget)
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"it is a zip file with {len(pickles)} members named data.pkl, a file of torch.save has one"
        )
    root = pickles[0][: -len("data.pkl")]
    if any(name.startswith(f"{root}code/") for name in members):
        raise CheckpointError("it is a TorchScript archive; save the model's state_dict() instead")
    used = []  # (first byte, byte after the last) of the members that are read

    def member_bytes(name):
        start, size = _place(contents, members[name], name)
        used.append((start, start + size))
        return np.frombuffer(contents, np.uint8, count=size, offset=start)

    swapped = sys.byteorder != "little"
    if f"{root}byteorder" in members:
        recorded = bytes(member_bytes(f"{root}byteorder")[:16])
        if recorded not in (b"little", b"big"):
            raise CheckpointError(f"its byte order is {recorded!r}, expected little or big")
        swapped = recorded != sys.byteorder.encode()

    storages = {}

    def storage(dtype, key, count, view):
        if view is not None:
            raise CheckpointError("a storage of the zip form has view metadata, which only the older form has")
        if key not in storages:
            name = f"{root}data/{key}"
            if name not in members:
                raise CheckpointError(f"storage {key!r} is named but not stored")
            budget.charge(costs.ENTRY + 6 * costs.OBJECT)
            storages[key] = StoredBytes(f"storage {key!r}", member_bytes(name), members[name].crc32)
        held = len(storages[key].data)
        if count * dtype.itemsize > held:
            raise CheckpointError(f"storage {key!r} claims {count * dtype.itemsize:,} bytes and holds {held:,}")
        return Storage(storages[key], dtype, 0, count, swapped)

    pickle_bytes = member_bytes(pickles[0])
    if members[pickles[0]].crc32 and zlib.crc32(pickle_bytes) != members[pickles[0]].crc32:
        raise CheckpointError("data.pkl does not match its checksum: the file is damaged")
    unpickler = Unpickler(memoryview(pickle_bytes), 0, storage, budget)
    tree = unpickler.run()
    used.sort()
    for (_, end), (start, _) in itertools.pairwise(used):
        if start < end:
            raise CheckpointError("members of its zip directory overlap")
    return tree, unpickler.placeholders()


def _members(contents, budget):
    """The members of a zip file by name, from its directory at the end."""
    start, size, count = _directory(contents)
    members = {}
    position = start
    while position < start + size:
        if position + 46 > start + size or contents[position : position + 4] != b"PK\x01\x02":
            raise CheckpointError("its zip directory is damaged")
        flags, method = struct.unpack_from("<HH", contents, position + 8)
        crc32, packed, unpacked, name_size, extra_size, comment_size = struct.unpack_from(
            "<IIIHHH", contents, position + 16
        )
        (header,) = struct.unpack_from("<I", contents, position + 42)
        name_start = position + 46
        extra_start = name_start + name_size
        position = extra_start + extra_size + comment_size
        if position > start + size:
            raise CheckpointError("its zip directory is damaged")
        budget.charge(costs.ENTRY + 4 * costs.OBJECT + 4 * name_size)
        name = contents[name_start:extra_start].decode("utf-8", "replace")
        extra = contents[extra_start : extra_start + extra_size]
        unpacked, packed, header = _zip64_sizes(extra, unpacked, packed, header)
        if name in members:
            raise CheckpointError(f"its zip directory names '{shown_name(name)}' twice")
        if flags & 1:
            raise CheckpointError("it is an encrypted zip file")
        members[name] = _Member(header, unpacked, crc32, compressed=method != 0 or packed != unpacked)
    if len(members) != count:
        raise CheckpointError(f"its zip directory lists {len(members)} members and promises {count}")
    return members


def _directory(contents):
    """Where the directory of a zip file lies. Returns: (first byte, size, number of members)."""
    tail_start = max(0, len(contents) - 65557)
    end = contents.rfind(b"PK\x05\x06", tail_start)
    if end < 0 or end + 22 > len(contents):
        raise CheckpointError("it is a zip file without an end: it was cut short, download or copy it again")
    count, size, start = struct.unpack_from("<HII", contents, end + 10)
    if 0xFFFFFFFF in (size, start) or count == 0xFFFF:
        locator = end - 20
        if locator < 0 or contents[locator : locator + 4] != b"PK\x06\x07":
            raise CheckpointError("its zip directory is damaged")
        (end,) = struct.unpack_from("<Q", contents, locator + 8)
        if end + 56 > len(contents) or contents[end : end + 4] != b"PK\x06\x06":
            raise CheckpointError("its zip directory is damaged")
        count, size, start = struct.unpack_from("<QQQ", contents, end + 32)
    if size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"its zip directory claims {size:,} bytes, at most {MAX_DIRECTORY_BYTES:,} are read")
    if start + size > end:
        raise CheckpointError("its zip directory is damaged or cut short")
    return start, size, count


def _zip64_sizes(extra, *values):
    """Replaces values of 0xFFFFFFFF by the 64-bit ones of the extra field."""
    position = 0
    wide = b""
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, position)
        if tag == 1:
            wide = extra[position + 4 : position + 4 + size]
        position += 4 + size
    result = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise CheckpointError("its zip directory is damaged")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return result


def _place(contents, member, name):
    """Where the bytes of a stored member lie. Returns: (first byte, size)."""
    if member.compressed:
        # torch.save never compresses. Reading only plain members means that nothing can unfold to more than the file.
        raise CheckpointError(
            f"its member '{shown_name(name)}' is compressed, which torch.save never does; pack it with `zip -0`"
        )
    if member.header + 30 > len(contents) or contents[member.header : member.header + 4] != b"PK\x03\x04":
        raise CheckpointError(
            f"its member '{shown_name(name)}' is not where the zip directory says: the file is damaged"
        )
    name_size, extra_size = struct.unpack_from("<HH", contents, member.header + 26)
    start = member.header + 30 + name_size + extra_size
    if start + member.size > len(contents):
        raise CheckpointError(
            f"its member '{shown_name(name)}' ends past the end of the file: it is damaged or cut short"
        )
    return start, member.size
