"""Rotated RoIAlign in CUDA C++ against its plain form: on a GPU, and without one by an emulation."""

import functools
import math

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import ptx, roi_align_cuda
from haksnet_jax.kernels.roi_align import rotated_roi_align
from haksnet_jax.target import over_mesh

SHAPES = ((17, 26), (8, 9), (4, 5), (2, 3))  # tiles cut by borders, several in both directions, one of a few features


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "roi_align", tmp_path_factory.mktemp("emulation")):
        yield request.param


def scene(seed, num_boxes, channels, dtype, shapes=SHAPES):
    """Maps, boxes of all sizes, some partly or wholly outside, of zero size, huge or not finite, and their levels."""
    rng = np.random.default_rng(seed)
    maps = tuple(jnp.asarray(rng.normal(size=(*shape, channels)), dtype) for shape in shapes)
    sides = 4 * np.asarray([shapes[0][1], shapes[0][0]])  # of the image
    boxes = np.concatenate(
        [
            rng.uniform(-10, sides + 10, (num_boxes, 2)),
            rng.uniform(0, 60, (num_boxes, 2)) ** rng.uniform(0.5, 1, (num_boxes, 1)),
            rng.uniform(-math.pi / 2, math.pi / 2, (num_boxes, 1)),
        ],
        axis=1,
    )
    odd = [
        [30, 30, 0, 0, 0.3],
        [-200, 30, 20, 10, 0.3],
        [30, 30, 3000, 2000, 0.3],
        [0, 0, 20, 10, -0.5],
        [np.nan, 30, 9, 9, 0],
        [30, 30, np.inf, 9, 0],
        [30, 30, 9, 9, np.nan],
        [18, 18, 28, 28, 0],  # samples on features and on a tile's border
        [-2, -2, 0, 0, 0],  # one feature outside
        [*(sides + 2), 0, 0, 0],  # and on the other side
    ]
    boxes[: len(odd)] = odd[:num_boxes]
    return maps, boxes.astype(np.float32), rng.integers(0, len(shapes), num_boxes).astype(np.int32)


def pooled_and_gradient(kind, maps, boxes, levels, valid, cotangent, **settings):
    """By the kernels on a machine of this kind; None: by the plain form."""

    def pool(maps):
        one = functools.partial(rotated_roi_align, strides=[4 << n for n in range(len(maps))], **settings)
        return jax.vmap(one if valid is None else lambda m, b, n, v: one(m, b, n, valid=v))(
            *((maps, boxes, levels) if valid is None else (maps, boxes, levels, valid))
        )

    def both(maps, cotangent):
        pooled, pull_back = jax.vjp(pool, maps)
        return pooled, pull_back(cotangent.astype(pooled.dtype))[0]

    if kind is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ptx, "shared_bytes", lambda: 0)
            return jax.jit(both)(maps, cotangent)
    with cuda_machine.nvidia_gpu(kind):
        assert roi_align_cuda.suits([m.shape[1:] for m in maps], maps[0].dtype, boxes.shape[1], (7, 7), 2)
        return jax.jit(both)(maps, cotangent)


def images_of(*scenes):
    return jax.tree.map(lambda *x: np.stack(x), *scenes)


