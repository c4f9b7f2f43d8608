"""The head on one canvas against the head level by level, and the choice of proposals by hand."""

import functools

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.geometry.anchors import anchor_grid
from haksnet_jax.geometry.box_coders import decode_midpoint_offset, encode_midpoint_offset
from haksnet_jax.models.rpn import OrientedRPN, ProposalSettings, select_proposals

SHAPE = (64, 96)
STRIDES, STDS = (4, 8, 16, 32, 64), (1, 1, 1, 1, 0.5, 0.5)
GRID = {"strides": STRIDES, "scale": 8.0, "ratios": (0.5, 1, 2)}
ANCHORS = anchor_grid(SHAPE, **GRID)
FAR = -9.0  # a logit below all others


def propose(logits, deltas, anchors, image_shape, max_proposals):
    settings = ProposalSettings(max_proposals=max_proposals)
    grid = {"image_shape": image_shape, "strides": STRIDES, "anchors_per_cell": 3, "stds": STDS}
    return select_proposals(logits, deltas, anchors, **grid, settings=settings)


@pytest.fixture(scope="module")
def select():
    return jax.jit(lambda logits, deltas: propose(logits, deltas, ANCHORS, SHAPE, 8))


def scene(*objects):
    """Logits and deltas [1, A, ...] where anchor `index` stands for a box with a logit. Args: (index, box, logit)."""
    logits, deltas = np.full((1, len(ANCHORS)), FAR, np.float32), np.zeros((1, len(ANCHORS), 6), np.float32)
    for index, box, logit in objects:
        logits[0, index] = logit
        deltas[0, index] = encode_midpoint_offset(ANCHORS[index], np.array(box, np.float32), STDS)
    return logits, deltas


def head_and_levels():
    rpn = OrientedRPN(8, rngs=nnx.Rngs(0))
    for part in (rpn.conv, rpn.logits, rpn.deltas):  # as they start, the outputs are nearly 0
        part.kernel.set_value(part.kernel[...] * 30)
        part.bias.set_value(jnp.linspace(-1, 1, part.bias.shape[0]))
    shapes = ((13, 10), (7, 5), (4, 3), (2, 2), (1, 1))
    return rpn, tuple(jax.random.normal(jax.random.key(i), (2, *shape, 8)) for i, shape in enumerate(shapes))


def test_one_canvas_gives_what_a_convolution_of_each_level_gives():
    rpn, levels = head_and_levels()
    logits, deltas = rpn(levels)
    hidden = [jax.nn.relu(rpn.conv(level)) for level in levels]
    expected_logits = jnp.concatenate([rpn.logits(x).reshape(2, -1) for x in hidden], axis=1)
    expected_deltas = jnp.concatenate([rpn.deltas(x).reshape(2, -1, 6) for x in hidden], axis=1)
    # The same sums, perhaps in another order.
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(deltas, expected_deltas, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_level_by_level_are_those_of_the_canvas(dtype, rounded):
    rpn, levels = head_and_levels()
    rpn.dtype = rpn.conv.dtype = dtype
    levels = tuple(level.astype(dtype) for level in levels)
    by_level = jax.jit(lambda levels: rpn._level_by_level(levels, rounded))(levels)
    for found, exact in zip(by_level, rpn(levels), strict=True):
        assert (found.dtype, found.shape) == (jnp.float32, exact.shape)
        # The same sums in another order; a rounded hidden layer has 8 bits before and after its bias is added.
        tolerance = 2.0**-7 if rounded and dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance * np.abs(exact).max())


def test_nvidia_gpus_score_level_by_level():
    rpn, levels = head_and_levels()
    with cuda_machine.gpus():
        for rounded in (True, False):
            traced = str(jax.make_jaxpr(functools.partial(rpn, rounded=rounded))(levels))
            assert traced.count("conv_general_dilated[") == len(levels)


def test_chosen_anchors_have_the_outputs_and_gradients_that_all_anchors_have():
    rpn, levels = head_and_levels()
    graph, state = nnx.split(rpn)
    # All anchors in any order, some twice: each position, each border, neighbours that share features.
    total = 3 * sum(level.shape[1] * level.shape[2] for level in levels)
    index = jnp.asarray(np.random.default_rng(0).integers(0, total, (2, 800)))
    weight = jax.random.normal(jax.random.key(9), (2, 800, 7))

    def chosen(state, levels):
        logits, deltas = nnx.merge(graph, state).at(levels, index)
        return jnp.concatenate([logits[..., None], deltas], axis=-1)

    def of_all(state, levels):
        logits, deltas = nnx.merge(graph, state)(levels)
        rows = jnp.concatenate([logits[..., None], deltas], axis=-1)
        return jnp.take_along_axis(rows, index[..., None], axis=1)

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, state, levels):
        outputs, pull_back = jax.vjp(function, state, levels)
        return outputs, pull_back(weight)

    (found, gradients), (expected, expected_gradients) = run(chosen, state, levels), run(of_all, state, levels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        # Sums of up to 1600 float32 terms in another order.
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_the_best_boxes_come_first_with_their_scores(select):
    boxes = [[40, 30, 30, 20, 0.3], [70, 40, 24, 18, -0.6]]
    proposals = select(*scene((100, boxes[0], 1.0), (400, boxes[1], 2.0)))
    np.testing.assert_allclose(proposals.scores[0, :2], jax.nn.sigmoid(np.array([2.0, 1.0])), rtol=1e-6)
    np.testing.assert_allclose(proposals.boxes[0, :2], [boxes[1], boxes[0]], rtol=1e-4, atol=1e-3)
    assert np.all(np.diff(proposals.scores[0]) <= 0) and proposals.valid.all()


def test_equal_boxes_suppress_each_other_within_a_level_alone(select):
    box, second_level = [40, 30, 30, 20, 0.3], 3 * 16 * 24
    chosen = select(*scene((100, box, 1.0), (200, box, 2.0), (second_level + 9, box, 3.0)))
    scores = np.asarray(chosen.scores[0])
    # Of the two on the finest level the better one stays.
    np.testing.assert_allclose(scores[:2], jax.nn.sigmoid(np.array([3.0, 2.0])), rtol=1e-6)
    assert scores[2] < 0.01


def test_a_box_folded_to_a_line_stays(select):
    # The reference keeps such boxes: 8 of the recorded proposals have no height.
    logits, deltas = scene((100, [40, 30, 30, 20, 0.3], 3.0))
    deltas[0, 100, 4:] = [1, -1]
    folded = decode_midpoint_offset(ANCHORS[100], deltas[0, 100], STDS)
    assert folded[3] == 0
    proposals = select(logits, deltas)
    np.testing.assert_array_equal(proposals.boxes[0, 0], folded)
    assert proposals.valid[0, 0]


def test_more_proposals_than_anchors_leave_rows_that_are_not_valid():
    anchors = anchor_grid((8, 8), **GRID)
    proposals = jax.jit(lambda *x: propose(*x, anchors, (8, 8), 50))(
        jnp.zeros((1, len(anchors))), jnp.zeros((1, len(anchors), 6))
    )
    assert proposals.boxes.shape == (1, 50, 5)
    assert 0 < proposals.valid.sum() <= len(anchors)
    assert not proposals.scores[0][~proposals.valid[0]].any()


def test_no_gradient_flows_through_proposals():
    logits, deltas = (jnp.asarray(x) for x in scene((100, [40, 30, 30, 20, 0.3], 1.0)))
    gradient = jax.jit(jax.grad(lambda d: propose(logits, d, ANCHORS, SHAPE, 8).boxes.sum()))(deltas)
    assert not gradient.any()
