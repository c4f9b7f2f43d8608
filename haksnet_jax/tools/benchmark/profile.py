"""Where the time of a part goes: the named pieces of a program, and its longest kernels."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from haksnet_jax.tools.benchmark.timing import Part, compile_part, time_calls


def profile(part: Part, steps: int = 5) -> None:
    """Prints how long each named piece of a part keeps the device busy, and its longest kernels.

    Args:
      part: Part.
      steps: calls that are recorded.
    """
    # Kernels that are launched together, as a command buffer, appear as one of no name.
    options = {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else {}
    compiled, _, _ = compile_part(part, **options)
    pieces = {}
    for match in re.finditer(
        r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", compiled.as_text() or "", re.MULTILINE
    ):
        pieces[match[1].replace(".", "_").replace("-", "_")] = match[2]
    seconds, arguments = time_calls(compiled, part.arguments, state=part.state)
    recorded = kernel_times(compiled, arguments, state=part.state, steps=steps)
    kernels = {(name, pieces.get(name, "")): entry for name, entry in recorded.items()}
    busy = sum(entry[1] for entry in kernels.values())
    count = sum(entry[0] for entry in kernels.values()) // steps
    print(f"\n{part.name}: {1e3 * seconds:.2f} ms a call, device busy {busy:.2f} ms, {count} kernels a call")
    if not kernels:
        print("(this backend's profile names no kernels)")
        return
    by_piece: collections.defaultdict[str, float] = collections.defaultdict(float)
    for (name, piece), entry in kernels.items():
        by_piece[_short(piece) or f"({name})"] += entry[1]
    for piece, milliseconds in sorted(by_piece.items(), key=lambda item: -item[1])[:40]:
        print(f"  {milliseconds:8.3f} ms  {piece}")
    print("  longest kernels:")
    for (name, piece), entry in sorted(kernels.items(), key=lambda item: -item[1][1])[:40]:
        print(f"  {entry[1]:8.3f} ms  {entry[0] // steps:4d} x  {name:40s} {piece[-110:]}")


def kernel_times(
    compiled: Callable[..., Any], arguments: tuple[Any, ...], *, state: bool = False, steps: int = 5
) -> dict[str, list[float]]:
    """Records how long each kernel keeps the devices busy.

    Args:
      compiled: function of the arguments.
      arguments: tuple.
      state: see `Part`.
      steps: calls that are recorded.

    Returns:
      {name of the kernel: [launches in all, milliseconds a call]}, summed over this process's devices; empty where the
      backend's profile names no kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                result = compiled(*arguments)
                arguments = (result[0], *arguments[1:]) if state else arguments
            jax.block_until_ready(result)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    kernels: collections.defaultdict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for plane in data.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                facts = dict(event.stats)
                entry = kernels[str(facts.get("hlo_op") or event.name).replace(".", "_").replace("-", "_")]
                entry[0] += 1
                entry[1] += event.duration_ns / 1e6 / steps
    return dict(kernels)


def _short(op_name):
    """The named scopes of an operation, forward and backward apart: "backward stage_1/mlp"."""
    direction = "backward " if "transpose(" in op_name else ""
    words = re.findall(r"[a-z_0-9]+", op_name)
    known = [word for word in words if word in _SCOPES or word.startswith("stage_")]
    return direction + "/".join(dict.fromkeys(known))


_SCOPES = frozenset(
    ["backbone", "fpn", "rpn", "proposals", "match_anchors", "match_proposals", "rpn_losses", "roi_head", "roi_align"]
    + ["roi_losses", "detections", "kernel_selection", "channel_mixing", "mlp"]
)
