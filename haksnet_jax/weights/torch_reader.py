"""Reads the files of `torch.save` and safetensors without PyTorch and without running anything that a file names.

A `.pth` is a pickle, that is a small program. This interpreter knows the operations that `torch.save` writes and no
others. It never imports, looks up or calls what a file names: a name stays a string, a call yields one of the few
values listed in `_call`, and everything else becomes an `Inert` object that only knows what it was called. Memory is
bounded too: the pickle and its operations are limited in number, tensors stay descriptions of places in the file until
`StoredTensor.numpy` is called, and together they may not claim more than a few times what the file holds.
"""

import dataclasses
import json
import math
import mmap
import pathlib
import re
import struct
import sys
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from haksnet_jax.weights.errors import CheckpointError

# A detector with optimizer state has about 60,000 operations in 200 KB of pickle; the limits leave room for 15 times as
# much and keep what a hostile file can occupy under half a gigabyte.
MAX_PICKLE_BYTES = 32 << 20
MAX_OPERATIONS = 1_000_000
MAX_DEPTH = 64
MAX_DIRECTORY_BYTES = 8 << 20  # the list of members of a zip: 50,000 storages
MAX_HEADER_BYTES = 16 << 20  # the JSON header of safetensors
MAX_BYTES = 8 << 30  # tensors of one file, by default

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")  # LONG1 of ten bytes, right after PROTO

