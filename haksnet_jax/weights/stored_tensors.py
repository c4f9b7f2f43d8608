"""What a file of weights holds: descriptions of tensors that are still in the file, and objects that are not built."""

import dataclasses
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from haksnet_jax import json_files
from haksnet_jax.weights.errors import CheckpointError

DTYPES = {
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


@dataclasses.dataclass(eq=False, slots=True, repr=False)
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

    def __repr__(self) -> str:  # its parts are left out: written out they may be endless
        return f"<{shown_name(self.name)}>"


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class StoredBytes:
    """The bytes of one storage; `data` is set once its place is known."""

    label: str
    data: np.ndarray | None = None  # uint8
    crc32: int | None = None  # expected, until it was checked

    def checked(self) -> np.ndarray:
        """The bytes, after comparing them once with the checksum that the file records."""
        if self.data is None:
            raise CheckpointError(f"{self.label} is named but not stored")
        if self.crc32 and zlib.crc32(self.data) != self.crc32:  # type: ignore[arg-type]
            raise CheckpointError(f"{self.label} does not match its checksum: the file is damaged")
        self.crc32 = None
        return self.data


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Storage:
    """`count` elements of `dtype` in `bytes`, from element `first` on."""

    bytes: StoredBytes
    dtype: np.dtype
    first: int
    count: int
    swapped: bool = False  # the other byte order than this machine's


@dataclasses.dataclass(eq=False, slots=True, repr=False)
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
    storage: StoredBytes | None = None
    swapped: bool = False

    def __repr__(self) -> str:
        return f"<tensor {shown_sizes(self.shape)} {self.dtype}>"

    def numpy(self) -> np.ndarray:
        """Reads the values.

        Returns:
          A contiguous array of `shape` and `dtype`, in this machine's byte order.

        Raises:
          CheckpointError: the stored bytes are missing or damaged.
        """
        if self.storage is None:
            raise CheckpointError("it holds an array without contents")
        if 0 in self.shape:
            if math.prod(max(size, 1) for size in self.shape) >= 1 << 58:  # NumPy wants the product of the others too
                raise CheckpointError(f"it holds an array of sizes {shown_sizes(self.shape)}, which none can have")
            return np.zeros(self.shape, self.dtype)
        assert self.dtype is not None  # (with a storage)
        size = self.dtype.itemsize
        values = np.frombuffer(self.storage.checked(), self.dtype, offset=self.offset * size, count=self.span())
        view = np.lib.stride_tricks.as_strided(values, self.shape, [s * size for s in self.strides], writeable=False)
        result = np.array(view, order="C")
        if self.swapped:  # by way of whole numbers: bfloat16 has no byte order of its own
            result = result.view(f"u{size}").byteswap().view(self.dtype)
        return result

    def __array__(self, dtype: Any | None = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def span(self) -> int:
        """Elements from the first to the last one used."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


def sizes(values: Any, what: str) -> tuple[int, ...]:
    """A tuple of whole numbers from 0 to 2^62, or an error."""
    if not isinstance(values, (tuple, list)) or len(values) > 32:
        raise CheckpointError(f"{what} is not a short list of numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise CheckpointError(f"{what} has {described(value)}, expected a whole number that is not negative")
    return tuple(values)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a C-ordered array."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


# Values of a file in messages: by type and size, since written out they may be endless.


def described(value: Any) -> str:
    """A value of a file in a few words: numbers as they are, everything else by its type and size."""
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return f"a {type(value).__name__} of length {len(value)}"
    if isinstance(value, tuple | list | dict | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Inert):
        return f"a {shown_name(value.name)} object"
    if isinstance(value, StoredTensor):
        return "a tensor"
    return f"a {type(value).__name__.strip('_').lower()}"


def shown_name(name: Any) -> str:
    """A name of a file, short and without control characters."""
    return json_files.printable(name if len(name) <= 80 else f"{name[:77]}...")


def shown_sizes(values: Any) -> str:
    """A shape in a message."""
    return f"[{', '.join(map(str, values[:6]))}{', ...' if len(values) > 6 else ''}]"


def is_plain_name(text: Any) -> bool:
    """Whether a text is a short name of letters, digits and underscores."""
    return isinstance(text, str) and re.fullmatch(r"[0-9A-Za-z_]{1,64}", text) is not None
