"""Operators of JAX as operators of ONNX, see `onnx_graph`: each rule gives what its operator gives."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from haksnet_jax.errors import UserError
from haksnet_jax.tools.export.onnx_graph import Graph, Value, info


def _elementwise(kind, **attributes):
    def rule(graph, equation, *operands):
        return graph.elementwise(kind, operands, equation.outvars[0].aval.dtype, **attributes)

    return rule


def _logical(on_bools, on_ints):
    def rule(graph, equation, *operands):
        kind = on_bools if operands[0].dtype == np.bool_ else on_ints
        return graph.elementwise(kind, operands, operands[0].dtype)

    return rule


def _compare(kind):
    def rule(graph, equation, *operands):
        if operands[0].dtype not in (np.float32, np.int32, np.int64):  # what ONNX Runtime compares
            operands = [graph.cast(operand, np.int32) for operand in operands]
        return graph.elementwise(kind, operands, bool)

    return rule


def _not_equal(graph, equation, *operands):
    return graph.elementwise("Not", [_compare("Equal")(graph, equation, *operands)], bool)


def _by_jax(function):
    def rule(graph, equation, *operands):
        return graph.by_jax(functools.partial(function, **equation.params), [a.aval for a in equation.invars], operands)

    return rule


def _atan2(y, x, **_):
    """By the arc tangent of a share of at most 1, turned into its eighth of the circle."""
    steep = lax.abs(y) > lax.abs(x)
    low, high = lax.select(steep, x, y), lax.select(steep, y, x)
    angle = lax.atan(low / lax.select(high == 0, lax.full_like(high, 1), high))
    angle = lax.select(steep, lax.sign(y) * (math.pi / 2) - angle, angle)
    # (behind: turned by half a circle, towards the side of y; y = 0 counts as above)
    half = lax.select(y < 0, lax.full_like(y, -math.pi), lax.full_like(y, math.pi))
    return lax.select((x < 0) & ~steep, angle + half, angle)


def _round(graph, equation, x):
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.by_jax(lambda x: lax.sign(x) * lax.floor(lax.abs(x) + 0.5), [equation.invars[0].aval], [x])
    return graph.elementwise("Round", [x], x.dtype)


def _select(graph, equation, which, *cases):
    if which.dtype != bool:
        raise UserError("--to=onnx: a choice among more than two (the operator select_n) is not exported")
    if cases[0].dtype != bool:
        return graph.elementwise("Where", [which, cases[1], cases[0]], cases[0].dtype)
    # ONNX Runtime has no Where of booleans.
    no = graph.elementwise("Not", [which], bool)
    first = graph.elementwise("And", [which, cases[1]], bool)
    return graph.elementwise("Or", [first, graph.elementwise("And", [no, cases[0]], bool)], bool)


def _broadcast(graph, equation, x, *_):
    """Only the axes: lengths of 1 stay, until someone asks for the full shape."""
    shape = [1] * len(equation.params["shape"])
    for length, axis in zip(x.shape, equation.params["broadcast_dimensions"], strict=True):
        shape[axis] = length
    return graph.reshape(x, shape)


def _iota(graph, equation):
    shape, axis, dtype = (equation.params[name] for name in ("shape", "dimension", "dtype"))
    return graph.constant(
        np.arange(shape[axis], dtype=dtype).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    )


def _arg_max(graph, equation, x):
    (axis,), out = equation.params["axes"], equation.outvars[0].aval
    x = graph.full(x, equation.invars[0].aval)
    return graph.cast(graph.node("ArgMax", [x], out.shape, np.int64, axis=int(axis), keepdims=0), out.dtype)


def _reshape(graph, equation, x, *_):
    return graph.reshape(graph.full(x, equation.invars[0].aval), equation.outvars[0].aval.shape)


def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params["permutation"])


def _squeeze(graph, equation, x):
    axes = {axis % len(x.shape) for axis in equation.params["dimensions"]}
    return graph.reshape(x, [length for axis, length in enumerate(x.shape) if axis not in axes])


def _concatenate(graph, equation, *parts):
    parts = [graph.full(part, atom.aval) for part, atom in zip(parts, equation.invars, strict=True)]
    aval = equation.outvars[0].aval
    return graph.node("Concat", parts, aval.shape, aval.dtype, axis=int(equation.params["dimension"]))


def _stack(graph, equation, *parts):
    axis, aval = int(equation.params["axis"]), equation.outvars[0].aval
    shape = [*aval.shape[:axis], 1, *aval.shape[axis + 1 :]]
    parts = [graph.reshape(graph.full(p, a.aval), shape) for p, a in zip(parts, equation.invars, strict=True)]
    return graph.node("Concat", parts, aval.shape, aval.dtype, axis=axis)


def _split(graph, equation, x):
    x, axis = graph.full(x, equation.invars[0].aval), int(equation.params["axis"])
    results = [Value(graph.name(), v.aval.shape, v.aval.dtype) for v in equation.outvars]
    graph.add("Split", [x, graph.ints(equation.params["sizes"])], results, axis=axis)
    return results


def _slice(graph, equation, x):
    params, aval = equation.params, equation.invars[0].aval
    strides = params["strides"] or (1,) * len(aval.shape)
    return _cut(graph, graph.full(x, aval), params["start_indices"], params["limit_indices"], strides)


def _cut(graph, x, starts, limits, strides):
    axes = [
        axis
        for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True))
        if (start, limit, stride) != (0, x.shape[axis], 1)
    ]
    if not axes:
        return x
    shape = [-(-(limit - start) // stride) for start, limit, stride in zip(starts, limits, strides, strict=True)]
    bounds = [graph.ints([values[axis] for axis in axes]) for values in (starts, limits)]
    steps = graph.ints([strides[axis] for axis in axes])
    return graph.node("Slice", [x, *bounds, graph.ints(axes), steps], shape, x.dtype)


def _reverse(graph, equation, x):
    x, axes = graph.full(x, equation.invars[0].aval), list(equation.params["dimensions"])
    first, last = graph.ints([-1] * len(axes)), graph.ints([np.iinfo(np.int64).min] * len(axes))
    return graph.node("Slice", [x, first, last, graph.ints(axes), first], x.shape, x.dtype)


def _pad(graph, equation, x, fill):
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise UserError("--to=onnx: padding between elements (the operator pad) is not exported")
    x, aval = graph.full(x, equation.invars[0].aval), equation.outvars[0].aval
    cut = [max(0, -n) for n in low], [n + min(0, more) for n, more in zip(x.shape, high, strict=True)]
    x = _cut(graph, x, *cut, (1,) * len(low))
    low, high = ([max(0, n) for n in side] for side in (low, high))
    if not any((*low, *high)):
        return x
    before = x.dtype
    if before == np.bool_:  # which older ONNX Runtimes do not pad
        x, fill = graph.cast(x, np.int32), graph.cast(fill, np.int32)
    return graph.cast(graph.node("Pad", [x, graph.ints([*low, *high]), fill], aval.shape, x.dtype), before)


def _update_slice(graph, equation, x, update, *starts):
    """With fixed starts: the update, padded, wherever it covers."""
    starts = [int(atom.val) for atom in equation.invars[2:] if isinstance(atom, core.Literal)]
    if len(starts) < len(equation.invars) - 2:
        raise UserError("--to=onnx: an update at a computed place (the operator dynamic_update_slice) is not exported")
    aval, small = equation.outvars[0].aval, equation.invars[1].aval
    starts = [
        min(max(start, 0), n - m) for start, n, m in zip(starts, aval.shape, small.shape, strict=True)
    ]  # as JAX moves them
    covered = np.ones([1] * len(aval.shape), bool)
    for axis, (start, length) in enumerate(zip(starts, small.shape, strict=True)):
        if length < aval.shape[axis]:
            place = np.arange(aval.shape[axis])
            inside = (place >= start) & (place < start + length)
            covered = covered & inside.reshape([-1 if a == axis else 1 for a in range(len(aval.shape))])
    after = [n - start - m for start, n, m in zip(starts, aval.shape, small.shape, strict=True)]
    update = graph.full(update, small)
    padded = graph.node("Pad", [update, graph.ints([*starts, *after])], aval.shape, aval.dtype)
    return graph.node("Where", [graph.constant(covered), padded, graph.full(x, aval)], aval.shape, aval.dtype)


def _reduce(kind):
    def rule(graph, equation, x):
        axes, aval = list(equation.params["axes"]), equation.outvars[0].aval
        x = graph.full(x, equation.invars[0].aval)
        before = x.dtype
        x = graph.cast(x, np.int32) if before == np.bool_ else x
        if not axes:
            return graph.cast(x, before)
        result = graph.node(kind, [x, graph.ints(axes)], aval.shape, x.dtype, keepdims=0)
        return graph.cast(result, aval.dtype)

    return rule


def _cumsum(graph, equation, x):
    x, axis = graph.full(x, equation.invars[0].aval), np.int64(equation.params["axis"])
    reverse = int(equation.params["reverse"])
    return graph.node("CumSum", [x, graph.constant(axis)], x.shape, x.dtype, reverse=reverse)


def _best(graph, x, count, axis, largest):
    """The TopK of a value, of equals the first. Returns: (values, int64 indices)."""
    shape = [count if a == axis else n for a, n in enumerate(x.shape)]
    results = [Value(graph.name(), shape, x.dtype), Value(graph.name(), shape, np.int64)]
    graph.add("TopK", [x, graph.ints([count])], results, axis=axis, largest=largest, sorted=1)
    return results


def _top_k(graph, equation, x):
    x, axis = graph.full(x, equation.invars[0].aval), int(equation.params["axis"])
    values, index = _best(graph, x, int(equation.params["k"]), axis, 1)
    return [values, graph.cast(index, np.int32)]


def _sort(graph, equation, key, *others):
    if equation.params["num_keys"] != 1:
        raise UserError("--to=onnx: sorting by several keys (the operator sort) is not exported")
    axis = int(equation.params["dimension"])
    key, *others = (graph.full(x, atom.aval) for x, atom in zip((key, *others), equation.invars, strict=True))
    before = key.dtype
    values, index = _best(graph, graph.cast(key, np.int32) if before == np.bool_ else key, key.shape[axis], axis, 0)
    moved = [graph.node("GatherElements", [x, index], x.shape, x.dtype, axis=axis) for x in others]
    return [graph.cast(values, before), *moved]


def _gather(graph, equation, x, index):
    """Rows by their places: GatherND, with the axes that are looked up in front."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    aval, out = equation.invars[0].aval, equation.outvars[0].aval
    looked_up, batching = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    removed = {*numbers.collapsed_slice_dims, *batching}
    kept = [axis for axis in range(len(aval.shape)) if axis not in removed]
    whole = all(sizes[axis] == (1 if axis in removed else aval.shape[axis]) for axis in range(len(sizes)))
    if not whole or set(looked_up) & set(kept):
        raise UserError(
            "--to=onnx: a cut of several elements at a computed place (the operator gather) is not exported"
        )
    x = graph.transpose(graph.full(x, aval), [*batching, *looked_up, *kept])
    index = graph.full(index, equation.invars[1].aval)
    pairs = list(numbers.start_indices_batching_dims)
    free = [axis for axis in range(len(index.shape) - 1) if axis not in pairs]
    index = graph.transpose(index, [*pairs, *free, len(index.shape) - 1])
    # Behind the end is the last one, before the beginning the first: ONNX would refuse the one and count the other
    # from the end.
    last = np.array([aval.shape[axis] - 1 for axis in looked_up], np.int32)
    index = graph.cast(index, np.int32)
    inside = graph.elementwise("Max", [index, graph.constant(np.zeros_like(last))], np.int32)
    inside = graph.elementwise("Min", [inside, graph.constant(last)], np.int32)
    rest = [aval.shape[axis] for axis in kept]
    shape = [*index.shape[:-1], *rest]
    found = graph.node("GatherND", [x, graph.cast(inside, np.int64)], shape, x.dtype, batch_dims=len(batching))
    if equation.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        fill = equation.params["fill_value"]
        if fill is None:
            fill = np.nan if np.issubdtype(aval.dtype, np.floating) else np.iinfo(aval.dtype).min
        here = graph.cast(graph.elementwise("Equal", [index, inside], bool), np.int32)
        here = graph.node("ReduceMin", [here, graph.ints([-1])], index.shape[:-1], np.int32, keepdims=0)
        here = graph.reshape(graph.cast(here, bool), [*index.shape[:-1], *(1 for _ in rest)])
        found = graph.elementwise("Where", [here, found, graph.constant(np.asarray(fill, aval.dtype))], aval.dtype)
    # The axes of `found` are batching, free, kept: where each of them belongs in the result.
    places = [axis for axis in range(len(out.shape)) if axis not in numbers.offset_dims]
    order = [places[axis] for axis in (*pairs, *free)] + list(numbers.offset_dims)
    return graph.transpose(found, np.argsort(order))


