"""Checks calls of geometry and losses against their annotations: types, and the shapes that jaxtyping writes.

jaxtyping gives each axis letter one value for the length of a call. The arrays of NamedTuples (ground truth,
proposals, samples) are arguments like any other here: JAX fills such tuples with all sorts of things, so they cannot
be checked where they are made.
"""

import functools
import inspect
import typing

import beartype

_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # a whole number is a float


def checked(function):
    """What jaxtyping's import hook decorates functions with."""
    check = beartype.beartype(function, conf=_CONF)
    signature = inspect.signature(function)
    tuples = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if hasattr(parameter.annotation, "_fields") and parameter.annotation.__module__.startswith("haksnet_jax")
    }
    if not tuples:
        return check

    @functools.wraps(check)
    def with_fields(*arguments, **named):
        result = check(*arguments, **named)
        given = signature.bind(*arguments, **named).arguments
        for name, kind in tuples.items():
            for field, expected in inspect.get_annotations(kind).items() if name in given else ():
                value = getattr(given[name], field)
                kinds = typing.get_args(expected) or (expected,)  # of a union one after another
                if "jaxtyping" in repr(expected) and not any(isinstance(value, one) for one in kinds):
                    found = f"{getattr(value, 'dtype', type(value))}{getattr(value, 'shape', '')}"
                    raise TypeError(f"{name}.{field}: expected {expected}, got {found}")
        return result

    return with_fields
