"""The choice among forms of an operation by the platform that a computation is made for."""

import jax


def by_platform(*arguments, default, **forms):
    """`jax.lax.platform_dependent`, without tracing forms for platforms that a computation is not for.

    The ambient mesh (`jax.set_mesh`) says which platform that is, also where its devices are not here
    (`haksnet_jax.plan`). Without one the choice is made when the computation is lowered. Where there are accelerators,
    programs are then compiled for them and for the host; where there are none they may be compiled for others, and
    every form is kept.

    Args:
      *arguments: of the forms.
      default: form for every platform that has none of its own.
      **forms: by the names of platforms: tpu, cuda, rocm, cpu.

    Returns:
      What the chosen form returns; all forms return the same shapes and types.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        # On a CPU, the forms for other platforms were a seventh of the time that tracing a training step takes.
        platform = device.platform
        if platform == "gpu":
            platform = "rocm" if _is_here("rocm") else "cuda"
        return forms.get(platform, default)(*arguments)
    if jax.default_backend() != "cpu":
        forms = {name: form for name, form in forms.items() if _is_here(name)}
    return jax.lax.platform_dependent(*arguments, default=default, **forms)


def gradients_of(form):
    """The gradients of a form as JAX derives them: a function of its arguments and the gradient of its result."""
    return lambda *arguments: jax.vjp(form, *arguments[:-1])[1](arguments[-1])


def _is_here(platform):
    try:
        return bool(jax.devices(platform))
    except RuntimeError:
        return False
