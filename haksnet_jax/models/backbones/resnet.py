"""ResNet with bottleneck blocks, as torchvision has it: the stride of a stage is in its first 3 x 3 convolution.

Source: He et al., "Deep Residual Learning for Image Recognition"; torchvision's `models/resnet.py` for what it leaves
open (padding, where the stride is, initial values), with which the outputs agree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.models.initializers import kaiming_fan_out
from haksnet_jax.models.layers import BatchNorm


class BackboneSize(NamedTuple):
    """Numbers of blocks in the four stages at strides 4, 8, 16 and 32, and the width of the first one's blocks."""

    depths: tuple[int, ...]
    width: int = 64


SIZES = {
    "50": BackboneSize((3, 4, 6, 3)),
    "101": BackboneSize((3, 4, 23, 3)),
    "152": BackboneSize((3, 8, 36, 3)),
}
_EXPANSION = 4  # channels of a block's result for each of its inner ones


class Frozen(nnx.BatchStat):
    """A weight that training leaves as it is: it travels with the statistics, and no optimiser sees it."""


class Conv(nnx.Module):
    """A convolution k x k without bias, padded by k // 2. Args: frozen, whether training leaves it as it is."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        *,
        stride: int = 1,
        frozen: bool = False,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = kaiming_fan_out(rngs.params(), (size, size, channels_in, channels_out))
        self.kernel = Frozen(kernel) if frozen else nnx.Param(kernel)
        self.stride = stride
        self.padding = size // 2
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C']
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride, self.stride),
            ((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Norm(BatchNorm):
    """Batch normalisation whose scale and bias may be frozen, with its statistics."""

    def __init__(
        self, channels: int, *, frozen: bool = False, momentum: float = 0.9, dtype: jax.typing.DTypeLike
    ) -> None:
        super().__init__(channels, momentum=momentum, dtype=dtype)
        if frozen:
            self.scale = Frozen(self.scale[...])  # type: ignore[assignment]  # (no Param: nothing trains it)
            self.bias = Frozen(self.bias[...])  # type: ignore[assignment]


class Bottleneck(nnx.Module):
    """1 x 1 to the inner width, 3 x 3, 1 x 1 to four times that; added to the input, or to its projection."""

    def __init__(
        self,
        channels_in: int,
        width: int,
        *,
        stride: int,
        frozen: bool,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        conv: dict[str, Any] = {"frozen": frozen, "dtype": dtype, "rngs": rngs}
        norm: dict[str, Any] = {"frozen": frozen, "momentum": momentum, "dtype": jnp.float32}
        channels_out = _EXPANSION * width
        self.conv1, self.norm1 = Conv(channels_in, width, 1, **conv), Norm(width, **norm)
        self.conv2, self.norm2 = Conv(width, width, 3, stride=stride, **conv), Norm(width, **norm)
        self.conv3, self.norm3 = Conv(width, channels_out, 1, **conv), Norm(channels_out, **norm)
        self.is_projected = stride > 1 or channels_in != channels_out
        if self.is_projected:
            self.projection = Conv(channels_in, channels_out, 1, stride=stride, **conv)
            self.projection_norm = Norm(channels_out, **norm)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [B, H, W, C] -> [B, H', W', 4 width], both float32
        shortcut = self.projection_norm(self.projection(x), train=train) if self.is_projected else x
        x = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        x = jax.nn.relu(self.norm2(self.conv2(x), train=train))
        return jax.nn.relu(self.norm3(self.conv3(x), train=train) + shortcut)


class ResNet(nnx.Module):
    """The backbone. Maps are of the last block of each stage.

    Args:
      size: BackboneSize.
      in_channels: bands of an image.
      frozen_stages: parts that training leaves as they are: 0 none, 1 the stem, 2 the first stage too, and so on.
        Detectors that start from ImageNet weights freeze 2: small batches would only blur what these have learned.
      norm_eval: whether normalisation uses its stored statistics in training too, and leaves them as they are; scales
        and biases are trained.
      momentum: of the running statistics, see `BatchNorm`.
      dtype: dtype of the products; sums over blocks and statistics are float32.
      remat: compute each block again in the backward pass instead of keeping what is inside it.
      rngs: source of the initial parameters (Kaiming normal by the outputs).

    Attributes:
      channels, strides: of the feature maps.
    """

    def __init__(
        self,
        size: BackboneSize,
        *,
        in_channels: int = 3,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        momentum: float = 0.9,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [size.width * 2**stage for stage in range(len(size.depths))]
        self.channels = tuple(_EXPANSION * width for width in widths)
        self.strides = tuple(4 * 2**stage for stage in range(len(size.depths)))
        self.norm_eval = norm_eval
        self.num_frozen = frozen_stages
        self.remat = remat
        frozen = frozen_stages > 0
        self.conv1 = Conv(in_channels, size.width, 7, stride=2, frozen=frozen, dtype=dtype, rngs=rngs)
        self.norm1 = Norm(size.width, frozen=frozen, momentum=momentum, dtype=jnp.float32)
        stages, channels_in = [], size.width
        for number, (width, depth) in enumerate(zip(widths, size.depths, strict=True)):
            options: dict[str, Any] = {
                "frozen": frozen_stages > number + 1,
                "momentum": momentum,
                "dtype": dtype,
                "rngs": rngs,
            }
            blocks = []
            for block in range(depth):
                stride = 2 if number and not block else 1
                blocks.append(Bottleneck(channels_in, width, stride=stride, **options))
                channels_in = _EXPANSION * width
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        after_stage: Callable[[jax.Array, int], jax.Array] | None = None,
    ) -> tuple[jax.Array, ...]:
        """Computes the feature maps.

        Args:
          images: [B, H, W, in_channels] normalised.
          train: batch statistics instead of running ones, but for frozen parts and where `norm_eval` says otherwise.
          key: not used; other backbones drop paths with it.
          after_stage: function of a stage's map and its number (1 to 4) whose result takes the map's place, or None.

        Returns:
          A map [B, ceil(H / s), ceil(W / s), C_s] float32 for each of the strides s = 4, 8, 16, 32.
        """
        del key
        train = train and not self.norm_eval
        x = jax.nn.relu(self.norm1(self.conv1(images), train=train and self.num_frozen < 1))
        x = _max_pool(x)
        maps = []
        for number, blocks in enumerate(self.stages):
            trains = train and self.num_frozen < number + 2
            with jax.named_scope(f"stage_{number + 1}"):
                for block in blocks:
                    x = nnx.remat(_apply, static_argnums=2)(block, x, trains) if self.remat else block(x, train=trains)
            x = x if after_stage is None else after_stage(x, number + 1)
            maps.append(x)
        return tuple(maps)


def _apply(block, x, train):
    return block(x, train=train)


def _max_pool(x):  # [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def build(
    size: BackboneSize,
    *,
    in_channels: int,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> ResNet:
    """The backbone of a size, see `architecture.build_backbone`. Args: **options of ResNet."""
    if drop_path_rate:
        raise UserError(f"model.drop_path_rate: ResNet drops no paths, expected 0, got {drop_path_rate}")
    return ResNet(size, in_channels=in_channels, dtype=dtype, rngs=rngs, **options)
