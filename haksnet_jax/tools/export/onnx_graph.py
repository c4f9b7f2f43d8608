"""A JAX function as an ONNX graph: each operator of our inference by ONNX' own of the same meaning (`onnx_rules`).

Why not by the one converter that others maintain: jax2onnx 0.17.1 was tried on the shipped detector. Its graph has
choices between booleans that ONNX Runtime refuses to run; it knows no resharding, no scatter under vmap and no
gather of a whole axis, and fails under vmap where shapes are broadcast; it needs an Orbax older than the one that is
tested here; and it took minutes where this takes seconds. The `onnx` package writes the file and `onnxruntime` runs
it: those are not ours, and what is not the same in them as in the live model is found before a file is written.

What depends on weights alone is computed before, by JAX. Arrays that were broadcast stay as they were until something
other than elementwise arithmetic asks for them, since ONNX broadcasts by itself.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from haksnet_jax.errors import UserError

OPSETS = (18, 21)  # from the first with all axes as inputs, to the newest that the lowering was run with
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
_SAME = {"name", "stop_gradient", "optimization_barrier", "copy", "copy_p", "sharding_constraint", "reshard"}
_LARGE = 1 << 20  # bytes: what is larger than this and than what it is made of is made when the file is run


Rules = Mapping[str, Callable[..., Any]]  # by the name of a JAX operator: (graph, equation, *operands) -> results


def inlined(
    closed: core.ClosedJaxpr, replaced: Mapping[str, Callable[..., list[Any]]] | None = None
) -> core.ClosedJaxpr:
    """A closed jaxpr without calls, barriers and names.

    Args:
      closed: ClosedJaxpr.
      replaced: {name of an operator: function (*operands, **params) that gives the list of its results otherwise}.

    Returns:
      ClosedJaxpr.
    """
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    return jax.make_jaxpr(lambda *arguments: _evaluate(closed.jaxpr, closed.consts, arguments, replaced or {}))(*shapes)


def _evaluate(jaxpr, consts, arguments, replaced):
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def value(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands, name, params = [value(atom) for atom in equation.invars], equation.primitive.name, equation.params
        if name in _SAME:
            results = operands
        elif name in _CALLS:
            inner = params[_CALLS[name]]
            closed = (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())
            results = _evaluate(*closed, operands, replaced)
        elif name in replaced:
            results = replaced[name](*operands, **params)
        else:
            if name == "while":
                params = params | {key: inlined(params[key], replaced) for key in ("cond_jaxpr", "body_jaxpr")}
            results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _known(jaxpr, consts):
    """Computes what depends on no argument. Returns: {variable: numpy array} of what the rest of the graph needs."""
    known, before = set(jaxpr.constvars), []
    for equation in jaxpr.eqns:
        operands = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
        size = sum(_bytes(v.aval) for v in equation.outvars)
        large = size > max(_LARGE, 2 * sum(_bytes(atom.aval) for atom in equation.invars))
        if all(atom in known for atom in operands) and equation.primitive.name != "while" and not large:
            before.append(equation)
            known.update(equation.outvars)
    done = set(map(id, before))
    rest = [equation for equation in jaxpr.eqns if id(equation) not in done]
    needed = {atom for equation in rest for atom in equation.invars if not isinstance(atom, core.Literal)}
    needed |= {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    wanted = [variable for variable in known if variable in needed]

    def compute(consts):
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        for equation in before:
            operands = [a.val if isinstance(a, core.Literal) else values[a] for a in equation.invars]
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [values[variable] for variable in wanted]

    arrays = jax.device_get(jax.jit(compute)(list(consts)))
    return dict(zip(wanted, map(np.asarray, arrays), strict=True)), rest


def _bytes(aval):
    return math.prod(aval.shape) * aval.dtype.itemsize


class Value:
    """An array of the graph. Attributes: name; shape, as it is there: axes that are to be broadcast have length 1."""

    def __init__(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)


class Graph:
    """Nodes of one graph, or of the body of a loop in it, which sees what is outside.

    Args:
      onnx: the package.
      rules: see `lower`.
      outer: Graph around it, or None.
    """

    def __init__(self, onnx: types.ModuleType, rules: Rules, outer: "Graph | None" = None) -> None:
        self.onnx, self.rules = onnx, rules
        self.nodes: list[Any] = []
        self.root: Graph = outer.root if outer else self
        if not outer:
            self.num_names = 0
            self.initializers: list[Any] = []
            self._constants: dict[tuple[Any, ...], Value] = {}

    def name(self) -> str:
        """A name that no other value of the file has."""
        self.root.num_names += 1
        return f"v{self.root.num_names}"

    def constant(self, array: np.ndarray) -> Value:
        """The Value of a numpy array."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.root._constants:
            name = self.name()
            self.root.initializers.append(self.onnx.numpy_helper.from_array(array, name))
            self.root._constants[key] = Value(name, array.shape, array.dtype)
        return self.root._constants[key]

    def ints(self, numbers: ArrayLike) -> Value:
        """The Value of whole numbers, as ONNX takes shapes and axes."""
        return self.constant(np.asarray(numbers, np.int64))

    def node(
        self, kind: str, operands: Sequence[Value], shape: Sequence[int], dtype: DTypeLike, **attributes: Any
    ) -> Value:
        """Adds a node of one result. Args: operands, of Value. Returns: its Value."""
        result = Value(self.name(), shape, dtype)
        self.add(kind, operands, [result], **attributes)
        return result

    def add(self, kind: str, operands: Sequence[Value | None], results: Sequence[Value], **attributes: Any) -> None:
        """Adds a node of several results, or of results that exist. Args: operands, None where one is left out."""
        names = [operand.name if operand else "" for operand in operands]
        outputs = [result.name for result in results]
        self.nodes.append(self.onnx.helper.make_node(kind, names, outputs, **attributes))

    def full(self, value: Value, aval: Any) -> Value:
        """The value in the whole shape of an aval."""
        if value.shape == tuple(aval.shape):
            return value
        return self.node("Expand", [value, self.ints(aval.shape)], aval.shape, value.dtype)

    def cast(self, value: Value, dtype: DTypeLike) -> Value:
        """The value in another type."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return self.node("Cast", [value], value.shape, dtype, to=kind)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The value in another shape of as many elements."""
        if value.shape == tuple(shape):
            return value
        return self.node("Reshape", [value, self.ints(shape)], shape, value.dtype)

    def transpose(self, value: Value, order: Iterable[int]) -> Value:
        """The value with its axes in another order."""
        order = [int(axis) for axis in order]
        if order == list(range(len(order))):
            return value
        return self.node("Transpose", [value], [value.shape[axis] for axis in order], value.dtype, perm=order)

    def elementwise(self, kind: str, operands: Sequence[Value], dtype: DTypeLike, **attributes: Any) -> Value:
        """Adds a node whose result has the shape that the operands broadcast to."""
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        return self.node(kind, operands, shape, dtype, **attributes)

    def run(self, jaxpr: core.Jaxpr, values: dict[Any, Value]) -> list[Value]:
        """Adds the equations of a jaxpr. Args: values, {variable: Value}, extended. Returns: Values of its results."""
        return self.run_equations(jaxpr.eqns, jaxpr.outvars, values)

    def run_equations(
        self, equations: Iterable[core.JaxprEqn], outvars: Sequence[Any], values: dict[Any, Value]
    ) -> list[Value]:
        """As `run`, of some of the equations. Raises: UserError, an operator without a rule."""

        def value(atom):
            return (
                self.constant(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, core.Literal) else values[atom]
            )

        for equation in equations:
            name = equation.primitive.name
            if name not in self.rules:
                raise UserError(
                    f"--to=onnx: this model's graph has the operator {name}, which the ONNX exporter does not know; "
                    "export it with --to=stablehlo"
                )
            results = self.rules[name](self, equation, *map(value, equation.invars))
            results = results if isinstance(results, list) else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in outvars]

    def by_jax(self, function: Callable[..., Any], avals: Sequence[Any], operands: Sequence[Value]) -> Value:
        """What a JAX function of elementwise arithmetic gives, whose own equations have rules."""
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        closed = inlined(jax.make_jaxpr(function)(*shapes))
        values = dict(zip(closed.jaxpr.invars, operands, strict=True))
        values |= {v: self.constant(np.asarray(c)) for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
        return self.run(closed.jaxpr, values)[0]


def info(onnx: types.ModuleType, value: Value) -> Any:
    """ONNX' description of a Value: name, type, shape."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(value.name, kind, list(value.shape))


def _names(node):
    """What a node reads, the loops' bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names(inner)


def lower(
    onnx: types.ModuleType,
    rules: Rules,
    function: Callable[..., dict[str, jax.Array]],
    arguments: Sequence[Any],
    *,
    input_names: Sequence[str],
    opset: int = OPSETS[0],
) -> Any:
    """The ONNX model of a JAX function.

    Args:
      onnx: the package.
      rules: {name of a JAX operator: function (graph, equation, *operands) that gives its results}.
      function: of arrays, giving a dict of arrays, which names the results.
      arguments: jax.ShapeDtypeStruct of each of its arguments.
      input_names: a name each.
      opset: version of ONNX' operators, within OPSETS.

    Returns:
      onnx.ModelProto, with the results in the order of their names.

    Raises:
      UserError: the function has an operation that is not exported.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    closed = inlined(closed)
    known, equations = _known(closed.jaxpr, closed.consts)
    graph = Graph(onnx, rules)
    values = {variable: graph.constant(array) for variable, array in known.items()}
    inputs = [Value(name, a.shape, a.dtype) for name, a in zip(input_names, arguments, strict=True)]
    values |= dict(zip(closed.jaxpr.invars, inputs, strict=True))
    results = graph.run_equations(equations, closed.jaxpr.outvars, values)
    outputs = []
    for name, result, atom in zip(sorted(shapes), results, closed.jaxpr.outvars, strict=True):
        whole = graph.full(result, atom.aval)
        outputs.append(Value(name, atom.aval.shape, atom.aval.dtype))
        graph.add("Identity", [whole], outputs[-1:])
    used = {name for node in graph.nodes for name in _names(node)}
    made = onnx.helper.make_graph(
        graph.nodes,
        "haksnet",
        [info(onnx, value) for value in inputs],
        [info(onnx, value) for value in outputs],
        [array for array in graph.initializers if array.name in used],
    )
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", opset)], producer_name="haksnet_jax"
    )
    model.ir_version = 8 if opset < 19 else 10
    return model
