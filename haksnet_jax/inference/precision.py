"""The arithmetic of a network in use: which there are, and how products of each are computed."""

import contextlib

from haksnet_jax.errors import UserError

PRECISIONS = ("float32", "bfloat16")


def checked(precision: str) -> str:
    """The precision itself. Raises: UserError, there is none of this name."""
    if precision not in PRECISIONS:
        raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def arithmetic(precision: str) -> contextlib.AbstractContextManager:
    """Context for calls in a precision: exact products of float32, else the platform's own way."""
    import jax  # here: the commands' options name PRECISIONS before JAX is loaded

    return jax.default_matmul_precision("highest") if precision == "float32" else contextlib.nullcontext()
