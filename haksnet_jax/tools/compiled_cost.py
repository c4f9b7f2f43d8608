"""What a compiled program does: reads the text of an optimised XLA program and adds up its work.

`compiled.cost_analysis()` counts the body of a loop once, whatever its length; a stage of scanned blocks would cost as
much as one block. Here each body counts as often as it runs. Instructions inside fusions count towards operations,
those outside towards bytes, and collectives are listed. Of a conditional, the first branch counts.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What changes part of its first operand in place, and which operand holds that part.
_CHANGES_PART = {"dynamic-update-slice": 1, "scatter": 2}
# No work of their own: names for parts of what is there already, and the ends of copies that began elsewhere.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "opt-barrier", "copy-done", "slice-done", "async-done", "async-update", "iota",
    *(f"{kind}-done" for kind in _COLLECTIVES),
}  # fmt: skip
_ARITHMETIC = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "compare", "select", "and", "or",
    "xor", "clamp", "floor", "ceil", "sign", "power", "sqrt", "rsqrt", "exponential", "exponential-minus-one", "log",
    "log-plus-one", "logistic", "tanh", "cosine", "sine", "erf", "atan2", "shift-left", "shift-right-logical",
    "shift-right-arithmetic", "round-nearest-even", "round-nearest-afz", "remainder",
}  # fmt: skip


class Array(NamedTuple):
    """An array in a program: type, sizes, layout (minor dimension first), first tile, and whether it lies on chip."""

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory, with what its layout adds to fill tiles."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits.group()) if digits else 8
        sizes = [self.sizes[axis] for axis in reversed(self.order)] if self.order else list(self.sizes)
        for i, side in enumerate(reversed(self.tile), start=1):
            if i <= len(sizes):
                sizes[-i] = -(-sizes[-i] // side) * side
        return math.prod(sizes) * bits // 8


class Instruction(NamedTuple):
    """One line of a program; `rest` is the text after the operands."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    is_root: bool


class Collective(NamedTuple):
    """A collective operation: its kind, bytes that each chip puts in, and how often it runs in a step."""

    kind: str
    num_bytes: float
    times: int


class Cost(NamedTuple):
    """Work of one chip in one run of a program.

    Attributes:
      matrix: operations of convolutions and matrix products (a multiply-add is two).
      vector: elementwise operations and sums.
      num_bytes: to and from the chip's main memory.
      cycles: the compiler's own estimates, added up; 0 where it writes none.
      collectives: list of Collective.
      unknown_loops: loops whose length depends on data; their bodies count once.
    """

    matrix: float
    vector: float
    num_bytes: float
    cycles: float
    collectives: list
    unknown_loops: int


def _parse_arrays(text):
    arrays = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        sizes = tuple(int(size) for size in sizes.split(",") if size)
        order, _, rest = layout.partition(":")
        tile = re.search(r"T\(([\d,*]+)\)", rest)
        arrays.append(
            Array(
                dtype,
                sizes,
                tuple(int(axis) for axis in order.split(",") if axis),
                tuple(int(side) for side in tile.group(1).split(",") if side != "*") if tile else (),
                re.search(r"S\([1-9]\d*\)", rest) is not None,
            )
        )
    return tuple(arrays)


def _closing(text, start):
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced brackets: {text[start : start + 80]!r}")


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Splits a program's text. Returns: (dict computation name -> list of Instruction, name of the entry)."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            body = computations.setdefault(header.group(2), [])
            if header.group(1):
                entry = header.group(2)
        elif line.startswith("}"):
            body = None
        elif body is not None and (match := _INSTRUCTION.match(line)):
            line = re.sub(r"/\*.*?\*/", "", line[match.end() :])
            end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
            shape, call = line[:end], line[end:].lstrip()
            start = call.index("(")
            stop = _closing(call, start)
            inside = call[start + 1 : stop]
            body.append(
                Instruction(
                    match.group(2),
                    _parse_arrays(shape),
                    call[:start],
                    tuple(re.findall(r"%([\w.\-]+)", inside)),
                    inside,
                    call[stop + 1 :],
                    match.group(1) is not None,
                )
            )
    if entry is None:
        raise ValueError("not the text of an XLA program: it has no ENTRY")
    return computations, entry


