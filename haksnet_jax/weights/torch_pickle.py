"""Interprets the pickles that `torch.save` writes, without running anything.

A pickle is a small program. This interpreter knows the operations that `torch.save` writes and no others; what their
names and calls mean is in `torch_objects`. Operations are limited in number, everything that they make or copy is
charged to the file's budget, and tensors stay descriptions of places in the file.
"""

import struct
from collections.abc import Callable
from typing import Any

from haksnet_jax.weights import budget as costs
from haksnet_jax.weights.budget import Budget
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert, described
from haksnet_jax.weights.torch_objects import Name, Objects

MAX_PICKLE_BYTES = 32 << 20
MAX_OPERATIONS = 1_000_000  # a detector with the state of its optimizer has about 60,000
MAX_DEPTH = 64


class Unpickler:
    """A machine of a stack, marks in it, and a memo.

    Args:
      data: the bytes.
      position: where to begin; afterwards where the last pickle ended.
      storage: function (dtype, key, count, view) -> Storage, for the tensors' storages.
      budget: Budget.
    """

    def __init__(self, data: Any, position: int, storage: Callable[..., Any], budget: Budget) -> None:
        self.data = data
        self.position = position
        self.budget = budget
        self.objects = Objects(storage, budget)
        self.end = min(len(data), position + MAX_PICKLE_BYTES)
        self.num_operations = 0

    def placeholders(self) -> tuple[str, ...]:
        """Names that became inert objects, sorted."""
        return tuple(sorted(self.objects.inert_names))

    def run(self) -> Any:
        """Reads the next pickle.

        Returns:
          Its value, no deeper than MAX_DEPTH and without cycles.

        Raises:
          CheckpointError: it is damaged, asks for too much, or for what no checkpoint needs.
        """
        self.stack: list[Any] = []
        self.marks: list[Any] = []
        self.memo: dict[Any, Any] = {}
        try:
            while True:
                code = self.take(1)[0]
                self.num_operations += 1
                if self.num_operations > MAX_OPERATIONS:
                    raise CheckpointError(f"its pickle has more than {MAX_OPERATIONS:,} operations")
                if self.num_operations % 1024 == 0:
                    self.budget.look_at_the_clock()
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
        self.stack, self.marks, self.memo = [], [], {}
        _check_depth(value, self.budget)
        return value

    # Reading.

    def take(self, size: int) -> Any:
        start, self.position = self.position, self.position + size
        if self.position > self.end:
            if self.end < len(self.data):
                raise CheckpointError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
            raise CheckpointError("its pickle ends too early: the file was cut short, download or copy it again")
        return self.data[start : self.position]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, form: str) -> bytes:
        """Bytes with their length in front. The length is compared with what is there before anything is copied."""
        data = self.take(self.number(form))
        self.budget.charge(costs.OBJECT + len(data))
        return bytes(data)

    def text(self, form: str) -> str:
        data = self.sized(form)
        self.budget.charge(costs.OBJECT + (1 if data.isascii() else 4) * len(data))
        return data.decode("utf-8", "surrogatepass")

    def old_text(self, form: str) -> str | bytes:
        """Strings that Python 2 wrote: text wherever they are ASCII, else bytes."""
        data = self.sized(form)
        self.budget.charge(costs.OBJECT + len(data))
        return data.decode("ascii") if data.isascii() else data

    def line(self) -> str:
        limit = min(self.position + 512, self.end)
        text = bytes(self.data[self.position : limit])
        length = text.find(b"\n")
        if length < 0:
            raise CheckpointError("a name in its pickle has no end")
        self.position += length + 1
        self.budget.charge(2 * costs.OBJECT + 4 * length)
        return text[:length].decode("utf-8")

    # The stack.

    def push(self, value: Any, cost: int = 0) -> None:
        self.budget.charge(costs.SLOT + cost)
        self.stack.append(value)

    def mark(self) -> None:
        self.budget.charge(costs.SLOT + costs.OBJECT)
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def put(self, index: Any) -> None:
        self.budget.charge(costs.ENTRY)
        self.memo[index] = self.stack[-1]


def _check_depth(root, budget):
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
            budget.charge(costs.ENTRY)
            budget.look_at_the_clock()
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


def _append(unpickler, values):
    target = unpickler.stack[-1]
    if isinstance(target, list):
        unpickler.budget.charge(costs.SLOT * len(values))
        target.extend(values)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"it appends to {described(target)}")


