"""The training loop, from top to bottom: data, model, optimiser, steps, checkpoints, evaluation, result card."""

import datetime
import hashlib
import json
import math
import os
import signal
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from etils import epath
from flax import nnx

import haksnet_jax
from haksnet_jax import files
from haksnet_jax.distributed import hosts
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.inference import evaluator as evaluation
from haksnet_jax.labels.dota import read_class_names
from haksnet_jax.models import detection_loss as losses
from haksnet_jax.models.backbones.haksnet import BackboneSize
from haksnet_jax.models.oriented_rcnn import OrientedRCNN
from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.sources import open_source
from haksnet_jax.results import visualize
from haksnet_jax.results.card import code_version, write_result_card
from haksnet_jax.results.events import event_writer
from haksnet_jax.structures import GroundTruth
from haksnet_jax.training import checkpoint, optimizer


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


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


class Stopped(Exception):
    """A run that was asked to end before its time, and did so with all it had done saved."""


class _StopRequest:
    """Remembers the first SIGTERM or SIGINT; the next one ends the process as usual.

    Signals reach a program's main thread alone, so a run in another thread is not asked.
    """

    def __init__(self):
        self.signal = None
        self._former = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number, _):
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def __exit__(self, *_):
        self._restore()

    def agreed(self, at_line):
        """Whether the run ends at this step. Several hosts agree on it when they write a line of the log.

        Args:
          at_line: whether this step writes one.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return at_line and hosts.any_host(self.signal is not None)


def build_model(model, num_classes, *, rngs):
    """The detector of a configuration. Args: model, `config.model`; num_classes; rngs. Returns: OrientedRCNN."""
    return OrientedRCNN(
        BackboneSize(tuple(model.channels), tuple(model.depths), tuple(model.mlp_ratios)),
        num_classes,
        channels=model.fpn_channels,
        hidden=model.hidden,
        drop_path_rate=model.drop_path_rate,
        pixel_mean=tuple(model.pixel_mean),
        pixel_std=tuple(model.pixel_std),
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        rngs=rngs,
    )


def create_state(config, num_classes, tx, mesh):
    """Makes the initial state on the mesh.

    Args:
      config: the experiment.
      num_classes: K.
      tx: optax.GradientTransformation.
      mesh: of the run.

    Returns:
      (graph definition of the model, TrainState laid out as `devices.state_sharding` says).
    """

    key = jax.random.key(config.seed)
    graph, params, stats = nnx.split(
        build_model(config.model, num_classes, rngs=nnx.Rngs(key)), nnx.Param, nnx.BatchStat
    )

    def create(params, stats):
        # Copies: a donated buffer must not stand in the state twice.
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if config.ema_decay else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=stats,
            opt_state=tx.init(params),
            ema=ema,
            rng=jax.random.key_data(key),
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )

    # Placed at once: a first step on state that is not yet on the mesh would compile a second time.
    params, stats = devices.place((nnx.as_pure(params), nnx.as_pure(stats)), devices.replicated(mesh))
    layout = devices.state_sharding(mesh, jax.eval_shape(create, params, stats))
    return graph, jax.jit(create, out_shardings=layout)(params, stats)


def loss_settings(config):
    """The keyword arguments of `losses.detection_loss` that a configuration holds."""
    rpn = config.rpn
    return {
        "proposal_caps": {
            "candidates_per_level": rpn.candidates_per_level,
            "max_proposals": rpn.max_proposals,
            "iou_threshold": rpn.iou_threshold,
        },
        "rpn_sampling": {
            "num_samples": rpn.num_samples,
            "positive_fraction": rpn.positive_fraction,
            "positive_iou": rpn.positive_iou,
            "negative_iou": rpn.negative_iou,
            "min_positive_iou": rpn.min_positive_iou,
        },
        "roi_sampling": dict(config.roi),
    }


def make_optimizer(config):
    """The optax.GradientTransformation of a configuration."""
    return optimizer.make_optimizer(
        weight_decay=config.optimizer.weight_decay,
        betas=tuple(config.optimizer.betas),
        clip_norm=config.optimizer.clip_norm,
    )


def peak_learning_rate(config, global_batch):
    """The learning rate of a configuration after its warm-up. Args: config; global_batch, images a step."""
    return optimizer.scaled_learning_rate(
        config.optimizer.learning_rate,
        global_batch=global_batch,
        reference_batch=config.optimizer.reference_batch,
        scaling=config.optimizer.lr_scaling,
        ceiling=config.optimizer.max_lr,
    )


def learning_rate_schedule(config, peak, num_steps, steps_per_epoch):
    """`optimizer.learning_rate_schedule` of a configuration. Returns: (step -> learning rate, steps of warm-up)."""
    names = ("schedule", "drop_epochs", "drop_factor", "final_ratio", "warmup_steps", "warmup_ratio")
    settings = {name: config.optimizer[name] for name in (*names, "max_warmup_fraction")}
    return optimizer.learning_rate_schedule(peak, num_steps=num_steps, steps_per_epoch=steps_per_epoch, **settings)


def make_train_step(graph, tx, mesh, *, ema_decay, accumulate_steps=1, **settings):
    """Compiles (at its first call) one step of training.

    Args:
      graph: graph definition of the model.
      tx: optax.GradientTransformation.
      mesh: of the run; the batch is split over all its devices.
      ema_decay: of the average of the weights; 0 for none.
      accumulate_steps: N, micro-batches whose gradients are averaged for one update. Each normalises by its own batch
        statistics, which enter the running ones one after another, and divides its losses by its own samples.
      **settings: of `losses.detection_loss`.

    Returns:
      (state, batch, learning_rate) -> (state, metrics), where the arrays of the batch are [B, ...], or [N, B / N, ...]
      where N is more than 1. The state's memory is reused. The learning rate comes from outside, so that another
      schedule is not another program to compile. Metrics are scalars: what `detection_loss` gives, `grad_norm`, and
      `finite`: whether the update was made.
    """

    whole = devices.replicated(mesh)

    def micro_step(params, batch_stats, batch, key):
        ground_truth = GroundTruth(batch["boxes"], batch["labels"], batch["valid"], batch["image_size"])

        def loss_of(params):
            model = nnx.merge(graph, params, batch_stats)
            loss, metrics = losses.detection_loss(model, batch["image"], ground_truth, key, **settings)
            return loss, (metrics, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        (loss, (metrics, new_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return gradients, new_stats, loss, metrics

    def train_step(state, batch, learning_rate):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        # Put together once a step, where the compiler would look for a way to compute with parts.
        params, batch_stats = jax.lax.with_sharding_constraint((state.params, state.batch_stats), whole)
        if accumulate_steps == 1:
            gradients, batch_stats, loss, metrics = micro_step(params, batch_stats, batch, key)
        else:

            def accumulate(carry, micro):
                total, batch_stats = carry
                gradients, batch_stats, loss, metrics = micro_step(params, batch_stats, *micro)
                return (jax.tree.map(jnp.add, total, gradients), batch_stats), (loss, metrics)

            (total, batch_stats), each = jax.lax.scan(
                accumulate,
                (jax.tree.map(jnp.zeros_like, params), batch_stats),
                (batch, jax.random.split(key, accumulate_steps)),
            )
            gradients = jax.tree.map(lambda x: x / accumulate_steps, total)
            loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), each)
        gradients = jax.lax.with_sharding_constraint(gradients, devices.state_sharding(mesh, gradients))
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
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
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            rng=state.rng,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        new_state = jax.lax.with_sharding_constraint(new_state, devices.state_sharding(mesh, new_state))
        return new_state, jax.lax.with_sharding_constraint(metrics | {"grad_norm": norm, "finite": finite}, whole)

    return jax.jit(train_step, donate_argnums=0, compiler_options=devices.training_options())


def load_initial_weights(config, state, mesh):
    """Puts pre-trained weights into a new state: a backbone (`pretrained`) or a whole detector (`init`).

    Raises:
      checkpoint.CheckpointError: a name is missing or of another shape; all are listed.
    """
    if config.pretrained and config.init:
        raise TrainingError("pretrained and init: expected at most one of them, got both")
    if not (config.pretrained or config.init):
        logging.warning(
            "Neither `pretrained` nor `init` is set: training starts from random weights, and published accuracy, "
            "which rests on ImageNet weights, is not to be expected."
        )
        return state
    directory = config.pretrained or config.init
    arrays, info = checkpoint.load_model(directory)
    start = checkpoint.flatten(state.params) | checkpoint.flatten(state.batch_stats)
    if config.init:
        _check_init(directory, info, config)
    if config.pretrained:
        kept = {name for name in start if not name.startswith("backbone.")}
    elif config.init_new_classes:
        kept = {"roi_head.logits.kernel", "roi_head.logits.bias"}
    else:
        kept = set()
    for name in ("pixel_mean", "pixel_std"):
        if list(info.get(name, ())) != list(config.model[name]):
            logging.warning("%s has %s %s, model.%s is %s", directory, name, info.get(name), name, config.model[name])
    without_value = sorted(name for name in info.get("without_value", ()) if name in start and name not in kept)
    if without_value:  # left out on purpose, when the checkpoint was converted
        logging.warning("%s has no value for %s: random start", directory, ", ".join(without_value))
        kept |= set(without_value)
    arrays = {name: value for name, value in arrays.items() if name in start and name not in kept}
    logging.info("%s: %d arrays loaded, %d keep their random start", directory, len(arrays), len(kept))
    arrays |= devices.gather(mesh, {name: start[name] for name in kept})

    def fill(target):
        filled = checkpoint.fill(target, arrays, what=directory)
        return devices.place(filled, devices.state_sharding(mesh, filled))

    params, stats = fill(state.params), fill(state.batch_stats)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if state.ema else {}
    return state._replace(params=params, batch_stats=stats, ema=ema)


def _check_init(directory, info, config):
    """Says in a sentence why a detector cannot go on with these classes, or that it does so under other names."""
    class_names = config.data.class_names
    if info["architecture"]["fpn_channels"] is None:
        raise TrainingError(f"init: {directory} holds a backbone alone; name it with pretrained instead")
    if config.init_new_classes or not info["class_names"]:  # (without names it has no classifier either)
        return
    if len(info["class_names"]) != len(class_names):
        raise TrainingError(
            f"init: {directory} knows {len(info['class_names'])} classes and data.class_names has {len(class_names)}; "
            "init_new_classes=True starts the classifier anew"
        )
    if list(info["class_names"]) != list(class_names):
        logging.warning(
            "%s: the classifier of %s goes on as one of %s; init_new_classes=True would start it anew",
            directory,
            ", ".join(info["class_names"]),
            ", ".join(class_names),
        )


def model_info(config):
    """What `model.json` says of the run's model."""
    return {
        "architecture": {
            "channels": list(config.model.channels),
            "depths": list(config.model.depths),
            "mlp_ratios": list(config.model.mlp_ratios),
            "fpn_channels": config.model.fpn_channels,
            "hidden": config.model.hidden,
            "num_classes": len(config.data.class_names),
        },
        "class_names": list(config.data.class_names),
        "pixel_mean": list(config.model.pixel_mean),
        "pixel_std": list(config.model.pixel_std),
        "input_size": list(config.data.image_size),
        "keep_ratio": True,
        "padding_divisor": 32,
        "proposals": evaluation.detection_settings(config)["proposal_caps"],
        "detections": {name: config.detection[name] for name in ("iou_threshold", "max_detections")},
    }


