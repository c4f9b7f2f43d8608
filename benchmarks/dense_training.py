"""Images (or pairs) a second of whole training steps of a dense task, on random arrays that stay on the device.

python benchmarks/dense_training.py --config=segmentation_folder --image=1024 --batch=8
python benchmarks/dense_training.py --config=change_folder --image=512 --batch=16
"""

import argparse
import time

import jax
import numpy as np

from haksnet_jax import tasks
from haksnet_jax.cli import configuration
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.training import optimizer
from haksnet_jax.training.state import create_state
from haksnet_jax.training.step import make_train_step


def main():
    """Measures and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="segmentation_folder", help="name of a configuration, or its file")
    parser.add_argument("--image", type=int, default=1024, help="side of the crops in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a step on all devices together")
    parser.add_argument("--classes", type=int, default=6, help="of a segmenter")
    parser.add_argument("--steps", type=int, default=30, help="that are timed")
    parser.add_argument("--decoder", default="unetformer")
    parser.add_argument("--head", default="difference", help="of a change detector")
    arguments = parser.parse_args()
    devices.enable_compilation_cache()
    config = configuration.load(arguments.config)
    with config.unlocked():
        config.data.kind = "scenes"  # no folders are looked at
        config.data.image_size = (arguments.image,) * 2
        config.model.decoder = arguments.decoder
        if config.task == "segmentation":
            config.data.class_names = tuple(f"class {i}" for i in range(arguments.classes))
        else:
            config.model.head = arguments.head
    task = tasks.of(config)
    config = task.prepared(config)
    mesh = devices.data_mesh()
    rng = np.random.default_rng(0)
    num_classes = len(task.model_info(config)["class_names"])
    batch = {
        name: rng.integers(0, num_classes if name == "mask" else 256, (arguments.batch, *shape)).astype(dtype)
        for name, (shape, dtype) in task.batch_arrays(config).items()
    }
    with jax.set_mesh(mesh):
        tx = optimizer.of_config(config)
        graph, state = create_state(lambda rngs: task.build_model(config, rngs=rngs), tx, mesh, seed=0, ema=True)
        step = make_train_step(graph, tx, mesh, task.loss(config), ema_decay=config.ema_decay)
        placed = devices.place_batch(mesh, batch)
        started = time.monotonic()
        state, metrics = step(state, placed, np.float32(1e-4))
        jax.block_until_ready(metrics)
        compiled = time.monotonic() - started
        for _ in range(3):
            state, metrics = step(state, placed, np.float32(1e-4))
        jax.block_until_ready(metrics)
        started = time.monotonic()
        for _ in range(arguments.steps):
            state, metrics = step(state, placed, np.float32(1e-4))
        jax.block_until_ready(metrics)
        seconds = (time.monotonic() - started) / arguments.steps
    print(
        f"{arguments.config} {arguments.image} px, batch {arguments.batch}: {arguments.batch / seconds:.1f} a second, "
        f"{1000 * seconds:.1f} ms a step, first step after {compiled:.0f} s, peak {devices.peak_memory_gib()} GiB, "
        f"{devices.hardware()}"
    )


if __name__ == "__main__":
    main()
