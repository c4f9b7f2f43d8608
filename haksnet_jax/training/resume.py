"""Where a run begins: at its newest checkpoint, at given weights, or at random ones.

1. A folder without a checkpoint that is whole begins a run: from `init` (a whole model), `pretrained` (a backbone), or
   random weights. `config.json`, `model.json` and `run.json` are written.
2. Else the run goes on at its newest checkpoint that is whole. Damaged ones are named, and set aside.
3. What gives its weights or its metrics their meaning (task, classes and their order, model, data, averages, seed) must
   be what it was; what differs is listed and refused, unless `--resume=anyway` says that it is meant.
4. What may change (length, batch, optimiser, augmentation, intervals, workers, paths) is logged, and the configuration
   written beside the first one, as `config_from_step_N.json`. What describes old checkpoints is never rewritten.
5. The data go on at the example where they stood, whatever the number of devices.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.training import checkpoint
from haksnet_jax.training.state import TrainState
from haksnet_jax.weights import bands, model_folder

CONFIG_FILE = "config.json"  # as the run began
RUN_FILE = "run.json"  # the data that it began with
POLICIES = ("same", "anyway")

# Keys that may change when a run goes on, with all below them. (`model.` keys that describe weights are compared as
# model.json has them.)
MAY_CHANGE = (
    "name", "num_steps", "num_epochs", "batch_size_per_device", "accumulate_steps", "checkpoint_every",
    "checkpoints_kept", "eval_every", "log_every", "trackers", "max_skipped_steps", "pretrained", "init",
    "init_new_classes", "mesh", "model.remat", "augment", "optimizer", "evaluation", "data.root", "data.num_workers",
    "data.stall_seconds",
    "data.train.directory", "data.train.images_dir", "data.train.labels_dir",
    "data.val.directory", "data.val.images_dir", "data.val.labels_dir",
    "mixing", "data.cache_mib", "data.train.image_list", "data.val.image_list",  # of classification
    "data.cache_gib", "data.train.masks_dir", "data.train.before_dir", "data.train.after_dir",
    "data.val.masks_dir", "data.val.before_dir", "data.val.after_dir",
)  # fmt: skip
# Sizes may be written out or named; what comes of it is compared.
_SIZES = ("model.backbone", "model.channels", "model.depths", "model.mlp_ratios", "model.width")


class Beginning(NamedTuple):
    """Where a run begins: steps taken, examples taken, state on the devices."""

    step: int
    example: int
    state: Any


def data_facts(sources: dict[str, Any]) -> dict[str, dict]:
    """What identifies data. Args: {split: source}. Returns: {split: {"images": number, "digest": of their names}}."""
    return {
        split: {
            "images": len(source),
            "digest": hashlib.sha256("\n".join(map(str, source.image_ids)).encode()).hexdigest()[:16],
        }
        for split, source in sources.items()
    }


def begin(
    task: Any,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    checkpoints: checkpoint.RunCheckpoints,
    wanted: TrainState,
    create: Callable[[], TrainState],
    mesh: jax.sharding.Mesh,
    data: dict[str, dict],
    *,
    global_batch: int,
    policy: str = "same",
) -> Beginning:
    """Finds where the run begins, by the policy above, and writes down what describes it.

    Args:
      task: the run's task.
      config: the experiment, prepared.
      workdir: folder of the run.
      checkpoints: checkpoint.RunCheckpoints.
      wanted: TrainState of shapes and shardings, what the run's state is to be.
      create: gives that state with the initial values of a new run; called where there is no checkpoint.
      mesh: of the run.
      data: `data_facts` of its data.
      global_batch: images a step.
      policy: "same", or "anyway" to go on although something differs that should not.

    Returns:
      Beginning.

    Raises:
      UserError: the checkpoints there are of another run; or the weights to begin with do not fit.
      checkpoint.CheckpointError: a checkpoint is whole and does not fit, or weights cannot be loaded.
    """
    stored = _stored_config(workdir) if checkpoints.steps() else None
    if stored is not None:
        changes = compare(task, stored, config, _stored_data(workdir), data)
        if changes.refused and policy != "anyway":
            raise UserError(
                f"{workdir} holds a run of something else: {'; '.join(changes.refused)}. Take another --workdir, set "
                "these back to what they were, or say --resume=anyway if this run is to go on all the same"
            )
        for change in (*changes.refused, *changes.allowed):
            logging.warning("going on with another setting: %s", change)
    restored = _restore(checkpoints, wanted, had_ema=bool(stored.ema_decay) if stored else bool(wanted.ema))
    if restored is None:
        state = load_initial_weights(task, config, create(), mesh)
        _describe(task, config, workdir, data)
        return Beginning(0, 0, state)
    step, state, position = restored
    logging.info("resuming at step %d, example %d", step, position["examples"])
    if position["global_batch"] != global_batch:
        logging.warning(
            "the run so far took %d images a step, now %d: it goes on at the same example",
            position["global_batch"], global_batch,
        )  # fmt: skip
    if stored is not None and (changes.refused or changes.allowed):
        _describe_change(task, config, workdir, step, data, another_model=bool(changes.refused))
    return Beginning(step, position["examples"], state)


def best_so_far(task: Any, workdir: epath.Path, first_step: int) -> float | None:
    """The metric of the weights in `best/`, or None where there are none of this run.

    What an earlier run left there without leaving a checkpoint is set aside: this one's first evaluation would
    overwrite it.
    """
    folder = workdir / "best"
    if not (folder / model_folder.MODEL_FILE).exists():
        return None
    if first_step:
        known = _read_json(folder / model_folder.MODEL_FILE).get(task.BEST)
        if known is not None and not isinstance(known, int | float):
            raise UserError(
                f"{folder / model_folder.MODEL_FILE}: expected a number as {task.BEST}, got {_short(known)}"
            )
        return known  # (0 is a metric too)
    if jax.process_index() == 0:
        aside = checkpoint.free_name(workdir, "best.earlier")
        checkpoint.move_folder(folder, aside)
        logging.warning("%s holds the best weights of an earlier run without checkpoints: kept as %s", folder, aside)
    return None


def _restore(checkpoints, wanted, *, had_ema):
    """(step, state, position) of the newest whole checkpoint, or None; averages are added or left out as asked for."""
    averages = {"params": wanted.params, "batch_stats": wanted.batch_stats} if had_ema else {}
    restored = checkpoints.restore_newest(wanted._replace(ema=averages))
    if restored is None:
        return None
    step, found, position = restored
    if bool(wanted.ema) != had_ema:  # (--resume=anyway)
        averages = {"params": found.params, "batch_stats": found.batch_stats}
        found = found._replace(ema=jax.tree.map(jnp.copy, averages) if wanted.ema else {})
    return step, found, position


# ---- what describes a run


class Changes(NamedTuple):
    """What differs from the run so far, in words: what must not, and what may."""

    refused: list[str]
    allowed: list[str]


def compare(
    task: Any,
    stored: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
    stored_data: dict[str, dict],
    data: dict[str, dict],
) -> Changes:
    """Compares an experiment with that of a run.

    Args:
      task: of `config`.
      stored: the run's configuration.
      config: the configuration now, prepared.
      stored_data, data: `data_facts`, then ({} where it is not known) and now.

    Returns:
      Changes.
    """
    refused: list[str] = []
    allowed: list[str] = []
    names = [settings.get("task", None) or "detection" for settings in (stored, config)]
    if names[0] != names[1]:
        return Changes([f"task was {names[0]}, is {names[1]}"], [])
    stored = task.prepared(stored)  # keys that older runs lack get the values that they had then
    then, now = (_flat(json.loads(one.to_json_best_effort())) for one in (stored, config))
    shared = (then.keys() & now.keys()).difference(_SIZES)  # (a key of one version alone is seen below)
    for name in _differing(then, now, names=shared):
        change = f"{name} was {_short(then[name])}, is {_short(now[name])}"
        may_change = any(name == key or name.startswith(f"{key}.") for key in MAY_CHANGE)
        (allowed if may_change else refused).append(change)
    is_explained = bool(refused)
    then, now = (_flat(json.loads(json.dumps(task.model_info(one)))) for one in (stored, config))
    for name in _differing(then, now, names=then.keys() | now.keys()):
        key = name.removeprefix("architecture.")
        if f"model.{key}" in _SIZES or not is_explained:  # else it follows from what was said above
            refused.append(f"model.{key} was {_short(then.get(name))}, is {_short(now.get(name))}")
    for split, facts in data.items():
        before = stored_data.get(split, facts)
        if before["images"] != facts["images"]:
            refused.append(f"data.{split} had {before['images']} images, has {facts['images']}")
        elif before["digest"] != facts["digest"]:
            refused.append(f"data.{split} has images of other names")
    return Changes(refused, allowed)


def _flat(tree, prefix=""):
    """{"a.b.c": value} of nested dicts; lists are values."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, below in tree.items() for name, value in _flat(below, f"{prefix}{key}.").items()}


