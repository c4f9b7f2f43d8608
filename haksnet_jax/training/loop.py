"""The training loop, from top to bottom: data, beginning, steps, evaluation, checkpoints, result card.

It knows no task: what is trained is a dict of arrays, a loss and an evaluator, which `haksnet_jax.tasks` gives it.
"""

import collections
import contextlib
import itertools
import os
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import haksnet_jax
from haksnet_jax import files, tasks
from haksnet_jax.distributed import hosts
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.results.card import code_version, write_result_card
from haksnet_jax.training import checkpoint, executables, optimizer, resume, trackers
from haksnet_jax.training.card import result_card
from haksnet_jax.training.evaluation import Evaluation
from haksnet_jax.training.log import RunLog
from haksnet_jax.training.state import abstract_state, create_state
from haksnet_jax.training.step import abstract_batch, make_train_step
from haksnet_jax.training.stop import Stopped, StopRequest


def run(config: ConfigDict, workdir: str | os.PathLike, *, resume_policy: str = "same") -> dict[str, Any]:
    """Trains a model, or goes on with the run that `workdir` holds, and evaluates it.

    Args:
      config: the experiment, see `configs/`.
      workdir: folder of the run: checkpoints, event files, drawings, `metrics.jsonl`, `result.json`, `result.md`.
      resume_policy: "same" refuses to go on with a run of something else, "anyway" does it (`training.resume`).

    Returns:
      The result card, a dict.

    Raises:
      UserError, checkpoint.CheckpointError, ValueError, OSError: with one sentence that says what to do.
      Stopped: after SIGTERM or SIGINT; the step in flight was finished and saved.
    """
    mesh = devices.data_mesh(fsdp=config.mesh.fsdp)
    task = tasks.of(config)
    config = task.prepared(config)
    _check(config, mesh)
    workdir = files.reachable(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    hosts.require_same_folder(workdir)
    with contextlib.ExitStack() as held:
        held.enter_context(hosts.held_by_first(workdir))  # (host 0 writes for all)
        # Kernels that the compiler cannot split ask the mesh for the devices' shares.
        held.enter_context(jax.set_mesh(mesh))
        stop = held.enter_context(StopRequest())
        return _run(task, config, workdir, mesh, stop, resume_policy, held)


def _run(task, config, workdir, mesh, stop, resume_policy, held):
    started = time.monotonic()
    logging.info("haksnet_jax %s on %s, code %s", haksnet_jax.__version__, devices.hardware(), code_version())

    # ---- Data, and how long the run is
    train_source, val_source = _open_data(task, config)
    per_step = config.batch_size_per_device * mesh.devices.size
    global_batch = per_step * config.accumulate_steps
    length = optimizer.run_length(config, len(train_source), global_batch)
    num_steps = length.num_steps
    _tell_schedules(config, length)

    # ---- The state: new, or that of the newest checkpoint (the policy in five lines is in `training.resume`)
    tx = optimizer.of_config(config)
    model = (lambda rngs: task.build_model(config, rngs=rngs), tx, mesh)
    options = {"seed": config.seed, "ema": bool(config.ema_decay)}
    graph, wanted = abstract_state(*model, **options)
    arrays = task.batch_arrays(config)
    batch = abstract_batch(arrays, mesh, per_step, accumulate_steps=config.accumulate_steps)
    of_step = (wanted, batch, np.float32(0))
    begun = executables.begin(config, of_step, mesh)  # (meanwhile the checkpoint is read)
    checkpoints = checkpoint.RunCheckpoints(workdir, max_to_keep=config.checkpoints_kept)
    # Worker processes take seconds to start, and so does all that follows: they start where the newest checkpoint says.
    expected = checkpoints.newest_position()
    is_early = expected is not None and expected.step < num_steps
    batches = _started(task, config, train_source, global_batch, expected.example, held) if is_early else ()
    data = resume.data_facts({"train": train_source, "val": val_source})
    first_step, first_example, state = resume.begin(
        task, config, workdir, checkpoints, wanted, lambda: create_state(*model, **options)[1], mesh, data,
        global_batch=global_batch, policy=resume_policy,
    )  # fmt: skip

    # ---- What each step needs
    train_step = make_train_step(
        graph, tx, mesh, task.loss(config), ema_decay=config.ema_decay, accumulate_steps=config.accumulate_steps
    )
    log = RunLog(task, workdir, first_step, num_steps, global_batch, config)
    held.callback(_end, log, checkpoints)
    evaluation = Evaluation(task, config, workdir, graph, val_source, mesh, log, first_step=first_step)

    # ---- Steps
    if first_step < num_steps:
        if not is_early or first_example != expected.example:  # (a damaged checkpoint was left aside)
            if is_early:
                batches.close()
            batches = _started(task, config, train_source, global_batch, first_example, held)
        train_step = executables.ready(train_step, of_step, mesh, begun)
    placed_batches = _placed(
        itertools.islice(batches, num_steps - first_step), arrays, mesh, accumulate_steps=config.accumulate_steps
    )
    in_flight = _InFlight()
    for step, (batch, placed, waited) in zip(range(first_step, num_steps), placed_batches, strict=False):
        learning_rate = np.float32(length.learning_rate(step))
        state, metrics = train_step(state, placed, learning_rate)
        in_flight.add(metrics)
        log.add(metrics, batch, waited)
        done = step + 1
        position = {"examples": first_example + (done - first_step) * global_batch, "global_batch": global_batch}

        # -- tell, and end where nothing is learned any more
        at_line = done % config.log_every == 0 or done == num_steps or done == first_step + 1
        if at_line:
            checkpoints.check()
            skipped_in_a_row = log.write(done, float(learning_rate), train_source.image_ids)
            if skipped_in_a_row > config.max_skipped_steps:
                checkpoints.save(done, state, position)
                checkpoints.close()
                raise UserError(
                    f"step {done}: {skipped_in_a_row} updates in a row were not finite (limit max_skipped_steps="
                    f"{config.max_skipped_steps}); the images are named above, the state before them is saved"
                )

        # -- save and evaluate, at the end of the run always; what an evaluation meets costs no steps
        if done == num_steps or _due(config.checkpoint_every, done, num_steps):
            checkpoints.save(done, state, position)
        if _due(config.eval_every, done, num_steps):
            evaluation(state, done)
        if done < num_steps and stop.agreed(at_line):
            checkpoints.save(done, state, position)
            checkpoints.close()
            log.close()
            raise Stopped(f"stopped at step {done} of {num_steps}, which is saved; the same command goes on from there")
    checkpoints.close()

    # ---- The result card
    if evaluation.result is None and first_step >= num_steps and config.eval_every:  # nothing was left to do
        evaluation.once_more(state)
    about = {
        "train_images": len(train_source),
        "val_images": len(val_source),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "resumed_at_step": first_step,
    }
    card = result_card(task, config, state, length, log, evaluation, about)
    if jax.process_index() == 0:
        write_result_card(workdir, card)
        log.draw_curves()
    log.close(card)
    return card


def _started(task, config, source, global_batch, first_example, held):
    """Batches of training, the first of which is being made. They are closed however the run ends."""
    batches = task.train_batches(
        config,
        source,
        batch_size=global_batch // jax.process_count(),
        first_example=first_example,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    held.callback(batches.close)
    batches.start()
    return batches


def _end(log, checkpoints):
    """Ends what a run that failed has begun. Nothing that fails now is to be told in place of what did before."""
    with contextlib.suppress(Exception):
        log.close()
    if jax.process_count() == 1:  # (a host that failed alone would wait for the others)
        with contextlib.suppress(Exception):
            checkpoints.close()


def _placed(batches, names, mesh, *, accumulate_steps):
    """Yields (batch, those of its arrays that the step takes, on the devices, seconds waited for the batch).

    One batch is always placed ahead: memory that a step has freed is written only when all that was handed to the
    device before is done, so that a batch placed after its predecessor's step would leave the device idle meanwhile
    (T on an H200, 8 images of 1024 x 1024: 43.4 and 42.9 ms a step). An error in reading it is raised after its
    predecessor's step.
    """
    batches, ahead = iter(batches), []
    while True:
        since = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            break
        except Exception:
            yield from ahead
            raise
        waited = time.monotonic() - since
        placed = devices.place_batch(mesh, {n: batch[n] for n in names}, accumulate_steps=accumulate_steps)
        yield from ahead
        ahead = [(batch, placed, waited)]
    yield from ahead


class _InFlight:
    """Steps that were handed to the devices and are not finished: at most `ahead`.

    Without a bound a slow device is handed steps until a line of the log waits for them, and each holds its batch: a
    signal would be answered minutes later. (One more batch waits for its step.)
    """

    def __init__(self, ahead=3):
        self._ahead, self._results = ahead, collections.deque()

    def add(self, results):
        """Waits for the oldest step where there are too many. Args: results, pytree of a step's arrays."""
        self._results.append(results)
        if len(self._results) > self._ahead:
            jax.block_until_ready(self._results.popleft())


def _check(config, mesh):
    """Finds before any time is spent what would end the run later."""
    if not config.data.stall_seconds > 0:
        raise UserError(f"data.stall_seconds: expected a time above 0, got {config.data.stall_seconds}")
    for name in ("batch_size_per_device", "accumulate_steps", "log_every"):
        if config[name] < 1:
            raise UserError(f"{name}: expected at least 1, got {config[name]}")
    for name in ("num_steps", "num_epochs"):
        if config[name] is not None and config[name] < 0:
            raise UserError(f"{name}: expected a number above 0, got {config[name]}")
    for name in ("checkpoint_every", "eval_every"):
        if config[name] is not None and config[name] < 0:
            raise UserError(f"{name}: expected a number of steps, or 0 for never, got {config[name]}")
    trackers.check(config)
    if mesh.devices.size % jax.process_count():
        raise UserError(f"{mesh.devices.size} devices cannot be shared by {jax.process_count()} hosts evenly")


def _due(every, done, num_steps):
    """Whether what is done every so many steps (0 or None: never) is done after this one; the last one counts."""
    return bool(every) and (done % every == 0 or done == num_steps)


def _open_data(task, config):
    """The sources of both splits, told of and compared over the hosts."""
    opened = {split: task.open_source(config, split) for split in ("train", "val")}
    for split, source in opened.items():
        logging.info("%s: %s", split, source.summary())
    facts = resume.data_facts(opened)
    hosts.require_same(
        {f"data.{split} (digest of its {f['images']} image names)": f["digest"] for split, f in facts.items()}
    )
    train, val = opened.values()
    shared = set(train.image_ids) & set(val.image_ids) if config.data.get("kind") != "scenes" else ()
    if shared:
        logging.warning(
            "%d images are in both splits (%s, ...): the metrics are not of unseen images", len(shared), min(shared)
        )
    return train, val


def _tell_schedules(config, length):
    settings = config.optimizer
    logging.info(
        "%d steps (%d an epoch) of %d images; learning rate %.3g (%.3g for %d images, scaling %s), warm-up %d steps, "
        "then %s",
        length.num_steps, length.steps_per_epoch, length.global_batch, length.peak, settings.learning_rate,
        settings.reference_batch, settings.lr_scaling, length.warmup_steps,
        optimizer.describe_schedule(config, length),
    )  # fmt: skip
    logging.info(
        "evaluation %s; checkpoints %s, the newest %d are kept",
        f"every {config.eval_every} steps and at the end" if config.eval_every else "never",
        f"every {config.checkpoint_every} steps and at the end" if config.checkpoint_every else "at the end alone",
        config.checkpoints_kept,
    )  # fmt: skip
