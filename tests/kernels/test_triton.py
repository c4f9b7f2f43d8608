"""What the kernels for NVIDIA GPUs rest on is still in the installed JAX."""

import jax

from haksnet_jax.kernels import triton


def test_this_jax_still_lowers_pallas_to_triton():
    # Deprecated since jax 0.11, still there in 0.12. Without it every operation falls back to XLA's form, with equal
    # results, without a word, and slower on NVIDIA GPUs: a new release of JAX without it must be noticed here first.
    assert triton.plgpu is not None, f"jax {jax.__version__} has no jax.experimental.pallas.triton"
    for name in ("CompilerParams", "dot", "load", "store"):
        assert hasattr(triton.plgpu, name), f"jax.experimental.pallas.triton of jax {jax.__version__} has no {name}"
