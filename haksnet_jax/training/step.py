"""One step of training: gradients of a task's loss, an update, an average of the weights; all or nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.training import optimizer


def make_train_step(
    graph: Any,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    loss: Callable[[nnx.Module, dict, jax.Array], tuple[jax.Array, dict]],
    *,
    ema_decay: float,
    accumulate_steps: int = 1,
) -> Any:
    """Compiles (at its first call) one step of training.

    Args:
      graph: graph definition of the model.
      tx: optax.GradientTransformation.
      mesh: of the run; the batch is split over all its devices.
      loss: function of (model, batch, key) that gives (scalar, {name: scalar}) and updates the batch statistics.
      ema_decay: of the average of the weights; 0 for none.
      accumulate_steps: N, micro-batches whose gradients are averaged for one update. Each normalises by its own batch
        statistics, which enter the running ones one after another, and divides its losses by its own samples.

    Returns:
      (state, batch, learning_rate) -> (state, metrics), where the arrays of the batch are [B, ...], or [N, B / N, ...]
      where N is more than 1. The state's memory is reused. The learning rate comes from outside, so that another
      schedule is not another program to compile. Metrics are scalars: what `loss` gives, `grad_norm`, and `finite`:
      whether the update was made.
    """
    whole = devices.replicated(mesh)
    gradients_of = _gradients(graph, loss, accumulate_steps)

    def train_step(state, batch, learning_rate):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        # Put together once a step, where the compiler would look for a way to compute with parts.
        params, batch_stats = jax.lax.with_sharding_constraint((state.params, state.batch_stats), whole)
        gradients, batch_stats, value, metrics = gradients_of(params, batch_stats, batch, key)
        gradients = jax.lax.with_sharding_constraint(gradients, devices.state_sharding(mesh, gradients))
        norm = optimizer.global_norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        ema = state.ema
        if ema_decay:
            # Young averages forget faster, or the random start would stay in them.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            now = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda average, value: average + (1.0 - decay) * (value - average), ema, now)
        # A step that is not finite leaves everything as it was, but for the counters.
        new = (params, batch_stats, opt_state, ema)
        old = (state.params, state.batch_stats, state.opt_state, state.ema)
        params, batch_stats, opt_state, ema = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        new_state = state._replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        new_state = jax.lax.with_sharding_constraint(new_state, devices.state_sharding(mesh, new_state))
        return new_state, jax.lax.with_sharding_constraint(metrics | {"grad_norm": norm, "finite": finite}, whole)

    return jax.jit(train_step, donate_argnums=0, compiler_options=devices.training_options(mesh))


def abstract_batch(
    arrays: Mapping[str, tuple[tuple[int, ...], Any]],
    mesh: jax.sharding.Mesh,
    num_images: int,
    *,
    accumulate_steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of a step by shapes alone, laid out as `distributed.mesh.place_batch` does.

    Args:
      arrays: {name: (shape, dtype)} of one example, see `tasks.batch_arrays`.
      mesh: of devices that need not be here.
      num_images: B of a step without accumulation, or of one micro-batch.
      accumulate_steps: N micro-batches.

    Returns:
      {name: jax.ShapeDtypeStruct} [B, ...], or [N, B, ...] where N is more than 1.
    """
    pieces = (accumulate_steps,) if accumulate_steps > 1 else ()
    split = devices.batch_sharding(mesh, leading=len(pieces))
    return {
        name: jax.ShapeDtypeStruct((*pieces, num_images, *shape), dtype, sharding=split)
        for name, (shape, dtype) in arrays.items()
    }


def _gradients(graph, loss, accumulate_steps):
    """Function of (params, batch_stats, batch, key): gradients, new statistics, loss, metrics."""

    def of_one(params, batch_stats, batch, key):
        def loss_of(params):
            model = nnx.merge(graph, params, batch_stats)
            value, metrics = loss(model, batch, key)
            return value, (metrics, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        (value, (metrics, new_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return gradients, new_stats, value, metrics

    def of_several(params, batch_stats, batches, key):
        def accumulate(carry, micro):
            total, batch_stats = carry
            gradients, batch_stats, value, metrics = of_one(params, batch_stats, *micro)
            return (jax.tree.map(jnp.add, total, gradients), batch_stats), (value, metrics)

        (total, batch_stats), each = jax.lax.scan(
            accumulate,
            (jax.tree.map(jnp.zeros_like, params), batch_stats),
            (batches, jax.random.split(key, accumulate_steps)),
        )
        value, metrics = jax.tree.map(lambda x: x.mean(axis=0), each)
        return jax.tree.map(lambda x: x / accumulate_steps, total), batch_stats, value, metrics

    return of_one if accumulate_steps == 1 else of_several
