"""What lies beside the CUDA sources, and how it reaches XLA."""

import functools
import re

import cuda_machine
import jax
import jax.numpy as jnp
import pytest

from haksnet_jax.kernels import (
    depthwise,
    depthwise_cuda,
    depthwise_triton,
    gated_mlp_cuda,
    matching_cuda,
    narrow_conv_cuda,
    ptx,
    roi_align_cuda,
    triton,
)
from haksnet_jax.target import over_mesh

HOPPER = 227 << 10  # bytes of shared memory


@pytest.mark.parametrize("source", sorted(path.stem for path in cuda_machine.SOURCES.glob("*.cu")))
def test_the_ptx_was_compiled_from_the_source_beside_it(source):
    text = (cuda_machine.SOURCES / f"{source}.ptx").read_text()
    assert text.splitlines()[0] == cuda_machine.first_line(source), "make ptx compiles it again"


def numbers_asked_for(source):
    return set(re.findall(r"HAKS_([A-Z_]+)_", (cuda_machine.SOURCES / f"{source}.ptx").read_text()))


def test_kernels_and_the_numbers_that_they_ask_for():
    kinds = {"": (3, 5, 7, 9), "_means": (3, 5, 7, 9), "_weight_gradient": (3, 5, 7, 9), "_added": (5, 7, 9)}
    of_convolutions = {f"depthwise_{k}{kind}" for kind, sides in kinds.items() for k in sides}
    of_convolutions |= {f"depthwise_3_{kind}" for kind in ("gelu", "gelu_gradient", "weight_gradient_by_three")}
    of_several = {f"depthwise_{kind}_{what}" for kind in ("cascade", "pair") for what in ("bands", "sums")}
    assert set(cuda_machine.kernel_names("depthwise")) == of_convolutions | of_several
    numbers = depthwise_cuda._numbers((8, 256, 256, 32), 9, depthwise_cuda.region(256, 256))
    own = {"BAND_ROWS", "FIRST_BAND", "FIRST_BIAS", "WHICH", "BLOCKS", "BLOCKS_OF_THREE"}
    assert numbers_asked_for("depthwise") == set(numbers) | own
    shape = {"BATCH", "HEIGHT", "WIDTH", "CHANNELS"}
    assert numbers_asked_for("attention") == shape | {"BLOCKS", "CHANNEL_BLOCKS", "PARTS_LOG", "FIRST", "FUSION_BLOCKS"}
    assert numbers_asked_for("narrow") == set(narrow_conv_cuda._numbers((8, 256, 256, 4)))
    assert numbers_asked_for("roi_align") == set(roi_align_cuda._numbers([(32, 32)], 512, (7, 7), 256))
    assert numbers_asked_for("gated_mlp") == set(gated_mlp_cuda._numbers((8, 256, 256, 32), 256))


def lowered_for_cuda(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_a_call_carries_its_kernel_alone_with_numbers_in_place_of_names():
    x = jnp.zeros((1, 16, 64, 32), jnp.bfloat16)
    text = lowered_for_cuda(depthwise_cuda.convolve, x, jnp.zeros((3, 3, 32)))
    assert text.count("__gpu$xla.gpu.ptx") == 1
    assert text.count(".visible .entry") == 1 and "depthwise_3(" in text
    assert "HAKS_" not in text
    assert "output_indices = [3 : i32]" in text  # after three operands


def test_a_call_can_be_mapped_over_an_axis():
    x = jnp.zeros((2, 1, 16, 64, 32), jnp.bfloat16)
    text = lowered_for_cuda(jax.vmap(depthwise_cuda.convolve, in_axes=(0, None)), x, jnp.zeros((3, 3, 32)))
    assert text.count("__gpu$xla.gpu.ptx") == 1 and "while" in text


def test_each_device_calls_kernels_for_its_own_images():
    of_image = ptx.over_problems(
        functools.partial(matching_cuda.match, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3), common=1
    )
    anchors = jnp.zeros((300, 4))
    images = (jnp.ones((6, 300), bool), jnp.zeros((6, 20, 4)), jnp.ones((6, 20), bool))
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        text = lowered_for_cuda(
            lambda *images: over_mesh(jax.vmap(functools.partial(of_image, anchors)), *images), *images
        )
    calls = re.findall(r"gpu.ptx.*: \((tensor.*)\) ->", text)
    assert [call.split(", ")[:3] for call in calls] == 2 * [
        ["tensor<1x300x4xf32>", "tensor<3x300xi1>", "tensor<3x20x4xf32>"]
    ]


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((8, 256, 256, 32), (2, 198)),  # 512 regions shared by as many blocks as an H100 holds at once, 396
        ((8, 128, 128, 64), (4, 66)),  # or 264, where each would have fewer than three of 128 regions
        ((8, 64, 64, 640), (40, 6)),  # or there are many channels
        ((8, 32, 32, 1024), (64, 4)),
        ((1, 8, 8, 16 * 265), (265, 1)),  # more channels than that
    ],
)
def test_blocks_of_a_weight_gradient_run_all_at_once(shape, grid):
    x = jnp.zeros(shape, jnp.bfloat16)
    text = lowered_for_cuda(functools.partial(depthwise_cuda.weight_gradient, k=3), x, x)
    assert all(f"grid_{axis} = {size} : i32" in text for axis, size in zip("xy", grid, strict=True))


@pytest.mark.parametrize(
    ("shared_bytes", "dtype", "k", "shape", "kernels"),
    [
        (HOPPER, jnp.bfloat16, 9, (8, 64, 64, 32), depthwise_cuda),
        (HOPPER, jnp.float32, 9, (8, 64, 64, 32), depthwise_triton),
        (HOPPER, jnp.bfloat16, 11, (8, 64, 64, 32), depthwise_triton),
        (HOPPER, jnp.bfloat16, 9, (8, 64, 64, 20), depthwise_triton),
        (99 << 10, jnp.bfloat16, 9, (8, 64, 64, 32), depthwise_cuda),
        (99 << 10, jnp.bfloat16, 9, (8, 7, 7, 32), depthwise_triton),  # whose region is of several images
        (0, jnp.bfloat16, 9, (8, 64, 64, 32), depthwise_triton),
        (HOPPER, jnp.bfloat16, 3, (1, 8192, 8192, 32), depthwise_triton),  # 2^31 numbers
        (HOPPER, jnp.bfloat16, 3, (70000, 64, 64, 32), depthwise_triton),  # more images than a grid has blocks
    ],
)
def test_which_kernels_serve_an_nvidia_gpu(monkeypatch, shared_bytes, dtype, k, shape, kernels):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: shared_bytes)
    monkeypatch.setattr(triton, "usable", lambda: True)
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert depthwise._forms(x, k)["cuda"] == (kernels.convolve, kernels.weight_gradient)


def test_shared_memory_is_none_without_a_gpu():
    if all(device.platform == "cpu" for device in jax.devices()):
        assert ptx.shared_bytes() == 0
