"""The weights that torchvision's outputs were recorded with (record_resnet.py), drawn by name."""

import zlib

import numpy as np

IMAGE_SEED = 5


def make_weights(shapes):
    """{name: array} for a state_dict. Args: shapes, {name: list} with torchvision's names."""
    weights = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(0)
        elif name.endswith("running_var"):
            weights[name] = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:  # scales around 1; biases and means around 0
            centre = 1.0 if name.endswith("weight") else 0.0
            weights[name] = (centre + 0.1 * generator.normal(size=shape)).astype(np.float32)
        else:
            fan = np.prod(shape[1:])
            weights[name] = (generator.normal(size=shape) * (2.0 / fan) ** 0.5).astype(np.float32)
    return weights
