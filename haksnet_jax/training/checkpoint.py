"""Checkpoints (Orbax): of a run, with the optimiser's state and the data position; and of a model alone.

A run keeps `WORKDIR/checkpoints/STEP/{state,data}`, and beside these two `manifest.json` with the sizes and sums of
their files; a model alone is `DIR/state` beside `DIR/model.json`. In both the arrays lie under their names in nested
dicts, so that either can be opened with Orbax alone.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import time
import uuid
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx

from haksnet_jax import files
from haksnet_jax.distributed import hosts

MODEL_FILE = "model.json"
MANIFEST_FILE = "manifest.json"  # in a step's folder, written when everything else there is


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


def log_filter(record):
    """A filter of log records that leaves out Orbax's inner life.

    Its tracebacks too, unless HAKSNET_TRACEBACK asks for them: what goes wrong ends the run with a CheckpointError.
    """
    if "orbax" not in record.pathname:
        return True
    if not os.environ.get("HAKSNET_TRACEBACK"):
        record.exc_info = record.exc_text = None
    return record.levelname != "INFO"


def flatten(tree):
    """Nested dicts (or an nnx.State) to {"a.b.c": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.as_pure(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(flat):
    """{"a.b.c": leaf} to nested dicts with string keys."""
    tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def fill(state, flat, *, what):
    """Puts named arrays into a state of the same names.

    Args:
      state: nnx.State (or nested dicts) of arrays or shapes.
      flat: {"a.b.c": array}; more names than the state has are fine.
      what: where `flat` comes from, for the message.

    Returns:
      A state like `state` with the arrays of `flat`.

    Raises:
      CheckpointError: every name that is missing or of another shape.
    """
    problems = []
    for name, leaf in flatten(state).items():
        if name not in flat:
            problems.append(f"{name} is missing")
        elif tuple(flat[name].shape) != tuple(leaf.shape):
            problems.append(f"{name} has shape {tuple(flat[name].shape)}, expected {tuple(leaf.shape)}")
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise CheckpointError(f"{what} does not fit the model: {shown}")
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    names = [name.removesuffix(".value") for name in names]
    return jax.tree_util.tree_unflatten(structure, [np.asarray(flat[name]) for name in names])


def _alone():
    """Options for Orbax where one host of several writes a model: it waits for no other."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    host = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host_{host}"
    )


def save_model(directory, arrays, model_info):
    """Writes a model alone, whole or not at all.

    Args:
      directory: where to; replaced if it exists.
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict for `model.json`: architecture, class names, normalisation, input size.
    """
    directory = files.absolute(directory)  # Orbax takes no other
    if files.is_bucket(directory):
        # Nothing is renamed there. A folder is a model if it has its description, which leaves first and comes last.
        (directory / MODEL_FILE).unlink(missing_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        _save_arrays(directory / "state", arrays)
        files.write_text(directory / MODEL_FILE, json.dumps(model_info, indent=2) + "\n")
        return
    temporary = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        _save_arrays(temporary / "state", arrays)
        (temporary / MODEL_FILE).write_text(json.dumps(model_info, indent=2) + "\n")
        if directory.exists():
            # The old one leaves in one step too: a reader finds the old, the new, or nothing, never a mixture.
            old = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.old"
            directory.rename(old)
            temporary.rename(directory)
            old.rmtree()
        else:
            temporary.rename(directory)
    except BaseException:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save_arrays(path, arrays):
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        checkpointer.save(path, unflatten({k: np.asarray(v) for k, v in arrays.items()}), force=True)


def restore_numpy(path):
    """Reads an Orbax tree of arrays (`state` in a checkpoint) as numpy, whatever devices it was saved from."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        return checkpointer.restore(path, restore_args=arguments)


def _resolve(directory):
    """The folder that holds `state`, and the one with `model.json`, from any folder a user would name."""
    directory = files.absolute(files.reachable(directory))
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such checkpoint folder")
    if (directory / "state").exists():  # a model alone, or one step of a run
        if (directory / MODEL_FILE).exists():
            return directory / "state", directory / MODEL_FILE
        return directory / "state", directory.parent.parent / MODEL_FILE
    if (directory / "best" / MODEL_FILE).exists():
        return directory / "best" / "state", directory / "best" / MODEL_FILE
    steps = directory / "checkpoints" if (directory / "checkpoints").exists() else directory
    numbers = [int(p.name) for p in steps.iterdir() if re.fullmatch(r"\d+", p.name) and (p / "state").exists()]
    if not numbers:
        raise CheckpointError(
            f"{directory}: expected a run's folder, one of its checkpoints or a converted model; found neither `state` "
            "nor `checkpoints` in it"
        )
    return steps / str(max(numbers)) / "state", steps.parent / MODEL_FILE


def load_model(directory):
    """Reads a model: a converted one, a run's folder (its best evaluation, else its newest step), or one step.

    Where a run keeps an average of its weights, that is what comes back.

    Args:
      directory: any of these folders.

    Returns:
      ({"a.b.c": numpy array} parameters and batch statistics, model_info dict).

    Raises:
      CheckpointError: nothing usable there.
    """
    state_path, info_path = _resolve(directory)
    if not info_path.exists():
        raise CheckpointError(f"{info_path} is missing: it describes the model whose weights lie in {state_path}")
    try:
        model_info = json.loads(info_path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{info_path}:{error.lineno}: not valid JSON ({error.msg})") from error
    try:
        tree = restore_numpy(state_path)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{state_path}: not a whole Orbax checkpoint ({str(error).splitlines()[0]})") from error
    if "params" in tree:  # a run
        tree = tree.get("ema") or {"params": tree["params"], "batch_stats": tree["batch_stats"]}
        return flatten(tree["params"]) | flatten(tree["batch_stats"]), model_info
    return flatten(tree), model_info


def _reason(error):
    """The first line of what an error says, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_whole(folder):
    """Whether everything in one step's folder can be read, whatever configuration it is of."""
    try:
        restore_numpy(folder / "state")
        json.loads((folder / "data" / "metadata").read_text())
    except Exception:  # (see restore_newest)
        return False
    return True


def _files_in(folder, prefix=""):
    """Yields (path relative to the folder, epath.Path) of every file below it."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from _files_in(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _size_and_sum(path):
    size, total = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


def _write_manifest(folder):
    """Writes down size and CRC-32 of every file of a step that is saved whole."""
    try:
        found = {name: _size_and_sum(path) for name, path in _files_in(folder) if name != MANIFEST_FILE}
        files.write_text(folder / MANIFEST_FILE, json.dumps(found, indent=1) + "\n")
    except Exception as error:  # whatever it is, the checkpoint is whole without it, and this thread is heard by nobody
        if folder.exists():  # else a newer checkpoint took its place meanwhile
            logging.warning("%s is saved, but its %s could not be written (%s)", folder, MANIFEST_FILE, error)


def _difference_from_manifest(folder):
    """What is not as it was when the step was saved, in words; "" where nothing is, or there is no manifest.

    Orbax notices a file that is missing or cut off; a changed byte in an array it may hand on as a number.
    """
    if not (folder / MANIFEST_FILE).exists():  # made before there were manifests, or killed before it was written
        return ""
    try:
        expected = json.loads((folder / MANIFEST_FILE).read_text())
        for name, size_and_sum in expected.items():
            if not (folder / name).exists():
                return f"{name} is missing"
            size, total = _size_and_sum(folder / name)
            if size != size_and_sum[0]:
                return f"{name} has {size} bytes, expected {size_and_sum[0]}"
            if total != size_and_sum[1]:
                return f"{name} is not as it was written: its CRC-32 differs"
    except (OSError, ValueError, AttributeError, TypeError, IndexError) as error:
        return f"{MANIFEST_FILE} or a file that it names cannot be read: {error}"
    return ""


class RunCheckpoints:
    """The checkpoints of one run, written in the background.

    Args:
      workdir: the run's folder.
      max_to_keep: newest checkpoints that stay.
    """

    def __init__(self, workdir, *, max_to_keep=3):
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(files.absolute(workdir) / "checkpoints", options=options)
        self._being_saved = None  # step
        self._sums = concurrent.futures.ThreadPoolExecutor(1)  # reading gigabytes back must not hold up the steps

    @contextlib.contextmanager
    def _naming_errors(self, step):
        try:
            yield
        except Exception as error:  # (Orbax hands on what its storage raised, whatever it is)
            reason = _reason(error)
            raise CheckpointError(
                f"{self._manager.directory}/{step} could not be written ({reason}); checkpoints that were saved before "
                "are intact: see that there is space and that the folder may be written to, and start the same command "
                "again"
            ) from error

    def save(self, step, state, data_position):
        """Starts writing, after what is still being written is.

        Args:
          step: steps taken.
          state: a pytree of arrays.
          data_position: a dict that JSON can hold.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        self._finish()
        if step in self._manager.all_steps():
            return
        with self._naming_errors(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)),
            )
        self._being_saved = step

    def check(self):
        """Looks, without waiting, how the save in the background does.

        Raises:
          CheckpointError: it failed.
        """
        if self._being_saved is None:
            return
        with self._naming_errors(self._being_saved):
            self._manager.check_for_errors()
        if not self._manager.is_saving_in_progress():
            self._finish()

    def _finish(self):
        """Waits for the save in the background, and has its manifest written in the background."""
        if self._being_saved is None:
            return
        step, self._being_saved = self._being_saved, None
        with self._naming_errors(step):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        if jax.process_index() == 0:
            self._sums.submit(_write_manifest, self._manager.directory / str(step))

    def restore_newest(self, abstract_state):
        """Reads the newest checkpoint that is whole onto the devices.

        One that is not (cut off, changed, a file missing) is named in a warning, set aside as `STEP.unusable` so that
        its step can be saved again, and the one before is read.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with shardings.

        Returns:
          (step, state, data_position), or None where there is no usable checkpoint.

        Raises:
          CheckpointError: a checkpoint is whole and does not fit this configuration.
          hosts.HostsError: the hosts do not see the same checkpoints.
        """
        self._require_same_steps()
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._manager.directory / str(step)
            reason = _difference_from_manifest(folder) if jax.process_index() == 0 else ""
            # All hosts leave a checkpoint aside, or none: they restore together.
            if hosts.any_host(bool(reason)):
                reason = reason or "found by host 0"
            if not reason:
                error = None
                try:
                    restored = self._manager.restore(
                        step,
                        args=ocp.args.Composite(
                            state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
                        ),
                    )
                except Exception as raised:  # Orbax and its file formats raise whatever they like for a damaged file
                    error, reason = raised, _reason(raised)
                if not hosts.any_host(error is not None):
                    return step, restored["state"], restored["data"]
                reason = reason or "found by another host"
                if not hosts.any_host(not _is_whole(folder)):
                    raise CheckpointError(
                        f"{folder} does not fit this configuration ({reason}); use another --workdir, or the "
                        "configuration that it was made with"
                    ) from error
            logging.warning("%s is not whole and is left aside as %s.unusable (%s)", folder, step, reason)
            if jax.process_index() == 0 and not files.is_bucket(folder):  # where nothing is renamed
                folder.rename(_free_name(folder.parent, f"{step}.unusable"))
            self._manager.reload()
        return None

    def _require_same_steps(self, patience=20):
        """Raises HostsError where hosts see other checkpoints than host 0 for longer than `patience` half seconds."""
        if jax.process_count() == 1:
            return
        for attempt in range(patience + 1):  # the same number on all hosts, whatever their clocks say
            steps = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            try:
                hosts.require_same({f"checkpoints in {self._manager.directory}": steps})
                return
            except hosts.HostsError:
                if attempt == patience:
                    raise
            time.sleep(0.5)
            self._manager.reload()

    def close(self):
        """Waits until everything is written. Raises: CheckpointError, it could not be."""
        try:
            self._finish()
        finally:
            self._sums.shutdown()
            with contextlib.suppress(Exception):  # (what went wrong was raised before)
                self._manager.close()
            logging.flush()


def _free_name(folder, name):
    """A path in the folder that nothing is at: `name`, `name.1`, ... The same step may be damaged more than once."""
    path, number = folder / name, 0
    while path.exists():
        number += 1
        path = folder / f"{name}.{number}"
    return path
