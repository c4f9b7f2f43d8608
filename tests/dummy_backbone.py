"""A backbone in one file: means over squares of pixels, and one matrix a stage."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx


class BackboneSize(NamedTuple):
    """Channels of the first stage; each later one has twice as many."""

    width: int = 4


SIZES = {"one": BackboneSize(4), "two": BackboneSize(8)}


class MeanNet(nnx.Module):
    """Four maps at strides 4, 8, 16 and 32."""

    def __init__(self, size, in_channels, rngs):
        self.channels = tuple(size.width * 2**stage for stage in range(4))
        self.strides = (4, 8, 16, 32)
        self.layers = nnx.List([nnx.Linear(in_channels, channels, rngs=rngs) for channels in self.channels])

    def __call__(self, images, *, train=False, key=None):
        del train, key
        batch, height, width, bands = images.shape
        maps = []
        for stride, layer in zip(self.strides, self.layers, strict=True):
            squares = images.reshape(batch, height // stride, stride, width // stride, stride, bands)
            maps.append(jnp.tanh(layer(squares.mean((2, 4)))))
        return tuple(maps)


def build(size, *, in_channels, dtype, rngs, drop_path_rate=0.0, remat=False, momentum=0.9):
    del dtype, drop_path_rate, remat, momentum
    return MeanNet(size, in_channels, rngs)
