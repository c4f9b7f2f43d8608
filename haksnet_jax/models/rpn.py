"""Oriented region proposals: which anchors hold an object, and the oriented box each one stands for."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.geometry.anchors import level_shapes
from haksnet_jax.geometry.box_coders import decode_midpoint_offset
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.geometry.nms import nms_horizontal
from haksnet_jax.kernels import rpn_cuda
from haksnet_jax.kernels.selection import top_k, top_k_of_parts
from haksnet_jax.models.initializers import normal
from haksnet_jax.models.layers import OutputLinear
from haksnet_jax.structures import AnyArray, Proposals
from haksnet_jax.target import by_platform, over_mesh


class ProposalSettings(NamedTuple):
    """Which boxes of the RPN become proposals."""

    candidates_per_level: int = 2000  # best anchors of a level that are decoded; upstream: nms_pre
    max_proposals: int = 2000  # proposals of an image; upstream: max_per_img
    iou_threshold: float = 0.8  # IoU of the boxes' axis-parallel enclosures above which the weaker one goes


class OrientedRPN(nnx.Module):
    """The head that all pyramid levels share.

    Args:
      channels: width of the pyramid, and of the hidden layer.
      num_anchors: anchors at each position.
      dtype: dtype of the arithmetic; the outputs are float32.
      rngs: source of the initial parameters (normal, std 0.01).
    """

    def __init__(
        self, channels: int = 256, num_anchors: int = 3, *, dtype: jax.typing.DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        init = normal(0.01)
        self.conv = nnx.Conv(channels, channels, (3, 3), padding=1, kernel_init=init, dtype=dtype, rngs=rngs)
        self.logits = OutputLinear(channels, num_anchors, kernel_init=init, rngs=rngs)
        self.deltas = OutputLinear(channels, num_anchors * 6, kernel_init=init, rngs=rngs)
        self.num_anchors = num_anchors
        self.dtype = dtype

    def _factors(self, x):
        """Features, and the kernel of the hidden layer, rounded to the type of the arithmetic, in float32.

        Products of such factors are exact in the matrix units' float32 mode, so that their sums, the hidden layer, are
        not rounded before the output layers. In bfloat16 the rounded ones put boxes in another order: of a trained
        detector's detections above 0.3, 4.5 % changed sides at a suppression.
        """
        return x.astype(self.dtype).astype(jnp.float32), self.conv.kernel[...].astype(self.dtype).astype(jnp.float32)

    @jax.named_scope("rpn")
    def __call__(self, features: Sequence[jax.Array], *, rounded: bool = False) -> tuple[jax.Array, jax.Array]:
        """Scores every anchor.

        Args:
          features: p2..p6, five [B, H_l, W_l, C].
          rounded: whether the hidden layer may be rounded to the type of the arithmetic, which takes half the time in
            bfloat16: for proposals that training draws its samples from, whose exact order nothing depends on.

        Returns:
          logits [B, A] and midpoint-offset deltas [B, A, 6], float32; levels one after another, in a level by row,
          column, anchor, as `anchor_grid` lists them.
        """
        forms = (functools.partial(form, rounded=rounded) for form in (self._on_canvas, self._level_by_level))
        on_canvas, level_by_level = forms
        on_hopper = not rounded and rpn_cuda.suits(features, self.num_anchors)
        return by_platform(features, cuda=self._on_hopper if on_hopper else level_by_level, default=on_canvas)

    def _hidden(self, x, rounded):
        x, kernel = self._factors(x)
        if rounded:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        hidden = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        assert self.conv.bias is not None
        return jax.nn.relu(hidden + self.conv.bias[...])

    def _on_canvas(self, features, rounded):
        batch = features[0].shape[0]
        canvas, corners = _pack(features)
        hidden = self._hidden(canvas, rounded)
        logits, deltas = self.logits(hidden), self.deltas(hidden)

        def unpack(x, values):
            cut = [
                x[:, row : row + level.shape[1], column : column + level.shape[2]].reshape(batch, -1, *values)
                for level, (row, column) in zip(features, corners, strict=True)
            ]
            return jnp.concatenate(cut, axis=1)

        return unpack(logits, ()), unpack(deltas, (6,))

    def _level_by_level(self, features, rounded):
        """The scores, without the passes over memory that put a canvas together, and the zeros between levels.

        Rounded ones are written as the pyramid's last convolutions are (`fpn.FPN.outputs`), so that a GPU's compiler,
        which tunes each distinct convolution, has tuned those of four levels already. As there, bias and sum are
        rounded to the type of the arithmetic, where the canvas adds the bias in float32.
        """
        logits, deltas = [], []
        for level in features:
            if rounded:
                hidden = jax.nn.relu(self.conv(level)).astype(jnp.float32)
            else:
                hidden = self._hidden(level, rounded)
            logits.append(self.logits(hidden).reshape(len(level), -1))
            deltas.append(self.deltas(hidden).reshape(len(level), -1, 6))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)

    def _on_hopper(self, features):
        """The scores by one kernel, which keeps the hidden layer to itself."""
        assert self.conv.bias is not None and self.logits.bias is not None and self.deltas.bias is not None
        kernel = jnp.concatenate([self.logits.kernel[...], self.deltas.kernel[...]], axis=1)
        bias = jnp.concatenate([self.logits.bias[...], self.deltas.bias[...]])
        logits, deltas = rpn_cuda.head(features, self.conv.kernel[...], self.conv.bias[...], kernel, bias)
        return logits.reshape(len(logits), -1), deltas.reshape(len(deltas), -1, 6)

    @jax.named_scope("rpn_samples")
    def at(self, features: Sequence[jax.Array], index: AnyArray) -> tuple[jax.Array, jax.Array]:
        """Scores chosen anchors alone, each from the 3 x 3 features around it: what they have in `__call__`.

        The losses look at a few hundred anchors of hundreds of thousands. Through this, the gradient does too, where
        the gradient of the convolutions over all maps would cost twice the forward pass.

        Args:
          features: p2..p6, five [B, H_l, W_l, C].
          index: [B, S] int32 anchors, as `__call__` lists them.

        Returns:
          logits [B, S] and deltas [B, S, 6], float32.
        """
        patches, kernel = self._factors(_patches(features, index // self.num_anchors))  # [B, S, 9 C]
        assert self.conv.bias is not None
        hidden = jax.nn.relu(patches @ kernel.reshape(-1, kernel.shape[-1]) + self.conv.bias[...])
        logits, deltas = self.logits(hidden), self.deltas(hidden)
        which = (index % self.num_anchors)[..., None]
        deltas = deltas.reshape(*index.shape, self.num_anchors, 6)
        return (
            jnp.take_along_axis(logits, which, axis=-1)[..., 0],
            jnp.take_along_axis(deltas, which[..., None], axis=-2)[..., 0, :],
        )


def _patches(levels, cell):
    """The 3 x 3 features around positions of the pyramid, zeros beyond a level's border.

    Args:
      levels: [B, H_l, W_l, C], finest first.
      cell: [B, S] int32 positions, counted by level, row, column.

    Returns:
      [B, S, 9 C]; rows of the patch, columns, channels.
    """
    down, right = (offset.reshape(-1) for offset in np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"))

    def one_image(levels, cell):
        total, start = 0, 0
        for level in levels:
            height, width, _ = level.shape
            place = cell - start
            row, column = (place // width)[:, None] + down, (place % width)[:, None] + right  # [S, 9]
            here = (place >= 0) & (place < height * width)
            inside = here[:, None] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # Beyond the last row: read as zeros, and left out when the gradient is added.
            total += level.at[jnp.where(inside, row, height), column].get(mode="fill", fill_value=0)
            start += height * width
        return total.reshape(len(cell), -1)

    return jax.vmap(one_image)(tuple(levels), cell)


def _pack(levels):
    """Lays the pyramid out on one canvas: the finest level at the left, the others below each other at its right.

    The head is one convolution then, of one shape, where five shapes would each be tuned and compiled; a row or column
    of zeros between levels is what each of them sees beyond its border.

    Args:
      levels: [B, H_l, W_l, C], finest first.

    Returns:
      ([B, H, W, C], [(row, column) of each level's first position]).
    """
    finest, coarser = levels[0], levels[1:]
    height = max(finest.shape[1], sum(level.shape[1] + 1 for level in coarser) - 1)
    width = finest.shape[2] + 1 + coarser[0].shape[2]
    canvas = jnp.zeros((finest.shape[0], height, width, finest.shape[3]), finest.dtype)
    corners = [(0, 0)]
    row, column = 0, finest.shape[2] + 1
    for level in coarser:
        corners.append((row, column))
        row += level.shape[1] + 1
    for level, (row, column) in zip(levels, corners, strict=True):
        canvas = jax.lax.dynamic_update_slice(canvas, level, (0, row, column, 0))
    return canvas, corners


def select_proposals(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array | np.ndarray,
    *,
    image_shape: Sequence[int],
    strides: Sequence[int],
    anchors_per_cell: int,
    stds: Sequence[float],
    settings: ProposalSettings = ProposalSettings(),  # noqa: B008 (a tuple: nobody can change it)
) -> Proposals:
    """The best boxes of the RPN, after suppression within each level.

    Args:
      logits: [B, A] objectness before the sigmoid.
      deltas: [B, A, 6] midpoint-offset deltas.
      anchors: [A, 4] axis-parallel anchors, pixels.
      image_shape: (H, W) of the network's input, from which the levels' sizes follow.
      strides: strides of the levels.
      anchors_per_cell: anchors at each position.
      stds: of the deltas, see `decode_midpoint_offset`.
      settings: ProposalSettings.

    Returns:
      Proposals, [B, max_proposals, ...], best first. No gradient flows through them.
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    counts = [h * w * anchors_per_cell for h, w in level_shapes(image_shape, strides)]
    bounds = (0, *np.cumsum(counts).tolist())
    keep = min(settings.candidates_per_level, max(counts))

    def one_image(logits, deltas):
        top, index = top_k_of_parts(logits, bounds, keep)  # [levels, keep]; coarse levels have fewer anchors
        boxes = decode_midpoint_offset(jnp.asarray(anchors)[index], deltas[index], stds)
        # Boxes without area stay, as in the reference: pooled along a line, they can be corrected into objects.
        valid = top > -jnp.inf

        def suppress(boxes, top, valid):
            index, kept, _ = nms_horizontal(
                boxes_to_hboxes(boxes), top, valid, iou_threshold=settings.iou_threshold, max_outputs=keep
            )
            return boxes[index], jnp.where(kept, top[index], -jnp.inf)

        boxes, top = jax.vmap(suppress)(boxes, top, valid)
        count = min(settings.max_proposals, top.size)
        best, index = top_k(top.reshape(-1), count)
        padding = settings.max_proposals - count
        best = jnp.pad(best, (0, padding), constant_values=-jnp.inf)
        boxes = jnp.pad(boxes.reshape(-1, 5)[index], ((0, padding), (0, 0)))
        return Proposals(boxes=boxes, scores=jax.nn.sigmoid(best), valid=best > -jnp.inf)

    # Each device for its own images: loops that end when all are done would make the devices wait for each other.
    return over_mesh(jax.vmap(one_image), logits, deltas)
