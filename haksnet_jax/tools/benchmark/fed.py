"""The input pipeline: alone on one core, and feeding a training step."""

import pathlib
import time

import jax
import jax.numpy as jnp

from haksnet_jax import tasks
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.pipeline.batches import prepare_process
from haksnet_jax.pipeline.sources import FolderSource, SceneSource, write_dota_folder
from haksnet_jax.tools.benchmark.parts import OBJECTS, one_device, training_config
from haksnet_jax.tools.benchmark.timing import Part, Row, compile_part


def _tiles(folder, image, count=24):
    """FolderSource of generated scenes as JPEG files in a folder."""
    class_names = CLASSES["dota10"]
    write_dota_folder(
        SceneSource(count, image, 0, class_names, objects_per_scene=(30, OBJECTS)), folder, extension="jpg"
    )
    return FolderSource(folder / "images", folder / "labelTxt", class_names)


def _batches(folder, image, batch, *, num_workers, **augment):
    """Augmented batches of JPEG tiles, as a run of detection has them. Args: **augment, of `detection_rows.Augment`."""
    config = training_config("t", image, jnp.bfloat16)
    with config.unlocked():
        config.data.num_workers = num_workers
        config.augment.update(augment)
    return tasks.of(config).train_batches(
        config, _tiles(folder, image), batch_size=batch, first_example=0, process_index=0, process_count=1
    )


# Rows of `measure_pipeline`, and what turns the pixels in each.
PIPELINES = {"input_pipeline/core": "host", "input_pipeline_device_rotation/core": "device"}


def measure_pipeline(name: str, folder: pathlib.Path, image: int, batch: int) -> Row:
    """Row of the input pipeline in this process alone, set up as a worker: decoding, turning, padding and batching of
    JPEG tiles."""
    prepare_process()
    batches = _batches(folder, image, batch, num_workers=0, rotation_probability=1.0, rotate_on=PIPELINES[name])
    stream = iter(batches)
    next(stream)
    start, cpu = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - start < 4:
        next(stream)
        count += batch
    # By processor time: what one core does, however many threads took part.
    seconds = (time.process_time() - cpu) / count
    batches.close()
    return Row(name, 1e3 * seconds * batch, 1 / seconds, None, None, None)


def measure_end_to_end(
    part: Part, folder: pathlib.Path, image: int, batch: int, num_workers: int, *, mesh: jax.sharding.Mesh | None = None
) -> Row:
    """Row of a training step on a mesh (default: the first device) fed by worker processes; says how long it waits."""
    mesh = mesh or one_device()
    compiled, seconds, memory = compile_part(part)
    batches = _batches(folder, image, batch, num_workers=num_workers, rotation_probability=0.5)
    stream = iter(batches)
    state, _, learning_rate = part.arguments
    names = tuple(part.arguments[1])
    waited, start, steps = 0.0, None, 0
    while start is None or time.perf_counter() - start < 8:
        before = time.perf_counter()
        rows = next(stream)
        waited += time.perf_counter() - before
        arrays = devices.place_batch(mesh, {name: rows[name] for name in names})
        state, metrics = compiled(state, arrays, learning_rate)
        steps += 1
        if steps == 5 and start is None:  # workers started, queues filled
            jax.block_until_ready(metrics)
            waited, start, steps = 0.0, time.perf_counter(), 0
    jax.block_until_ready(metrics)
    taken = time.perf_counter() - start
    batches.close()
    print(f"end to end: the device's queue waited {100 * waited / taken:.1f} % of the time for data")
    return Row(f"end_to_end_{part.name}", 1e3 * taken / steps, steps * batch / taken, memory, seconds, None)
