"""A model in a folder: its arrays (Orbax), `model.json` which describes it, and sums of both.

A model alone is `DIR/state`, `DIR/model.json` and `DIR/manifest.json` with the sizes and checksums of the files. A run
keeps `WORKDIR/checkpoints/STEP/{state,data,manifest.json}` and one `WORKDIR/model.json`, and its best model alone in
`WORKDIR/best`. The arrays lie under their names in nested dicts, so that each can be opened with Orbax alone.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
import tensorstore
from absl import logging
from etils import epath
from flax import nnx

from haksnet_jax import demo, files, json_files
from haksnet_jax.weights import model_schema, sums
from haksnet_jax.weights.errors import CheckpointError

MODEL_FILE = "model.json"
ARRAYS_FILE = "model.safetensors"  # instead of `state`, in the model that comes with the package
_MAX_MODEL_BYTES = 4 << 20  # of model.json; the names of 20,000 classes have half a megabyte
_WEIGHT_FILES = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dicts (or an nnx.State) to {"a.b.c": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.as_pure(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b.c": leaf} to nested dicts with string keys."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def fill(state: Any, flat: Mapping[str, Any], *, what: str) -> Any:
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


def variables_of(params: Any, batch_stats: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of a model for inference.

    Args:
      params, batch_stats: nnx.State of shapes, see `architecture.abstract`.
      arrays: {"a.b.c": array} of a checkpoint.

    Returns:
      {"params", "batch_stats"} of numpy arrays.

    Raises:
      CheckpointError: the arrays do not fit.
    """
    states = {"params": params, "batch_stats": batch_stats}
    return {name: fill(nnx.as_pure(state), arrays, what="the checkpoint") for name, state in states.items()}


def _alone():
    """Options for Orbax where one host of several writes a model: it waits for no other."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    host = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host_{host}"
    )


def save_model(directory: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], model_info: dict[str, Any]) -> None:
    """Writes a model alone, whole or not at all.

    Args:
      directory: where to; replaced if it exists. Sums of its files are written beside them.
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict for `model.json`: architecture, class names, normalisation, input size.
    """
    directory = files.absolute(directory)  # Orbax takes no other
    if files.is_bucket(directory):
        # Nothing is renamed there. A folder is a model if it has its description, which leaves first and comes last.
        (directory / MODEL_FILE).unlink(missing_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / sums.MANIFEST_FILE).unlink(missing_ok=True)
        _save_arrays(directory / "state", arrays)
        sums.write(directory)
        files.write_text(directory / MODEL_FILE, json.dumps(model_info, indent=2) + "\n")
        return
    temporary = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        _save_arrays(temporary / "state", arrays)
        (temporary / MODEL_FILE).write_text(json.dumps(model_info, indent=2) + "\n")
        sums.write(temporary)
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


def restore_numpy(path: str | os.PathLike[str]) -> Any:
    """Reads an Orbax tree of arrays (`state` in a checkpoint) as numpy, whatever devices it was saved from."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        return checkpointer.restore(path, restore_args=arguments)


@contextlib.contextmanager
def _without_log_of_the_library():
    """Keeps Orbax's log lines and tracebacks back while a sentence of ours says what is wrong."""

    def of_ours(record):
        return "orbax" not in record.pathname

    handler = logging.get_absl_handler()
    handler.addFilter(of_ours)
    try:
        yield
    finally:
        handler.removeFilter(of_ours)


def is_file_of_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file such as other programs write weights to, where a folder is expected."""
    return pathlib.Path(path).is_file() if not files.is_bucket(path) else str(path).endswith(_WEIGHT_FILES)


def resolve(directory: str | os.PathLike[str]) -> tuple[epath.Path, epath.Path]:
    """Finds the model in any folder that a user would name.

    Args:
      directory: a converted model, a run's folder (its best evaluation, else its newest step), or one step of a run.

    Returns:
      (folder that holds `state` and, if there are sums, `manifest.json`; path of its `model.json`), epath.Path.

    Raises:
      CheckpointError: there is none.
    """
    if is_file_of_weights(directory):
        path = pathlib.Path(str(directory))
        if path.suffix not in _WEIGHT_FILES:
            meant = next((f" (meant is {place}?)" for place in path.parents if (place / MODEL_FILE).exists()), "")
            raise CheckpointError(
                f"{directory} is a file, expected the folder of a checkpoint{meant}: a run's folder, one of its "
                "checkpoints, or a model that `haksnet convert` wrote"
            )
        raise CheckpointError(
            f"{directory} is a file, expected the folder of a checkpoint: make one of it with "
            f"`haksnet convert --input={directory} --output=DIR`"
        )
    directory = files.absolute(files.reachable(demo.or_path(directory, demo.MODEL)))
    if not directory.exists():
        if str(directory).endswith(_WEIGHT_FILES):
            raise CheckpointError(
                f"{directory}: there is no such file; a file of weights is brought over by "
                "`haksnet convert --input=FILE --output=DIR`, and DIR is then the checkpoint"
            )
        raise CheckpointError(
            f"{directory}: no such checkpoint folder; expected a run's folder (runs/NAME), one of its checkpoints, a "
            "model that `haksnet convert` wrote, or `demo`, which comes with the package"
        )
    if (directory / "state").exists() or (directory / ARRAYS_FILE).exists():  # a model alone, or one step of a run
        if (directory / MODEL_FILE).exists():
            return directory, directory / MODEL_FILE
        return directory, directory.parent.parent / MODEL_FILE
    if (directory / "best" / MODEL_FILE).exists():
        return directory / "best", directory / "best" / MODEL_FILE
    steps = directory / "checkpoints" if (directory / "checkpoints").exists() else directory
    numbers = [int(p.name) for p in steps.iterdir() if re.fullmatch(r"[0-9]{1,12}", p.name) and (p / "state").exists()]
    if not numbers:
        raise CheckpointError(
            f"{directory}: expected a run's folder, one of its checkpoints or a converted model; found neither `state` "
            "nor `checkpoints` in it"
        )
    return steps / str(max(numbers)), steps.parent / MODEL_FILE


def read_model_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a `model.json`.

    Args:
      path: of the file.

    Returns:
      dict that agrees with `model_schema`.

    Raises:
      CheckpointError: it cannot be read or says what no model can be; one sentence with the place in the file.
    """
    info = json_files.load(path, max_bytes=_MAX_MODEL_BYTES, error=CheckpointError)
    model_schema.check(info, str(path))
    return info


