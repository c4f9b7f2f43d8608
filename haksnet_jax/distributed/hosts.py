"""Starting a run on several hosts: who takes part, whether all are there, and whether all do the same.

JAX ends a process with a stack trace where a host is missing, and does not say which. So the hosts meet once before JAX
is asked to connect them: on the port that JAX's coordinator will use, each tells host 0 its number, its name and what
it is about to run; when all are there, or the time is up, host 0 answers all of them. What can only be compared later
(the working directory, the data) goes over the devices themselves, with `require_same`.

The connections of the meeting stay open while the run goes on: where one ends, a host is gone, and the others end too,
with a sentence, instead of waiting for it in a sum over all devices.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from haksnet_jax import files
from haksnet_jax.distributed import meeting, watch
from haksnet_jax.distributed.membership import HostsError, Membership, find_membership
from haksnet_jax.errors import UserError
from haksnet_jax.results.card import code_version
from haksnet_jax.version import __version__

__all__ = ["HostsError", "Membership", "find_membership"]  # (beside what is defined here)

_watch = None  # of this process's run


def join(membership: Membership | None, facts: dict[str, Any], *, timeout: float = 300) -> None:
    """Waits for all hosts, compares what they are about to run, and connects them. To be called before any device.

    From then on the end of one host ends the others with a sentence and status 1, unless it took its leave before.

    Args:
      membership: Membership; with None there is nothing to do.
      facts: {name: text or number} that must be the same on all hosts.
      timeout: seconds until those that are there give up on the others.

    Raises:
      HostsError: on all hosts that are there: which are missing, or differ.
    """
    if membership is None:
        return
    global _watch
    connections, bound = meeting.meet(membership, facts, timeout=timeout)
    _watch = watch.Watch(membership.host, connections)
    port = membership.address()[1]
    jax.distributed.initialize(
        membership.coordinator,
        membership.num_hosts,
        membership.host,
        local_device_ids=membership.local_device_ids,
        # JAX listens at all addresses by itself.
        coordinator_bind_address=bound and (f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}"),
        cluster_detection_method="deactivate",  # all is known
        initialization_timeout=max(60, round(timeout)),
        shutdown_timeout_seconds=60,  # a host that ends early does not wait long for those that still compute
    )


def facts_of(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, str]:
    """What all hosts of a run have to agree on before it starts. Args: config; workdir. Returns: {name: text}."""

    def flat(value, prefix):
        for name, entry in value.items():
            if hasattr(entry, "items"):
                yield from flat(entry, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", str(entry)

    return {
        "code": code_version(),
        "haksnet_jax": __version__,
        "jax": jax.__version__,
        "--workdir": str(workdir),
        **dict(flat(config, "config")),
    }


def leave(error: str | None = None) -> None:
    """Tells the other hosts that this process is about to end. Without it, its end is one that ends theirs.

    Args:
      error: what went wrong, a sentence that the others repeat; None where the run ends here as it should.
    """
    if _watch is not None:
        _watch.leave(error)


def wait_for_news() -> None:
    """Waits as long as the loss of another host takes to be noticed, which ends this process with a sentence.

    For errors that may be no more than what such a loss looks like to JAX.
    """
    if _watch is not None:
        time.sleep(2 * watch.GRACE_SECONDS)


def _exchange(record):
    """Every host's record, in their order. Args: record, a dict that JSON can hold. Returns: list of dicts."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    length = int(multihost_utils.process_allgather(np.int32(len(data))).max())
    rows = multihost_utils.process_allgather(np.pad(data, (0, length - len(data)), constant_values=ord(" ")))
    return [json.loads(row.tobytes()) for row in np.asarray(rows).reshape(jax.process_count(), length)]


def require_same(facts: dict[str, Any]) -> None:
    """Compares facts over all hosts that JAX has connected.

    Args:
      facts: {name: text or number}.

    Raises:
      HostsError: on all of them: which host differs, and in what.
    """
    if jax.process_count() == 1:
        return
    records = _exchange({"name": socket.gethostname(), "facts": facts})
    error = meeting.differences({f"host {host} ({r['name']})": r["facts"] for host, r in enumerate(records)})
    if error:
        raise HostsError(error)


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host. All take part. Args: flag, bool. Returns: bool, the same on all."""
    if jax.process_count() == 1:
        return bool(flag)
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))


def require_same_folder(folder: epath.Path, *, patience: float = 10.0) -> None:
    """Checks that all hosts see one folder: host 0 writes a file, all read it.

    Args:
      folder: path, may be a bucket; exists.
      patience: seconds that a network file system may take to show the file.

    Raises:
      HostsError: on all hosts: which do not see it.
    """
    if jax.process_count() == 1:
        return
    path = None
    try:
        problem = None
        if jax.process_index() == 0:
            path = folder / f"preflight-{secrets.token_hex(8)}"
            try:
                files.write_text(path, path.name)
            except OSError as error:
                problem = f"{folder} cannot be written to by host 0 ({socket.gethostname()}): {error.strerror or error}"
        first = _exchange({"file": path and path.name, "problem": problem})[0]
        if first["problem"]:
            raise HostsError(first["problem"])
        until = time.monotonic() + patience
        while not (seen := _reads(folder / first["file"], first["file"])) and time.monotonic() < until:
            time.sleep(0.2)
        records = _exchange({"name": socket.gethostname(), "seen": seen})
        blind = [f"host {host} ({r['name']})" for host, r in enumerate(records) if not r["seen"]]
        if blind:
            raise HostsError(
                f"{folder} is another folder on {', '.join(blind[:20])} than on host 0 ({records[0]['name']}): the "
                "hosts need one that all of them see, on a shared disk or in a bucket"
            )
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def held_by_first(folder: str | os.PathLike[str]) -> Iterator[None]:
    """`files.held` by host 0, for a run that all hosts make: where it is in use, all of them end with that sentence.

    Args:
      folder: exists, and is the same for all hosts.

    Raises:
      UserError: on host 0: another process holds it.
      HostsError: on the others, the same.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(files.held(folder))
            except UserError as error:
                refused = error
        # One that ended alone would tear the others out of their next exchange.
        if jax.process_count() > 1 and (told := _exchange({"refused": refused and str(refused)})[0]["refused"]):
            raise refused or HostsError(told)
        if refused:
            raise refused
        yield


def _reads(path, text):
    try:
        return path.read_text() == text
    except OSError:
        return False


def sum_over_hosts(counts: np.ndarray) -> np.ndarray:
    """The sum of every host's counts. All take part. Args: counts, integers of the same shape. Returns: int64."""
    counts = np.asarray(counts, np.int64)
    if jax.process_count() == 1:
        return counts
    # (as text: JAX would make 32 bits of them)
    every = [np.array(record["counts"], np.int64) for record in _exchange({"counts": counts.tolist()})]
    return np.sum(every, axis=0)