def _differing(then, now, *, names):
    return sorted(name for name in names if then.get(name) != now.get(name))


def _short(value):
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def config_history(workdir: epath.Path) -> list[epath.Path]:
    """The files of a run's configurations: as it began, then by the step from which each later one holds."""
    later = {}
    for path in workdir.glob("config_from_step_*.json"):
        number = path.name.removeprefix("config_from_step_").removesuffix(".json")
        if number.isdecimal():
            later[int(number)] = path
    first = [workdir / CONFIG_FILE] if (workdir / CONFIG_FILE).exists() else []
    return first + [later[number] for number in sorted(later)]


def _read_json(path):
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not isinstance(found, dict):
        raise _damaged(path, f"expected an object, found {type(found).__name__}")
    return found


def _damaged(path, reason):
    return UserError(f"{path} is damaged ({reason}): put it back, or take another --workdir")


def _stored_config(workdir):
    """The configuration that the run's newest checkpoint was made with, or None where it is not known."""
    history = config_history(workdir)
    if not history:
        logging.warning("%s has checkpoints and no %s: they may be of another experiment", workdir, CONFIG_FILE)
        return None
    return ml_collections.ConfigDict(_read_json(history[-1]))


def _stored_data(workdir):
    """`data_facts` of the data that the run began with; {} for runs from before these were written down."""
    if not (workdir / RUN_FILE).exists():
        return {}
    found = _read_json(workdir / RUN_FILE).get("data")
    shaped = isinstance(found, dict) and all(
        isinstance(facts, dict) and {"images", "digest"} <= facts.keys() for facts in found.values()
    )
    if not shaped:
        raise _damaged(workdir / RUN_FILE, "it does not say what data the run began with")
    return found


