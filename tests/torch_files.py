"""Writes files in the forms of `torch.save`, well-formed and hostile ones, without PyTorch and without our reader.

Values are plain data and the four things below; `pickle_bytes` turns them into a pickle of protocol 2.
"""

import dataclasses
import io
import struct
import zipfile

import numpy as np
from reference_weights import make_state_dict

from haksnet_jax.weights.torch_weights import entries

STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


# The recorded reference's small detector.
TINY = {
    "channels": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "mlp_ratios": [8, 8, 4, 4],
    "fpn_channels": 32,
    "hidden": 64,
    "num_classes": 15,
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """REDUCE, or another operation that calls; then, where `state` is given, BUILD."""

    function: object
    arguments: object
    state: object = None
    operation: bytes = b"R"


@dataclasses.dataclass(frozen=True)
class Persistent:
    """A reference to a storage."""

    description: tuple


@dataclasses.dataclass(frozen=True)
class Raw:
    """Operations as they are."""

    operations: bytes


def _emit(value, out):
    if value is None:
        out.write(b"N")
    elif value is True or value is False:
        out.write(b"\x88" if value else b"\x89")
    elif isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        out.write(b"\x8a" + bytes([len(data)]) + data)
    elif isinstance(value, float):
        out.write(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        data = value.encode()
        out.write(b"X" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, bytes):
        out.write(b"B" + struct.pack("<I", len(value)) + value)
    elif isinstance(value, (tuple, list)):
        out.write(b"(")
        for part in value:
            _emit(part, out)
        out.write(b"t" if isinstance(value, tuple) else b"l")
    elif isinstance(value, dict):
        out.write(b"}(")
        for key, part in value.items():
            _emit(key, out)
            _emit(part, out)
        out.write(b"u")
    elif isinstance(value, (set, frozenset)):
        out.write(b"(")
        for part in value:
            _emit(part, out)
        out.write(b"\x91")
    elif isinstance(value, Global):
        out.write(f"c{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Call):
        _emit(value.function, out)
        _emit(value.arguments, out)
        if value.operation == b"\x92":
            _emit({}, out)
        out.write(value.operation)
        if value.state is not None:
            _emit(value.state, out)
            out.write(b"b")
    elif isinstance(value, Persistent):
        _emit(value.description, out)
        out.write(b"Q")
    elif isinstance(value, Raw):
        out.write(value.operations)
    else:
        raise TypeError(type(value))


def pickle_bytes(value):
    """The pickle of a value."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    _emit(value, out)
    out.write(b".")
    return out.getvalue()


def storage(dtype, key, count, *view):
    """A reference to a storage of `count` elements."""
    kind = Global("torch", STORAGE_NAMES.get(str(dtype), str(dtype)))
    return Persistent(("storage", kind, key, "cpu", count, *view))


def tensor(dtype, key, count, shape, strides=None, offset=0, *view, function="_rebuild_tensor_v2"):
    """A view of a storage."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    hooks = Call(Global("collections", "OrderedDict"), ())
    arguments = (storage(dtype, key, count, *view), offset, tuple(shape), tuple(strides), False, hooks)
    return Call(Global("torch._utils", function), arguments)


def stored(value, storages, view=()):
    """Replaces the numpy arrays in a value by tensors, whose data are added to `storages` ({key: bytes})."""
    if isinstance(value, dict):
        return {key: stored(part, storages, view) for key, part in value.items()}
    if isinstance(value, list):
        return [stored(part, storages, view) for part in value]
    if isinstance(value, np.ndarray):
        key = str(len(storages))
        storages[key] = (value.tobytes(), value.size)
        return tensor(value.dtype, key, value.size, value.shape, None, 0, *view)
    return value


def write_zip(path, value, storages=None, *, members=None, compression=zipfile.ZIP_STORED, root="archive"):
    """A file in the zip form. Arrays in `value` are stored; `storages` {key: bytes} come on top."""
    written = {}
    value = stored(value, written)
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", value if isinstance(value, bytes) else pickle_bytes(value))
        for key, (data, _) in written.items():
            file.writestr(f"{root}/data/{key}", data)
        for key, data in (storages or {}).items():
            file.writestr(f"{root}/data/{key}", data)
        for name, data in (members or {}).items():
            file.writestr(f"{root}/{name}", data)
        file.writestr(f"{root}/version", b"3\n")
    return path


def write_legacy(path, value, storages=None):
    """A file in the older form. `storages` {key: (bytes, elements)} come on top of the arrays in `value`."""
    written = {}
    value = stored(value, written, view=(None,))
    written |= storages or {}
    with open(path, "wb") as file:
        file.write(pickle_bytes(0x1950A86A20F9469CFC6C))
        file.write(pickle_bytes(1001))
        file.write(pickle_bytes({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}))
        file.write(pickle_bytes(value))
        file.write(pickle_bytes(list(written)))
        for data, count in written.values():
            file.write(struct.pack("<q", count) + data)
    return path


def make_weights(architecture, salt=""):
    """Weights of any size under upstream's names; the values are those of the recorded reference's rule."""
    described = []
    for entry in entries(architecture):
        described.append({"name": entry.theirs, "shape": entry.shape})
        if entry.theirs.endswith("running_var"):
            name = entry.theirs.replace("running_var", "num_batches_tracked")
            described.append({"name": name, "shape": (), "dtype": "int64"})
    return make_state_dict(described, salt)