def _dot(graph, equation, left, right):
    ((left_sum, right_sum), (left_batch, right_batch)) = equation.params["dimension_numbers"]
    left, right = (graph.full(x, atom.aval) for x, atom in zip((left, right), equation.invars, strict=True))

    def matrix(x, batch, summed, sum_first):
        free = [axis for axis in range(len(x.shape)) if axis not in (*batch, *summed)]
        lengths = [x.shape[axis] for axis in batch], [x.shape[axis] for axis in free]
        groups = (summed, free) if sum_first else (free, summed)
        moved = graph.transpose(x, [*batch, *groups[0], *groups[1]])
        sides = [math.prod(x.shape[axis] for axis in group) for group in groups]
        return graph.reshape(moved, [*lengths[0], *sides]), *lengths

    left, batch, left_free = matrix(left, list(left_batch), list(left_sum), False)
    right, _, right_free = matrix(right, list(right_batch), list(right_sum), True)
    out = equation.outvars[0].aval
    product = graph.node("MatMul", [left, right], [*left.shape[:-1], right.shape[-1]], left.dtype)
    return graph.cast(graph.reshape(product, [*batch, *left_free, *right_free]), out.dtype)


def _convolution(graph, equation, x, kernel):
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UserError("--to=onnx: a transposed convolution (the operator conv_general_dilated) is not exported")
    x, kernel = (graph.full(value, atom.aval) for value, atom in zip((x, kernel), equation.invars, strict=True))
    x, kernel = graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)
    out = equation.outvars[0].aval
    low, high = zip(*params["padding"], strict=True)
    result = graph.node(
        "Conv",
        [x, kernel],
        [out.shape[axis] for axis in numbers.out_spec],
        x.dtype,
        group=int(params["feature_group_count"]),
        strides=[int(n) for n in params["window_strides"]],
        dilations=[int(n) for n in params["rhs_dilation"]],
        pads=[int(n) for n in (*low, *high)],
    )
    return graph.cast(graph.transpose(result, np.argsort(numbers.out_spec)), out.dtype)


