"""Which part of which run a process is."""

import os
import re
from typing import NamedTuple

from absl import logging

from haksnet_jax.errors import UserError

# What tells the processes of one job from those of others, where nobody chose a token. A job's number is no secret.
_JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PMIX_NAMESPACE")


class HostsError(UserError):
    """Hosts that are missing or differ; the message says which."""


class Membership(NamedTuple):
    """This process's place in the run.

    Attributes:
      coordinator: "ADDRESS:PORT" of host 0.
      num_hosts: processes of the run. (A host may run several, for example one for each GPU.)
      host: number of this one, from 0.
      local_device_ids: devices of the machine that are this process's, or None for all.
      token: text that all processes of the run share and no other one has; "" where there is none.
    """

    coordinator: str
    num_hosts: int
    host: int
    local_device_ids: tuple | None = None
    token: str = ""

    def address(self) -> tuple[str, int]:
        """(address or name, port) of host 0."""
        address, port = self.coordinator.rsplit(":", 1)
        return address.strip("[]"), int(port)


def find_membership(
    coordinator: str | None = None,
    num_hosts: int | None = None,
    host: int | None = None,
    *,
    token: str | None = None,
    timeout: float = 300,
) -> Membership | None:
    """Finds out which part of which run this process is, without touching a device.

    What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; then from the cluster,
    as JAX recognises it: Cloud TPU, Slurm, Kubernetes (with the package `kubernetes`), Open MPI.

    Args:
      coordinator: "ADDRESS:PORT" of host 0, or None.
      num_hosts: processes of the run, or None; 1 for a run of this process alone, whatever the cluster says.
      host: number of this process, or None.
      token: text that the run's processes share; None for HAKSNET_JOIN_TOKEN, else the scheduler's number of the job.
      timeout: seconds that asking the cluster may take.

    Returns:
      Membership, or None for a run of one process.

    Raises:
      HostsError: some of the three are known and others are not, or they do not fit together.
    """
    if num_hosts == 1:
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_hosts = _number("JAX_NUM_PROCESSES") if num_hosts is None else num_hosts
    host = _number("JAX_PROCESS_ID") if host is None else host
    local_device_ids = None
    if None in (coordinator, num_hosts, host):
        coordinator, num_hosts, host, local_device_ids = _ask_the_cluster(coordinator, num_hosts, host, timeout)
        if _alone_on_its_machine():  # JAX would give this process one device, and leave the others idle
            local_device_ids = None
    known = {"--coordinator": coordinator, "--num_hosts": num_hosts, "--host": host}
    missing = [flag for flag, value in known.items() if value is None]
    if len(missing) == len(known) or num_hosts == 1:
        return None
    if missing:
        raise HostsError(
            f"{' and '.join(missing)}: not given, and no cluster was recognised that tells; a run of several hosts "
            "needs --coordinator=ADDRESS:PORT of host 0, --num_hosts=N and --host=0..N-1"
        )
    assert coordinator is not None and host is not None and num_hosts is not None  # none is missing
    if not re.fullmatch(r".+:[0-9]{1,5}", coordinator) or int(coordinator.rsplit(":", 1)[1]) > 65535:
        raise HostsError(f"--coordinator: expected ADDRESS:PORT of host 0, got {coordinator!r}")
    if not 0 <= host < num_hosts:
        raise HostsError(f"--host: expected a number from 0 to {num_hosts - 1} (--num_hosts={num_hosts}), got {host}")
    return Membership(coordinator, num_hosts, host, local_device_ids and tuple(local_device_ids), _token(token))


def _token(given):
    if given is not None:
        return given
    if "HAKSNET_JOIN_TOKEN" in os.environ:
        return os.environ["HAKSNET_JOIN_TOKEN"]
    return next((f"{name}={os.environ[name]}" for name in _JOB_IDS if os.environ.get(name)), "")


def _number(variable):
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit():
        raise HostsError(f"{variable}: expected a number, got {text!r}")
    return int(text)


def _ask_the_cluster(coordinator, num_hosts, host, timeout):
    """(coordinator, num_hosts, host, local_device_ids), None where nothing tells."""
    try:
        # There is no public way to ask without connecting at once, which aborts the process where a host is missing.
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        logging.warning(
            "this version of JAX does not say which cluster it runs in: several hosts need --coordinator, --num_hosts "
            "and --host"
        )
        return coordinator, num_hosts, host, None
    return detect(coordinator, num_hosts, host, None, None, timeout)


def _alone_on_its_machine():
    """Whether Slurm or Open MPI started one process on each machine (which then has all devices of it)."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    return (tasks is not None and re.fullmatch(r"1(\(x\d+\))?", tasks) is not None) or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE"
    ) == "1"
