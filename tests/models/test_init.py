"""Initial weights: the rules, and the recorded statistics of the reference's."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones.haksnet import BackboneSize
from haksnet_jax.tools.parity import weights
from haksnet_jax.tools.parity.rows import Fixture
from haksnet_jax.weights import model_folder


def test_initial_weights_are_distributed_as_the_recorded_ones(golden_file):
    # Mean, deviation and kurtosis of every tensor of T and S within six standard errors: of 1000 figures one lies
    # beyond four by chance; 3.4 was the farthest seen. Biases, norms and layer scales are equal.
    rows = weights.init_rows(Fixture(golden_file("init_statistics.json").parent, "init_statistics"))
    assert len(rows) == 8
    assert [row for row in rows if not row.passed] == []


@pytest.fixture(scope="module")
def params():
    size = BackboneSize((32, 64, 96, 128), (1, 1, 2, 1), (8, 8, 4, 4))
    model = haksnet_detector(size, 15, channels=128, hidden=256, rngs=nnx.Rngs(1))
    return {name: np.asarray(x) for name, x in model_folder.flatten(nnx.state(model, nnx.Param)).items()}


def test_constants(params):
    for name, value in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(value, 0, err_msg=name)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(value, 1, err_msg=name)
        elif "layer_scale" in name:
            np.testing.assert_array_equal(value, np.float32(0.01), err_msg=name)


@pytest.mark.parametrize(
    ("name", "std", "uniform"),
    [
        # Backbone: normal with variance 2 / fan-out, the fan-out of a depthwise kernel being its places alone.
        ("backbone.stages.1.patch_embed.conv.kernel", math.sqrt(2 / (9 * 64)), False),
        ("backbone.stages.3.blocks.mlp.expand.kernel", math.sqrt(2 / (2 * 4 * 128)), False),
        ("backbone.stages.3.blocks.attention.kernel_selection.dw_conv9.kernel", math.sqrt(2 / 81), False),
        # Pyramid: Xavier uniform. RPN: normal, 0.01. Box head: Xavier normal, its two outputs included.
        ("fpn.laterals.2.kernel", math.sqrt(2 / (96 + 128)), True),
        ("fpn.outputs.0.kernel", math.sqrt(2 / (9 * (128 + 128))), True),
        ("rpn.conv.kernel", 0.01, False),
        ("rpn.deltas.kernel", 0.01, False),
        ("roi_head.fc_1.kernel", math.sqrt(2 / (49 * 128 + 256)), False),
        ("roi_head.logits.kernel", math.sqrt(2 / (256 + 16)), False),
        ("roi_head.deltas.kernel", math.sqrt(2 / (256 + 5)), False),
    ],
)
def test_rules(params, name, std, uniform):
    values = params[name].astype(np.float64).ravel()
    shape = -1.2 if uniform else 0.0  # excess kurtosis
    # Five standard errors of each figure.
    assert abs(values.std() - std) < 5 * std * math.sqrt((2 + shape) / (4 * values.size))
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    kurtosis = (values**4).mean() / (values**2).mean() ** 2 - 3
    assert abs(kurtosis - shape) < 5 * math.sqrt(24 / values.size)


def test_the_blocks_of_a_stage_start_apart_and_seeds_decide():
    def kernel(seed):
        model = haksnet_detector(
            BackboneSize((4, 4, 4, 4), (2, 1, 1, 1), (2, 2, 2, 2)), 1, channels=4, hidden=4, rngs=nnx.Rngs(seed)
        )
        return np.asarray(model.backbone.stages[0].blocks.mlp.expand.kernel[...])

    one, again, other = kernel(3), kernel(3), kernel(4)
    np.testing.assert_array_equal(one, again)
    assert not np.any(one == other) and not np.any(one[0] == one[1])


def test_a_model_for_its_shapes_alone_draws_nothing():
    def make():
        return haksnet_detector(BackboneSize((4, 4), (1, 1), (2, 2)), 1, channels=4, hidden=4, rngs=nnx.Rngs(0))

    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make)))]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(nnx.state(make()))]
