"""Compiled training steps kept on disk, so that a restart neither traces, lowers nor compiles.

JAX's own compilation cache saves the compilation alone: tracing and lowering a step of T takes a dozen seconds before
that cache can be asked. Here the key is made of what the step follows from (configuration, shapes and their layout,
devices, versions, the package's code), so the executable is found at once.

Such a file can run code when it is loaded. So it is kept in the user's own cache alone (`~/.cache/haksnet_jax/steps`,
never in a run's folder or a checkpoint), and is passed over where its folder or the file itself could have been
written by somebody else.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import stat
import sys
import time
from typing import Any

import jax
import jaxlib
from absl import logging
from jax.experimental import serialize_executable

import haksnet_jax
from haksnet_jax import files
from haksnet_jax.distributed import hosts

MAX_KEPT = 8  # the newest; one of T takes 10 to 20 MB
# Keys of a configuration that do not reach the step's code. (What is not listed here and does not either only costs a
# compilation.)
_OUTSIDE = frozenset(
    ["name", "seed", "num_epochs", "num_steps", "checkpoint_every", "checkpoints_kept", "eval_every", "log_every"]
    + ["pretrained", "init", "init_new_classes", "max_skipped_steps", "evaluation", "trackers"]
)
_OUTSIDE_OF_DATA = frozenset(["root", "train", "val", "num_workers", "stall_seconds"])
_ENVIRONMENT = ("XLA_", "JAX_", "LIBTPU_", "TPU_", "CUDA_", "NVIDIA_", "TF_")  # beginnings of variables that matter
_ELSEWHERE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # which devices those are, the mesh says


def folder() -> pathlib.Path:
    """The user's folder of compiled steps."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return home / "haksnet_jax" / "steps"


def begin(config: Any, arguments: tuple, mesh: jax.sharding.Mesh) -> concurrent.futures.Future | None:
    """Begins to read the step of an earlier start in a thread: it takes seconds, as restoring a checkpoint does.

    Args:
      config: the experiment.
      arguments: (state, batch, learning rate), arrays or shapes with shardings.
      mesh: of the run.

    Returns:
      Future of (key, the step or None), for `ready`; None on CPUs, where steps are not kept.
    """
    if not _are_kept(mesh):
        return None
    settings = {name: value for name, value in json.loads(config.to_json_best_effort()).items() if name not in _OUTSIDE}
    settings["data"] = {name: value for name, value in settings["data"].items() if name not in _OUTSIDE_OF_DATA}

    def read():
        key = key_of(settings, arguments, mesh)
        return key, load(key, arguments, mesh)

    thread = concurrent.futures.ThreadPoolExecutor(1)
    begun = thread.submit(read)
    thread.shutdown(wait=False)
    return begun


def _are_kept(mesh):
    return mesh.devices.flat[0].platform != "cpu"


def ready(train_step: Any, arguments: tuple, mesh: jax.sharding.Mesh, begun: concurrent.futures.Future | None) -> Any:
    """A training step that can be called at once: one of an earlier start, or compiled now and kept for later ones.

    On CPUs the step is given back as it is: it compiles at its first call.

    Args:
      train_step: of `step.make_train_step`.
      arguments, mesh: as of `begin`. All hosts of the mesh take part.
      begun: what `begin` gave.
    """
    if begun is None:
        logging.info(
            "compiling the training step without a line: on a CPU up to a minute or two for a small model, and some "
            "five minutes for HAKSNet-T"
        )
        return train_step
    key, found = begun.result()
    if not hosts.any_host(found is None):  # hosts that compile tune together, and would wait for those that do not
        return found
    logging.info("compiling the training step: about a minute or two without a line, once for this machine")
    lowered = train_step.lower(*arguments)
    compiled = lowered.compile()
    save(key, compiled, list(lowered.out_info[1]))
    return compiled


def key_of(settings: Any, arguments: Any, mesh: jax.sharding.Mesh) -> str:
    """What a compiled step follows from, as one digest.

    Args:
      settings: all that the step's code reads beside its arguments; anything that JSON or `str` writes the same each
        time.
      arguments: pytree of arrays or jax.ShapeDtypeStruct with shardings.
      mesh: of the run.
    """
    devices = list(mesh.devices.flat)
    described = {
        "settings": settings,
        "arguments": [
            (jax.tree_util.keystr(path), str(leaf.shape), str(leaf.dtype), str(getattr(leaf, "sharding", None)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
        ],
        "devices": [(device.id, device.process_index, device.device_kind) for device in devices],
        "mesh": str(mesh.shape),
        "process": (jax.process_index(), jax.process_count()),
        "platform": devices[0].client.platform_version,
        "versions": (sys.version, jax.__version__, jaxlib.__version__, haksnet_jax.__version__),
        "code": _digest_of_code(),
        "jax": {name: str(value) for name, value in jax.config.values.items() if "cache" not in name},
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_ENVIRONMENT) and name not in _ELSEWHERE
        },
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _digest_of_code() -> str:
    total = hashlib.sha256()
    root = pathlib.Path(haksnet_jax.__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".ptx")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def load(key: str, arguments: tuple, mesh: jax.sharding.Mesh) -> Any:
    """The step of a key, ready to be called, or None where there is none that can be used.

    Args:
      key: of `key_of`.
      arguments: (state, batch, learning rate), arrays or their shapes; the state's structure is the first result's too.
      mesh: of the run.
    """
    path = folder() / key
    if not path.exists():
        return None
    reason = _why_not_ours(path.parent) or _why_not_ours(path)
    if reason:
        logging.warning("%s is not used: %s", path, reason)
        return None
    began = time.monotonic()
    data = path.read_bytes()
    header, _, payload = data.partition(b"\n")
    try:
        described = json.loads(header)
        if described["sha256"] != hashlib.sha256(payload).hexdigest():
            raise ValueError("its content is not as it was written")
        metrics = dict.fromkeys(described["metrics"], 0)
        function = serialize_executable.deserialize_and_load(
            payload,
            jax.tree.structure((arguments, {})),
            jax.tree.structure((arguments[0], metrics)),
            execution_devices=list(mesh.devices.flat),
        )
    except Exception as error:  # whatever a runtime says of a program that it cannot take: compiling serves as well
        logging.warning("%s cannot be used and is made anew (%s)", path, _first_line(error))
        return None
    os.utime(path)  # the oldest leave first
    logging.info("the compiled training step of an earlier start, read in %.1f s", time.monotonic() - began)
    return function


def save(key: str, compiled: jax.stages.Compiled, metrics: list[str]) -> None:
    """Keeps a compiled step. What cannot be written or serialised is said and left out: the run does not need it.

    Args:
      key: of `key_of`.
      compiled: the step, whose second result is a dict.
      metrics: the names in that dict.
    """
    place = folder()
    try:
        payload, _, _ = serialize_executable.serialize(compiled)
        header = {"sha256": hashlib.sha256(payload).hexdigest(), "metrics": sorted(metrics)}
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)
        files.write_bytes(place / key, json.dumps(header).encode() + b"\n" + payload)
        (place / key).chmod(0o600)
        kept = sorted((path for path in place.iterdir() if not path.name.startswith(".")), key=os.path.getmtime)
        for path in kept[:-MAX_KEPT]:
            path.unlink(missing_ok=True)
    except Exception as error:  # (as in load; an executable may not be serialisable on this platform)
        logging.warning("the compiled step is not kept for later starts (%s)", _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _why_not_ours(path: pathlib.Path) -> str:
    """Why somebody else could have written a path, or "" where only this user can."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        return f"it belongs to another user ({found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write it (chmod go-w)"
    return ""