def task_of(directory: str | os.PathLike[str]) -> str:
    """The task of a model, "detection" where its description names none. Args: directory, as in `resolve`.

    Raises:
      CheckpointError: there is no model.
    """
    info_path = resolve(directory)[1]
    return (read_model_info(info_path).get("task") if info_path.exists() else None) or "detection"


def opened(make: Callable[..., Any], directory: str | os.PathLike[str], **options: Any) -> Any:
    """What is made of a model's arrays and description.

    Args:
      make: function of (arrays, model_info, **options).
      directory: see `load_model`.
      **options: of `make`.

    Raises:
      CheckpointError: nothing usable is there; with the folder's name.
    """
    arrays, model_info = load_model(directory)
    try:
        return make(arrays, model_info, **options)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def load_model(
    directory: str | os.PathLike[str], *, allow_nonfinite: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a model: a converted one, a run's folder (its best evaluation, else its newest step), or one step.

    Where a run keeps an average of its weights, that is what comes back. The files are compared with the sums that were
    written with them; a changed `model.json`, which people may edit, is only warned of.

    Args:
      directory: any of these folders.
      allow_nonfinite: whether weights may be NaN or infinite.

    Returns:
      ({"a.b.c": numpy array} parameters and batch statistics, model_info dict).

    Raises:
      CheckpointError: nothing usable there.
    """
    folder, info_path = resolve(directory)
    if not info_path.exists():
        raise CheckpointError(f"{info_path} is missing: it describes the model whose weights lie in {folder}")
    model_info = read_model_info(info_path)
    if reason := sums.difference(folder, but=(MODEL_FILE,)):
        raise CheckpointError(f"{folder} is damaged: {reason}; copy or convert it again, or use another checkpoint")
    if info_path.parent == folder and sums.difference(folder, only=(MODEL_FILE,)):
        logging.warning("%s was changed after it was written: it is used as it is now", info_path)
    tree = safetensors.numpy.load_file(folder / ARRAYS_FILE) if (folder / ARRAYS_FILE).exists() else _restored(folder)
    if "params" in tree:  # a run
        tree = tree.get("ema") or {"params": tree["params"], "batch_stats": tree.get("batch_stats", {})}
        arrays = flatten(tree["params"]) | flatten(tree["batch_stats"])
    else:
        arrays = flatten(tree)
    if not allow_nonfinite:
        require_finite(arrays, folder)
    return arrays, model_info


def _require_whole_database(path):
    """Reads every value of Orbax's database once, one after the other; raises what TensorStore raises.

    Orbax reads many at a time, and where one fails it closes the event loop that the others still report to: each then
    prints a traceback. Where there are sums, damage is found before.
    """
    if (path / "manifest.ocdbt").exists():
        database = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
        for key in database.list().result():
            database.read(key).result()


def _restored(folder):
    try:
        with _without_log_of_the_library():
            if not (folder / sums.MANIFEST_FILE).exists() and not files.is_bucket(folder):
                _require_whole_database(folder / "state")
            tree = restore_numpy(folder / "state")
    except Exception as error:  # Orbax and its file formats raise whatever they like for a damaged file
        reason = json_files.printable((str(error).splitlines() or [type(error).__name__])[0])[:300]
        raise CheckpointError(f"{folder / 'state'}: not a whole Orbax checkpoint ({reason})") from error
    if not isinstance(tree, dict) or not all(
        isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(tree)
    ):
        raise CheckpointError(f"{folder / 'state'}: expected arrays by name, found something else")
    return tree


def require_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raises CheckpointError where a weight is NaN or infinite. Args: {name: array}; where they come from."""
    wrong = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in "iub" and not np.isfinite(array.sum(dtype=np.float64)):
            wrong[name] = int(array.size - np.isfinite(array).sum())
    if wrong:
        shown = ", ".join(f"{name} ({count} numbers)" for name, count in list(wrong.items())[:3])
        raise CheckpointError(
            f"{where}: {len(wrong)} parameters hold numbers that are not finite: {shown}"
            f"{' and others' if len(wrong) > 3 else ''}; no result could be trusted, use an earlier checkpoint"
        )
