"""What a call takes: compiling, timing warm and synchronised, and what the hardware reaches at most."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Work(NamedTuple):
    """What a part must do at least.

    Attributes:
      num_bytes: through device memory.
      matrix: operations of products and convolutions over channels.
      vector: float32 operations of everything else that counts.
    """

    num_bytes: float = 0.0
    matrix: float = 0.0
    vector: float = 0.0

    def __add__(self, other: Any) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Work":
        """The same work `factor` times."""
        return Work(*(factor * value for value in self))


class Ceilings(NamedTuple):
    """What the device was measured to reach: bytes and operations a second."""

    bandwidth: float
    matrix: float
    vector: float

    def floor(self, work: Work) -> float:
        """Seconds that `work` takes at least; matrix and vector units can work at the same time."""
        return max(work.num_bytes / self.bandwidth, work.matrix / self.matrix, work.vector / self.vector)


class Part(NamedTuple):
    """Something to time.

    Attributes:
      name: of the part, e.g. "train_t/8".
      function: jitted, of `arguments`.
      arguments: a tuple of arrays and pytrees.
      images: that one call handles.
      work: Work of one call.
      state: whether the function's first result takes the place of its first argument, whose memory it reuses.
    """

    name: str
    function: Any
    arguments: tuple
    images: int
    work: Work
    state: bool = False


class Row(NamedTuple):
    """What was measured of a part. What does not apply to it, or is not known, is None."""

    part: str
    milliseconds: float
    images_per_second: float
    memory_gib: float | None
    compile_seconds: float | None
    floor_milliseconds: float | None

    @property
    def ratio(self) -> float | None:
        """How many times its floor the part takes; None where no floor is known."""
        return self.floor_milliseconds and self.milliseconds / self.floor_milliseconds


def measure_ceilings() -> Ceilings:
    """Bandwidth, matrix and vector rate of the first device: the best of several sizes and types. Returns: Ceilings."""
    small = jax.default_backend() == "cpu"
    key = jax.random.key(0)
    # An H200 copies 4 GiB of float32 a third faster than 1 GiB of bfloat16.
    lengths = {jnp.bfloat16: 2**22 if small else 2**29, jnp.float32: 2**22 if small else 2**30}
    bandwidth = 0.0
    for dtype, length in lengths.items():
        x = jax.random.bits(key, (length,), jnp.uint32).astype(dtype)
        seconds = time_calls(jax.jit(lambda x: x + x.dtype.type(1)), (x,))[0]
        bandwidth = max(bandwidth, 2 * x.nbytes / seconds)
        del x
    matrix = 0.0
    for side in (1024,) if small else (8192, 16384):
        a = jax.random.normal(key, (side, side), jnp.bfloat16)
        for product in (lambda a: a @ a, lambda a: a @ a.T):
            matrix = max(matrix, 2 * side**3 / time_calls(jax.jit(product), (a,))[0])
    v = jax.random.normal(key, (2**22,), jnp.float32)

    def chain(v):
        # Four independent chains: enough work in flight for each core.
        parts = [v + float(i) for i in range(4)]
        for _ in range(128):
            parts = [part * v + np.float32(0.5) for part in parts]
        return sum(parts)

    vector = 2 * 4 * 128 * v.size / time_calls(jax.jit(chain), (v,))[0]
    return Ceilings(bandwidth, matrix, vector)


def time_calls(
    function: Callable[..., Any], arguments: tuple[Any, ...], *, state: bool = False, seconds: float = 0.6
) -> tuple[float, tuple[Any, ...]]:
    """Median time of a call, warm and synchronised.

    Args:
      function: compiled, of the arguments.
      arguments: tuple.
      state: see `Part`.
      seconds: to measure for, about; at least 5 samples are taken.

    Returns:
      (seconds a call, the arguments for a next call).
    """

    def call(arguments):
        result = function(*arguments)
        return result, ((result[0], *arguments[1:]) if state else arguments)

    for _ in range(2):
        result, arguments = call(arguments)
        jax.block_until_ready(result)
    start = time.perf_counter()
    result, arguments = call(arguments)
    jax.block_until_ready(result)
    once = time.perf_counter() - start
    # Short calls are timed several at a time, or waiting for the device would count as their work; so are steps of
    # training, which follow one another without waiting: up to twenty, in half a second.
    group = max(1, min(20, int(0.6 / once)) if state else min(50, int(0.005 / once)))
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < until and len(samples) < 200):
        start = time.perf_counter()
        for _ in range(group):
            result, arguments = call(arguments)
        jax.block_until_ready(result)
        samples.append((time.perf_counter() - start) / group)
    return statistics.median(samples), arguments


def compile_part(part: Part, **options: Any) -> tuple[jax.stages.Compiled, float, float]:
    """Compiles a part ahead of its calls.

    Args:
      part: Part.
      **options: of the compiler.

    Returns:
      (compiled function, seconds that it took, GiB of device memory that it needs).
    """
    start = time.perf_counter()
    compiled = part.function.lower(*part.arguments).compile(options or None)
    seconds = time.perf_counter() - start
    needs = compiled.memory_analysis()
    memory = (
        needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes - needs.alias_size_in_bytes
    )
    return compiled, seconds, memory / 2**30


def measure(part: Part, ceilings: Ceilings) -> Row:
    """Compiles and times a part. Returns: Row."""
    compiled, seconds, memory = compile_part(part)
    median, _ = time_calls(compiled, part.arguments, state=part.state)
    return Row(part.name, 1e3 * median, part.images / median, memory, seconds, 1e3 * ceilings.floor(part.work))