_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_TORCH_DTYPES = _DTYPES | {
    alias: _DTYPES[name]
    for alias, name in {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "long": "int64",
        "int": "int32",
    }.items()
}
_SAFETENSORS_DTYPES = {
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

# Nothing of these is ever run: not knowing them is enough for that. A file that names them is refused as a whole,
# because no checkpoint needs them and its author meant harm.
_HOSTILE = """
os posix nt sys subprocess _posixsubprocess importlib _frozen_importlib imp runpy pkgutil zipimport ctypes _ctypes cffi
socket _socket ssl http urllib requests ftplib smtplib telnetlib shutil pty commands popen2 webbrowser code codeop pdb
bdb timeit cProfile profile trace signal gc inspect marshal pickle _pickle cPickle dill cloudpickle shelve pip
setuptools distutils ensurepip venv operator _operator io _io codecs pydoc idlelib asyncio multiprocessing _thread
_winapi winreg
"""
_HARMLESS = """
set frozenset list tuple dict bytes bytearray complex slice range object int float str bool type Exception ValueError
RuntimeError KeyError TypeError
"""
_HOSTILE_MODULES = frozenset(_HOSTILE.split())
_HARMLESS_BUILTINS = frozenset(_HARMLESS.split())


@dataclasses.dataclass(eq=False, slots=True)
class Inert:
    """What stands in for an object that a file describes and this reader does not build.

    Attributes:
      name: dotted name of its class or function, as the file gives it.
      attributes: its attributes by name, for plain objects such as `argparse.Namespace`; else empty.
      items: its entries, where it behaves like a dictionary; else empty.
    """

    name: str
    attributes: dict | None = None
    items: dict | None = None


@dataclasses.dataclass(eq=False, slots=True)
class _Name:
    """A class or function, by name alone."""

    module: str
    attribute: str

    @property
    def dotted(self):
        return f"{self.module}.{self.attribute}"


@dataclasses.dataclass(eq=False, slots=True)
class _Bytes:
    """The bytes of one storage; `data` is set once its place is known."""

    label: str
    data: np.ndarray | None = None  # uint8
    crc32: int | None = None  # expected, until it was checked

    def checked(self):
        """The bytes, after comparing them once with the checksum that the file records."""
        if self.data is None:
            raise CheckpointError(f"{self.label} is named but not stored")
        if self.crc32 and zlib.crc32(self.data) != self.crc32:
            raise CheckpointError(f"{self.label} does not match its checksum: the file is damaged")
        self.crc32 = None
        return self.data


@dataclasses.dataclass(eq=False, slots=True)
class _Storage:
    """`count` elements of `dtype` in `bytes`, from element `first` on."""

    bytes: _Bytes
    dtype: np.dtype
    first: int
    count: int
    swapped: bool = False  # the other byte order than this machine's


@dataclasses.dataclass(eq=False, slots=True)
class _NumpyDtype:
    """A numpy dtype under construction: its text and, once given, its byte order."""

    text: str
    order: str = "="

    def dtype(self):
        if not re.fullmatch(r"[fiu][1248]|b1|bool", self.text) or self.text == "f1":
            raise CheckpointError(f"it holds a numpy array of dtype {self.text[:20]!r}, only plain numbers can be read")
        return np.dtype(self.text).newbyteorder(self.order)


@dataclasses.dataclass(eq=False, slots=True)
class StoredTensor:
    """A tensor that is still in the file: its shape and dtype are known and checked, its values are read on demand.

    Attributes:
      shape: sizes.
      dtype: numpy dtype (bfloat16 by ml_dtypes).
    """

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    strides: tuple[int, ...] = ()  # in elements
    offset: int = 0  # in elements
    storage: _Bytes | None = None
    swapped: bool = False

    def numpy(self):
        """Reads the values.

        Returns:
          A contiguous array of `shape` and `dtype`, in this machine's byte order.

        Raises:
          CheckpointError: the stored bytes are missing or damaged.
        """
        if self.storage is None:
            raise CheckpointError("it holds an array without contents")
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        size = self.dtype.itemsize
        values = np.frombuffer(self.storage.checked(), self.dtype, offset=self.offset * size, count=self._span())
        view = np.lib.stride_tricks.as_strided(values, self.shape, [s * size for s in self.strides], writeable=False)
        result = np.array(view, order="C")
        if self.swapped:  # by way of whole numbers: bfloat16 has no byte order of its own
            result = result.view(f"u{size}").byteswap().view(self.dtype)
        return result

    def __array__(self, dtype=None, copy=None):
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def _span(self):
        """Elements from the first to the last one used."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
      kind: "zip", "legacy" or "safetensors".
      tree: dictionaries, lists, tuples, sets, numbers, strings, bytes, `StoredTensor` and `Inert` objects.
      metadata: strings by name that a safetensors file carries; empty otherwise.
      placeholders: names of the classes and functions that became `Inert` objects, sorted.
    """

    kind: str
    tree: Any
    metadata: dict[str, str]
    placeholders: tuple[str, ...]


def read_checkpoint(path, *, max_bytes=MAX_BYTES):
    """Reads a `.pth`, `.pth.tar` or `.pt` (zip or older form) or a `.safetensors` file; its content says which.

    Args:
      path: the file.
      max_bytes: the most bytes that all tensors of the file together may claim.

    Returns:
      Checkpoint.

    Raises:
      CheckpointError: the file is no checkpoint, is damaged, or claims or names what no checkpoint needs.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a file of torch.save or safetensors")
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise CheckpointError(f"{path} is empty")
            contents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        return _read(contents, max_bytes)
    except CheckpointError as error:
        reason = str(error).replace("\n", " ")  # names in the file may hold anything
        raise CheckpointError(f"{path} cannot be used as a checkpoint: {reason}") from error


def _read(contents, max_bytes):
    start = contents[:512]
    budget = _Budget(max_bytes, len(contents))
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(contents, budget)
    if start[:1] == b"\x80" and _LEGACY_START in (start[2:14], start[11:23]):  # protocol 4 puts a FRAME between
        return _read_legacy(contents, budget)
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header_bytes > 1:
        return _read_safetensors(contents, header_bytes, budget)
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError("it is a Git LFS pointer, not the file it points to; fetch the file with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError("it is a web page, not the file; download the file itself")
    if start[257:262] == b"ustar":
        raise CheckpointError("it is a tar archive; unpack it, or save it again with a PyTorch later than 0.1.10")
    if start[:1] == b"\x80":
        raise CheckpointError("it is a pickle, but not one that torch.save wrote")
    raise CheckpointError(f"it is neither a file of torch.save nor safetensors (it starts with {bytes(start[:8])!r})")


class _Budget:
    """What the tensors of one file may claim together."""

    def __init__(self, max_bytes, file_bytes):
        # Views may share storages (two names for one tensor), but only so often: a small file whose views add up to
        # terabytes is not a checkpoint.
        self.left = min(max_bytes, 4 * file_bytes + (1 << 20))
        self.limit = self.left

    def take(self, num_bytes):
        self.left -= num_bytes
        if self.left < 0:
            raise CheckpointError(f"its tensors claim more than {self.limit:,} bytes")


# ---------------------------------------------------------------------------------------------------------------- zip


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    header: int  # position of its local header
    size: int
    crc32: int
    compressed: bool


def _read_zip(contents, budget):
    members = _zip_members(contents)
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"it is a zip file with {len(pickles)} members named data.pkl, a file of torch.save has one"
        )
    root = pickles[0][: -len("data.pkl")]
    if any(name.startswith(f"{root}code/") for name in members):
        raise CheckpointError("it is a TorchScript archive; save the model's state_dict() instead")

    def member_bytes(name):
        return _zip_member(contents, members, name)

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
            storages[key] = _Bytes(f"storage {key!r}", member_bytes(name), members[name].crc32)
        held = len(storages[key].data)
        if count * dtype.itemsize > held:
            raise CheckpointError(f"storage {key!r} claims {count * dtype.itemsize:,} bytes and holds {held:,}")
        return _Storage(storages[key], dtype, 0, count, swapped)

    pickle_bytes = member_bytes(pickles[0])
    if members[pickles[0]].crc32 and zlib.crc32(pickle_bytes) != members[pickles[0]].crc32:
        raise CheckpointError("data.pkl does not match its checksum: the file is damaged")
    unpickler = _Unpickler(memoryview(pickle_bytes), 0, storage, budget)
    tree = unpickler.run()
    return Checkpoint("zip", tree, {}, unpickler.placeholders())


def _zip_members(contents):
    """The members of a zip file by name, from its directory at the end."""
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
        name = contents[name_start:extra_start].decode("utf-8", "replace")
        extra = contents[extra_start : extra_start + extra_size]
        unpacked, packed, header = _zip64_sizes(extra, unpacked, packed, header)
        if name in members:
            raise CheckpointError(f"its zip directory names {name[:80]!r} twice")
        if flags & 1:
            raise CheckpointError("it is an encrypted zip file")
        members[name] = _Member(header, unpacked, crc32, compressed=method != 0 or packed != unpacked)
    if len(members) != count:
        raise CheckpointError(f"its zip directory lists {len(members)} members and promises {count}")
    return members


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


def _zip_member(contents, members, name):
    """The bytes of a stored member, uint8, without a copy."""
    member = members[name]
    if member.compressed:
        # torch.save never compresses. Reading only plain members means that nothing can unfold to more than the file.
        raise CheckpointError(
            f"its member {name[:80]!r} is compressed, which torch.save never does; pack it with `zip -0`"
        )
    if member.header + 30 > len(contents) or contents[member.header : member.header + 4] != b"PK\x03\x04":
        raise CheckpointError(f"its member {name[:80]!r} is not where the zip directory says: the file is damaged")
    name_size, extra_size = struct.unpack_from("<HH", contents, member.header + 26)
    start = member.header + 30 + name_size + extra_size
    if start + member.size > len(contents):
        raise CheckpointError(f"its member {name[:80]!r} ends past the end of the file: it is damaged or cut short")
    return np.frombuffer(contents, np.uint8, count=member.size, offset=start)


# -------------------------------------------------------------------------------------------------------- older form


def _read_legacy(contents, budget):
    storages = {}  # root storages by key: (_Bytes, dtype, elements claimed)

    def storage(dtype, key, count, view):
        known = storages.setdefault(key, (_Bytes(f"storage {key!r}"), dtype, count))
        if known[1:] != (dtype, count):
            raise CheckpointError(f"storage {key!r} is described in two ways")
        first = 0
        if view is not None:
            if not isinstance(view, tuple) or len(view) != 3:
                raise CheckpointError(f"the view of storage {key!r} is not described by key, offset and size")
            first, size = _sizes(view[1:], "the view of a storage")
            if first + size > count:
                raise CheckpointError(f"a view of storage {key!r} ends past its end")
            count = size
        return _Storage(known[0], dtype, first, count)

    view = memoryview(contents)
    unpickler = _Unpickler(view, 0, storage, budget)
    unpickler.run()  # the magic number, which brought us here
    _, protocol, system = unpickler.position, unpickler.run(), unpickler.run()
    if protocol != 1001:
        raise CheckpointError(f"it is of version {protocol!r} of torch's older form, expected 1001")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine; save it again on a little-endian one")
    tree = unpickler.run()
    keys = unpickler.run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its list of storages is damaged")
    if sorted(keys) != sorted(storages):
        raise CheckpointError(f"it stores {len(keys)} storages, its tensors use {len(storages)} others or other ones")
    position = unpickler.position
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
    return Checkpoint("legacy", tree, {}, unpickler.placeholders())


# ------------------------------------------------------------------------------------------------------- safetensors


def _read_safetensors(contents, header_bytes, budget):
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its safetensors header claims {header_bytes:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
        )
    if 8 + header_bytes > len(contents):
        raise CheckpointError("it ends inside its safetensors header: it was cut short, download or copy it again")
    try:
        header = json.loads(contents[8 : 8 + header_bytes].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError("its safetensors header is not the JSON it should be") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("the metadata of its safetensors header are not strings")
    held = _Bytes("the data of the file", np.frombuffer(contents, np.uint8, offset=8 + header_bytes))
    tree = {}
    for name, entry in header.items():
        where = f"tensor {name[:80]!r}"
        if not isinstance(entry, dict) or not isinstance(entry.get("data_offsets"), list):
            raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
        if entry.get("dtype") not in _SAFETENSORS_DTYPES:
            tree[name] = Inert(f"safetensors {str(entry.get('dtype'))[:20]}")
            continue
        dtype = _DTYPES[_SAFETENSORS_DTYPES[entry["dtype"]]]
        shape = _sizes(entry.get("shape"), f"the shape of {where}")
        offsets = _sizes(entry["data_offsets"], f"the place of {where}")
        size = math.prod(shape) * dtype.itemsize
        if len(offsets) != 2 or offsets[1] - offsets[0] != size or offsets[1] > len(held.data):
            raise CheckpointError(f"{where} needs {size:,} bytes, its place {list(offsets)[:4]} in the file has others")
        budget.take(size)
        # Offsets of safetensors need not be multiples of the element size: each tensor gets its own bytes.
        own = _Bytes(where, held.data[offsets[0] : offsets[1]])
        tree[name] = StoredTensor(shape, dtype, _contiguous(shape), 0, own)
    unread = {value.name for value in tree.values() if isinstance(value, Inert)}
    return Checkpoint("safetensors", tree, metadata, tuple(sorted(unread)))


def _sizes(values, what):
    """A tuple of whole numbers from 0 to 2^62, or an error."""
    if not isinstance(values, (tuple, list)) or len(values) > 32:
        raise CheckpointError(f"{what} is not a short list of numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise CheckpointError(f"{what} has {str(value)[:40]}, expected a whole number that is not negative")
    return tuple(values)


def _contiguous(shape):
    """Strides in elements of a C-ordered array."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


# ------------------------------------------------------------------------------------------------------------ pickle


class _Unpickler:
    """Interprets the operations of a pickle as `torch.save` writes it.

    Args:
      data: the bytes.
      position: where to begin; afterwards where the last pickle ended.
      storage: function (dtype, key, count, view) -> _Storage, for the tensors' storages.
      budget: what the tensors may claim.
    """

    def __init__(self, data, position, storage, budget):
        self.data = data
        self.position = position
        self.storage = storage
        self.budget = budget
        self.end = min(len(data), position + MAX_PICKLE_BYTES)
        self.num_operations = 0
        self.inert_names = set()

    def placeholders(self):
        """Names that became inert objects, sorted."""
        return tuple(sorted(self.inert_names))

    def run(self):
        """Reads the next pickle.

        Returns:
          Its value, no deeper than MAX_DEPTH and without cycles.
        """
        self.stack, self.marks, self.memo = [], [], {}
        try:
            while True:
                code = self.take(1)[0]
                self.num_operations += 1
                if self.num_operations > MAX_OPERATIONS:
                    raise CheckpointError(f"its pickle has more than {MAX_OPERATIONS:,} operations")
                if code == 0x2E:  # STOP
                    value = self.stack.pop()
                    break
                operation = _OPERATIONS.get(code)
                if operation is None:
                    name = _REFUSED.get(code, f"operation 0x{code:02x}")
                    raise CheckpointError(f"its pickle uses {name}, which torch.save never writes")
                operation(self)
        except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"its pickle is damaged near byte {self.position:,}") from error
        _check_depth(value)
        return value

    # Reading.

    def take(self, size):
        start, self.position = self.position, self.position + size
        if self.position > self.end:
            if self.end < len(self.data):
                raise CheckpointError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
            raise CheckpointError("its pickle ends too early: the file was cut short, download or copy it again")
        return self.data[start : self.position]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, form):
        """Bytes with their length in front. The length is compared with what is there before anything is copied."""
        return bytes(self.take(self.number(form)))

    def line(self):
        limit = min(self.position + 512, self.end)
        text = bytes(self.data[self.position : limit])
        length = text.find(b"\n")
        if length < 0:
            raise CheckpointError("a name in its pickle has no end")
        self.position += length + 1
        return text[:length].decode("utf-8")

    def since_mark(self):
        values, self.stack = self.stack, self.marks.pop()
        return values

    # Names and calls: nothing here reaches Python's own names.

    def name(self, module, attribute):
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise CheckpointError("it names a class by something other than text")
        root = module.partition(".")[0]
        hostile = root in _HOSTILE_MODULES or "__" in attribute
        if root in ("builtins", "__builtin__"):
            hostile = attribute not in _HARMLESS_BUILTINS
        if root == "_codecs":
            hostile = attribute != "encode"
        if hostile:
            raise CheckpointError(
                f"it names {f'{module}.{attribute}'[:100]}, which can run commands and which no checkpoint needs: "
                "do not trust this file (nothing of it was run)"
            )
        self.push(_Name(module, attribute))

    def push(self, value):
        self.stack.append(value)

    def inert(self, name):
        self.inert_names.add(name)
        return Inert(name)

    def call(self, function, arguments):
        """The value of `function(*arguments)` for the few functions that tensors and plain data need."""
        if not isinstance(function, _Name):
            kind = function.name if isinstance(function, Inert) else type(function).__name__
            raise CheckpointError(f"it calls {kind[:80]!r}, which is not the name of a class or function")
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"it calls {function.dotted[:80]} with something other than a tuple")
        module, attribute = function.module, function.attribute
        if module == "torch._utils" and attribute in _REBUILD:
            return _REBUILD[attribute](self, *arguments)
        if module == "torch._tensor" and attribute == "_rebuild_from_type_v2" and len(arguments) >= 3:
            inner = arguments[0]
            if isinstance(inner, _Name) and inner.module == "torch._utils" and inner.attribute in _REBUILD:
                return _REBUILD[inner.attribute](self, *arguments[2])
        if module == "collections" and attribute in ("OrderedDict", "Counter", "defaultdict"):
            return self.dictionary(arguments[1:] if attribute == "defaultdict" else arguments)
        if module == "torch" and attribute == "Size":
            return _sizes(*arguments, "a torch.Size")
        if module in ("builtins", "__builtin__") and attribute in ("set", "frozenset", "list", "tuple", "dict"):
            return self.container(attribute, arguments)
        if module == "_codecs":
            text, encoding = arguments
            if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
                raise CheckpointError(f"it encodes text as {str(encoding)[:20]!r}, only latin1 is known")
            return text.encode("latin1")
        if module == "numpy" and attribute == "dtype":
            if not isinstance(arguments[0], str):
                raise CheckpointError("it describes a numpy dtype by something other than text")
            return _NumpyDtype(arguments[0])
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if attribute == "_reconstruct":
                return StoredTensor()
            if attribute == "scalar" and len(arguments) == 2:
                return self.numpy_scalar(*arguments)
        return self.inert(function.dotted)

    def numpy_scalar(self, dtype, data):
        if not isinstance(dtype, _NumpyDtype) or not isinstance(data, bytes):
            raise CheckpointError("it holds a numpy scalar without a dtype or value")
        dtype = dtype.dtype()
        if len(data) != dtype.itemsize:
            raise CheckpointError(f"it holds a numpy scalar of {len(data)} bytes, its dtype needs {dtype.itemsize}")
        return np.frombuffer(data, dtype)[0].item()

    def dictionary(self, arguments):
        result = {}
        pairs = arguments[0] if arguments else ()
        if isinstance(pairs, dict):
            pairs = pairs.items()
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise CheckpointError("it builds a dictionary from something other than pairs")
            result[self.key(pair[0])] = pair[1]
        return result

    def container(self, kind, arguments):
        if kind == "dict":
            return self.dictionary(arguments)
        values = arguments[0] if arguments else ()
        if len(arguments) > 1 or not isinstance(values, (list, tuple, set, frozenset)):
            raise CheckpointError(f"it builds a {kind} from something other than a list")
        if kind in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[kind](self.key(value) for value in values)
        return list(values) if kind == "list" else tuple(values)

    def key(self, value):
        """A key or set member whose hash is cheap.

        Tuples are hashed by content (the hash of nested pairs takes exponential time) and large whole numbers can be
        chosen to collide, so both, like objects, become keys equal to nothing else.
        """
        if value is None or isinstance(value, (str, bytes, float)):
            return value
        if isinstance(value, int) and abs(value) < 1 << 60:
            return value
        return self.inert(value.name if isinstance(value, Inert) else f"key of kind {type(value).__name__}")

    def build(self, target, state):
        """Gives `state` to an object, as its attributes. No `__setstate__` is ever asked for."""
        if isinstance(target, StoredTensor):
            if target.dtype is None:
                self.build_array(target, state)
        elif isinstance(target, _NumpyDtype):
            if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
                target.order = "=" if state[1] == "|" else state[1]
        elif isinstance(target, Inert):
            if isinstance(state, dict):
                target.attributes = {key: value for key, value in state.items() if isinstance(key, str)}
        elif not isinstance(target, dict):  # the attributes of an OrderedDict (_metadata) are not needed
            raise CheckpointError(f"it gives attributes to a {type(target).__name__}, which has none")

    def build_array(self, target, state):
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _NumpyDtype):
            raise CheckpointError("it holds a numpy array without shape, dtype or contents")
        _, shape, dtype, column_major, data = state
        shape = _sizes(shape, "the shape of a numpy array")
        dtype = dtype.dtype()
        if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
            raise CheckpointError(f"it holds a numpy array of shape {list(shape)} whose contents do not fit it")
        self.budget.take(len(data))
        strides = _contiguous(shape[::-1])[::-1] if column_major else _contiguous(shape)
        target.shape, target.dtype, target.strides = shape, dtype.newbyteorder("="), strides
        target.swapped = not dtype.isnative
        target.storage = _Bytes("a numpy array", np.frombuffer(data, np.uint8))

    # Tensors.

    def persistent(self, description):
        if not isinstance(description, tuple) or len(description) not in (5, 6) or description[0] != "storage":
            raise CheckpointError("it refers to something outside that is not a storage")
        _, kind, key, _, count = description[:5]
        if not isinstance(kind, _Name) or kind.attribute not in _STORAGES or kind.module.split(".")[0] != "torch":
            name = kind.dotted if isinstance(kind, _Name) else type(kind).__name__
            raise CheckpointError(f"a tensor is stored as {name[:80]}, which cannot be read")
        if not isinstance(key, str) or not re.fullmatch(r"[0-9A-Za-z_]{1,64}", key):
            raise CheckpointError(f"a storage is named {str(key)[:60]!r}, expected a number")
        (count,) = _sizes((count,), f"the size of storage {key!r}")
        return self.storage(
            _DTYPES[_STORAGES[kind.attribute]], key, count, description[5] if len(description) == 6 else None
        )

    def tensor(self, storage, offset, shape, strides, *_):
        """`torch._utils._rebuild_tensor`: a view of a storage. Its extent is checked here, before anything is read."""
        if not isinstance(storage, _Storage):
            raise CheckpointError("a tensor has no storage that could be read")
        (offset,) = _sizes((offset,), "the offset of a tensor")
        shape = _sizes(shape, "the shape of a tensor")
        strides = _sizes(strides, "the strides of a tensor")
        if len(shape) != len(strides):
            raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        first = storage.first + offset
        tensor = StoredTensor(shape, storage.dtype, strides, first, storage.bytes, storage.swapped)
        if offset + tensor._span() > storage.count:
            raise CheckpointError(
                f"a tensor of shape {list(shape)} ends past the {storage.count:,} elements of {storage.bytes.label}"
            )
        if math.prod(shape) > storage.count:
            raise CheckpointError(
                f"a tensor of shape {list(shape)} repeats the {storage.count:,} elements of {storage.bytes.label}"
            )
        self.budget.take(math.prod(shape) * storage.dtype.itemsize)
        return tensor

    def tensor_of_dtype(self, storage, offset, shape, strides, requires_grad, hooks, dtype, *_):
        """`_rebuild_tensor_v3`: a view of an untyped storage that names its dtype."""
        if not isinstance(dtype, _Name) or dtype.module != "torch" or dtype.attribute not in _TORCH_DTYPES:
            name = dtype.dotted if isinstance(dtype, _Name) else type(dtype).__name__
            raise CheckpointError(f"a tensor is of dtype {name[:80]}, which cannot be read")
        if not isinstance(storage, _Storage) or storage.first:
            raise CheckpointError("a tensor has no storage that could be read")
        target = _TORCH_DTYPES[dtype.attribute]
        count = storage.count * storage.dtype.itemsize // target.itemsize
        return self.tensor(_Storage(storage.bytes, target, 0, count, storage.swapped), offset, shape, strides)

    def parameter(self, tensor, *_):
        """`_rebuild_parameter`: the tensor itself."""
        if not isinstance(tensor, StoredTensor):
            raise CheckpointError("a parameter has no tensor that could be read")
        return tensor


