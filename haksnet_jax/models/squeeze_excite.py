"""Squares of features times a squeeze-excite gate of their means, on NVIDIA GPUs in bfloat16, with few launches.

As JAX derives it, the gradient of the means goes to the features in an array and a rounding of its own, and the gate's
gradient is summed up before anything is computed with it. Here the kernels take the sums of rows, which XLA makes where
it reads the features, and the features' gradient is one sum, rounded once.
"""

import functools

import jax
import jax.numpy as jnp

from haksnet_jax.kernels import ptx, squeeze_excite_cuda
from haksnet_jax.kernels.squeeze_excite_cuda import Parameters
from haksnet_jax.models.rematerialization import mark_kept
from haksnet_jax.target import known_platform, over_mesh, share_of


def suits(x: jax.Array) -> bool:
    """Whether `gated_square` here takes such features; it serves an ambient mesh of GPUs."""
    if x.dtype != jnp.bfloat16 or known_platform() != "gpu" or not ptx.shared_bytes():
        return False
    return squeeze_excite_cuda.suits(share_of(x.shape)[0], x.shape[3])


@jax.custom_vjp
def gated_square(x: jax.Array, parameters: Parameters) -> jax.Array:
    """x^2 sigmoid(excite(relu(squeeze(means of x over the positions)))).

    Args:
      x: [B, H, W, C] bfloat16, which is squared in float32.
      parameters: of the gate, float32.

    Returns:
      [B, H, W, C] bfloat16.
    """
    return _forward(x, parameters)[0]


def _forward(x, parameters):
    packed = squeeze_excite_cuda.pack(parameters)
    compute = functools.partial(squeeze_excite_cuda.gate, width=x.shape[2])
    gate, means, hidden = mark_kept(over_mesh(compute, x.sum(2, dtype=jnp.float32), packed, split=1))
    squared = jnp.square(x.astype(jnp.float32)) * gate[:, None, None, :]
    return squared.astype(x.dtype), (x, gate, means, hidden, packed)


def _backward(saved, gradient):
    x, gate, means, hidden, packed = saved
    # As it was written: where x is a normalised map, XLA would read the float32 map that it was computed from.
    exact = jax.lax.optimization_barrier(x).astype(jnp.float32)
    gradient = gradient.astype(jnp.float32)
    of_gate = (exact * exact * gradient).sum(2)
    compute = functools.partial(squeeze_excite_cuda.gradient, width=x.shape[2])
    of_features, of_packed = over_mesh(compute, of_gate, gate, means, hidden, packed, split=4, summed=(False, True))
    of_x = 2 * exact * gate[:, None, None, :] * gradient + of_features[:, None, None, :]
    return of_x.astype(x.dtype), squeeze_excite_cuda.unpack(of_packed, x.shape[3])


gated_square.defvjp(_forward, _backward)