def _set_items(unpickler, values):
    target = unpickler.stack[-1]
    unpickler.budget.charge(costs.OBJECT + costs.ENTRY * (len(values) // 2))
    if isinstance(target, Inert):
        target.items = target.items or {}
        target = target.items
    elif not isinstance(target, dict):
        raise CheckpointError(f"it sets entries of {described(target)}")
    if len(values) % 2:
        raise CheckpointError("it sets a dictionary entry without a value")
    for index in range(0, len(values), 2):
        if index % 2048 == 0:
            unpickler.budget.look_at_the_clock()
        target[unpickler.objects.key(values[index])] = values[index + 1]


def _add_items(unpickler, values):
    target = unpickler.stack[-1]
    if isinstance(target, set):
        unpickler.budget.charge(costs.MEMBER * len(values))
        target.update(unpickler.objects.key(value) for value in values)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"it adds members to {described(target)}")


def _tuple_of_marked(unpickler):
    values = unpickler.since_mark()
    unpickler.budget.charge(costs.SLOT * len(values))
    unpickler.push(tuple(values), costs.OBJECT)


def _tuple(unpickler, size):
    values = tuple(unpickler.stack[-size:])
    if len(values) < size:
        raise IndexError
    del unpickler.stack[-size:]
    unpickler.push(values, costs.OBJECT)


def _pop(unpickler):
    if unpickler.stack:
        unpickler.stack.pop()
    else:
        unpickler.stack = unpickler.marks.pop()


def _last(unpickler, count):
    return [unpickler.stack.pop() for _ in range(count)][::-1]


def _global(unpickler):
    module = unpickler.line()
    unpickler.push(unpickler.objects.name(module, unpickler.line()))


def _new_object(unpickler):
    target, arguments = _last(unpickler, 2)
    unpickler.push(unpickler.objects.call(target, arguments))


def _new_object_with_keywords(unpickler):
    target, arguments, keywords = _last(unpickler, 3)
    if keywords:  # no class of ours is built with keywords: never guess what they meant
        if not isinstance(target, Name):
            raise CheckpointError("it builds an object of something that is not the name of a class")
        unpickler.push(unpickler.objects.inert(target.dotted))
    else:
        unpickler.push(unpickler.objects.call(target, arguments))


def _build(unpickler):
    state = unpickler.stack.pop()
    unpickler.objects.build(unpickler.stack[-1], state)


def _dictionary(unpickler):
    values = unpickler.since_mark()
    unpickler.push({}, costs.OBJECT)
    _set_items(unpickler, values)


def _protocol(unpickler):
    version = unpickler.take(1)[0]
    if version > 5:
        raise CheckpointError(f"its pickle is of protocol {version}, at most 5 is known")


def _whole(unpickler, data):
    unpickler.push(int.from_bytes(data, "little", signed=True), costs.OBJECT + len(data))


_OPERATIONS = {
    0x80: _protocol,
    0x95: lambda u: u.take(8),  # FRAME: a length that only matters to streams
    ord("("): Unpickler.mark,
    ord("0"): _pop,
    ord("1"): lambda u: u.since_mark(),
    ord("2"): lambda u: u.push(u.stack[-1]),
    ord("N"): lambda u: u.push(None),
    0x88: lambda u: u.push(True),
    0x89: lambda u: u.push(False),
    ord("J"): lambda u: u.push(u.number("<i"), costs.OBJECT),
    ord("K"): lambda u: u.push(u.number("<B")),
    ord("M"): lambda u: u.push(u.number("<H"), costs.OBJECT),
    0x8A: lambda u: _whole(u, u.sized("<B")),
    ord("G"): lambda u: u.push(u.number(">d"), costs.OBJECT),
    ord("U"): lambda u: u.push(u.old_text("<B")),
    ord("T"): lambda u: u.push(u.old_text("<I")),
    0x8C: lambda u: u.push(u.text("<B")),
    ord("X"): lambda u: u.push(u.text("<I")),
    0x8D: lambda u: u.push(u.text("<Q")),
    ord("C"): lambda u: u.push(u.sized("<B")),
    ord("B"): lambda u: u.push(u.sized("<I")),
    0x8E: lambda u: u.push(u.sized("<Q")),
    0x96: lambda u: u.push(u.sized("<Q")),  # a bytearray: nothing here changes it
    ord("]"): lambda u: u.push([], costs.OBJECT),
    ord("a"): lambda u: _append(u, [u.stack.pop()]),
    ord("e"): lambda u: _append(u, u.since_mark()),
    ord("l"): lambda u: u.push(u.since_mark()),
    ord(")"): lambda u: u.push(()),
    0x85: lambda u: _tuple(u, 1),
    0x86: lambda u: _tuple(u, 2),
    0x87: lambda u: _tuple(u, 3),
    ord("t"): _tuple_of_marked,
    ord("}"): lambda u: u.push({}, costs.OBJECT),
    ord("d"): _dictionary,
    ord("s"): lambda u: _set_items(u, _last(u, 2)),
    ord("u"): lambda u: _set_items(u, u.since_mark()),
    0x8F: lambda u: u.push(set(), 4 * costs.OBJECT),
    0x90: lambda u: _add_items(u, u.since_mark()),
    0x91: lambda u: u.push(u.objects.container(frozenset, u.since_mark())),
    ord("h"): lambda u: u.push(u.memo[u.number("<B")]),
    ord("j"): lambda u: u.push(u.memo[u.number("<I")]),
    ord("q"): lambda u: u.put(u.number("<B")),
    ord("r"): lambda u: u.put(u.number("<I")),
    0x94: lambda u: u.put(len(u.memo)),
    ord("c"): _global,
    0x93: lambda u: u.push(u.objects.name(*_last(u, 2))),
    ord("R"): _new_object,  # a call and a new object differ only for Python: here neither runs anything
    0x81: _new_object,
    0x92: _new_object_with_keywords,
    ord("b"): _build,
    ord("Q"): lambda u: u.push(u.objects.persistent(u.stack.pop())),
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
