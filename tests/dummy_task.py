"""A task in one file: which of two numbers is larger. It trains in milliseconds, for tests of the loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import loader

BEST = "share_right"
CURVES = ("loss", "share")
CLASSIFIER = ("head.",)
COUNTERS = {"num_odd": "odd_examples"}


def make_config(**changes):
    """All values that the loop asks for, and those of this task."""
    config = ml_collections.ConfigDict(
        {
            "task": "dummy",
            "name": "dummy",
            "seed": 0,
            "num_epochs": 1,
            "num_steps": 4,
            "batch_size_per_device": 4,
            "accumulate_steps": 1,
            "checkpoint_every": 2,
            "checkpoints_kept": 3,
            "eval_every": 2,
            "log_every": 1,
            "pretrained": "",
            "init": "",
            "init_new_classes": False,
            "ema_decay": 0.0,
            "max_skipped_steps": 20,
            "mesh": {"fsdp": 1},
            "model": {"width": 3, "dtype": "float32"},
            "data": {"stall_seconds": 60.0, "num_workers": 0, "train": 16, "val": 8, "class_names": ("less", "more")},
            "evaluation": {"protocol": "numbers"},
            "optimizer": {
                "learning_rate": 1e-2, "reference_batch": 4, "lr_scaling": "none", "max_lr": 1.0,
                "weight_decay": 0.0, "betas": (0.9, 0.999), "clip_norm": 10.0, "schedule": "cosine",
                "drop_epochs": (), "drop_factor": 0.1, "final_ratio": 0.0, "warmup_steps": 0, "warmup_ratio": 1.0,
                "max_warmup_fraction": 0.1,
            },
        }
    )  # fmt: skip
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config.lock()


class Source:
    """Pairs of numbers."""

    def __init__(self, split, length, class_names):
        self.image_ids = [f"{split}_{number}" for number in range(length)]
        self.class_names = class_names
        self.pairs = np.random.default_rng(length).normal(size=(length, 2)).astype(np.float32)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]

    def summary(self):
        return f"{len(self)} pairs"


class Batches:
    """Endless batches in order."""

    def __init__(self, source, batch_size, first_example, process_index, process_count):
        self._source, self._size = source, batch_size
        self._next = first_example + process_index * batch_size
        self._stride = batch_size * process_count

    def __iter__(self):
        return self

    def __next__(self):
        index = (self._next + np.arange(self._size)) % len(self._source)
        self._next += self._stride
        pairs = self._source.pairs[index]
        return {
            "pair": pairs,
            "label": (pairs[:, 0] < pairs[:, 1]).astype(np.int32),
            "image_index": index,
            "num_odd": index % 2,
        }

    def start(self):
        pass

    def close(self):
        pass


def row_of(example, rng):
    """A row of a batch of the program's own loader."""
    del rng
    return {"pair": example, "label": np.int32(example[0] < example[1]), "num_odd": np.int32(0)}


class Model(nnx.Module):
    """Two layers, and a statistic."""

    def __init__(self, width, *, rngs):
        self.backbone = nnx.Linear(2, width, rngs=rngs)
        self.head = nnx.Linear(width, 2, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros((2,)))

    def __call__(self, pairs, *, train=False):
        if train:
            self.mean.set_value(0.9 * self.mean[...] + 0.1 * pairs.mean(0))
        return self.head(jax.nn.relu(self.backbone(pairs)))


class Result(NamedTuple):
    """What an evaluation gives."""

    share_right: float

    def figures(self):
        return {"share_right": self.share_right}

    def table(self):
        return f"right: {self.share_right}"

    def to_json(self):
        return {"mean": self.figures(), "classes": {}}


def prepared(config):
    if config.model.width < 1:
        raise UserError(f"model.width: expected at least 1, got {config.model.width}")
    return config


def open_source(config, split):
    return Source(split, config.data[split], config.data.class_names)


def batch_arrays(config):
    del config
    return {"pair": ((2,), np.float32), "label": ((), np.int32)}


def train_batches(config, source, *, batch_size, first_example, process_index, process_count):
    where = {"first_example": first_example, "process_index": process_index, "process_count": process_count}
    if config.data.num_workers:
        workers = config.data.num_workers
        return loader.stream_batches(source, row_of, batch_size=batch_size, seed=0, num_workers=workers, **where)
    return Batches(source, batch_size, **where)


def build_model(config, *, rngs):
    return Model(config.model.width, rngs=rngs)


def model_info(config):
    return {
        "task": "dummy",
        "architecture": {"width": config.model.width},
        "class_names": list(config.data.class_names),
    }


def loss(config):
    del config

    def loss_of(model, batch, key):
        del key
        logits = model(batch["pair"], train=True)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=-1)
        return -chosen.mean(), {"loss": -chosen.mean()}

    return loss_of


def make_evaluator(config, graph, source, mesh):
    del config, mesh

    class Evaluator:
        pictures = ()

        def __call__(self, variables, *, pictures=None):
            model = nnx.merge(graph, variables["params"], variables["batch_stats"])
            right = np.asarray(model(source.pairs)).argmax(-1) == (source.pairs[:, 0] < source.pairs[:, 1])
            return Result(float(right.mean()))

    return Evaluator()


def kept_at_random(config):
    del config
    return ("head.",)


def log_line(means):
    return f"loss {means['loss']:.3f}"