_REBUILD = {
    "_rebuild_tensor": _Unpickler.tensor,
    "_rebuild_tensor_v2": _Unpickler.tensor,
    "_rebuild_tensor_v3": _Unpickler.tensor_of_dtype,
    "_rebuild_parameter": _Unpickler.parameter,
    "_rebuild_parameter_with_state": _Unpickler.parameter,
}


def _check_depth(root):
    """Refuses cycles and nesting deeper than MAX_DEPTH, without recursion. Shared parts are walked once."""
    heights = {}
    path = set()

    def children(value):
        if isinstance(value, dict):
            return value.values()
        if isinstance(value, (list, tuple)):
            return value
        if isinstance(value, Inert):
            return [part for part in (value.attributes, value.items) if part]
        return None

    frames = []  # [value, its children still to come, height so far]

    def enter(value):
        parts = children(value)
        if parts is None:
            return
        if id(value) in path:
            raise CheckpointError("its data contain themselves")
        height = heights.get(id(value))
        if len(frames) + (height or 1) > MAX_DEPTH:
            raise CheckpointError(f"its data are nested deeper than {MAX_DEPTH} levels")
        if height is None:
            path.add(id(value))
            frames.append([value, iter(parts), 1])
        elif frames:
            frames[-1][2] = max(frames[-1][2], 1 + height)

    enter(root)
    while frames:
        frame = frames[-1]
        for part in frame[1]:
            before = len(frames)
            enter(part)
            if len(frames) > before:
                break
        else:
            frames.pop()
            path.discard(id(frame[0]))
            heights[id(frame[0])] = frame[2]
            if frames:
                frames[-1][2] = max(frames[-1][2], 1 + frame[2])


