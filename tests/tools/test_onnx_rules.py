"""Each operator that is exported to ONNX gives in ONNX Runtime what it gives in JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from haksnet_jax.errors import UserError
from haksnet_jax.tools.export import onnx_graph
from haksnet_jax.tools.export.onnx_rules import RULES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
A = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
B = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
ROW = RNG.normal(size=4).astype(np.float32)
INTS = RNG.integers(-9, 10, (2, 5, 6)).astype(np.int32)
BOOLS = RNG.random((2, 5, 6)) < 0.5
POSITIVE = np.abs(A) + 0.1
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -2.5, 2.5, 0.5, 1.5], np.float32)
# All eighths of the circle, both axes and the origin.
Y, X = (x.reshape(-1).astype(np.float32) for x in np.meshgrid([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2]))


def run(function, *arrays, opset=18):
    """What ONNX Runtime gives for a function, by the names of its results."""
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    names = [f"x{i}" for i in range(len(arrays))]
    model = onnx_graph.lower(onnx, RULES, function, arguments, input_names=names, opset=opset)
    data = model.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    given = dict(zip(names, arrays, strict=True))
    used = {value.name for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {n: x for n, x in given.items() if n in used}), strict=True))


def conv(x, kernel, *, strides=(1, 1), padding=((1, 1), (1, 1)), groups=1, dilation=(1, 1)):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def kernel(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def looped(x):
    """Doubles until 100 is passed: a loop with what is outside of it."""
    limit = 100 + 0 * x.sum()
    return lax.while_loop(lambda s: s[0] < limit, lambda s: (s[0] * 2, s[1] + 1), (jnp.abs(x).max() + 1, jnp.int32(0)))


CASES = {
    "add sub mul div neg abs": (lambda a, b: (a + b) * (a - b) / (jnp.abs(b) + 1) - a, A, B),
    "row is broadcast": (lambda a, row: (a + row) * row.sum() + jnp.ones((2, 1, 6, 1)), A, ROW),
    "max min clamp": (lambda a, b: jnp.maximum(a, b) + jnp.minimum(a, 0) + jnp.clip(a, -0.5, 0.5), A, B),
    "exp log sqrt rsqrt square": (lambda a: jnp.exp(-a) + jnp.log(a) * jnp.sqrt(a) + lax.rsqrt(a) + a**2, POSITIVE),
    "powers": (lambda a: a**3 + lax.integer_pow(a, -2) + jnp.log1p(a), POSITIVE),
    "sin cos tanh": (lambda a: jnp.sin(a) + jnp.cos(2 * a) * jnp.tanh(a), A),
    "erf logistic softmax": (lambda a: lax.erf(a) + lax.erfc(a) + jax.nn.sigmoid(a) + jax.nn.softmax(a), A),
    "relu and gelu": (lambda a: jax.nn.relu(a) + jax.nn.gelu(a, approximate=False), A),
    "sign floor ceil": (lambda a: jnp.sign(a) + jnp.floor(a) + jnp.ceil(a), A),
    "round": (lambda a: (jnp.round(a), lax.round(a, lax.RoundingMethod.AWAY_FROM_ZERO)), 3 * A),
    "is_finite": (jnp.isfinite, SPECIAL),
    "atan2": (jnp.arctan2, Y, X),
    "rem of ints": (lambda i: lax.rem(i, jnp.int32(4)) + i // 3, INTS),
    "compare": (lambda a, b: (a < b, a > b, a <= b, a >= b, a == b, a != b), A, B),
    "compare bools and bytes": (lambda m, i: (m == ~m, m != m[::-1], i.astype(jnp.uint8) == 3), BOOLS, np.abs(INTS)),
    "and or not": (lambda m, i: ((m & (i > 0)) | ~m, i & 3, i | 8, ~i), BOOLS, INTS),
    "select": (lambda m, i: (jnp.where(m, i, -i), jnp.where(m, i > 2, i < -2)), BOOLS, INTS),
    "convert": (lambda a, i: (a.astype(jnp.int32), i.astype(jnp.float32), (a > 0).astype(jnp.float32)), 5 * A, INTS),
    "bytes": (lambda i: i.astype(jnp.float32) - 1.5, np.abs(INTS).astype(np.uint8)),
    "reshape transpose squeeze": (lambda a: a.reshape(10, 24).T.reshape(1, 24, 10)[0].reshape(2, 120), A),
    "concatenate stack split": (
        lambda a, b: jnp.concatenate([jnp.stack([a, b], axis=1)[:, 0], *jnp.split(b, [1, 3], axis=3)], axis=3), A, B),
    "slice reverse": (lambda a: a[:, 1:5:2, ::-1, -1] + a[:, ::-1, :, 0][:, 1:3].sum(), A),
    "pad": (lambda a, m: (jnp.pad(a, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=7.0), jnp.pad(m, 1)), A, BOOLS),
    "negative pad": (lambda a: lax.pad(a, 0.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0))), A),
    "update of a slice": (lambda a, b: lax.dynamic_update_slice(a, b[:, :2, :3], (0, 2, 5, 0)), A, B),
    "sums": (lambda a, i: (a.sum((1, 2)), a.mean(-1), a.var((0, 3)), i.sum(), a.max(2), a.min(0)), A, INTS),
    "any all": (lambda m: (m.any(1), m.all((0, 2)), m.any()), BOOLS),
    "argmax": (lambda i: jnp.argmax(i, axis=1).astype(jnp.uint8), INTS),
    "cumsum": (lambda i: (jnp.cumsum(i, axis=2), lax.cumsum(i, axis=1, reverse=True)), INTS),
    "top_k with equals": (lambda i: lax.top_k(i.astype(jnp.float32), 4), INTS),
    "argsort with equals": (lambda i: (jnp.argsort(i, axis=1, stable=True), jnp.argsort(i > 0, stable=True)), INTS),
    "sort": (lambda a: jnp.sort(a, axis=2), A),
    "rows": (lambda a, i: a[:, jnp.abs(i[0, 0]) % 5], A, INTS),
    "rows under vmap": (lambda a, i: jax.vmap(lambda a, i: a[jnp.abs(i) % 5])(a, i), A, INTS),
    "places": (lambda a, i: a[jnp.arange(2)[:, None, None], jnp.abs(i) % 5, i % 6], A, INTS),
    "clipped": (lambda a, i: a.at[:, i[0]].get(mode="clip"), A, INTS),
    "filled": (lambda a, i: a.at[i[0, 0], 2].get(mode="fill", fill_value=3.0), A, INTS),
    "along an axis": (lambda a, i: jnp.take_along_axis(a, (jnp.abs(i) % 4)[..., None], axis=-1), A, INTS),
    "matrix product": (lambda a, k: a @ k, A, kernel(4, 7)),
    "products of a batch": (lambda a, b: jnp.einsum("bhwc,bhvc->bhwv", a, b), A, B),
    "sums over two axes": (lambda a, b: jnp.einsum("bhwc,bhwd->cd", a, b), A, B),
    "convolution": (lambda a, k: conv(a, k, strides=(2, 1), padding=((1, 1), (2, 0))), A, kernel(3, 3, 4, 6)),
    "depthwise": (lambda a, k: conv(a, k, groups=4), A, kernel(3, 3, 1, 4)),
    "dilated": (lambda a, k: conv(a, k, dilation=(2, 2), padding="SAME"), A, kernel(3, 3, 4, 2)),
    "max pooling": (
        lambda a: lax.reduce_window(
            a, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))), A),
    "loop": (looped, A),
    "loops that end apart": (lambda a: jax.vmap(looped)(a), A * np.array([1, 30], np.float32).reshape(2, 1, 1, 1)),
    "nothing to do": (lambda a: (a, jnp.float32(3.0), jnp.arange(4.0) + a[0, 0, 0]), A),
    "a large constant": (lambda a: a.sum() + (jnp.arange(600)[:, None] < jnp.arange(600.0)).astype(jnp.float32), A),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_in_onnx_what_it_gives_in_jax(name):
    function, *arrays = CASES[name]

    def named(*arrays):
        return {f"r{i}": x for i, x in enumerate(jax.tree.leaves(function(*arrays)))}

    expected, found = named(*map(jnp.asarray, arrays)), run(named, *arrays)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        # float32 rounding of sums of some hundred terms of size 1, in another order
        np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=2e-5)


def test_angles_at_the_ends_of_the_circle_are_those_of_jax():
    """(atan2 of (0, -1) is pi and of (-0.0, -1) would be -pi: the side of the cut may differ for -0 alone)"""
    found = run(lambda y, x: {"angle": jnp.arctan2(y, x)}, Y, X)["angle"]
    expected = [math.atan2(y, x) for y, x in zip(Y.tolist(), X.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_graph_of_the_newest_operators_gives_the_same():
    function, *arrays = CASES["depthwise"]
    results = [run(lambda *a: {"y": function(*a)}, *arrays, opset=opset)["y"] for opset in onnx_graph.OPSETS]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda a: jnp.fft.fft(a).real, "fft"),
        (lambda a: lax.conv_transpose(a, jnp.ones((3, 3, 4, 2)), (2, 2), "SAME"), "conv_general_dilated"),
        (lambda a: lax.dynamic_slice(a, (0, a[0, 0, 0, 0].astype(int), 0, 0), (2, 2, 6, 4)), "dynamic_slice"),
        (lambda a: lax.pad(a, 0.0, ((0, 0, 1),) * 4), "pad"),
        (lambda a: jnp.zeros((3,)).at[a[0, 0, 0].astype(int)].add(1.0), "scatter-add"),
    ],
)
def test_an_operator_that_is_not_exported_is_named(function, named):
    with pytest.raises(UserError, match=f"--to=onnx: .*{named}"):
        run(lambda a: {"y": function(a)}, A)
