"""Every form of the depthwise convolution against plain loops; the Triton kernels in Pallas' interpreter."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax import target as sharding
from haksnet_jax.kernels import depthwise, depthwise_triton, triton
from haksnet_jax.kernels.depthwise_triton import Tile

BATCH = jax.P("data")

needs_triton = pytest.mark.skipif(triton.plgpu is None, reason="this jax has no Triton backend")

FORMS = {
    "slices": (depthwise.convolve_slices, depthwise.weight_gradient_slices),
    "library": (depthwise.convolve_library, depthwise.weight_gradient_library),
    "bands": (depthwise.convolve_bands, depthwise.weight_gradient_bands),
    "triton": (
        functools.partial(depthwise_triton.convolve, interpret=True),
        lambda x, gradient, k: depthwise_triton.weight_gradient(x, gradient, k, interpret=True)[0],
    ),
}

each_form = pytest.mark.parametrize("form", ["slices", "library", "bands", pytest.param("triton", marks=needs_triton)])

# k, shape: odd sizes, one channel, channels that no power of two divides, a map smaller than the kernel, one wider than
# a TPU's registers.
CASES = [
    (3, (2, 7, 9, 1)),
    (5, (1, 13, 10, 24)),
    (7, (2, 9, 6, 3)),
    (9, (1, 11, 17, 40)),
    (9, (1, 3, 2, 8)),
    (5, (2, 4, 131, 2)),
]


def arrays(k, shape, dtype=np.float32, seed=0):
    """Input, gradient of the output and kernel, such that dtype holds them exactly."""
    rng = np.random.default_rng(seed)
    x, gradient = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    kernel = rng.standard_normal((k, k, shape[-1])).astype(np.float32)
    return tuple(jnp.asarray(a, dtype) for a in (x, gradient, kernel))


def padded(x, k):
    margin = (k // 2, k // 2)
    return np.pad(np.asarray(x, np.float64), ((0, 0), margin, margin, (0, 0)))


def convolved(x, kernel):
    """The definition, in float64."""
    k, (_, height, width, _) = kernel.shape[0], x.shape
    source, weights = padded(x, k), np.asarray(kernel, np.float64)
    out = np.zeros(x.shape)
    for i in range(height):
        for j in range(width):
            out[:, i, j] = np.sum(source[:, i : i + k, j : j + k] * weights, axis=(1, 2))
    return out


def kernel_gradient(x, gradient, k):
    """The derivative of the definition, in float64."""
    _, height, width, channels = x.shape
    source, gradient = padded(x, k), np.asarray(gradient, np.float64)
    out = np.zeros((k, k, channels))
    for i in range(height):
        for j in range(width):
            out += np.sum(source[:, i : i + k, j : j + k] * gradient[:, i, j][:, None, None], axis=0)
    return out


@pytest.mark.parametrize(("k", "shape"), CASES)
@each_form
def test_every_form_follows_the_definition(form, k, shape):
    convolve, weight_gradient = FORMS[form]
    x, gradient, kernel = arrays(k, shape)
    # float32 sums of up to 187 products of size 1, in another order than float64's
    np.testing.assert_allclose(jax.jit(convolve)(x, kernel), convolved(x, kernel), rtol=1e-5, atol=2e-5)
    got = jax.jit(functools.partial(weight_gradient, k=k))(x, gradient)
    assert got.shape == kernel.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, kernel_gradient(x, gradient, k), rtol=1e-5, atol=3e-5)


@each_form
def test_bfloat16_is_summed_in_float32_and_rounded_once(form):
    convolve, weight_gradient = FORMS[form]
    x, gradient, kernel = arrays(9, (1, 12, 11, 16), jnp.bfloat16)
    got = convolve(x, kernel)
    assert got.dtype == jnp.bfloat16
    want = convolved(x.astype(jnp.float32), kernel.astype(jnp.float32))
    # One rounding to 8 bits is 2^-9 of the value. The library form rounds four parts (up to 40 each) before their sum.
    tolerance = {"rtol": 2**-8, "atol": 0.5 if form == "library" else 1e-4}
    np.testing.assert_allclose(got.astype(jnp.float32), want, **tolerance)
    got = weight_gradient(x, gradient, k=9)
    want = kernel_gradient(x.astype(jnp.float32), gradient.astype(jnp.float32), 9)
    # Products of bfloat16 numbers are exact in float32; the library form returns a rounded result (values up to 60).
    np.testing.assert_allclose(got, want, rtol=2**-8 if form == "library" else 1e-5, atol=1e-4)


@needs_triton
def test_small_tiles_cover_the_image_with_blocks_strips_and_chunks():
    x, gradient, kernel = arrays(5, (2, 13, 19, 20))
    # 20 channels in blocks of 8, 3 column blocks, 4 or 3 row blocks: every edge of the image cuts through a tile
    convolve = functools.partial(depthwise_triton.convolve, tile=Tile(4, 8, 8, 1), interpret=True)
    np.testing.assert_allclose(convolve(x, kernel), convolved(x, kernel), rtol=1e-5, atol=1e-5)
    for taps in (1, 5):
        tile = Tile(3, 8, 8, 1, chunks=2, taps=taps)
        got, _ = depthwise_triton.weight_gradient(x, gradient, 5, tile=tile, interpret=True)
        np.testing.assert_allclose(got, kernel_gradient(x, gradient, 5), rtol=1e-5, atol=3e-5)


def test_programs_that_walk_through_several_images_add_up_the_same_sums():
    rng = np.random.default_rng(5)
    x, gradient = (jnp.asarray(rng.standard_normal((4, 7, 6, 8)), jnp.float32) for _ in range(2))
    for taps, k in ((1, 5), (3, 3)):
        one, both = (
            depthwise_triton.weight_gradient(
                x, gradient, k, tile=Tile(4, 8, 8, 1, chunks=2, taps=taps, images=images), interpret=True
            )
            for images in (1, 2)
        )
        for found, expected in zip(both, one, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # (other order of sums of 168 terms)


def test_tiles_are_powers_of_two_and_waste_no_channels():
    for channels in (1, 3, 8, 24, 32, 64, 160, 320, 512, 2048):
        for size in (1, 8, 32, 200, 256):
            for tile in (
                depthwise_triton.convolve_tile((8, size, size, channels)),
                *(depthwise_triton.weight_gradient_tile((8, size, size, channels), k) for k in (1, 3, 5, 7, 9)),
            ):
                assert tile.columns & (tile.columns - 1) == 0 and tile.channels & (tile.channels - 1) == 0, tile
                assert tile.chunks >= 1 and tile.rows >= 1
                if channels % 8 == 0:
                    assert channels % tile.channels == 0, (channels, tile)


@needs_triton
@pytest.mark.parametrize("k", [3, 9])  # the gradient in one pass, and with a sum of its own
def test_the_kernels_add_the_bias_and_give_means_and_its_gradient(k):
    x, gradient, kernel = arrays(k, (2, 13, 19, 40))  # the channels in several blocks, tiles beyond every edge
    bias = jnp.asarray(np.random.default_rng(1).standard_normal(40), jnp.float32)
    got, over_channels, over_positions = depthwise_triton.convolve(x, kernel, bias, means=True, interpret=True)
    want = convolved(x, kernel) + np.asarray(bias, np.float64)
    # float32 sums of up to 81 products of size 1; means of 40 and of 247 of them
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(over_channels, want.mean(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(over_positions, want.mean((1, 2)), rtol=1e-5, atol=1e-5)
    _, bias_gradient = depthwise_triton.weight_gradient(x, gradient, k, interpret=True)
    np.testing.assert_allclose(bias_gradient, np.asarray(gradient, np.float64).sum((0, 1, 2)), rtol=1e-5, atol=1e-4)


def test_means_have_the_gradients_of_means():
    x, _, kernel = arrays(3, (2, 6, 7, 8))
    bias = jnp.asarray(np.random.default_rng(1).standard_normal(8), jnp.float32)
    rng = np.random.default_rng(2)
    shapes = ((2, 6, 7, 8), (2, 6, 7), (2, 8))
    cotangents = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def plain(x, kernel, bias):
        out = plain_convolution(x, kernel) + bias
        return out, out.mean(-1), out.mean((1, 2))

    want, pull_back = jax.vjp(plain, x, kernel, bias)
    got, own_pull_back = jax.vjp(depthwise.depthwise_conv_with_means, x, kernel, bias)
    for ours, theirs in zip((*got, *own_pull_back(cotangents)), (*want, *pull_back(cotangents)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)  # float32 sums of up to 84 products


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def on_mesh(mesh, *arrays, spec=BATCH):
    return jax.device_put(arrays, jax.sharding.NamedSharding(mesh, spec))


def plain_convolution(x, kernel):
    k = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding=[(k // 2, k // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


@pytest.mark.parametrize("k", [3, 5, 7, 9])
def test_gradients_are_those_of_a_grouped_convolution(k):
    x, gradient, kernel = arrays(k, (2, 8, 11, 4))
    want, pull_back = jax.vjp(plain_convolution, x, kernel)
    got, own_pull_back = jax.vjp(jax.jit(depthwise.depthwise_conv), x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(own_pull_back(gradient), pull_back(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)


def test_gradients_have_the_types_of_their_inputs():
    x, gradient, kernel = arrays(3, (1, 5, 6, 8), jnp.bfloat16)
    kernel = kernel.astype(jnp.float32)
    out, pull_back = jax.vjp(depthwise.depthwise_conv, x, kernel)
    x_gradient, kernel_gradient = pull_back(gradient)
    assert (out.dtype, x_gradient.dtype, kernel_gradient.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_a_scan_over_rematerialised_blocks_has_the_gradient_of_the_unrolled_blocks():
    x, _, _ = arrays(3, (1, 6, 7, 4))
    kernels = jnp.stack([arrays(3, (1, 1, 1, 4), seed=seed)[2] / 3 for seed in range(3)])

    @jax.checkpoint
    def block(x, kernel):
        return jnp.tanh(depthwise.depthwise_conv(x, kernel)), None

    def scanned(kernels):
        return jnp.sum(jax.lax.scan(block, x, kernels)[0])

    def unrolled(kernels):
        out = x
        for kernel in kernels:
            out = jnp.tanh(plain_convolution(out, kernel))
        return jnp.sum(out)

    np.testing.assert_allclose(jax.jit(jax.grad(scanned))(kernels), jax.grad(unrolled)(kernels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ambient", [True, False])
def test_a_sharded_batch_stays_sharded_and_the_kernels_gradient_is_summed_once(mesh, ambient):
    x, gradient, kernel = arrays(5, (4, 6, 7, 8))
    sharded_x, sharded_gradient = on_mesh(mesh, x, gradient)
    (replicated_kernel,) = on_mesh(mesh, kernel, spec=jax.P())

    def out_and_gradients(x, kernel, gradient):
        out, pull_back = jax.vjp(depthwise.depthwise_conv, x, kernel)
        return out, *pull_back(gradient)

    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        compiled = jax.jit(out_and_gradients).lower(sharded_x, replicated_kernel, sharded_gradient).compile()
    text = compiled.as_text()
    assert "all-gather" not in text
    main = text[text.index("ENTRY") :]
    assert text.count(" all-reduce(") == main.count(" all-reduce(") == 1  # not in the loop over kernel rows
    out, _, got = compiled(sharded_x, replicated_kernel, sharded_gradient)
    assert out.sharding.spec == BATCH
    np.testing.assert_allclose(out, convolved(x, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, kernel_gradient(x, gradient, 5), rtol=1e-5, atol=3e-5)


@needs_triton
def test_triton_kernels_split_the_batch_over_the_ambient_mesh(mesh):
    x, gradient, kernel = arrays(3, (4, 6, 7, 8))
    sharded_x, sharded_gradient = on_mesh(mesh, x, gradient)
    (replicated_kernel,) = on_mesh(mesh, kernel, spec=jax.P())
    convolve = functools.partial(sharding.over_mesh, FORMS["triton"][0], split=1)
    weight_gradient = functools.partial(
        sharding.over_mesh, functools.partial(FORMS["triton"][1], k=3), split=2, summed=True
    )
    with jax.set_mesh(mesh):
        forward = jax.jit(convolve).lower(sharded_x, replicated_kernel).compile()
        backward = jax.jit(weight_gradient).lower(sharded_x, sharded_gradient).compile()
    assert "all-gather" not in forward.as_text() + backward.as_text()
    out = forward(sharded_x, replicated_kernel)
    assert out.sharding.spec == BATCH
    np.testing.assert_allclose(out, convolved(x, kernel), rtol=1e-5, atol=1e-5)
    got = backward(sharded_x, sharded_gradient)
    np.testing.assert_allclose(got, kernel_gradient(x, gradient, 3), rtol=1e-5, atol=3e-5)


@needs_triton
def test_triton_kernels_serve_a_batch_that_the_mesh_does_not_divide_and_a_caller_inside_shard_map(mesh):
    convolve = functools.partial(sharding.over_mesh, FORMS["triton"][0], split=1)
    x, _, kernel = arrays(3, (3, 6, 7, 8))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(convolve)(x, kernel), convolved(x, kernel), rtol=1e-5, atol=1e-5)
    x, _, kernel = arrays(3, (4, 6, 7, 8))
    inside = jax.shard_map(convolve, mesh=mesh, in_specs=(BATCH, jax.P()), out_specs=BATCH, check_vma=False)
    np.testing.assert_allclose(jax.jit(inside)(x, kernel), convolved(x, kernel), rtol=1e-5, atol=1e-5)


def test_the_form_is_chosen_for_the_platform_of_the_lowering():
    x, _, kernel = arrays(9, (1, 16, 16, 8))
    traced = jax.jit(depthwise.depthwise_conv).trace(x, kernel)
    operations = {}
    for platform in ("cpu", "tpu", "rocm"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        operations[platform] = text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")
    # 9 x 9 by the vendor's library is the sum of four 5 x 5 kernels; on TPU one convolution of rows
    assert operations == {"cpu": (0, 0), "tpu": (1, 0), "rocm": (4, 0)}


@needs_triton
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [8, 160, 3])
def test_triton_kernels_lower_without_a_gpu(channels, dtype):
    x = jax.ShapeDtypeStruct((2, 30, 33, channels), dtype)
    kernel = jax.ShapeDtypeStruct((5, 5, channels), dtype)
    # From jax 0.11 on, a kernel is lowered for a GPU that has to be named.
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        for traced in (
            depthwise_triton.convolve.trace(x, kernel),
            depthwise_triton.weight_gradient.trace(x, x, k=5),
            # (programs that walk through several images, as many small ones make them)
            depthwise_triton.weight_gradient.trace(x, x, k=5, tile=Tile(4, 8, 8, 1, images=2)),
        ):
            assert "__gpu$xla.gpu.triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("x", "kernel", "said"),
    [
        ((1, 4, 4, 8), (4, 4, 8), "odd side"),
        ((1, 4, 4, 8), (3, 3, 4), "same C"),
        ((4, 4, 8), (3, 3, 8), "same C"),
        ((1, 4, 4, 8), (3, 5, 8), "same C"),
    ],
)
def test_shapes_that_do_not_fit_are_said(x, kernel, said):
    with pytest.raises(ValueError, match=said):
        depthwise.depthwise_conv(jnp.zeros(x), jnp.zeros(kernel))


def test_integer_features_are_refused():
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        depthwise.depthwise_conv(jnp.zeros((1, 4, 4, 8), jnp.int32), jnp.zeros((3, 3, 8)))