# The operations, by code. Each takes the unpickler.


def _put(unpickler, index):
    unpickler.memo[index] = unpickler.stack[-1]


def _append(unpickler, values):
    target = unpickler.stack[-1]
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"it appends to a {type(target).__name__}")


def _set_items(unpickler, values):
    target = unpickler.stack[-1]
    if isinstance(target, Inert):
        target.items = target.items or {}
        target = target.items
    elif not isinstance(target, dict):
        raise CheckpointError(f"it sets entries of a {type(target).__name__}")
    if len(values) % 2:
        raise CheckpointError("it sets a dictionary entry without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[unpickler.key(key)] = value


def _add_items(unpickler, values):
    target = unpickler.stack[-1]
    if isinstance(target, set):
        target.update(unpickler.key(value) for value in values)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"it adds members to a {type(target).__name__}")


def _tuple(unpickler, size):
    values = tuple(unpickler.stack[-size:])
    if len(values) < size:
        raise IndexError
    del unpickler.stack[-size:]
    unpickler.push(values)


def _pop(unpickler):
    if unpickler.stack:
        unpickler.stack.pop()
    else:
        unpickler.stack = unpickler.marks.pop()


def _mark(unpickler):
    unpickler.marks.append(unpickler.stack)
    unpickler.stack = []


