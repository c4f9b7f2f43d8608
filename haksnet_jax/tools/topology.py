"""A set of chips that need not be here: their speeds and memory, its name, and the mesh over its devices."""

import math
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from haksnet_jax.errors import UserError

if TYPE_CHECKING:
    import jax


class Chip(NamedTuple):
    """A device as its vendor describes it.

    Attributes:
      memory: bytes that a program may use: for TPUs what the compiler grants, a little less than the chip's.
      bandwidth: bytes a second to and from that memory.
      matrix_rate: operations a second of the matrix units in bfloat16.
      vector_rate: operations a second elementwise, float32.
      link_rate: bytes a second that one chip can send to its neighbours over all links together.
      clock: cycles a second, for the compiler's own estimates; 0 where it makes none.
    """

    memory: float
    bandwidth: float
    matrix_rate: float
    vector_rate: float
    link_rate: float
    clock: float


# cloud.google.com/tpu/docs/v5e, v5p-training and v6e (2026): peaks, memory bandwidths and links, of which the
# documents state both directions together. The memory is what the compiler's refusals name as the limit. The clock is
# the peak divided by the products of all matrix units in a cycle; elementwise, a core does 8 x 128 x 4 in a cycle.
# GPUs: NVIDIA's data sheets of the SXM modules without sparsity, links of NVLink in one direction; a run gets 0.9 of
# their memory (JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more).
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 819e9, 197e12, 6.1e12, 200e9, 1.5e9),
    "v5p": Chip(95.73 * 2**30, 2765e9, 459e12, 14.3e12, 600e9, 1.75e9),
    "v6e": Chip(31.24 * 2**30, 1640e9, 918e12, 7.2e12, 400e9, 1.75e9),
    "a100": Chip(0.9 * 80e9, 2039e9, 312e12, 19.5e12, 300e9, 0),
    "h100": Chip(0.9 * 80e9, 3350e9, 989e12, 67e12, 450e9, 0),
    "h200": Chip(0.9 * 141e9, 4800e9, 989e12, 67e12, 450e9, 0),
}
TPUS = ("v5e", "v5p", "v6e")


class PlanError(UserError):
    """A plan that cannot be made; the message says why and what to do."""


class Topology(NamedTuple):
    """Devices: name as given, chip, sides of the grid, and whether they are TPUs (nothing is estimated then)."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    is_tpu: bool

    @property
    def num_devices(self) -> int:
        """Number of chips."""
        return math.prod(self.sides)


def parse_topology(name: str) -> Topology:
    """Args: name, as "v5e:16x16" or "h100:8". Returns: Topology. Raises: PlanError: not such a name."""
    kind, _, shape = (name or "").partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise PlanError(
            f"--topology={name}: expected KIND:SHAPE with one of the kinds {', '.join(CHIPS)}, "
            "as v5e:16x16, v5p:4x4x4 or h100:8"
        )
    return Topology(name, CHIPS[kind], tuple(int(side) for side in shape.split("x")), kind in TPUS)


def topology_mesh(topology: Topology, *, fsdp: int = 1) -> "jax.sharding.Mesh":
    """The mesh over the devices of a slice that is not here.

    For GPUs: over those of this machine where it has enough of them, else one device of this machine.

    Raises:
      PlanError: no TPU compiler, or it knows no such slice.
    """
    import jax

    from haksnet_jax.distributed import mesh as devices

    if not topology.is_tpu:
        here = jax.devices()
        enough = here[0].platform == "gpu" and len(here) >= topology.num_devices
        return devices.data_mesh(here[: topology.num_devices], fsdp=fsdp) if enough else devices.data_mesh(here[:1])
    # What the TPU runtime would ask the machine it expects to run on.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Compiling takes no chip: runs and other plans on this machine need not wait.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        import libtpu  # noqa: F401 (JAX's own message for its absence is about chips that are not found)
    except ImportError as error:
        raise PlanError(
            "planning for TPUs needs their compiler: install it with `pip install 'jax[tpu]'` (Linux on x86)"
        ) from error
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    except Exception as error:  # (its type is private to JAX)
        reason = str(error).splitlines()[0]
        raise PlanError(f"--topology={topology.name}: the TPU compiler knows no such slice: {reason}") from error
    return devices.data_mesh(description.devices, fsdp=fsdp)