def _write_json(path, value):
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def _describe(task, config, workdir, data):
    """Writes what describes a new run."""
    if jax.process_index() != 0:
        return
    for path in config_history(workdir)[1:]:  # of a run whose checkpoints are gone
        path.unlink()
    _write_json(workdir / model_folder.MODEL_FILE, task.model_info(config))
    files.write_text(workdir / CONFIG_FILE, config.to_json_best_effort(indent=2) + "\n")
    _write_json(workdir / RUN_FILE, {"data": data})


def _describe_change(task, config, workdir, step, data, *, another_model):
    """Writes down that other settings hold from a step on. Checkpoints of another model keep its description."""
    if jax.process_index() != 0:
        return
    files.write_text(workdir / f"config_from_step_{step}.json", config.to_json_best_effort(indent=2) + "\n")
    if another_model:
        before, now = workdir / model_folder.MODEL_FILE, task.model_info(config)
        if before.exists() and _read_json(before) != now:
            for folder in (workdir / "checkpoints").iterdir():
                if (folder / "state").exists() and not (folder / model_folder.MODEL_FILE).exists():
                    files.write_text(folder / model_folder.MODEL_FILE, before.read_text())
            _write_json(before, now)
        _write_json(workdir / RUN_FILE, {"data": data})


# ---- weights to begin with


