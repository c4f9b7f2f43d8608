"""HAKSNet, the backbone: four stages of blocks that choose among kernel sizes at each position.

Source: the public implementation `peace1111/HAKSNet` (a fork of MMRotate), whose arithmetic this follows exactly,
including what its class names do not tell: the doubled input of the channel gate and the activation that is never used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.distributed.mesh import MIN_SPLIT_SIZE
from haksnet_jax.kernels.gated_mlp import GatedMLPWeights, gated_mlp
from haksnet_jax.kernels.narrow_conv import narrow_conv
from haksnet_jax.kernels.partial_conv import partial_conv, plain_convolution
from haksnet_jax.models import cascades, squeeze_excite
from haksnet_jax.models.initializers import kaiming_fan_out
from haksnet_jax.models.layers import (
    BatchNorm,
    DepthwiseConv,
    NarrowConv,
    StridedConv,
    Weights,
    drop_path,
    gelu,
    sum_over_positions,
)
from haksnet_jax.models.rematerialization import keep_marked, mark_kept
from haksnet_jax.target import platform


class BackboneSize(NamedTuple):
    """Widths and depths of the four stages, at strides 4, 8, 16 and 32."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)  # of hidden widths, which are rounded to whole channels


SIZES = {
    "t": BackboneSize(channels=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "s": BackboneSize(channels=(64, 128, 320, 512), depths=(2, 2, 4, 2)),
}


def _pointwise(channels_in, channels_out, *, dtype, rngs):
    return nnx.Linear(channels_in, channels_out, kernel_init=kaiming_fan_out, dtype=dtype, rngs=rngs)


class PatchEmbedding(nnx.Module):
    """Strided convolution and batch normalisation in front of a stage."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        size: int,
        stride: int,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = StridedConv(channels_in, channels_out, size=size, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(channels_out, momentum=momentum, dtype=jnp.float32)

    def __call__(
        self, x: jax.Array, *, train: bool
    ) -> jax.Array:  # [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C'] float32
        return self.norm(self.conv(x), train=train)


def _kernels_and_biases(layers):
    return [one.kernel[...] for one in layers], [one.bias[...] for one in layers]


class KernelSelection(nnx.Module):
    """A cascade of depthwise convolutions 3, 5, 7, 9, summed with weights for each position and each kernel."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dw_conv3 = DepthwiseConv(channels, 3, dtype=dtype, rngs=rngs)
        self.dw_conv5 = DepthwiseConv(channels, 5, dtype=dtype, rngs=rngs)
        self.dw_conv7 = DepthwiseConv(channels, 7, dtype=dtype, rngs=rngs)
        self.dw_conv9 = DepthwiseConv(channels, 9, dtype=dtype, rngs=rngs)
        self.spatial_fusion = NarrowConv(4, 7, dtype=dtype, rngs=rngs)  # over the channel means of the four
        self.kernel_attention_1 = _pointwise(4 * channels, 4, dtype=jnp.float32, rngs=rngs)
        self.kernel_attention_2 = _pointwise(4, 4, dtype=jnp.float32, rngs=rngs)

    @jax.named_scope("kernel_selection")
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        convolutions = self.dw_conv3, self.dw_conv5, self.dw_conv7, self.dw_conv9
        if cascades.suits(x, cascades.SIDES):
            fusion = cascades.Fusion(self.spatial_fusion.kernel[...], self.spatial_fusion.bias[...])
            dense = self.kernel_attention_1, self.kernel_attention_2
            layers = cascades.Layers(*(parameter[...] for layer in dense for parameter in (layer.kernel, layer.bias)))
            return cascades.select_kernels(fusion, layers, x, *_kernels_and_biases(convolutions))
        u, cascade, channel_means, global_means = x, [], [], []
        for convolve in convolutions:
            u, channel_mean, global_mean = mark_kept(convolve.with_means(u))
            cascade.append(u)
            channel_means.append(channel_mean)
            global_means.append(global_mean)
        hidden = jax.nn.relu(self.kernel_attention_1(jnp.concatenate(global_means, axis=-1)))
        kernel = jax.nn.softmax(self.kernel_attention_2(hidden))
        spatial = jax.nn.sigmoid(mark_kept(self.spatial_fusion(jnp.stack(channel_means, axis=-1))))
        weights = spatial.astype(jnp.float32) * kernel[:, None, None, :]
        mixed = sum(u.astype(jnp.float32) * weights[..., i, None] for i, u in enumerate(cascade))
        return x * mixed.astype(x.dtype)


class ChannelMixing(nnx.Module):
    """A squeeze-excite gate, then two depthwise convolutions with a GELU between."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.squeeze = _pointwise(channels, channels // 4, dtype=jnp.float32, rngs=rngs)
        self.excite = _pointwise(channels // 4, channels, dtype=jnp.float32, rngs=rngs)
        self.dw_conv_1 = DepthwiseConv(channels, 3, dtype=dtype, rngs=rngs)
        self.dw_conv_2 = DepthwiseConv(channels, 3, dtype=dtype, rngs=rngs)

    @jax.named_scope("channel_mixing")
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        squared = self._gated_square(x)
        if cascades.suits(x, (3,)):
            return cascades.convolve_twice(squared, *_kernels_and_biases((self.dw_conv_1, self.dw_conv_2)))
        hidden = mark_kept(self.dw_conv_1(squared))
        return self.dw_conv_2(gelu(hidden))

    def _gated_square(self, x):
        """x^2 gate [B, H, W, C] in the type of x, which is squared in float32.

        x enters twice: the reference's gate returns x * g, and its caller multiplies by x again.
        """
        if squeeze_excite.suits(x):
            kernels, biases = _kernels_and_biases((self.squeeze, self.excite))
            return squeeze_excite.gated_square(x, squeeze_excite.Parameters(*kernels, *biases))
        means = mark_kept(sum_over_positions(x) / (x.shape[1] * x.shape[2]))  # [B, C]
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(means))))
        return (jnp.square(x.astype(jnp.float32)) * gate[:, None, None, :]).astype(x.dtype)


class Attention(nnx.Module):
    """Kernel selection and channel mixing side by side, with a shortcut of their own inside the block's."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.kernel_selection = KernelSelection(channels, dtype=dtype, rngs=rngs)
        self.channel_mixing = ChannelMixing(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        return self.kernel_selection(x) + self.channel_mixing(x) + x


class PartialConv(nnx.Module):
    """A 3 x 3 convolution of the first quarter of the channels; the others stay as they are."""

    def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.num_convolved = channels // 4
        self.kernel = nnx.Param(kaiming_fan_out(rngs.params(), (3, 3, self.num_convolved, self.num_convolved)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        kernel = self.kernel[...]
        if x.dtype == jnp.bfloat16 and platform() == "gpu":
            return partial_conv(x, kernel)
        convolved, untouched = jnp.split(x.astype(self.dtype), [self.num_convolved], axis=-1)
        convolved = mark_kept(narrow_conv(convolved, kernel, plain_convolution))
        return jnp.concatenate([convolved, untouched], axis=-1)


class RedundancySuppression(nnx.Module):
    """The block's MLP: a 3 x 3 convolution on a quarter of the channels, then a gated expansion."""

    def __init__(self, channels: int, hidden: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.partial_conv = PartialConv(channels, dtype=dtype, rngs=rngs)
        # One kernel computes with these three (`gated_mlp`).
        self.expand = Weights.dense(channels, 2 * hidden, rngs=rngs)
        self.dw_conv = Weights.depthwise(hidden, 3, rngs=rngs)
        self.project = Weights.dense(hidden, channels, rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
        x = self.partial_conv(x)
        weights = GatedMLPWeights(
            self.expand.kernel[...],
            self.expand.bias[...],
            self.dw_conv.kernel[...],
            self.dw_conv.bias[...],
            self.project.kernel[...],
            self.project.bias[...],
        )
        return gated_mlp(x, weights)


class Block(nnx.Module):
    """Attention and MLP, each normalised, scaled for each channel, and added to its input.

    What is added up is float32 whatever the arithmetic inside the branches: in bfloat16 every block would round the sum
    of all before it.
    """

    def __init__(
        self, channels: int, mlp_ratio: float, *, momentum: float, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = BatchNorm(channels, momentum=momentum, dtype=dtype)
        self.attention = Attention(channels, dtype=dtype, rngs=rngs)
        self.layer_scale_1 = nnx.Param(jnp.full((channels,), 1e-2, jnp.float32))
        self.norm2 = BatchNorm(channels, momentum=momentum, dtype=dtype)
        self.mlp = RedundancySuppression(channels, round(channels * mlp_ratio), dtype=dtype, rngs=rngs)
        self.layer_scale_2 = nnx.Param(jnp.full((channels,), 1e-2, jnp.float32))

    def __call__(
        self, x: jax.Array, *, train: bool, drop_rate: float | jax.Array = 0.0, key: jax.Array | None = None
    ) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C], both float32
        keys = (None, None) if key is None else jax.random.split(key)
        x = self._residual(x, self.attention(self.norm1(x, train=train)), self.layer_scale_1, drop_rate, keys[0])
        return self._residual(x, self.mlp(self.norm2(x, train=train)), self.layer_scale_2, drop_rate, keys[1])

    def _residual(self, x, branch, layer_scale, drop_rate, key):
        branch = mark_kept(branch).astype(jnp.float32) * layer_scale[...]
        return x + (branch if key is None else drop_path(branch, drop_rate, key))


def _stack(*leaves):
    """[...] arrays to one [n, ...]; on the host where they are there, which spares a compilation for each shape."""
    return jnp.stack(leaves) if isinstance(leaves[0], jax.core.Tracer) else np.stack(leaves)


@jax.custom_vjp
def _unstack(stacked):
    """A pytree of arrays [n, ...] as n pytrees of arrays [...]."""
    leaves = jax.tree.leaves(stacked)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(leaves[0]))]


def _stack_gradients(_, gradients):
    """The gradients of what was unstacked; small arrays of a block lie behind each other in one.

    As JAX derives it, each array's gradient is a sum of arrays with zeros for the other blocks: T's step on a GPU had
    141 launches for that, nearly all of them as long as a launch takes at least.
    """
    treedef = jax.tree.structure(gradients[0])
    blocks = [jax.tree.leaves(gradient) for gradient in gradients]
    first = blocks[0]
    small = [n for n, leaf in enumerate(first) if len(blocks) * leaf.size < MIN_SPLIT_SIZE]
    rows = [jax.lax.optimization_barrier(jnp.concatenate([block[n].ravel() for n in small])) for block in blocks]
    ends = np.cumsum([first[n].size for n in small])
    parts = dict(zip(small, jnp.split(jnp.stack(rows), ends[:-1], axis=1), strict=True))
    stacked = [
        parts[n].reshape(-1, *leaf.shape) if n in parts else jnp.stack([block[n] for block in blocks])
        for n, leaf in enumerate(first)
    ]
    return (jax.tree.unflatten(treedef, stacked),)


_unstack.defvjp(lambda stacked: (_unstack(stacked), None), _stack_gradients)


class Stage(nnx.Module):
    """Patch embedding, equal blocks, LayerNorm. The parameters of the blocks are stacked on a leading axis.

    Stacked, the blocks can run as one scanned body that is compiled once; written out, they spare the copies that a
    scan makes of all it keeps for the gradient. On an H100 these copies were 12 of 71 ms of T's training step, and the
    convolutions' tuning, which equal shapes share, is most of the compile time; the TPU compiler takes minutes a block.
    Scanned blocks keep for the gradient what is marked for it (`rematerialization`) and compute the rest again: by the
    TPU compiler for v5e (T's backbone, 2 images), 1.0 GiB instead of 3.3, 8.3 GB of traffic instead of 9.6, 115 ms
    instead of 118.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        depth: int,
        mlp_ratio: float,
        *,
        size: int,
        stride: int,
        momentum: float,
        dtype: jax.typing.DTypeLike,
        unroll: bool | None,
        remat: bool,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"momentum": momentum, "dtype": dtype, "rngs": rngs}
        self.patch_embed = PatchEmbedding(channels_in, channels, size=size, stride=stride, **options)
        blocks = [nnx.split(Block(channels, mlp_ratio, **options)) for _ in range(depth)]
        stacked = jax.tree.map(_stack, *[state for _, state in blocks])
        self.blocks = nnx.merge(blocks[0][0], stacked)
        self.norm = nnx.LayerNorm(channels, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.depth = depth
        self.unroll = unroll
        self.remat = remat

    def __call__(self, x: jax.Array, *, train: bool, drop_rates: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Runs the stage.

        Args:
          x: [B, H, W, C] input.
          train: whether batch normalisation uses (and updates) the batch's statistics.
          drop_rates: [depth] stochastic depth rates; used where `key` is given.
          key: random key, or None for no stochastic depth.

        Returns:
          [B, H', W', C'] normalised map: the stage's output and the next stage's input.
        """
        x = self.patch_embed(x, train=train)
        graph, params, stats = nnx.split(self.blocks, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
        keys = None if key is None else jax.random.split(key, self.depth)

        def body(x, scanned):
            params, stats, drop_rate, key = scanned
            block = nnx.merge(graph, params, stats)
            x = block(x, train=train, drop_rate=drop_rate, key=key)
            return x, nnx.state(block, nnx.BatchStat)

        # (a scan over a single block would only be more to compile)
        unroll = (platform() == "gpu" or self.depth == 1) if self.unroll is None else self.unroll
        if self.remat or not unroll:
            # (inside a scan nothing can be merged)
            body = jax.checkpoint(body, prevent_cse=unroll, policy=None if self.remat else keep_marked)
        scanned = (params, stats, drop_rates, keys)
        if unroll:
            # A loop of Python's: scan's own unrolling would still stack what is kept for the gradient. Equal blocks are
            # traced and lowered once for all of them.
            body = jax.jit(body)
            new_stats = []
            for i, block_params in enumerate(_unstack(params)):
                x, block_stats = body(x, (block_params, *jax.tree.map(lambda leaf, i=i: leaf[i], scanned[1:])))
                new_stats.append(block_stats)
            stats = jax.tree.map(_stack, *new_stats)
        else:
            x, stats = jax.lax.scan(body, x, scanned, length=self.depth)
        if train:
            nnx.update(self.blocks, stats)
        return self.norm(x)


def build(
    size: BackboneSize, *, in_channels: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs, **options: Any
) -> "HAKSNet":
    """The backbone of a size, see `architecture.build_backbone`. Args: **options of HAKSNet."""
    return HAKSNet(size, in_channels=in_channels, dtype=dtype, rngs=rngs, **options)


class HAKSNet(nnx.Module):
    """The backbone.

    Attributes:
      channels, strides: of the feature maps.

    Args:
      size: BackboneSize.
      in_channels: bands of an image.
      drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over all blocks.
      momentum: of the running statistics, see `BatchNorm`.
      dtype: dtype of the arithmetic (parameters and statistics stay float32).
      unroll: whether to write the blocks of a stage out instead of scanning over them; None: on GPUs, and single ones.
      remat: recompute each block whole in the backward pass, also what blocks keep otherwise.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        size: BackboneSize,
        *,
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        momentum: float = 0.9,
        dtype: jax.typing.DTypeLike = jnp.float32,
        unroll: bool | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.channels = tuple(size.channels)
        self.strides = tuple(4 * 2**stage for stage in range(len(size.channels)))
        self.dtype = dtype
        self.drop_path_rate = drop_path_rate
        self.depths = tuple(size.depths)
        stages = []
        channels_in = in_channels
        for i, (channels, depth, ratio) in enumerate(zip(size.channels, size.depths, size.mlp_ratios, strict=True)):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            stages.append(
                Stage(
                    channels_in,
                    channels,
                    depth,
                    ratio,
                    size=kernel,
                    stride=stride,
                    momentum=momentum,
                    dtype=dtype,
                    unroll=unroll,
                    remat=remat,
                    rngs=rngs,
                )
            )
            channels_in = channels
        self.stages = nnx.List(stages)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        after_stage: Callable[[jax.Array, int], jax.Array] | None = None,
    ) -> tuple[jax.Array, ...]:
        """Computes the four feature maps.

        Args:
          images: [B, H, W, in_channels] normalised.
          train: batch statistics instead of running ones.
          key: random key for stochastic depth, or None for none.
          after_stage: function of a stage's map and its number (1 to 4) whose result takes the map's place, or None.

        Returns:
          Four maps [B, ceil(H / s), ceil(W / s), C_s] at strides s = 4, 8, 16, 32.
        """
        x = images.astype(self.dtype)
        rates = jnp.linspace(0.0, self.drop_path_rate, sum(self.depths))
        keys = [None] * len(self.depths) if key is None else jax.random.split(key, len(self.depths))
        outputs = []
        start = 0
        for i, (stage, depth, stage_key) in enumerate(zip(self.stages, self.depths, keys, strict=True)):
            with jax.named_scope(f"stage_{i + 1}"):
                x = stage(x, train=train, drop_rates=rates[start : start + depth], key=stage_key)
                x = x if after_stage is None else after_stage(x, i + 1)
            outputs.append(x)
            start += depth
        return tuple(outputs)
