"""The choice among forms of an operation by the platform that a computation is lowered for."""

import jax


def by_platform(*arguments, default, **forms):
    """`jax.lax.platform_dependent`, without tracing forms for platforms that are not here.

    Where there are accelerators, programs are compiled for them and for the host. Where there are none they may be
    compiled for others (`haksnet_jax.plan`), and every form is kept.

    Args:
      *arguments: of the forms.
      default: form for every platform that has none of its own.
      **forms: by the names of platforms: tpu, cuda, rocm, cpu.

    Returns:
      What the chosen form returns; all forms return the same shapes and types.
    """
    if jax.default_backend() != "cpu":
        # Forms for TPUs were a tenth of the time that tracing a training step takes on a GPU's host.
        forms = {name: form for name, form in forms.items() if _is_here(name)}
    return jax.lax.platform_dependent(*arguments, default=default, **forms)


def _is_here(platform):
    try:
        return bool(jax.devices(platform))
    except RuntimeError:
        return False
