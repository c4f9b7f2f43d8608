"""Initial weights, drawn on the host.

Drawn by JAX, the hundreds of arrays of a detector are hundreds of random number generators to compile: half a minute
before a run begins. NumPy needs a second, and gives the same numbers on every backend.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _drawn(sample):
    """Turns `sample(generator, shape)` into an initializer as flax calls it: (key, shape, dtype) -> array."""

    def init(key, shape, dtype=jnp.float32, **_):
        if isinstance(key, jax.core.Tracer):  # the model is built for its shapes alone
            return jnp.zeros(shape, dtype)
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        return sample(generator, shape).astype(dtype)

    return init


def normal(std: float) -> Callable[..., jax.Array]:
    """Independent normal values with a standard deviation."""
    return _drawn(lambda generator, shape: std * generator.standard_normal(shape))


def kaiming_fan_out(
    key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32, **_: Any
) -> jax.Array:
    """Normal with variance 2 / fan-out; kernels [..., in, out], fan-out = out times the kernel's positions."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return normal(math.sqrt(2.0 / fan_out))(key, shape, dtype)


def _fans(shape):
    positions = math.prod(shape[:-2])
    return positions * shape[-2], positions * shape[-1]


def xavier_normal(
    key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32, **_: Any
) -> jax.Array:
    """Normal with variance 2 / (fan-in + fan-out)."""
    return normal(math.sqrt(2.0 / sum(_fans(shape))))(key, shape, dtype)


def xavier_uniform(
    key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32, **_: Any
) -> jax.Array:
    """Uniform with variance 2 / (fan-in + fan-out)."""
    bound = math.sqrt(6.0 / sum(_fans(shape)))
    return _drawn(lambda generator, shape: generator.uniform(-bound, bound, shape))(key, shape, dtype)
