"""What names and calls in a pickle of `torch.save` mean: tensors and plain data, and nothing else.

A name stays a string, a call yields one of the few values listed in `Objects.call`, and everything else becomes an
`Inert` object that only knows what it was called. Nothing here imports, looks up or calls what a file names.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from haksnet_jax.weights import budget as costs
from haksnet_jax.weights.budget import Budget
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import (
    DTYPES,
    Inert,
    Storage,
    StoredBytes,
    StoredTensor,
    contiguous,
    described,
    is_plain_name,
    shown_name,
    shown_sizes,
    sizes,
)

MAX_NAME_LENGTH = 300
_MAX_ARGUMENTS = 16  # of the functions that are known; they are handed on one by one, which takes time

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
_TORCH_DTYPES = DTYPES | {
    alias: DTYPES[name]
    for alias, name in {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "long": "int64",
        "int": "int32",
    }.items()
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


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Name:
    """A class or function, by name alone."""

    module: str
    attribute: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.attribute}"


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class _NumpyDtype:
    """A numpy dtype under construction: its text and, once given, its byte order."""

    text: str
    order: str = "="

    def dtype(self):
        if not re.fullmatch(r"[fiu][1248]|b1|bool", self.text) or self.text == "f1":
            shown = shown_name(self.text)
            raise CheckpointError(f"it holds a numpy array of dtype '{shown}', only plain numbers can be read")
        return np.dtype(self.text).newbyteorder(self.order)


class Objects:
    """Makes the objects of a pickle.

    Args:
      storage: function (dtype, key, count, view) -> Storage, for the tensors' storages.
      budget: Budget.

    Attributes:
      inert_names: names that became inert objects.
    """

    def __init__(self, storage: Callable[..., Any], budget: Budget) -> None:
        self.storage = storage
        self.budget = budget
        self.inert_names: set[str] = set()

    def name(self, module: str, attribute: str) -> Any:
        """A name, or an error where no checkpoint needs it."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise CheckpointError("it names a class by something other than text")
        if len(module) + len(attribute) > MAX_NAME_LENGTH:
            raise CheckpointError(f"it names a class by {len(module) + len(attribute):,} letters")
        root = module.partition(".")[0]
        hostile = root in _HOSTILE_MODULES or "__" in attribute
        if root in ("builtins", "__builtin__"):
            hostile = attribute not in _HARMLESS_BUILTINS
        if root == "_codecs":
            hostile = attribute != "encode"
        if hostile:
            raise CheckpointError(
                f"it names {shown_name(f'{module}.{attribute}')}, which can run commands and which no checkpoint "
                "needs: do not trust this file (nothing of it was run)"
            )
        self.budget.charge(2 * costs.OBJECT)
        return Name(module, attribute)

    def inert(self, name: str) -> Inert:
        self.budget.charge(2 * costs.OBJECT + costs.MEMBER + 4 * len(name))
        self.inert_names.add(name)
        return Inert(name)

    def call(self, function: Any, arguments: Any) -> Any:
        """The value of `function(*arguments)` for the few functions that tensors and plain data need."""
        if not isinstance(function, Name):
            raise CheckpointError(f"it calls {described(function)}, which is not the name of a class or function")
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"it calls {shown_name(function.dotted)} with something other than a tuple")
        known = self._known(function.module, function.attribute)
        if known is None:
            return self.inert(function.dotted)
        if len(arguments) > _MAX_ARGUMENTS:
            raise CheckpointError(f"it calls {shown_name(function.dotted)} with {len(arguments):,} arguments")
        return known(self, *arguments)

    def _known(self, module, attribute):
        if module == "torch._utils":
            return _REBUILD.get(attribute)
        if module in ("builtins", "__builtin__"):
            return _CONTAINERS.get(attribute)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return {"_reconstruct": Objects.empty_array, "scalar": Objects.numpy_scalar}.get(attribute)
        return _FUNCTIONS.get((module, attribute))

    # Plain data.

    def subclass(self, inner: Any | None = None, kind: Any | None = None, arguments: Any = (), *_: Any) -> Any:
        """`torch._tensor._rebuild_from_type_v2`: the tensor that the subclass wraps."""
        if isinstance(inner, Name) and inner.module == "torch._utils" and inner.attribute in _REBUILD:
            return self.call(inner, arguments)
        return self.inert("torch._tensor._rebuild_from_type_v2")

    def size(self, values: Any = (), *_: Any) -> Any:
        self.budget.charge(4 * costs.OBJECT)
        return sizes(values, "a torch.Size")

    def encoded(self, text: Any, encoding: Any) -> Any:
        if not isinstance(text, str) or not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
            raise CheckpointError(f"it encodes {described(text)} as {described(encoding)}, only latin1 is known")
        self.budget.charge(costs.OBJECT + len(text))
        return text.encode("latin1")

    def numpy_dtype(self, text: Any | None = None, *_: Any) -> Any:
        if not isinstance(text, str):
            raise CheckpointError("it describes a numpy dtype by something other than text")
        self.budget.charge(2 * costs.OBJECT)
        return _NumpyDtype(text)

    def empty_array(self, *_: Any) -> Any:
        self.budget.charge(costs.TENSOR)
        return StoredTensor()

    def numpy_scalar(self, dtype: Any, data: Any) -> Any:
        if not isinstance(dtype, _NumpyDtype) or not isinstance(data, bytes):
            raise CheckpointError("it holds a numpy scalar without a dtype or value")
        dtype = dtype.dtype()
        if len(data) != dtype.itemsize:
            raise CheckpointError(f"it holds a numpy scalar of {len(data)} bytes, its dtype needs {dtype.itemsize}")
        self.budget.charge(costs.OBJECT)
        return np.frombuffer(data, dtype)[0].item()

    def default_dictionary(self, factory: Any | None = None, pairs: Any = ()) -> Any:
        return self.dictionary(pairs)

    def dictionary(self, pairs: Any = ()) -> Any:
        if not isinstance(pairs, (dict, list, tuple, set, frozenset)):
            raise CheckpointError("it builds a dictionary from something other than pairs")
        self.budget.charge(costs.OBJECT + costs.ENTRY * len(pairs))
        result = {}
        for pair in pairs.items() if isinstance(pairs, dict) else pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise CheckpointError("it builds a dictionary from something other than pairs")
            result[self.key(pair[0])] = pair[1]
        return result

    def container(self, kind: Any, values: Any = ()) -> Any:
        """A copy of `values` as `kind`: list, tuple, set or frozenset."""
        if not isinstance(values, (list, tuple, set, frozenset)):
            raise CheckpointError(f"it builds a {kind.__name__} from something other than a list")
        if kind in (set, frozenset):
            self.budget.charge(4 * costs.OBJECT + costs.MEMBER * len(values))
            return kind(self.key(value) for value in values)
        self.budget.charge(costs.OBJECT + costs.SLOT * len(values))
        return kind(values)

    def key(self, value: Any) -> Any:
        """A key or set member whose hash is cheap.

        Tuples are hashed by content (the hash of nested pairs takes exponential time) and large whole numbers can be
        chosen to collide, so both, like objects, become keys equal to nothing else.
        """
        if value is None or isinstance(value, (str, bytes, float)):
            return value
        if isinstance(value, int) and abs(value) < 1 << 60:
            return value
        return self.inert(value.name if isinstance(value, Inert) else f"key of kind {type(value).__name__}")

    def build(self, target: Any, state: Any) -> None:
        """Gives `state` to an object, as its attributes. No `__setstate__` is ever asked for."""
        if isinstance(target, StoredTensor):
            if target.dtype is None:
                self.build_array(target, state)
        elif isinstance(target, _NumpyDtype):
            if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
                target.order = "=" if state[1] == "|" else state[1]
        elif isinstance(target, Inert):
            if isinstance(state, dict):
                self.budget.charge(costs.OBJECT + costs.ENTRY * len(state))
                target.attributes = {key: value for key, value in state.items() if isinstance(key, str)}
        elif not isinstance(target, dict):  # the attributes of an OrderedDict (_metadata) are not needed
            raise CheckpointError(f"it gives attributes to {described(target)}, which has none")

    def build_array(self, target: Any, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _NumpyDtype):
            raise CheckpointError("it holds a numpy array without shape, dtype or contents")
        _, shape, dtype, column_major, data = state
        shape = sizes(shape, "the shape of a numpy array")
        dtype = dtype.dtype()
        if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
            raise CheckpointError(f"it holds a numpy array of shape {shown_sizes(shape)} whose contents do not fit it")
        self.budget.take(len(data))
        strides = contiguous(shape[::-1])[::-1] if column_major else contiguous(shape)
        target.shape, target.dtype, target.strides = shape, dtype.newbyteorder("="), strides
        target.swapped = not dtype.isnative
        target.storage = StoredBytes("a numpy array", np.frombuffer(data, np.uint8))

    # Tensors.

    def persistent(self, description: Any) -> Any:
        """The storage that a persistent id describes."""
        if not isinstance(description, tuple) or len(description) not in (5, 6) or description[0] != "storage":
            raise CheckpointError("it refers to something outside that is not a storage")
        _, kind, key, _, count = description[:5]
        if not isinstance(kind, Name) or kind.attribute not in _STORAGES or kind.module.split(".")[0] != "torch":
            name = shown_name(kind.dotted) if isinstance(kind, Name) else described(kind)
            raise CheckpointError(f"a tensor is stored as {name}, which cannot be read")
        if not is_plain_name(key):
            raise CheckpointError(f"a storage is named by {described(key)}, expected a number")
        (count,) = sizes((count,), f"the size of storage {key!r}")
        self.budget.charge(2 * costs.OBJECT)
        return self.storage(
            DTYPES[_STORAGES[kind.attribute]], key, count, description[5] if len(description) == 6 else None
        )

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        """`torch._utils._rebuild_tensor`: a view of a storage. Its extent is checked here, before anything is read."""
        if not isinstance(storage, Storage):
            raise CheckpointError("a tensor has no storage that could be read")
        (offset,) = sizes((offset,), "the offset of a tensor")
        shape = sizes(shape, "the shape of a tensor")
        strides = sizes(strides, "the strides of a tensor")
        if len(shape) != len(strides):
            raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        self.budget.charge(costs.TENSOR)
        tensor = StoredTensor(shape, storage.dtype, strides, storage.first + offset, storage.bytes, storage.swapped)
        if offset + tensor.span() > storage.count:
            raise CheckpointError(
                f"a tensor of shape {shown_sizes(shape)} ends past the {storage.count:,} elements of "
                f"{storage.bytes.label}"
            )
        if math.prod(shape) > storage.count:
            raise CheckpointError(
                f"a tensor of shape {shown_sizes(shape)} repeats the {storage.count:,} elements of "
                f"{storage.bytes.label}"
            )
        self.budget.take(math.prod(shape) * storage.dtype.itemsize)
        return tensor

    def tensor_of_dtype(
        self, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> Any:
        """`_rebuild_tensor_v3`: a view of an untyped storage that names its dtype."""
        if not isinstance(dtype, Name) or dtype.module != "torch" or dtype.attribute not in _TORCH_DTYPES:
            name = shown_name(dtype.dotted) if isinstance(dtype, Name) else described(dtype)
            raise CheckpointError(f"a tensor is of dtype {name}, which cannot be read")
        if not isinstance(storage, Storage) or storage.first:
            raise CheckpointError("a tensor has no storage that could be read")
        target = _TORCH_DTYPES[dtype.attribute]
        count = storage.count * storage.dtype.itemsize // target.itemsize
        return self.tensor(Storage(storage.bytes, target, 0, count, storage.swapped), offset, shape, strides)

    def parameter(self, tensor: Any, *_: Any) -> Any:
        """`_rebuild_parameter`: the tensor itself."""
        if not isinstance(tensor, StoredTensor):
            raise CheckpointError("a parameter has no tensor that could be read")
        return tensor


_REBUILD = {
    "_rebuild_tensor": Objects.tensor,
    "_rebuild_tensor_v2": Objects.tensor,
    "_rebuild_tensor_v3": Objects.tensor_of_dtype,
    "_rebuild_parameter": Objects.parameter,
    "_rebuild_parameter_with_state": Objects.parameter,
}
_CONTAINERS = {
    "dict": Objects.dictionary,
    "list": lambda objects, *values: objects.container(list, *values),
    "tuple": lambda objects, *values: objects.container(tuple, *values),
    "set": lambda objects, *values: objects.container(set, *values),
    "frozenset": lambda objects, *values: objects.container(frozenset, *values),
}
_FUNCTIONS = {
    ("torch._tensor", "_rebuild_from_type_v2"): Objects.subclass,
    ("torch", "Size"): Objects.size,
    ("collections", "OrderedDict"): Objects.dictionary,
    ("collections", "Counter"): Objects.dictionary,
    ("collections", "defaultdict"): Objects.default_dictionary,
    ("_codecs", "encode"): Objects.encoded,
    ("numpy", "dtype"): Objects.numpy_dtype,
}
