"""Pallas' Triton backend, where there is one, and what the kernels for it share."""

import jax

try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # deprecated since jax 0.11: without it the XLA forms serve
    plgpu = None  # type: ignore[assignment]


def usable() -> bool:
    """Whether the kernels compile here: Pallas has its Triton backend and every CUDA device is Ampere or newer."""
    return plgpu is not None and on_ampere()


def on_ampere() -> bool:
    """Whether there are CUDA devices in this process and all are Ampere or newer."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # no CUDA device in this process
        return False
    return all(float(device.compute_capability) >= 8.0 for device in devices)


def power_of_two(n: int) -> int:
    """Smallest power of two that is not below n, which the sides of a kernel's blocks have to be."""
    return 1 << (n - 1).bit_length()
