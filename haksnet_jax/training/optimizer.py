"""Learning rate over the steps, gradient clipping and AdamW, as upstream's recipe has them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from haksnet_jax.distributed.mesh import MIN_SPLIT_SIZE
from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import loader
from haksnet_jax.target import platform
from haksnet_jax.tasks import settings as sections


class OptimizerSettings(NamedTuple):
    """Learning rate over the run, clipping and AdamW; upstream's detection recipe."""

    learning_rate: float = 1e-4  # for reference_batch images a step
    reference_batch: int = 16  # images a step; of upstream's detection 8 GPUs x 2
    lr_scaling: str = "linear"  # linear, sqrt or none
    max_lr: float = 1e-3  # what scaling may reach at most
    weight_decay: float = 0.05  # share of a parameter that goes each step, times the learning rate
    decay_kernels_alone: bool = False  # no decay of biases, norms and layer scales; upstream's detection decays all
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the two moments
    clip_norm: float = 35.0  # largest L2 norm over all gradients
    schedule: str = "step"  # step or cosine
    drop_epochs: tuple[float, ...] = (8, 11)  # from 0, at whose start a step schedule drops
    drop_factor: float = 0.1  # of each drop
    final_ratio: float = 0.0  # of a cosine schedule: its end, as a share of the learning rate
    warmup_steps: int = 500  # of a linear warm-up
    warmup_ratio: float = 1 / 3  # share of the learning rate at step 0
    max_warmup_fraction: float = 0.1  # of the run, to which the warm-up is shortened


def scaled_learning_rate(
    learning_rate: float, *, global_batch: int, reference_batch: int, scaling: str, ceiling: float
) -> float:
    """The learning rate for the batch at hand, from the one stated for a reference batch.

    Args:
      learning_rate: as published, for `reference_batch` images a step.
      global_batch: images a step over all devices.
      reference_batch: images a step of the published recipe.
      scaling: "linear", "sqrt" or "none".
      ceiling: largest learning rate that scaling may reach, unless `learning_rate` itself is larger; hitting it is
        logged as a warning.

    Returns:
      The scaled learning rate.

    Raises:
      UserError: unknown scaling.
    """
    ratio = global_batch / reference_batch
    factors = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}
    if scaling not in factors:
        raise UserError(f"optimizer.lr_scaling: expected one of {', '.join(factors)}, got {scaling!r}")
    scaled = learning_rate * factors[scaling]
    # Where the rate as stated is above the ceiling already, it is what scaling may reach.
    highest = max(ceiling, learning_rate)
    if scaled > highest:
        logging.warning(
            "optimizer.lr_scaling=%s asks for a learning rate of %.3g at %d images a step; held at %g, the larger of "
            "optimizer.max_lr and optimizer.learning_rate",
            scaling, scaled, global_batch, highest,
        )  # fmt: skip
        scaled = highest
    return scaled