# 264 channels are two slices; 40 leave most of a warp without any.
@pytest.mark.parametrize(
    ("dtype", "channels", "shapes", "size", "count"),
    [
        ("bfloat16", 264, SHAPES, 7, 14),
        ("bfloat16", 8, SHAPES[:3], (2, 3), 30),
        ("bfloat16", 40, [(9, 40)], 1, 530),  # more boxes than a block looks at together
        ("float32", 40, SHAPES, 7, 14),
        ("float32", 8, [(21, 8), (3, 20)], (3, 2), 30),
    ],
    ids=str,
)
def test_kernels_against_the_plain_form(machine, dtype, channels, shapes, size, count):
    maps, boxes, levels = images_of(*(scene(seed, count, channels, dtype, shapes) for seed in (0, 1)))
    valid = np.random.default_rng(2).uniform(size=levels.shape) < 0.8
    bins = (size, size) if isinstance(size, int) else size
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=(*levels.shape, *bins, channels)), dtype)
    run = functools.partial(pooled_and_gradient, output_size=size)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (maps, cotangent))
    want, want_gradient = run(None, exact[0], boxes, levels, valid, exact[1])
    got, got_gradient = run(machine, maps, boxes, levels, valid, cotangent)
    assert {x.dtype for x in (got, *got_gradient)} == {jnp.dtype(dtype)}
    # One rounding of the results; places rounded to 1e-5 of a feature, in values of size 4. In the gradient these add
    # up over the bins that meet a feature.
    rounding = {"rtol": 2**-8 if dtype == "bfloat16" else 1e-5}
    np.testing.assert_allclose(got.astype(np.float32), want, atol=1e-4, **rounding)
    for level, want_level in zip(got_gradient, want_gradient, strict=True):
        np.testing.assert_allclose(level.astype(np.float32), want_level, atol=5e-4, **rounding)
    again = run(machine, maps, boxes, levels, valid, cotangent)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves((got, got_gradient)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_boxes_that_are_not_valid_or_outside_give_zeros_and_no_gradient(machine):
    maps, _, _ = images_of(scene(1, 1, 8, "bfloat16"))
    boxes = np.array(
        [[[-500, 0, 9, 9, 0], [30, 30, 9, 9, 0], [np.nan, 30, 9, 9, 0], [30, 30, np.inf, 9, 0]]], np.float32
    )
    valid = np.array([[True, False, True, True]])
    cotangent = jnp.ones((1, 4, 7, 7, 8), jnp.bfloat16)
    pooled, gradient = pooled_and_gradient(machine, maps, boxes, np.array([[0, 1, 2, 3]]), valid, cotangent)
    for result in (pooled, *gradient):
        np.testing.assert_array_equal(result.astype(np.float32), 0)


BEST = 227 << 10  # bytes of shared memory
LEVELS = [(256, 256, 256), (128, 128, 256), (64, 64, 256), (32, 32, 256)]


@pytest.mark.parametrize(
    ("shared_bytes", "dtype", "shapes", "num_boxes", "bins", "samples", "taken"),
    [
        (BEST, jnp.bfloat16, LEVELS, 512, (7, 7), 2, True),
        (99 << 10, jnp.float32, LEVELS, 512, (7, 7), 2, True),
        (BEST, jnp.bfloat16, LEVELS[:1], 1, (1, 1), 2, True),
        (0, jnp.bfloat16, LEVELS, 512, (7, 7), 2, False),  # no PTX
        (BEST, jnp.float16, LEVELS, 512, (7, 7), 2, False),
        (BEST, jnp.bfloat16, [(*shape[:2], 252) for shape in LEVELS], 512, (7, 7), 2, False),
        (BEST, jnp.bfloat16, [*LEVELS, (16, 16, 256)], 512, (7, 7), 2, False),
        (BEST, jnp.bfloat16, LEVELS, 512, (7, 7), 3, False),
        (BEST, jnp.bfloat16, LEVELS, 0, (7, 7), 2, False),
        (BEST, jnp.bfloat16, LEVELS, 1 << 20, (7, 7), 2, False),  # bins are divided by multiplying
        (BEST, jnp.bfloat16, [(1 << 15, 1, 8)], 512, (7, 7), 2, False),  # a row and a column share 32 bits
        (BEST, jnp.float32, [(1 << 14, 1 << 14, 8)], 512, (7, 7), 2, False),  # 2^33 bytes
    ],
)
def test_what_the_kernels_take(monkeypatch, shared_bytes, dtype, shapes, num_boxes, bins, samples, taken):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: shared_bytes)
    assert roi_align_cuda.suits(shapes, jnp.dtype(dtype), num_boxes, bins, samples) == taken


def traced_for_gpus(*devices, channels=16):
    """The program of pooling and its gradient, of eight images."""
    maps = tuple(jax.ShapeDtypeStruct((8, *shape, channels), jnp.bfloat16) for shape in SHAPES)
    boxes = jax.ShapeDtypeStruct((8, 5, 5), jnp.float32)

    def loss(maps, boxes):
        def one_image(boxes, *maps):
            return rotated_roi_align(maps, boxes, jnp.zeros(5, jnp.int32))

        return over_mesh(jax.vmap(one_image), boxes, *maps).astype(jnp.float32).sum()

    with cuda_machine.gpus(*devices):
        text = str(jax.jit(jax.grad(loss)).trace(maps, boxes).jaxpr)
    return text, [line.split(" = ")[0].split(":")[1] for line in text.splitlines() if " = ffi_call[" in line]


def test_each_device_of_a_mesh_takes_its_images(monkeypatch):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: BEST)
    _, calls = traced_for_gpus(2)
    # (The gradient's first of four results.)
    assert [call.split(" ")[0] for call in calls] == ["bf16[4,5,7,7,16]", "bf16[4,17,26,16]"]


def test_other_forms_serve_a_gpu_that_runs_no_ptx(monkeypatch):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 0)
    text, calls = traced_for_gpus()
    assert not calls and "scatter-add" in text


def test_the_host_of_a_gpu_computes_the_plain_form(monkeypatch):
    maps, boxes, levels = images_of(*(scene(seed, 14, 8, "float32") for seed in (0, 1)))
    valid = np.random.default_rng(2).uniform(size=levels.shape) < 0.8
    cotangent = np.random.default_rng(3).normal(size=(*levels.shape, 7, 7, 8)).astype(np.float32)

    def pool(maps):
        return jax.vmap(lambda m, b, n, v: rotated_roi_align(m, b, n, valid=v))(maps, boxes, levels, valid)

    @jax.jit
    def both(maps, cotangent):
        pooled, pull_back = jax.vjp(pool, maps)
        return pooled, *pull_back(cotangent)[0]

    want = pooled_and_gradient(None, maps, boxes, levels, valid, cotangent)
    monkeypatch.setattr(ptx, "shared_bytes", lambda: BEST)
    jaxpr = str(jax.make_jaxpr(both)(maps, cotangent))
    assert "ffi_call" in jaxpr  # for the GPU
    for found, expected in zip(both(maps, cotangent), (want[0], *want[1]), strict=True):
        # Two programs, whose places may be rounded otherwise by 1e-5 of a feature, in sums of size 10.
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
