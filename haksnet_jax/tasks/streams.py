"""The endless stream of training batches of a configuration, whatever a row of it is."""

from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.batches import Batches


def train_batches(
    config: ml_collections.ConfigDict,
    source: Any,
    row: Callable[[Any, np.random.Generator], dict[str, Any]],
    *,
    batch_size: int,
    first_example: int,
    process_index: int,
    process_count: int,
    replace_bad: bool = False,
) -> Batches:
    """Batches in random order without end.

    Args:
      config: the experiment: `seed`, `accumulate_steps`, `data.num_workers` and `data.stall_seconds`.
      source: random-access examples.
      row: (example, rng) -> dict of arrays of one row.
      batch_size, first_example, process_index, process_count, replace_bad: as of `loader.stream_batches`.

    Returns:
      loader.Batches.
    """
    return loader.stream_batches(
        source,
        row,
        batch_size=batch_size,
        seed=config.seed,
        first_example=first_example,
        num_workers=config.data.num_workers,
        stall_seconds=config.data.stall_seconds,
        process_index=process_index,
        process_count=process_count,
        accumulate_steps=config.accumulate_steps,
        replace_bad=replace_bad,
    )
