"""The 7 x 7 convolution of four channels in CUDA C++ against the library: on a GPU, and without one by an emulation."""

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import narrow_conv, narrow_conv_cuda, ptx, triton


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    with cuda_machine.machine(request.param, "narrow", tmp_path_factory.mktemp("emulation")):
        yield request.param


def library(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


# Maps cut by borders on each side, several tiles in both directions, odd widths, one smaller than the kernel.
@pytest.mark.parametrize("shape", [(2, 19, 45, 4), (1, 40, 64, 4), (3, 7, 7, 4), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("rows", [8, 4, 2])  # of a warp
def test_kernels_against_the_library(machine, monkeypatch, shape, rows):
    monkeypatch.setattr(narrow_conv_cuda, "_rows", lambda shape: rows)
    monkeypatch.setattr(narrow_conv_cuda, "_BLOCKS", 2)  # of up to eight warps, which walk through up to 40 tiles
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((7, 7, 4, 4)), jnp.bfloat16).astype(jnp.float32)
    want, pull_back = jax.vjp(library, x.astype(jnp.float32), kernel)
    want_x, want_kernel = pull_back(gradient.astype(jnp.float32))
    # float32 sums of 196 products of size 1, in another order; 2^-8 of the value is half a step of bfloat16
    np.testing.assert_allclose(narrow_conv_cuda.convolve(x, kernel, jnp.float32), want, rtol=1e-5, atol=3e-5)
    got = narrow_conv_cuda.convolve(x, kernel, jnp.bfloat16)
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-8, atol=3e-5)
    # (the gradient comes in the result's type, float32 in the backbone)
    got_x, got_kernel = narrow_conv._convolve_cuda_gradients(x, kernel, gradient.astype(jnp.float32))
    assert (got_x.dtype, got_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(got_x.astype(np.float32), want_x, rtol=2**-8, atol=3e-5)
    # sums of up to 2,560 products
    np.testing.assert_allclose(got_kernel, want_kernel, rtol=1e-5, atol=3e-4)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("shared_bytes", "dtype", "kernel_shape", "shape", "chosen"),
    [
        (227 << 10, jnp.bfloat16, (7, 7, 4, 4), (8, 256, 256, 4), "matrix units"),
        (99 << 10, jnp.bfloat16, (7, 7, 4, 4), (8, 256, 256, 4), "matrix units"),
        (227 << 10, jnp.float32, (7, 7, 4, 4), (8, 256, 256, 4), "pairs"),
        (227 << 10, jnp.bfloat16, (3, 3, 4, 4), (8, 256, 256, 4), "pairs"),
        (227 << 10, jnp.bfloat16, (7, 7, 4, 2), (8, 256, 256, 4), "pairs"),
        (227 << 10, jnp.bfloat16, (7, 7, 4, 4), (1, 1, 1 << 24, 4), "pairs"),  # sixteen rows are 2^30 numbers
        (227 << 10, jnp.bfloat16, (7, 7, 4, 4), (1 << 16, 8, 8, 4), "pairs"),  # more images than a grid has blocks
        (0, jnp.bfloat16, (7, 7, 4, 4), (8, 256, 256, 4), "pairs"),  # no PTX
        (227 << 10, jnp.bfloat16, (7, 7, 8, 8), (8, 256, 256, 8), None),
    ],
)
def test_which_kernels_serve_an_nvidia_gpu(monkeypatch, shared_bytes, dtype, kernel_shape, shape, chosen):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: shared_bytes)
    monkeypatch.setattr(triton, "usable", lambda: True)
    x, kernel = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    forms = narrow_conv._forms(x, kernel, library, jnp.float32)
    gradients = {
        "matrix units": narrow_conv._convolve_cuda_gradients,
        "pairs": narrow_conv.narrow_conv_triton_gradients,
    }
    assert forms.get("cuda", (None, None))[1] == gradients.get(chosen)


def test_each_device_of_a_mesh_takes_its_images(monkeypatch):
    monkeypatch.setattr(ptx, "shared_bytes", lambda: 227 << 10)
    x, kernel = jax.ShapeDtypeStruct((8, 16, 16, 4), jnp.bfloat16), jax.ShapeDtypeStruct((7, 7, 4, 4), jnp.float32)

    def wide(x, kernel):
        return library(x.astype(jnp.float32), kernel)

    def loss(x, kernel):
        return jnp.square(narrow_conv.narrow_conv(x, kernel, wide)).sum()

    with cuda_machine.gpus(2):
        text = str(jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel).jaxpr)
    calls = [line.split(" = ")[0].split(":")[1] for line in text.splitlines() if " = ffi_call[" in line]
    assert calls == ["f32[4,16,16,4]", "bf16[4,16,16,4]", "f32[8,7,7,4,4]"]
    assert text.count(" = psum[") == 1
