"""What a computation is made for, as the ambient mesh says: its platform, and the devices that share its batch."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

# Runtimes that are not JAX: what is traced for them is translated operation by operation.
PORTABLE = "portable"


def platform() -> str:
    """The kind of devices that a computation is for: "cpu", "gpu" or "tpu".

    The ambient mesh (`jax.set_mesh`) says it, also where its devices are not here; without one, that of this process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def known_platform() -> str | None:
    """`platform()` where the ambient mesh says it; None without one: lowering decides then, perhaps for the host."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return None if device is None else device.platform


def portable_mesh() -> AbstractContextManager[Any]:
    """Context in which computations are traced for other runtimes: in the common operations, without bit patterns."""
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=None, platform=PORTABLE)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def is_portable() -> bool:
    """Whether a computation is for other runtimes, see `portable_mesh`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == PORTABLE


def by_platform(*arguments: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, without tracing forms for platforms that a computation is not for.

    The ambient mesh (`jax.set_mesh`) says which platform that is, also where its devices are not here
    (`haksnet_jax.plan`). Without one the choice is made when the computation is lowered. Where there are accelerators,
    programs are then compiled for them and for the host; where there are none they may be compiled for others, and
    every form is kept.

    Args:
      *arguments: of the forms.
      default: form for every platform that has none of its own.
      **forms: by the names of platforms: tpu, cuda, rocm, cpu; portable (`portable_mesh`).

    Returns:
      What the chosen form returns; all forms return the same shapes and types.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        # On a CPU, the forms for other platforms were a seventh of the time that tracing a training step takes.
        name = device.platform
        if name == "gpu":
            name = "rocm" if _is_here("rocm") else "cuda"
        return forms.get(name, default)(*arguments)
    forms.pop(PORTABLE, None)
    if jax.default_backend() != "cpu":
        forms = {name: form for name, form in forms.items() if _is_here(name)}
    return jax.lax.platform_dependent(*arguments, default=default, **forms)


def gradients_of(form: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of a form as JAX derives them: a function of its arguments and the gradient of its result."""
    return lambda *arguments: jax.vjp(form, *arguments[:-1])[1](arguments[-1])


def _is_here(platform):
    try:
        return bool(jax.devices(platform))
    except RuntimeError:
        return False


def _batch_axes():
    """(names of the ambient mesh's axes that share a batch, how many devices they have)."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    )
    return axes, math.prod(mesh.shape[name] for name in axes)


def share_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape [B, ...] of what a function under `over_mesh` sees of an array of this shape."""
    _, num_devices = _batch_axes()
    return shape if shape[0] % num_devices else (shape[0] // num_devices, *shape[1:])


def over_mesh(
    function: Callable[..., Any], *arrays: Any, split: int | None = None, summed: bool | tuple[bool, ...] = False
) -> Any:
    """Runs `function` on every device of the ambient mesh with its share of the batch.

    What is under it asks nothing of the other devices: a loop over images, which ends when the last of them is done,
    ends on each device when its own are done. Without a mesh, inside shard_map, or where the devices do not divide the
    batch, this is `function(*arrays)`.

    Args:
      function: of the arrays; each of its results has a batch axis, or is a sum over the batch.
      *arrays: arrays; the first `split` have a leading batch axis, the others are the same on each device.
      split: how many arrays have a batch axis; None: all of them.
      summed: whether the results are sums over the batch; one answer for all, or a tuple of answers.

    Returns:
      The results for the whole batch: sharded over the batch axis, or summed over the devices.
    """
    split = len(arrays) if split is None else split
    axes, num_devices = _batch_axes()
    if num_devices == 1 or arrays[0].shape[0] % num_devices:
        return function(*arrays)
    return jax.shard_map(
        lambda *shares: jax.tree.map(
            lambda is_sum, result: jax.lax.psum(result, axes) if is_sum else result, summed, function(*shares)
        ),
        in_specs=(jax.P(axes),) * split + (jax.P(),) * (len(arrays) - split),
        out_specs=jax.tree.map(lambda is_sum: jax.P() if is_sum else jax.P(axes), summed),
        axis_names=set(axes),
        check_vma=False,
    )(*arrays)
