"""The model with the reference's weights, names of its arrays as upstream has them, and the layouts of both."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from haksnet_jax.images.settings import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.models.oriented_rcnn import OrientedRCNN
from haksnet_jax.tools.parity.rows import Fixture
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.torch_weights import entries, from_torch, read_architecture

NETWORK = 1e-4  # of a tensor's largest value, float32


def model_of(state_dict: Mapping[str, np.ndarray], **options: Any) -> OrientedRCNN:
    """An OrientedRCNN that holds upstream's weights. Args: state_dict {name: array}; **options of OrientedRCNN."""
    architecture = read_architecture(state_dict)
    arrays, report = from_torch(state_dict, architecture)
    if report.missing or report.mismatched or report.unexpected:
        raise ValueError(f"the weights do not fit: {report.text()}")
    return model_with(architecture, arrays, **options)


def model_with(architecture: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **options: Any) -> OrientedRCNN:
    """An OrientedRCNN of an architecture that holds our arrays. Args: as of `model_of`."""
    size = haksnet.BackboneSize(*(tuple(architecture[name]) for name in ("channels", "depths", "mlp_ratios")))
    model = nnx.eval_shape(
        lambda: haksnet_detector(
            size,
            architecture["num_classes"],
            channels=architecture["fpn_channels"],
            hidden=architecture["hidden"],
            rngs=nnx.Rngs(0),
            **options,
        )
    )
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    filled = [model_folder.fill(nnx.as_pure(state), arrays, what="reference weights") for state in (params, stats)]
    return nnx.merge(graph, *jax.device_put(filled))


def reference_model(fixture: Fixture, variant: str, **options: Any) -> OrientedRCNN:
    """The detector with the reference's weights for one variant of a fixture."""
    listed = json.loads((fixture.folder / f"state_dict_{variant}.json").read_text())["entries"]
    weights = fixture.reference_weights().make_state_dict(listed, salt=fixture.manifest.get("salt", ""))
    return model_of(weights, **options)


def nhwc(x: ArrayLike) -> np.ndarray:
    """Upstream's layout, channels second, to ours, channels last."""
    return np.moveaxis(np.asarray(x), 1, -1)


def nchw(x: ArrayLike) -> np.ndarray:
    """Our layout to upstream's, float32."""
    return np.moveaxis(np.asarray(x, np.float32), -1, 1)


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """[H, W, 3] uint8, as the reference reads images: by OpenCV."""
    pixels = cv2.imread(str(path))
    if pixels is None:
        raise ValueError(f"{path} cannot be read as an image")
    return pixels[..., ::-1]


def normalized(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] RGB pixels as a batch [1, H, W, 3] that a backbone takes."""
    return ((pixels.astype(np.float32) - np.asarray(PIXEL_MEAN, np.float32)) / np.asarray(PIXEL_STD, np.float32))[None]


def _architecture(model):
    backbone = model.backbone
    return {
        "channels": [stage.patch_embed.conv.kernel.shape[-1] for stage in backbone.stages],
        "depths": [stage.depth for stage in backbone.stages],
        "mlp_ratios": [
            stage.blocks.mlp.project.kernel.shape[-2] / stage.blocks.mlp.project.kernel.shape[-1]
            for stage in backbone.stages
        ],
        "fpn_channels": model.rpn.conv.kernel.shape[-1],
        "hidden": model.roi_head.fc_2.kernel.shape[-1],
        "num_classes": model.roi_head.logits.kernel.shape[-1] - 1,
    }


def upstream_arrays(model: nnx.Module, state: Any = None) -> dict[str, np.ndarray]:
    """{upstream's name: array in upstream's layout} of a model's variables, or of a tree shaped like them."""
    flat = model_folder.flatten(nnx.state(model) if state is None else state)
    result = {}
    for entry in entries(_architecture(model)):
        if entry.ours in flat:
            array = np.asarray(flat[entry.ours])
            array = array if entry.block is None else array[entry.block]
            result[entry.theirs] = entry.layout.to_torch(array, entry.scope)
    return result


def to_upstream_levels(values: np.ndarray, shapes: Sequence[tuple[int, int]], per_anchor: int) -> list[np.ndarray]:
    """[B, A, ...] of all levels to a list of [B, 3 * per_anchor, H_l, W_l], as upstream's head gives them."""
    values = np.asarray(values)
    ends = np.cumsum([3 * h * w for h, w in shapes])
    parts = np.split(values.reshape(*values.shape[:2], per_anchor), ends[:-1], axis=1)
    return [nchw(part.reshape(len(values), h, w, 3 * per_anchor)) for part, (h, w) in zip(parts, shapes, strict=True)]


def variant_of(case: str, folder: pathlib.Path) -> str:
    """The variant that a case is named after: "tiny_even" -> "tiny"."""
    names = sorted((path.stem.removeprefix("state_dict_") for path in folder.glob("state_dict_*.json")), key=len)
    fitting = [name for name in names if case == name or case.startswith(f"{name}_")]
    if not fitting:
        raise ValueError(f"no state_dict_*.json in {folder} for the case {case}")
    return fitting[-1]


@functools.partial(jax.jit, static_argnums=0)
def call(graph: nnx.GraphDef, state: Any, x: jax.Array) -> jax.Array:
    """The module's output, compiled."""
    return nnx.merge(graph, state)(x)


@functools.partial(jax.jit, static_argnums=0)
def neck_and_rpn(graph: nnx.GraphDef, state: Any, maps: Sequence[jax.Array]) -> tuple[Any, ...]:
    """(levels of the pyramid, logits of the RPN, its deltas), compiled."""
    model = nnx.merge(graph, state)
    levels = model.fpn(maps)
    return levels, *model.rpn(levels)


@functools.partial(jax.jit, static_argnums=0)
def second_stage(
    graph: nnx.GraphDef, state: Any, levels: Sequence[jax.Array], boxes: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns: (pooled features, logits, deltas) for boxes [1, R, 5]."""
    head = nnx.merge(graph, state).roi_head
    return head.pool(levels, boxes, valid), *head(levels, boxes, valid)
