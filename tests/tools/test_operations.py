"""Multiply-adds of traced programs, against the products of sizes that the definitions say."""

import jax
import jax.numpy as jnp

from haksnet_jax import demo
from haksnet_jax.tools import info, operations
from haksnet_jax.weights import model_folder


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return operations.multiply_adds(jax.make_jaxpr(function)(*arrays).jaxpr)


def convolve(image, kernel, **options):
    return jax.lax.conv_general_dilated(
        image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def test_convolutions_and_products_are_counted_by_their_definition():
    assert count(convolve, (2, 8, 8, 4), (3, 3, 4, 6)) == 2 * 4 * 4 * 6 * (3 * 3 * 4)
    depthwise = count(lambda x, k: convolve(x, k, feature_group_count=4), (1, 8, 8, 4), (5, 5, 1, 4))
    assert depthwise == 4 * 4 * 4 * 25
    assert count(lambda a, b: a @ b, (3, 5, 7), (3, 7, 2)) == 3 * 5 * 7 * 2


def test_bodies_count_as_often_as_they_run():
    def scanned(x, kernels):
        return jax.lax.scan(lambda carry, kernel: (jnp.tanh(carry @ kernel), None), x, kernels)[0]

    assert count(scanned, (4, 4), (6, 4, 4)) == 6 * 64
    assert count(jax.jit(scanned), (4, 4), (6, 4, 4)) == 6 * 64
    assert count(jax.checkpoint(scanned), (4, 4), (6, 4, 4)) == 6 * 64

    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda y: y @ y, lambda y: y @ y @ y, x)

    assert count(either, (4, 4)) == 2 * 64


def test_info_says_what_a_detector_computes():
    facts = info.describe("demo")
    described = model_folder.read_model_info(demo.MODEL / "model.json")
    multiply_adds, size = operations.of_model(described)
    assert size == (192, 192) and f"{multiply_adds / 1e9:.3g} billion multiply-adds" in facts["operations"]
    # The two hidden layers and the outputs of the RoI head alone, for each of its proposals.
    channels, hidden, proposals = 32, 128, described["proposals"]["max_proposals"]
    head = proposals * (49 * channels * hidden + hidden * hidden + hidden * (5 + 1 + 5))
    assert head < multiply_adds < 20 * head
