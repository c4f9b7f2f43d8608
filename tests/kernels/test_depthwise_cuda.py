"""The depthwise kernels in CUDA C++ against shifted sums: on a GPU, and without one by an emulation (cuda_emulation.h).

What the emulation cannot see is whether the PTX in the package is what the source says: its first line holds the sum of
the sources that it was compiled from.
"""

import ctypes
import hashlib
import importlib.resources
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.kernels import depthwise, depthwise_cuda, ptx

SOURCES = pathlib.Path(str(importlib.resources.files("haksnet_jax.kernels") / "cuda"))
AMPERE = 163 << 10  # bytes of shared memory

# (height, width) that take each kind of region; channels that no block divides; more images than a block has.
SHAPES = [(2, 20, 70, 24), (1, 16, 64, 32), (2, 33, 30, 16), (5, 14, 14, 16), (18, 7, 7, 16), (3, 9, 16, 8)]

BRIDGE = """
#define HAKS_EMULATION
#include "depthwise.cu"
#define FORMS(K)                                                                                              \\
  if (name == "depthwise_" #K)                                                                                \\
    run = [=] { depthwise_##K(x, (const uint32_t*)p[1], (const float*)p[2], (uint16_t*)p[3]); };              \\
  if (name == "depthwise_" #K "_means")                                                                       \\
    run = [=] { depthwise_##K##_means(x, (const uint32_t*)p[1], (const float*)p[2], (uint16_t*)p[3],          \\
                                      (float*)p[4], (float*)p[5]); };                                         \\
  if (name == "depthwise_" #K "_weight_gradient")                                                             \\
    run = [=] { depthwise_##K##_weight_gradient(x, (const uint16_t*)p[1], (float*)p[2], (float*)p[3]); };
extern "C" void set_number(const char* name, int value) { emulation::numbers()[name] = value; }
extern "C" void launch(const char* kernel, int x_blocks, int y_blocks, int z_blocks, int bytes, void** p) {
  const std::string name = kernel;
  const auto x = static_cast<const uint16_t*>(p[0]);
  std::function<void()> run;
  FORMS(3) FORMS(5) FORMS(7) FORMS(9)
  const int grid[3] = {x_blocks, y_blocks, z_blocks};
  emulation::launch(grid, bytes, run);
}
"""


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def machine(request, tmp_path_factory):
    """What answers `ptx.call`."""
    if request.param == "gpu":
        if not ptx.shared_bytes():
            pytest.skip("no NVIDIA GPU from Ampere on")
        yield
        return
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) to emulate CUDA kernels with")
    folder = tmp_path_factory.mktemp("emulation")
    source, library = folder / "bridge.cpp", folder / "bridge.so"
    source.write_text(BRIDGE)
    tests = pathlib.Path(__file__).parent.parent
    subprocess.run(
        [compiler, "-O1", "-std=c++17", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{tests}", "-o", library, source],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))

    def call(source, kernel, operands, results, *, grid, threads, shared, numbers):
        assert (source, threads) == ("depthwise", 256)

        def on_host(*arrays):
            written = [np.full(result.shape, np.nan, result.dtype) for result in results]
            arrays = [np.ascontiguousarray(array) for array in arrays] + written
            for name, value in numbers.items():
                loaded.set_number(name.encode(), value)
            pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            loaded.launch(kernel.encode(), *grid, shared, pointers)
            return written

        return jax.pure_callback(on_host, list(results), *operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptx, "call", call)
        yield
    jax.clear_caches()  # (of functions that were traced with the emulation)


@pytest.mark.parametrize("k", [3, 5, 7, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_against_shifted_sums(machine, shape, k):
    rng = np.random.default_rng(k)
    x, gradient = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((k, k, shape[3])), jnp.bfloat16).astype(jnp.float32)
    bias = jnp.asarray(rng.standard_normal(shape[3]), jnp.float32)
    assert depthwise_cuda.suits(shape, x.dtype, k, AMPERE)
    exact = depthwise.convolve_slices(x.astype(jnp.float32), kernel) + bias

    got, over_channels, over_positions = depthwise_cuda.convolve(x, kernel, bias, means=True)
    # 2^-8 of the value is half a step of bfloat16; sums of 81 products in float32 add 1e-5 beside zero.
    np.testing.assert_allclose(got.astype(np.float32), exact, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(over_channels, got.astype(np.float32).mean(-1), atol=2e-6)
    np.testing.assert_allclose(over_positions, exact.mean((1, 2)), atol=2e-6)
    assert (depthwise_cuda.convolve(x, kernel, bias) == got).all()

    kernel_gradient, bias_gradient = depthwise_cuda.weight_gradient(x, gradient, k)
    wide = gradient.astype(jnp.float32)
    expected = depthwise.weight_gradient_slices(x.astype(jnp.float32), wide, k)
    np.testing.assert_allclose(kernel_gradient, expected, atol=2e-4)  # sums of up to 2,800 products in another order
    np.testing.assert_allclose(bias_gradient, wide.sum((0, 1, 2)), atol=2e-4)


def test_what_the_kernels_take():
    shape = (8, 256, 256, 32)
    assert depthwise_cuda.suits(shape, jnp.bfloat16, 9, AMPERE)
    assert not depthwise_cuda.suits(shape, jnp.float32, 9, AMPERE)
    assert not depthwise_cuda.suits(shape, jnp.bfloat16, 11, AMPERE)
    assert not depthwise_cuda.suits((8, 256, 256, 20), jnp.bfloat16, 9, AMPERE)
    assert not depthwise_cuda.suits(shape, jnp.bfloat16, 9, 0)  # no GPU, or one before Ampere


@pytest.mark.parametrize("k", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(7, 7), (14, 16), (19, 19), (64, 64), (40, 6), (256, 256)])
def test_divisions_by_multiplication_are_exact(size, k):
    # The kernels divide the numbers of what they copy by rows and by vectors in a row with these factors.
    region = depthwise_cuda.region(*size)
    layout = depthwise_cuda.layout(region, k, halo=k > 1)
    vectors, rows = 2 * layout.row_words, layout.rows * region.images
    items = np.arange(rows * vectors + 4 * 256, dtype=np.uint64)
    assert (items * layout.items_inverse >> 20 == items // vectors).all() and items[-1] * layout.items_inverse < 2**32
    assert (np.arange(rows) * layout.rows_inverse >> 16 == np.arange(rows) // layout.rows).all()


def test_ptx_was_compiled_from_these_sources():
    names = ("depthwise.cu", "target.h")
    whole = hashlib.sha256(b"".join((SOURCES / name).read_bytes() for name in names)).hexdigest()
    head = (SOURCES / "depthwise.ptx").read_text().splitlines()[0]
    assert head == f"// sources: sha256 {whole}", "make ptx compiles it again"


def test_every_kernel_is_in_the_ptx():
    text = (SOURCES / "depthwise.ptx").read_text()
    kinds = ("", "_means", "_weight_gradient")
    names = re.findall(r"^\.visible \.entry (\w+)\(", text, flags=re.MULTILINE)
    assert set(names) == {f"depthwise_{k}{kind}" for k in (3, 5, 7, 9) for kind in kinds}
    numbers = depthwise_cuda._numbers((8, 256, 256, 32), 9, depthwise_cuda.region(256, 256))
    assert set(re.findall(r"HAKS_([A-Z_]+)_", text)) <= set(numbers)