def _max_pool(graph, equation, x):
    """Over rows and columns of [B, H, W, C]."""
    params = equation.params
    edges = [*params["window_dimensions"][::3], *params["window_strides"][::3]]
    if len(params["padding"]) != 4 or {*edges, *params["base_dilation"], *params["window_dilation"]} != {1}:
        raise UserError("--to=onnx: pooling of other axes than rows and columns (reduce_window_max) is not exported")
    x, out = graph.transpose(graph.full(x, equation.invars[0].aval), (0, 3, 1, 2)), equation.outvars[0].aval
    low, high = zip(*params["padding"][1:3], strict=True)
    pooled = graph.node(
        "MaxPool",
        [x],
        [out.shape[axis] for axis in (0, 3, 1, 2)],
        x.dtype,
        kernel_shape=list(params["window_dimensions"][1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=[*low, *high],
    )
    return graph.transpose(pooled, (0, 2, 3, 1))


def _while(graph, equation, *operands):
    params, onnx = equation.params, graph.onnx
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    avals = [v.aval for v in equation.outvars]
    state = [graph.full(x, aval) for x, aval in zip(operands[second:], avals, strict=True)]

    def inline(into, closed, arguments):
        values = dict(zip(closed.jaxpr.invars, arguments, strict=True))
        values |= {v: graph.constant(np.asarray(c)) for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
        results = into.run(closed.jaxpr, values)
        return [into.full(x, v.aval) for x, v in zip(results, closed.jaxpr.outvars, strict=True)]

    def any_of(into, condition):
        if not condition.shape:
            return condition
        axes = graph.ints(range(len(condition.shape)))
        return into.cast(into.node("ReduceMax", [into.cast(condition, np.int32), axes], (), np.int32, keepdims=0), bool)

    def chosen(into, condition, new, old):
        """Under vmap, an example whose own loop has ended stays as it is."""
        condition = into.reshape(condition, [*condition.shape, *[1] * (len(new.shape) - len(condition.shape))])
        return _select(into, None, condition, old, new)

    (condition,) = inline(graph, params["cond_jaxpr"], [*operands[:first], *state])
    body = Graph(onnx, graph.rules, graph)
    inner = [Value(graph.name(), aval.shape, aval.dtype) for aval in avals]
    changed = inline(body, params["body_jaxpr"], [*operands[first:second], *inner])
    if condition.shape:
        (own,) = inline(body, params["cond_jaxpr"], [*operands[:first], *inner])
        changed = [chosen(body, own, new, old) for new, old in zip(changed, inner, strict=True)]
    (going_on,) = inline(body, params["cond_jaxpr"], [*operands[:first], *changed])
    condition, going_on = any_of(graph, condition), any_of(body, going_on)
    count, before = Value(graph.name(), (), np.int64), Value(graph.name(), (), bool)
    # (an output of its own each: a body may give back what it was given, which ONNX wants copied)
    given = [body.node("Identity", [x], x.shape, x.dtype) for x in (going_on, *changed)]
    loop = onnx.helper.make_graph(
        body.nodes, "body", [info(onnx, x) for x in (count, before, *inner)], [info(onnx, x) for x in given]
    )
    results = [Value(graph.name(), aval.shape, aval.dtype) for aval in avals]
    graph.add("Loop", [None, condition, *state], results, body=loop)
    return results


RULES = {
    **{
        name: _elementwise(kind)
        for name, kind in {
            "add": "Add",
            "add_any": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "max": "Max",
            "min": "Min",
            "neg": "Neg",
            "abs": "Abs",
            "sign": "Sign",
            "floor": "Floor",
            "ceil": "Ceil",
            "exp": "Exp",
            "log": "Log",
            "sqrt": "Sqrt",
            "sin": "Sin",
            "cos": "Cos",
            "tanh": "Tanh",
            "atan": "Atan",
            "erf": "Erf",
            "logistic": "Sigmoid",
        }.items()
    },
    "rem": _elementwise("Mod", fmod=1),
    **{name: _compare(kind) for name, kind in {"eq": "Equal", "lt": "Less", "gt": "Greater"}.items()},
    **{name: _compare(kind) for name, kind in {"le": "LessOrEqual", "ge": "GreaterOrEqual"}.items()},
    "ne": _not_equal,
    "and": _logical("And", "BitwiseAnd"),
    "or": _logical("Or", "BitwiseOr"),
    "not": _logical("Not", "BitwiseNot"),
    "square": lambda graph, equation, x: graph.elementwise("Mul", [x, x], x.dtype),
    "rsqrt": _by_jax(lambda x, **_: 1 / lax.sqrt(x)),
    "erfc": _by_jax(lambda x, **_: 1 - lax.erf(x)),
    "log1p": _by_jax(lambda x, **_: lax.log(1 + x)),
    "is_finite": _by_jax(lambda x, **_: lax.abs(x) < np.inf),
    "integer_pow": _by_jax(lambda x, y, **_: math.prod([x] * y) if y > 0 else 1 / math.prod([x] * -y)),
    "clamp": _by_jax(lambda low, x, high, **_: jnp.minimum(jnp.maximum(x, low), high)),
    "atan2": _by_jax(_atan2),
    "round": _round,
    "select_n": _select,
    "convert_element_type": lambda graph, equation, x: graph.cast(x, equation.params["new_dtype"]),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "dynamic_update_slice": _update_slice,
    "iota": _iota,
    "argmax": _arg_max,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_and": _reduce("ReduceMin"),
    "cumsum": _cumsum,
    "top_k": _top_k,
    "sort": _sort,
    "gather": _gather,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "while": _while,
}