def with_class_names(config):
    """The configuration itself, or a copy with the classes of a classes.txt where it names none.

    The file is looked for in `data.root`, then beside the training images, where the tile splitter puts it.

    Raises:
      TrainingError: no such file.
      ValueError: it does not name each class once.
    """
    if config.data.class_names:
        return config
    beside_images = os.path.dirname(config.data.train.get("images_dir", ""))
    places = [files.join(config.data.root, *folder, "classes.txt") for folder in ((), (beside_images,))]
    found = next((place for place in places if epath.Path(place).exists()), None)
    if found is None:
        raise TrainingError(
            f"data.class_names is empty, and there is no {places[0]} and no {places[1]}: write the names of the "
            "classes into one of them, one a line, or set --config.data.class_names"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.class_names = read_class_names(found)
    return config


def _check(config, mesh):
    """Finds before any time is spent what would end the run later."""
    if not config.data.stall_seconds > 0:
        raise TrainingError(f"data.stall_seconds: expected a time above 0, got {config.data.stall_seconds}")
    for name in ("batch_size_per_device", "accumulate_steps", "checkpoint_every", "eval_every", "log_every"):
        if config[name] < 1:
            raise TrainingError(f"{name}: expected at least 1, got {config[name]}")
    if any(side % 32 for side in config.data.image_size):
        raise TrainingError(f"data.image_size: expected multiples of 32, got {tuple(config.data.image_size)}")
    unknown = set(config.augment.quarter_turn_classes) - set(config.data.class_names)
    if unknown:
        raise TrainingError(f"augment.quarter_turn_classes: {', '.join(sorted(unknown))} not among data.class_names")
    if mesh.devices.size % jax.process_count():
        raise TrainingError(f"{mesh.devices.size} devices cannot be shared by {jax.process_count()} hosts evenly")


def train_and_evaluate(config, workdir):
    """Trains a detector, or goes on with the run that `workdir` holds, and evaluates it.

    Args:
      config: the experiment, see `configs/`.
      workdir: folder of the run: checkpoints, event files, pictures, `metrics.jsonl`, `result.json`, `result.md`.

    Returns:
      The result card, a dict.

    Raises:
      TrainingError, checkpoint.CheckpointError, ValueError, FileNotFoundError: with one sentence that says what to do.
      Stopped: after SIGTERM or SIGINT; the step in flight was finished and saved.
    """
    mesh = devices.data_mesh(fsdp=config.mesh.fsdp)
    config = with_class_names(config)
    _check(config, mesh)
    workdir = files.reachable(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    hosts.require_same_folder(workdir)
    # Kernels that the compiler cannot split ask the mesh for the devices' shares.
    with jax.set_mesh(mesh), _StopRequest() as stop:
        return _run(config, workdir, mesh, stop)


def _run(config, workdir, mesh, stop):
    started = time.monotonic()
    global_batch = config.batch_size_per_device * mesh.devices.size * config.accumulate_steps
    host_batch = global_batch // jax.process_count()
    class_names = tuple(config.data.class_names)
    logging.info("haksnet_jax %s on %s, code %s", haksnet_jax.__version__, devices.hardware(), code_version())

    # Data
    def source(settings, **more):
        settings = dict(settings)
        for name in ("directory", "images_dir", "labels_dir"):
            if settings.get(name) and config.data.root:
                settings[name] = files.join(config.data.root, settings[name])
        if config.data.kind != "scenes":  # which have no small objects to leave out, and none that are empty
            more |= {"min_side": config.data.min_side}
        return open_source(config.data.kind, class_names, **settings, **more)

    train_source = source(config.data.train, filter_empty=config.data.filter_empty)
    val_source = source(config.data.val)
    for name, opened in (("train", train_source), ("val", val_source)):
        if config.data.kind == "folder":
            opened.check_images()
        logging.info("%s: %s", name, opened.summary())
    hosts.require_same(
        {
            f"data.{name} (digest of its {len(opened)} image names)": hashlib.sha256(
                "\n".join(map(str, opened.image_ids)).encode()
            ).hexdigest()[:16]
            for name, opened in (("train", train_source), ("val", val_source))
        }
    )
    shared = set(train_source.image_ids) & set(val_source.image_ids) if config.data.kind != "scenes" else ()
    if shared:
        logging.warning(
            "%d images are in both splits (%s, ...): the figures are not of unseen images", len(shared), min(shared)
        )
    steps_per_epoch = loader.steps_per_epoch(len(train_source), global_batch)
    num_steps = config.num_steps or config.num_epochs * steps_per_epoch

    # Optimiser
    peak = peak_learning_rate(config, global_batch)
    schedule, warmup = learning_rate_schedule(config, peak, num_steps, steps_per_epoch)
    tx = make_optimizer(config)
    logging.info(
        "%d steps (%d an epoch) of %d images; learning rate %.3g (%.3g for %d images, scaling %s), warm-up %d steps",
        num_steps, steps_per_epoch, global_batch, peak, config.optimizer.learning_rate,
        config.optimizer.reference_batch, config.optimizer.lr_scaling, warmup,
    )  # fmt: skip

    # State
    graph, state = create_state(config, len(class_names), tx, mesh)
    checkpoints = checkpoint.RunCheckpoints(workdir, max_to_keep=config.checkpoints_kept)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored = checkpoints.restore_newest(abstract)
    first_step = 0
    if restored is not None:
        first_step, state, position = restored
        if position["global_batch"] != global_batch:
            logging.warning(
                "the run so far took %d images a step, now %d: it goes on at the same example",
                position["global_batch"], global_batch,
            )  # fmt: skip
        first_example = position["examples"]
        logging.info("resuming at step %d, example %d", first_step, first_example)
    else:
        state = load_initial_weights(config, state, mesh)
        first_example = 0
    if jax.process_index() == 0:
        files.write_text(workdir / checkpoint.MODEL_FILE, json.dumps(model_info(config), indent=2) + "\n")
        files.write_text(workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")

    train_step = make_train_step(
        graph, tx, mesh,
        ema_decay=config.ema_decay, accumulate_steps=config.accumulate_steps, **loss_settings(config),
    )  # fmt: skip
    evaluator = evaluation.Evaluator(graph, val_source, config, mesh)
    log = RunLog(workdir, first_step, num_steps, global_batch)

    batches = loader.train_batches(
        train_source,
        batch_size=host_batch,
        image_size=tuple(config.data.image_size),
        max_boxes=config.data.max_boxes,
        seed=config.seed,
        first_example=first_example,
        num_workers=config.data.num_workers,
        stall_seconds=config.data.stall_seconds,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        accumulate_steps=config.accumulate_steps,
        flip_probabilities=tuple(config.augment.flip_probabilities),
        rotation_probability=config.augment.rotation_probability,
        quarter_turn_classes=tuple(class_names.index(name) for name in config.augment.quarter_turn_classes),
        scale_range=tuple(config.augment.scale_range),
        gain_range=tuple(config.augment.gain_range),
        min_side=config.augment.min_side,
    )

    # Steps
    result = None
    best = -1.0
    if first_step and (workdir / "best" / checkpoint.MODEL_FILE).exists():
        known = json.loads((workdir / "best" / checkpoint.MODEL_FILE).read_text()).get("AP50_voc12")
        best = best if known is None else known  # (0 is a figure too)
    batches_in_order = iter(batches)
    for step in range(first_step, num_steps):
        waited = time.monotonic()
        batch = next(batches_in_order)
        waited = time.monotonic() - waited
        arrays = {name: batch[name] for name in ("image", "boxes", "labels", "valid", "image_size")}
        learning_rate = np.float32(schedule(step))
        placed = devices.place_batch(mesh, arrays, accumulate_steps=config.accumulate_steps)
        state, metrics = train_step(state, placed, learning_rate)
        log.add(metrics, batch, waited)
        done = step + 1
        at_line = done % config.log_every == 0 or done == num_steps or done == first_step + 1
        if at_line:
            checkpoints.check()
            skipped_in_a_row = log.write(done, float(learning_rate), train_source.image_ids)
            if skipped_in_a_row > config.max_skipped_steps:
                checkpoints.save(done, state, _position(done, global_batch, first_step, first_example))
                checkpoints.close()
                raise TrainingError(
                    f"step {done}: {skipped_in_a_row} updates in a row were not finite (limit max_skipped_steps="
                    f"{config.max_skipped_steps}); the images are named above, the state before them is saved"
                )
        if done % config.eval_every == 0 or (done == num_steps and config.eval_every <= num_steps):
            variables = devices.gather(mesh, state.ema or {"params": state.params, "batch_stats": state.batch_stats})
            result = evaluator(variables, pictures=workdir / "pictures")
            log.evaluated(done, result, evaluator.pictures)
            figure = result.figures()["AP50_voc12"]
            if figure is not None and figure > best:  # the same figure on all hosts
                best = figure
                arrays = checkpoint.flatten(variables["params"]) | checkpoint.flatten(variables["batch_stats"])
                info = model_info(config) | {"step": done, **result.figures()}
                if jax.process_index() == 0:
                    checkpoint.save_model(workdir / "best", arrays, info)
        stopping = done < num_steps and stop.agreed(at_line)
        due = done % config.checkpoint_every == 0 or (done == num_steps and config.checkpoint_every <= num_steps)
        if due or stopping:
            checkpoints.save(done, state, _position(done, global_batch, first_step, first_example))
        if stopping:
            checkpoints.close()
            batches.close()
            log.close()
            raise Stopped(f"stopped at step {done} of {num_steps}, which is saved; the same command goes on from there")
    checkpoints.close()

    if result is None and first_step >= num_steps and config.eval_every <= num_steps:  # nothing was left to do
        variables = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
        result = evaluator(variables, pictures=workdir / "pictures")
    card = {
        "facts": {
            "config": config.name,
            "date": datetime.date.today().isoformat(),
            "protocol": config.evaluation.protocol,
            "train_images": len(train_source),
            "val_images": len(val_source),
            "steps": num_steps,
            "epochs": round(num_steps / steps_per_epoch, 2),
            "global_batch": global_batch,
            "learning_rate": peak,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "precision": config.model.dtype,
            "pretrained": config.pretrained or config.init or "none",
            "best_AP50_voc12": None if best < 0 else round(best, 4),
            "images_per_second": log.images_per_second(),
            "compile_seconds": log.first_step_seconds,
            "peak_memory_gib": devices.peak_memory_gib(),
            "minutes": round((time.monotonic() - started) / 60, 2),
            "resumed_at_step": first_step,
            "skipped_steps": int(state.skipped),
            "boxes_cut_by_caps": log.num_cut,
            "boxes_dropped_by_augmentation": log.num_dropped,
            "hardware": devices.hardware(),
            "seed": config.seed,
            "commit": code_version(),
            "jax": jax.__version__,
        },
    } | (result.to_json() if result else {})
    if evaluator.pictures:
        card["picture"] = str(evaluator.pictures[0].path)
    if jax.process_index() == 0:
        write_result_card(workdir, card)
        log.draw_curves()
    batches.close()
    log.close()
    return card


def _position(step, global_batch, first_step, first_example):
    """Where the data stands after a step: the examples that were taken, whatever the number of devices."""
    return {"examples": first_example + (step - first_step) * global_batch, "global_batch": global_batch}


class RunLog:
    """Progress lines, event files and `metrics.jsonl` of a run; fetches metrics from the devices only when it writes.

    Args:
      workdir: folder of the run.
      first_step: steps that were taken before; what `metrics.jsonl` has beyond them is left out of the new one.
      num_steps: length of the run.
      global_batch: images a step.
    """

    def __init__(self, workdir, first_step, num_steps, global_batch):
        self._workdir = workdir
        self._num_steps = num_steps
        self._global_batch = global_batch
        self._pending = []
        self._since = None
        self.num_cut = 0
        self.num_dropped = 0
        self.first_step_seconds = None
        self._started = time.monotonic()
        self._is_writer = jax.process_index() == 0
        self._records = []
        path = workdir / "metrics.jsonl"
        if first_step and path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            self._records = [record for record in records if record["step"] <= first_step]
        self._events = None
        if self._is_writer:
            self._events = event_writer(workdir / "events")

    def add(self, metrics, batch, waited):
        """Keeps a step's metrics (still on the devices) until the next line is written."""
        self._pending.append((metrics, batch["image_index"], waited))
        self.num_cut += int(batch["num_cut"].sum())
        self.num_dropped += int(batch["num_dropped"].sum())

    def write(self, step, learning_rate, image_ids):
        """Writes the means since the last line. Returns: how many updates in a row were not finite at its end."""
        fetched = jax.device_get([metrics for metrics, _, _ in self._pending])
        now = time.monotonic()
        skipped_in_a_row = 0
        for metrics, (_, image_index, _) in zip(fetched, self._pending, strict=True):
            skipped_in_a_row = 0 if metrics["finite"] else skipped_in_a_row + 1
            if not metrics["finite"]:
                names = ", ".join(image_ids[i] for i in image_index)
                logging.warning("an update was not finite and was left out; images of this host's batch: %s", names)
        self._in_a_row = getattr(self, "_in_a_row", 0)
        self._in_a_row = self._in_a_row + skipped_in_a_row if skipped_in_a_row == len(fetched) else skipped_in_a_row
        finite = [metrics for metrics in fetched if metrics["finite"]]
        means = {
            name: float(np.mean([metrics[name] for metrics in finite])) if finite else math.nan
            for name in fetched[0]
            if name != "finite"
        }
        record = {"step": step, "learning_rate": learning_rate, **means}
        record["waited_for_data"] = sum(waited for _, _, waited in self._pending) / len(self._pending)
        if self._since is not None:  # the first line's time is compilation
            record["images_per_second"] = len(fetched) * self._global_batch / (now - self._since)
        else:
            self.first_step_seconds = round(now - self._started, 1)
        self._since = now
        self._pending = []
        self._append(record)
        speed = record.get("images_per_second")
        if speed:
            left = datetime.timedelta(seconds=round((self._num_steps - step) * self._global_batch / speed))
            pace = f"{speed:.1f} images/s  data wait {1000 * record['waited_for_data']:.0f} ms  ETA {left}"
        else:
            pace = f"first step after {self.first_step_seconds:.0f} s"
        logging.info(
            "step %d/%d  loss %.4f (rpn %.3f + %.3f, roi %.3f + %.3f)  lr %.2e  %s",
            step, self._num_steps, means["loss"], means["loss_rpn_cls"], means["loss_rpn_box"],
            means["loss_roi_cls"], means["loss_roi_box"], learning_rate, pace,
        )  # fmt: skip
        return self._in_a_row

    def images_per_second(self):
        """Median over the lines so far, or None."""
        speeds = [record["images_per_second"] for record in self._records if "images_per_second" in record]
        return round(float(np.median(speeds)), 2) if speeds else None

    def evaluated(self, step, result, pictures):
        """Writes an evaluation's figures and pictures."""
        figures = {name: value for name, value in result.figures().items() if value is not None}
        self._append({"step": step, **figures})
        logging.info("evaluation at step %d\n%s", step, result.table())
        if self._events:
            for picture in pictures:
                self._events.add_image(f"detections/{picture.image_id}", picture.image, step, dataformats="HWC")
        self._since = None if self._since is None else time.monotonic()

    def _append(self, record):
        self._records.append(record)
        if not self._is_writer:
            return
        files.write_text(self._workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self._records))
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name.replace(":", "_"), value, record["step"])

    def draw_curves(self):
        """Writes `curves.png`: losses and average precision over the steps."""
        curves = {"loss": {}, "AP": {}}
        for record in self._records:
            for name, value in record.items():
                for kind, lines in curves.items():
                    if name.startswith(kind):
                        steps, values = lines.setdefault(name, ([], []))
                        steps.append(record["step"])
                        values.append(value)
        figure = visualize.training_figure(curves["loss"], curves["AP"] or None)
        visualize.save_figure(figure, self._workdir / "curves.png")

    def close(self):
        """Flushes the event files."""
        if self._events:
            self._events.close()