def _window(text):
    """The settings of a convolution's window by name, each a list over its spatial axes."""
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(field.split("=") for field in found.group(1).split()) if found else {}
    rank = len(fields["size"].split("x")) if "size" in fields else 0
    pads = [tuple(int(side) for side in pad.split("_")) for pad in fields["pad"].split("x")] if "pad" in fields else []
    return {
        "low": [pad[0] for pad in pads] or [0] * rank,
        **{
            name: [int(value) for value in fields[key].split("x")] if key in fields else [1] * rank
            for name, key in (("stride", "stride"), ("dilation", "rhs_dilate"), ("base_dilation", "lhs_dilate"))
        },
    }


@functools.cache
def _meetings(num_inputs, num_taps, num_outputs, *, low, stride, dilation, base_dilation):
    """Pairs of an output and a tap along one axis that meet an input, not padding and not a hole of a dilated one.

    The TPU compiler writes batch axes of matrix products as axes of such windows: most pairs then meet nothing.
    """
    position = np.arange(num_outputs)[:, None] * stride + np.arange(num_taps)[None, :] * dilation - low
    met = (position >= 0) & (position <= (num_inputs - 1) * base_dilation) & (position % base_dilation == 0)
    return int(met.sum())


class _Program:
    def __init__(self, text):
        self.computations, self.entry = parse(text)
        self.named = {name: {i.name: i for i in body} for name, body in self.computations.items()}
        self.unknown = 0
        self._reads = {}

    def called(self, instruction, key):
        found = re.search(rf"\b{key}=%?([\w.\-]+)", instruction.rest)
        return found.group(1) if found else None

    def trips(self, loop, scope):
        """How often a loop runs, or None: the condition is `counter < constant`, counted up by one from a constant."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):  # the CPU compiler says it
            return int(known.group(1))
        condition = self.called(loop, "condition")
        names = self.named[condition]
        root = next(i for i in self.computations[condition] if i.is_root)
        operands = [names[name] for name in root.operands]
        if root.opcode == "fusion":
            inner = next(i for i in self.computations[self.called(root, "calls")] if i.is_root)
            inner_names = self.named[self.called(root, "calls")]
            by_number = [inner_names[name] for name in inner.operands]
            operands = [operands[int(i.inside)] if i.opcode == "parameter" else i for i in by_number]
            root = inner
        if root.opcode != "compare" or "direction=LT" not in root.rest or len(operands) != 2:
            return None
        if not self._kept(operands[1], self.called(loop, "body")):
            return None
        start, limit = (self._constant(operand, loop, scope) for operand in operands)
        return None if start is None or limit is None else max(limit - start, 0)

    def _kept(self, instruction, body):
        """Whether a value in a loop's condition stays what it is: no part of the state, or one handed on."""
        if instruction.opcode != "get-tuple-element":
            return True
        names = self.named[body]
        index = re.search(r"index=(\d+)", instruction.rest).group(1)
        root = next(i for i in self.computations[body] if i.is_root)
        if root.opcode != "tuple":
            return False
        one = names[root.operands[int(index)]]
        while one.opcode in ("copy", "bitcast"):
            one = names[one.operands[0]]
        state = names[one.operands[0]].opcode if one.operands else None

        same = re.search(rf"index={index}\b", one.rest) is not None
        return one.opcode == "get-tuple-element" and state == "parameter" and same

    def _constant(self, instruction, loop, scope):
        """Value of a constant, or of the loop's state as it starts."""
        for _ in range(8):
            if instruction.opcode == "constant":
                return int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None
            if instruction.opcode == "get-tuple-element" and loop is not None:
                index = int(re.search(r"index=(\d+)", instruction.rest).group(1))
                state = scope.get(loop.operands[0])
                if state is None or state.opcode != "tuple":
                    return None
                instruction, loop = scope.get(state.operands[index]), None
            elif instruction.opcode in ("copy", "copy-done", "copy-start", "bitcast"):
                instruction = scope.get(instruction.operands[0])
            else:
                return None
            if instruction is None:
                return None
        return None

    def count(self, instruction, names):
        """(matrix, vector) operations of one instruction that is no call."""
        elements = instruction.arrays[0].elements if instruction.arrays else 0
        if instruction.opcode in ("convolution", "dot"):
            kernel = names[instruction.operands[1]].arrays[0]
            if instruction.opcode == "dot":
                left = names[instruction.operands[0]].arrays[0]
                axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest).group(1)
                return 2.0 * elements * math.prod(left.sizes[int(axis)] for axis in axes.split(",") if axis), 0.0
            labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest).groups()
            image, output = names[instruction.operands[0]].arrays[0], instruction.arrays[0]
            products = output.sizes[labels[2].index("b")] * output.sizes[labels[2].index("f")]
            products *= kernel.sizes[labels[1].index("i")]
            window = _window(instruction.rest)
            for i, axis in enumerate(sorted(set(labels[1]) - {"i", "o"}, key=int)):
                side = kernel.sizes[labels[1].index(axis)]
                sizes = image.sizes[labels[0].index(axis)], side, output.sizes[labels[2].index(axis)]
                products *= _meetings(*sizes, **{key: values[i] for key, values in window.items()})
            return 2.0 * products, 0.0
        if instruction.opcode in ("reduce", "reduce-window", "scatter"):
            return 0.0, float(sum(a.elements for name in instruction.operands[:1] for a in names[name].arrays))
        return 0.0, float(elements) if instruction.opcode in _ARITHMETIC else 0.0

    def fused(self, name):
        """Operations of all instructions of a fused computation."""
        matrix = vector = 0.0
        for instruction in self.computations[name]:
            inner = self.called(instruction, "calls") if instruction.opcode == "fusion" else None
            one = self.fused(inner) if inner else self.count(instruction, self.named[name])
            matrix, vector = matrix + one[0], vector + one[1]
        return matrix, vector

    def traffic(self, instruction, names):
        """Bytes between main memory and chip of one instruction outside fusions."""
        written = sum(array.num_bytes for array in instruction.arrays if not array.on_chip)
        if instruction.opcode in ("copy-start", "slice-start", "async-start"):
            # (destination, source, context), one of the two on chip or both in main memory
            size = min(array.num_bytes for array in instruction.arrays[:2])
            return size * sum(not array.on_chip for array in instruction.arrays[:2])
        if instruction.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
            if target and ("Allocate" in target.group(1) or "Sharding" in target.group(1)):
                return 0
        arrays = [names[name].arrays[0] if names[name].arrays else None for name in instruction.operands]
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            read = sum(array.num_bytes for array in instruction.arrays) if arrays and not arrays[0].on_chip else 0
            return written + read
        if instruction.opcode == "dynamic-update-slice":
            return 0 if arrays[0].on_chip else 2 * arrays[1].num_bytes
        if instruction.opcode == "scatter" and len(instruction.arrays) == 1:
            # Reads and writes the rows that it adds to.
            others = sum(array.num_bytes for array in arrays[1:] if not array.on_chip)
            return others + (0 if arrays[0].on_chip else 2 * arrays[2].num_bytes)
        if instruction.opcode == "fusion":
            return self._fusion_traffic(instruction, arrays)
        return written + sum(array.num_bytes for array in arrays if array is not None and not array.on_chip)

    def _fusion_traffic(self, instruction, arrays):
        name = self.called(instruction, "calls")
        read = 0
        for inner in self.computations[name]:
            if inner.opcode == "parameter":
                outer = arrays[int(inner.inside)]
                if outer is not None and not outer.on_chip:
                    read += min(self._read(name, inner.name, outer.num_bytes), outer.num_bytes)
        return read + sum(
            0 if array.on_chip else min(self._written(name, i, array.num_bytes), array.num_bytes)
            for i, array in enumerate(instruction.arrays)
        )

    def _read(self, name, array, whole):
        """Bytes that a fused computation reads of one of its arrays: all, or the parts that it takes out."""
        if (name, array) not in self._reads:
            size = 0
            for use in self.computations[name]:
                for i, operand in enumerate(use.operands):
                    if operand != array or size is None:
                        continue
                    if use.opcode in ("dynamic-slice", "slice", "gather"):
                        size += use.arrays[0].num_bytes if i == 0 else 0
                    elif i == 0 and (part := self._changed(name, use)) is not None:
                        size += part if use.opcode == "scatter" else 0  # which adds to what is there
                    elif use.opcode == "bitcast":
                        part = self._read(name, use.name, None)
                        size = None if part is None else size + part
                    elif use.opcode == "fusion":
                        called = self.called(use, "calls")
                        inner = next(
                            one.name
                            for one in self.computations[called]
                            if one.opcode == "parameter" and int(one.inside) == i
                        )
                        part = self._read(called, inner, None)
                        size = None if part is None else size + part
                    else:
                        size = None
            self._reads[name, array] = size
        size = self._reads[name, array]
        return whole if size is None else size

    def _changed(self, name, instruction):
        """Bytes that a fused instruction changes in its first operand, in place; None where it makes a new array."""
        position = _CHANGES_PART.get(instruction.opcode)
        if position is None or len(instruction.arrays) != 1:
            return None
        return self.named[name][instruction.operands[position]].arrays[0].num_bytes

    def _written(self, name, index, whole):
        """Bytes that a fused computation writes of its result of that index: all, or the part that it updates."""
        one = next(inner for inner in self.computations[name] if inner.is_root)
        if one.opcode == "tuple":
            one = self.named[name][one.operands[index]]
        while one.opcode == "bitcast":
            one = self.named[name][one.operands[0]]
        changed = self._changed(name, one)
        if changed is not None:
            return changed
        if one.opcode == "fusion" and len(one.arrays) == 1:
            return self._written(self.called(one, "calls"), 0, whole)
        return whole

    def walk(self, name, times, visit):
        """Calls visit(instruction, names of its computation, how often it runs) for all outside fusions."""
        names = self.named[name]
        for instruction in self.computations[name]:
            if instruction.opcode == "while":
                trips = self.trips(instruction, names)
                if trips is None:
                    self.unknown += 1
                    trips = 1
                self.walk(self.called(instruction, "body"), times * trips, visit)
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
                found = (
                    branches.group(1)
                    if branches
                    else " ".join(self.called(instruction, f"{truth}_computation") or "" for truth in ("true", "false"))
                )
                for branch in re.findall(r"[\w.\-]+", found)[:1]:
                    self.walk(branch, times, visit)
            elif instruction.opcode in ("call", "async-start") and not instruction.opcode.startswith(_COLLECTIVES):
                inner = self.called(instruction, "to_apply") or self.called(instruction, "calls")
                if instruction.opcode == "call":
                    self.walk(inner, times, visit)
                else:
                    visit(instruction, names, times)
            elif instruction.opcode not in _FREE:
                visit(instruction, names, times)


def program_cost(text: str) -> Cost:
    """Adds up the work of a compiled program.

    Args:
      text: `compiled.as_text()`.

    Returns:
      Cost of one chip.
    """
    program = _Program(text)
    matrix = vector = num_bytes = cycles = 0.0
    collectives = []

    def visit(instruction, names, times):
        nonlocal matrix, vector, num_bytes, cycles
        kind = next((kind for kind in _COLLECTIVES if instruction.opcode in (kind, f"{kind}-start")), None)
        if kind:
            size = sum(array.num_bytes for name in instruction.operands for array in names[name].arrays)
            collectives.append(Collective(kind, size, times))
            return
        if instruction.opcode == "fusion":
            operations = program.fused(program.called(instruction, "calls"))
        else:
            operations = program.count(instruction, names)
        size = program.traffic(instruction, names)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        estimate = int(estimate.group(1)) if estimate else 0
        matrix += times * operations[0]
        vector += times * operations[1]
        num_bytes += times * size
        cycles += times * estimate

    program.walk(program.entry, 1, visit)
    return Cost(matrix, vector, num_bytes, cycles, collectives, program.unknown)