def load_initial_weights(
    task: Any, config: ml_collections.ConfigDict, state: TrainState, mesh: jax.sharding.Mesh
) -> TrainState:
    """Puts pre-trained weights into a new state: a backbone (`pretrained`) or a whole model (`init`).

    Raises:
      UserError: both are asked for, or the model there is another.
      checkpoint.CheckpointError: a name is missing or of another shape; all are listed.
    """
    if config.pretrained and config.init:
        raise UserError("pretrained and init: expected at most one of them, got both")
    if not (config.pretrained or config.init) and config.model.get("frozen_stages", 0):
        raise UserError(
            f"model.frozen_stages is {config.model.frozen_stages} and neither `pretrained` nor `init` is set: random "
            "weights would stay as they are; name weights, or set model.frozen_stages=0"
        )
    if not (config.pretrained or config.init):
        logging.warning(
            "Neither `pretrained` nor `init` is set: training starts from random weights, and published accuracy, "
            "which rests on ImageNet weights, is not to be expected."
        )
        return state
    directory = config.pretrained or config.init
    arrays, info = model_folder.load_model(directory)
    start = model_folder.flatten(state.params) | model_folder.flatten(state.batch_stats)
    if config.init:
        _check_init(directory, arrays, info, task, config)
    prefixes = ()
    if config.pretrained:
        prefixes = tuple(task.kept_at_random(config))
    elif config.init_new_classes:
        prefixes = tuple(getattr(task, "CLASSIFIER", ()))
    kept = {name for name in start if name.startswith(prefixes)} if prefixes else set()
    _compare_normalization(directory, info, task.model_info(config))
    without_value = sorted(name for name in info.get("without_value", ()) if name in start and name not in kept)
    if without_value:  # left out on purpose, when the checkpoint was converted
        logging.warning("%s has no value for %s: random start", directory, ", ".join(without_value))
        kept |= set(without_value)
    arrays = {name: value for name, value in arrays.items() if name in start and name not in kept}
    _carry_bands(directory, arrays, info, task.model_info(config))
    logging.info("%s: %d arrays loaded, %d keep their random start", directory, len(arrays), len(kept))
    arrays |= devices.gather(mesh, {name: start[name] for name in kept})

    def fill(target):
        filled = model_folder.fill(target, arrays, what=directory)
        return devices.place(filled, devices.state_sharding(mesh, filled))

    params, stats = fill(state.params), fill(state.batch_stats)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if state.ema else {}
    return state._replace(params=params, batch_stats=stats, ema=ema)


def _carry_bands(directory, arrays, info, ours):
    """Fits the first convolution among the arrays to the run's bands, in place."""
    theirs, wanted = bands.bands_of(info), bands.bands_of(ours)
    for name in set(bands.FIRST_CONVOLUTIONS) & arrays.keys() if theirs != wanted else ():
        if np.ndim(arrays[name]) == 4 and np.shape(arrays[name])[2] == len(theirs):  # (else `fill` names it)
            arrays[name], copied = bands.carried_over(arrays[name], theirs, wanted)
            logging.warning(
                "%s has weights for the bands %s, this run takes %s: copied for %s, the mean for the others",
                directory, ", ".join(map(str, theirs)), ", ".join(map(str, wanted)),
                ", ".join(map(str, copied)) or "none",
            )  # fmt: skip


def _compare_normalization(directory, info, ours):
    for name in ("pixel_mean", "pixel_std"):
        if name in ours and list(info.get(name, ())) != list(ours[name]):
            logging.warning("%s has %s %s, model.%s is %s", directory, name, info.get(name), name, ours[name])


def _check_init(directory, arrays, info, task, config):
    """Says in a sentence why a model cannot go on with these classes, or that it does so under other names."""
    theirs, ours = list(info.get("class_names", ())), list(task.model_info(config)["class_names"])
    if all(name.startswith("backbone.") for name in arrays):
        raise UserError(f"init: {directory} holds a backbone alone; name it with pretrained instead")
    if config.init_new_classes or not theirs:  # (without names it has no classifier either)
        return
    if len(theirs) != len(ours):
        raise UserError(
            f"init: {directory} knows {len(theirs)} classes and data.class_names has {len(ours)}; "
            "init_new_classes=True starts the classifier anew"
        )
    if theirs != ours:
        logging.warning(
            "%s: the classifier of %s goes on as one of %s; init_new_classes=True would start it anew",
            directory, ", ".join(theirs), ", ".join(ours),
        )  # fmt: skip
