"""The checkpoints of a run (Orbax), with the optimiser's state and the data position, written in the background.

A run keeps `WORKDIR/checkpoints/STEP/{state,data}`, and beside these two `manifest.json` with the sizes and sums of
their files.
"""

import concurrent.futures
import contextlib
import json
import os
import time
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from haksnet_jax import files
from haksnet_jax.distributed import hosts
from haksnet_jax.weights import sums
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.model_folder import restore_numpy


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


def _write_sums(folder):
    try:
        sums.write(folder)
    except Exception as error:  # whatever it is, the checkpoint is whole without it, and this thread is heard by nobody
        if folder.exists():  # else a newer checkpoint took its place meanwhile
            logging.warning(
                "%s is saved, but its %s could not be written (%s)", folder, sums.MANIFEST_FILE, _reason(error)
            )


class Position(NamedTuple):
    """Where a checkpoint stands: steps taken, examples taken."""

    step: int
    example: int


class RunCheckpoints:
    """The checkpoints of one run, written in the background.

    Args:
      workdir: the run's folder.
      max_to_keep: newest checkpoints that stay.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, max_to_keep: int = 3) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(files.absolute(workdir) / "checkpoints", options=options)
        self._being_saved: int | None = None  # step
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

    def save(self, step: int, state: Any, data_position: dict[str, Any]) -> None:
        """Starts writing, after what is still being written is.

        Args:
          step: steps taken.
          state: a pytree of arrays.
          data_position: a dict that JSON can hold.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        self._finish()
        if step in self._manager.all_steps():  # saved already, or restored from: damaged ones were left aside
            return
        with self._naming_errors(step):
            is_begun = self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)),
            )
            if not is_begun:
                raise RuntimeError(f"there is a later one, step {self._manager.latest_step()}")
        self._being_saved = step

    def check(self) -> None:
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
            self._sums.submit(_write_sums, self._manager.directory / str(step))

    def steps(self) -> list[int]:
        """The steps that there is a checkpoint of, whole or not, in order."""
        return sorted(self._manager.all_steps())

    def newest_position(self) -> Position | None:
        """Where the newest checkpoint stands, whole or not; None where it does not say: `restore_newest` tells why."""
        steps = self.steps()
        if not steps:
            return Position(0, 0)
        try:
            found = json.loads((self._manager.directory / str(steps[-1]) / "data" / "metadata").read_text())
            return Position(steps[-1], int(found["examples"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
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
            reason = sums.difference(folder) if jax.process_index() == 0 else ""
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
            aside = free_name(folder.parent, f"{step}.unusable")
            logging.warning("%s is not whole and is left aside as %s (%s)", folder, aside.name, reason)
            if jax.process_index() == 0:
                move_folder(folder, aside)
            hosts.any_host(False)  # the others look again when it is gone
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

    def close(self) -> None:
        """Waits until everything is written. Raises: CheckpointError, it could not be."""
        try:
            self._finish()
        finally:
            self._sums.shutdown()
            with contextlib.suppress(Exception):  # (what went wrong was raised before)
                self._manager.close()
            logging.flush()


def move_folder(folder: epath.Path, target: epath.Path) -> None:
    """Gives a folder another name; in a bucket, where nothing is renamed, its files are copied, and then removed."""
    if not files.is_bucket(folder):
        folder.rename(target)
        return
    for path in folder.iterdir():
        if path.is_dir():
            move_folder(path, target / path.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            path.copy(target / path.name, overwrite=True)
    folder.rmtree()


def free_name(folder: epath.Path, name: str) -> epath.Path:
    """A path in the folder that nothing is at: `name`, `name.1`, ... The same step may be damaged more than once."""
    path, number = folder / name, 0
    while path.exists():
        number += 1
        path = folder / f"{name}.{number}"
    return path