def _last(unpickler, count):
    return [unpickler.stack.pop() for _ in range(count)][::-1]


def _global(unpickler):
    module = unpickler.line()
    unpickler.name(module, unpickler.line())


def _new_object(unpickler):
    target, arguments = _last(unpickler, 2)
    unpickler.push(unpickler.call(target, arguments))


def _new_object_with_keywords(unpickler):
    target, arguments, keywords = _last(unpickler, 3)
    if keywords:  # no class of ours is built with keywords: never guess what they meant
        if not isinstance(target, _Name):
            raise CheckpointError("it builds an object of something that is not the name of a class")
        unpickler.push(unpickler.inert(target.dotted))
    else:
        unpickler.push(unpickler.call(target, arguments))


def _build(unpickler):
    state = unpickler.stack.pop()
    unpickler.build(unpickler.stack[-1], state)


def _frozen_set(unpickler):
    unpickler.push(frozenset(unpickler.key(value) for value in unpickler.since_mark()))


def _dictionary(unpickler):
    values = unpickler.since_mark()
    unpickler.push({})
    _set_items(unpickler, values)


def _protocol(unpickler):
    version = unpickler.take(1)[0]
    if version > 5:
        raise CheckpointError(f"its pickle is of protocol {version}, at most 5 is known")


def _text(data):
    return data.decode("utf-8", "surrogatepass")


