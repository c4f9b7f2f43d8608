"""Learning rate over the steps, gradient clipping and AdamW, as upstream's recipe has them."""

import math

import jax
import jax.numpy as jnp
import optax
from absl import logging


def scaled_learning_rate(learning_rate, *, global_batch, reference_batch, scaling, ceiling):
    """The learning rate for the batch at hand, from the one stated for a reference batch.

    Args:
      learning_rate: as published, for `reference_batch` images a step.
      global_batch: images a step over all devices.
      reference_batch: images a step of the published recipe.
      scaling: "linear", "sqrt" or "none".
      ceiling: largest learning rate that the scaling may reach; hitting it is logged as a warning.

    Returns:
      The scaled learning rate.

    Raises:
      ValueError: unknown scaling.
    """
    ratio = global_batch / reference_batch
    factors = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}
    if scaling not in factors:
        raise ValueError(f"optimizer.lr_scaling: expected one of {', '.join(factors)}, got {scaling!r}")
    scaled = learning_rate * factors[scaling]
    if scaled > max(ceiling, learning_rate):
        logging.warning(
            "optimizer.lr_scaling=%s asks for a learning rate of %.3g at %d images a step; held at optimizer.max_lr=%g",
            scaling, scaled, global_batch, ceiling,
        )  # fmt: skip
        scaled = ceiling
    return scaled


def learning_rate_schedule(
    peak,
    *,
    num_steps,
    steps_per_epoch,
    schedule,
    drop_epochs=(),
    drop_factor=0.1,
    warmup_steps=500,
    warmup_ratio=1 / 3,
    max_warmup_fraction=0.1,
    final_ratio=0.0,
):
    """Learning rate of each step (0-based).

    Args:
      peak: learning rate after the warm-up.
      num_steps: length of the run.
      steps_per_epoch: to turn epochs into steps.
      schedule: "step" (multiplied by `drop_factor` at each of `drop_epochs`) or "cosine" (down to
        `final_ratio * peak` at the end).
      drop_epochs: epochs, 0-based, at whose start a "step" schedule drops.
      drop_factor: see `schedule`.
      warmup_steps: linear warm-up, shortened to `max_warmup_fraction` of the run.
      warmup_ratio: share of the learning rate at step 0.
      max_warmup_fraction: see `warmup_steps`.
      final_ratio: see `schedule`.

    Returns:
      (step -> learning rate, the warm-up's length in steps).

    Raises:
      ValueError: unknown schedule.
    """
    warmup = min(warmup_steps, int(max_warmup_fraction * num_steps))
    if schedule == "step":
        drops = [round(epoch * steps_per_epoch) for epoch in drop_epochs]

        def regular(step):
            return peak * drop_factor ** sum(step >= drop for drop in drops)

    elif schedule == "cosine":

        def regular(step):
            progress = min(max((step - warmup) / max(num_steps - warmup, 1), 0.0), 1.0)
            return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    else:
        raise ValueError(f"optimizer.schedule: expected step or cosine, got {schedule!r}")

    def learning_rate(step):
        # The warm-up scales whatever the schedule says, as upstream's does.
        share = min(step / warmup, 1.0) if warmup else 1.0
        return regular(step) * (1.0 - (1.0 - share) * (1.0 - warmup_ratio))

    return learning_rate, warmup


def clip_by_global_norm(max_norm):
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), PyTorch's rule; optax's own leaves out the 1e-6."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(*, weight_decay=0.05, betas=(0.9, 0.999), epsilon=1e-8, clip_norm=35.0):
    """Gradient clipping, then AdamW with decoupled weight decay on every parameter, norms and biases included.

    Args:
      weight_decay: share of a parameter that goes each step, times the learning rate.
      betas: decay of the two moments.
      epsilon: added to the root of the second moment.
      clip_norm: largest L2 norm over all gradients.

    Returns:
      optax.GradientTransformation. Its updates are to be taken off the parameters times the learning rate, which is
      not part of it: parameter - learning_rate * update.
    """
    return optax.chain(
        clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=epsilon),
        optax.add_decayed_weights(weight_decay),
    )