def learning_rate_schedule(
    settings: OptimizerSettings, peak: float, *, num_steps: int, steps_per_epoch: int
) -> tuple[Callable[[int], float], int]:
    """Learning rate of each step (0-based).

    Args:
      settings: OptimizerSettings. The schedule "step" multiplies by `drop_factor` at each of `drop_epochs`, "cosine"
        goes down to `final_ratio * peak` at the end.
      peak: learning rate after the warm-up.
      num_steps: length of the run.
      steps_per_epoch: to turn epochs into steps.

    Returns:
      (step -> learning rate, the warm-up's length in steps).

    Raises:
      UserError: unknown schedule.
    """
    warmup = min(settings.warmup_steps, int(settings.max_warmup_fraction * num_steps))
    if settings.schedule == "step":
        drops = [round(epoch * steps_per_epoch) for epoch in settings.drop_epochs]

        def regular(step):
            return peak * settings.drop_factor ** sum(step >= drop for drop in drops)

    elif settings.schedule == "cosine":
        final_ratio = settings.final_ratio

        def regular(step):
            progress = min(max((step - warmup) / max(num_steps - warmup, 1), 0.0), 1.0)
            return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    else:
        raise UserError(f"optimizer.schedule: expected step or cosine, got {settings.schedule!r}")

    def learning_rate(step):
        # The warm-up scales whatever the schedule says, as upstream's does.
        share = min(step / warmup, 1.0) if warmup else 1.0
        return regular(step) * (1.0 - (1.0 - share) * (1.0 - settings.warmup_ratio))

    return learning_rate, warmup


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all arrays. Args: tree, pytree of float32 arrays. Returns: float32 scalar.

    On GPUs the small arrays count as one: a network has hundreds, and the norm of each would be a kernel or two that
    takes longer to start than to run. Small are those that every device has whole (`mesh.state_sharding`): parts of
    arrays would have to be exchanged to lie in one.
    """
    if platform() != "gpu":
        return optax.tree.norm(tree)
    arrays = jax.tree.leaves(tree)
    small = [x.ravel() for x in arrays if x.size < MIN_SPLIT_SIZE]
    large = [x for x in arrays if x.size >= MIN_SPLIT_SIZE]
    return optax.tree.norm([*([jnp.concatenate(small)] if small else []), *large])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), PyTorch's rule; optax's own leaves out the 1e-6."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_kernel(params: Any) -> Any:
    """Which parameters are kernels of convolutions and products, and not biases, norms or layer scales.

    By their names, since blocks are stacked: a bias of all blocks of a stage has two axes, as a kernel may have.

    Args:
      params: nnx.State or nested dicts.

    Returns:
      A pytree of bool like it.
    """

    def named_kernel(path, _):
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        return next((name == "kernel" for name in reversed(names) if name != "value"), False)

    return jax.tree_util.tree_map_with_path(named_kernel, params)


def make_optimizer(settings: OptimizerSettings, *, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW with decoupled weight decay.

    Args:
      settings: OptimizerSettings.
      epsilon: added to the root of the second moment.

    Returns:
      optax.GradientTransformation. Its updates are to be taken off the parameters times the learning rate, which is
      not part of it: parameter - learning_rate * update.
    """
    return optax.chain(
        clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(b1=settings.betas[0], b2=settings.betas[1], eps=epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask=is_kernel if settings.decay_kernels_alone else None),
    )


class RunLength(NamedTuple):
    """How long a run is, and its learning rate all along.

    Attributes:
      global_batch: images a step, over all devices and micro-batches.
      steps_per_epoch: steps that see every image once, rounded up; 0 where the number of images is not known.
      num_steps: length of the run; 0 where it is not known.
      peak: learning rate after the warm-up.
      warmup_steps: length of the warm-up.
      learning_rate: function of the step.
    """

    global_batch: int
    steps_per_epoch: int
    num_steps: int
    peak: float
    warmup_steps: int
    learning_rate: Callable[[int], float]


def run_length(config: ConfigDict, num_images: int, global_batch: int) -> RunLength:
    """The length and learning rates of an experiment. Args: config; num_images, 0: unknown; global_batch."""
    settings = settings_of(config)
    peak = scaled_learning_rate(
        settings.learning_rate,
        global_batch=global_batch,
        reference_batch=settings.reference_batch,
        scaling=settings.lr_scaling,
        ceiling=settings.max_lr,
    )
    steps_per_epoch = loader.steps_per_epoch(num_images, global_batch)
    num_steps = config.num_steps or config.num_epochs * steps_per_epoch
    learning_rate, warmup_steps = learning_rate_schedule(
        settings, peak, num_steps=num_steps, steps_per_epoch=steps_per_epoch
    )
    return RunLength(global_batch, steps_per_epoch, num_steps, peak, warmup_steps, learning_rate)


def describe_schedule(config: ConfigDict, length: RunLength) -> str:
    """What the learning rate does after the warm-up, in words. Args: config; length, RunLength."""
    settings = settings_of(config)
    if settings.schedule == "cosine":
        return f"a cosine to {settings.final_ratio * length.peak:.3g} at step {length.num_steps}"
    drops = [round(epoch * length.steps_per_epoch) for epoch in settings.drop_epochs]
    within = [str(step) for step in drops if step < length.num_steps]
    return f"times {settings.drop_factor:g} at steps {', '.join(within)}" if within else "constant"


def of_config(config: ConfigDict) -> optax.GradientTransformation:
    """The optax.GradientTransformation of an experiment."""
    return make_optimizer(settings_of(config))


def settings_of(config: ConfigDict) -> OptimizerSettings:
    """The settings in `config.optimizer`. Raises: UserError, a key that there is not."""
    return sections.read(config, "optimizer", OptimizerSettings)
