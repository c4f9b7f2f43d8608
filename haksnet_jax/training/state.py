"""Everything that a step of training changes, as pure arrays laid out on the mesh."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.models import architecture

# Parameters are drawn with fold_in(key of the seed, 0), (.., 1), ...; a step folds its number into a key beyond these.
_STEPS = 2**31


class TrainState(NamedTuple):
    """Everything that a step changes; pure arrays.

    Attributes:
      step: [] int32 steps taken.
      params, batch_stats: nnx.State of float32 arrays.
      opt_state: of optax.
      ema: {"params", "batch_stats"} running averages, or {} where the run keeps none.
      rng: key data, from which each step's randomness follows together with its number.
      skipped: [] int32 steps whose update was left out because it was not finite.
      skipped_in_a_row: [] int32 of them, those since the last good step.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    rng: Any
    skipped: Any
    skipped_in_a_row: Any


def create_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    ema: bool,
) -> tuple[Any, TrainState]:
    """Makes the initial state on the mesh.

    Args:
      build_model: function of nnx.Rngs that gives the model.
      tx: optax.GradientTransformation.
      mesh: of the run.
      seed: of the initial parameters and of the steps' randomness.
      ema: whether the state holds averages.

    Returns:
      (graph definition of the model, TrainState laid out as `devices.state_sharding` says).
    """
    model = build_model(nnx.Rngs(jax.random.key(seed)))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    # Placed at once: a first step on state that is not yet on the mesh would compile a second time.
    params, stats = devices.place((nnx.as_pure(params), nnx.as_pure(stats)), devices.replicated(mesh))
    create = functools.partial(_create, tx=tx, seed=seed, ema=ema)
    layout = devices.state_sharding(mesh, jax.eval_shape(create, params, stats))
    return graph, jax.jit(create, out_shardings=layout)(params, stats)


def abstract_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    ema: bool,
) -> tuple[Any, TrainState]:
    """`create_state` without values: a run that goes on takes them from its checkpoint, and drawing them takes seconds.

    Returns:
      (graph definition of the model, TrainState of jax.ShapeDtypeStruct with shardings).
    """
    model = architecture.without_values(build_model)
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    create = functools.partial(_create, tx=tx, seed=seed, ema=ema)
    shapes = jax.eval_shape(create, nnx.as_pure(params), nnx.as_pure(stats))
    return graph, jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        devices.state_sharding(mesh, shapes),
    )


def _create(params, stats, *, tx, seed, ema):
    # Copies: a donated buffer must not stand in the state twice.
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if ema else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=tx.init(params),
        ema=averages,
        rng=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), _STEPS)),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