def _old_text(data):
    """Strings that Python 2 wrote: text wherever they are ASCII, else bytes."""
    return data.decode("ascii") if data.isascii() else data


_OPERATIONS = {
    0x80: _protocol,
    0x95: lambda u: u.take(8),  # FRAME: a length that only matters to streams
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): lambda u: u.since_mark(),
    ord("2"): lambda u: u.push(u.stack[-1]),
    ord("N"): lambda u: u.push(None),
    0x88: lambda u: u.push(True),
    0x89: lambda u: u.push(False),
    ord("J"): lambda u: u.push(u.number("<i")),
    ord("K"): lambda u: u.push(u.number("<B")),
    ord("M"): lambda u: u.push(u.number("<H")),
    0x8A: lambda u: u.push(int.from_bytes(u.sized("<B"), "little", signed=True)),
    ord("G"): lambda u: u.push(u.number(">d")),
    ord("U"): lambda u: u.push(_old_text(u.sized("<B"))),
    ord("T"): lambda u: u.push(_old_text(u.sized("<I"))),
    0x8C: lambda u: u.push(_text(u.sized("<B"))),
    ord("X"): lambda u: u.push(_text(u.sized("<I"))),
    0x8D: lambda u: u.push(_text(u.sized("<Q"))),
    ord("C"): lambda u: u.push(u.sized("<B")),
    ord("B"): lambda u: u.push(u.sized("<I")),
    0x8E: lambda u: u.push(u.sized("<Q")),
    0x96: lambda u: u.push(u.sized("<Q")),  # a bytearray: nothing here changes it
    ord("]"): lambda u: u.push([]),
    ord("a"): lambda u: _append(u, [u.stack.pop()]),
    ord("e"): lambda u: _append(u, u.since_mark()),
    ord("l"): lambda u: u.push(u.since_mark()),
    ord(")"): lambda u: u.push(()),
    0x85: lambda u: _tuple(u, 1),
    0x86: lambda u: _tuple(u, 2),
    0x87: lambda u: _tuple(u, 3),
    ord("t"): lambda u: u.push(tuple(u.since_mark())),
    ord("}"): lambda u: u.push({}),
    ord("d"): _dictionary,
    ord("s"): lambda u: _set_items(u, _last(u, 2)),
    ord("u"): lambda u: _set_items(u, u.since_mark()),
    0x8F: lambda u: u.push(set()),
    0x90: lambda u: _add_items(u, u.since_mark()),
    0x91: _frozen_set,
    ord("h"): lambda u: u.push(u.memo[u.number("<B")]),
    ord("j"): lambda u: u.push(u.memo[u.number("<I")]),
    ord("q"): lambda u: _put(u, u.number("<B")),
    ord("r"): lambda u: _put(u, u.number("<I")),
    0x94: lambda u: _put(u, len(u.memo)),
    ord("c"): _global,
    0x93: lambda u: u.name(*_last(u, 2)),
    ord("R"): _new_object,  # a call and a new object differ only for Python: here neither runs anything
    0x81: _new_object,
    0x92: _new_object_with_keywords,
    ord("b"): _build,
    ord("Q"): lambda u: u.push(u.persistent(u.stack.pop())),
}
_REFUSED = {
    ord("i"): "INST, which creates an object",
    ord("o"): "OBJ, which creates an object",
    0x82: "EXT1, a name by number",
    0x83: "EXT2, a name by number",
    0x84: "EXT4, a name by number",
    ord("P"): "PERSID, a reference as text",
    0x97: "NEXT_BUFFER, a reference outside the file",
    0x98: "READONLY_BUFFER, a reference outside the file",
    0x8B: "LONG4, a number of any length",
    **dict.fromkeys(b"FILSVgp", "an operation of the oldest text form"),
}
