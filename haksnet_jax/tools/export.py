"""A detector as one file that runs without this package: its program in StableHLO with the weights, by `jax.export`.

The program takes images [batch, rows, columns, bands] uint8 and the lowest score, and gives arrays of fixed size: boxes
[batch, n, 5] (cx, cy, w, h, angle; pixels and radians), scores, labels, valid [batch, n], and polygons [batch, n, 8].
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs
from haksnet_jax.inference.session import Session
from haksnet_jax.pipeline.sources import SceneSource
from haksnet_jax.weights import model_folder

PLATFORMS = ("cpu", "cuda", "tpu")
# What an exported program may differ by from the live one: both are compiled, each its own way, in float32.
_MIN_IOU, _MAX_SCORE_DIFFERENCE = 0.999, 1e-3


class Exported(NamedTuple):
    """An exported detector.

    Attributes:
      data: bytes of the file, which `jax.export.deserialize` reads.
      facts: what is written beside it: classes, size, the meaning of the results.
      session: the live model.
    """

    data: bytes
    facts: dict[str, Any]
    session: Session


def export(checkpoint, *, size, batch=1):
    """Exports a detector.

    Args:
      checkpoint: any folder that `model_folder.load_model` reads.
      size: (rows, columns) of the images, multiples of 32; None: the model's input size.
      batch: images at a time.

    Returns:
      Exported.

    Raises:
      UserError: the size does not fit, the model is no detector, or flatbuffers is missing.
    """
    try:
        import flatbuffers  # noqa: F401 (jax.export writes its files with it)
    except ImportError:
        raise UserError("writing StableHLO needs flatbuffers: pip install flatbuffers") from None
    arrays, info = model_folder.load_model(checkpoint)
    session = Session(arrays, info)
    rows, columns = size or info["input_size"]
    if rows % 32 or columns % 32 or min(rows, columns) < 32:
        raise UserError(f"--size: expected multiples of 32, got {rows} x {columns}")
    shape = (batch, rows, columns, len(info["pixel_mean"]))
    arguments = jax.ShapeDtypeStruct(shape, jnp.uint8), jax.ShapeDtypeStruct((), jnp.float32)
    # A mesh of one CPU: the forms without kernels of one vendor, which every platform compiles.
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices("cpu")[:1])), session.arithmetic():
        exported = jax_export.export(jax.jit(_program(session)), platforms=PLATFORMS)(*arguments)
    facts = {
        "format": "StableHLO, serialized by jax.export",
        "platforms": list(PLATFORMS),
        "images": {"shape": list(shape), "dtype": "uint8", "order": "RGB, padded at right and bottom with zeros"},
        "class_names": list(session.class_names),
        "results": {name: f"{value.dtype}{list(value.shape)}" for name, value in _named(exported).items()},
        "angle": "radians, from +x towards +y, le90",
    }
    return Exported(bytes(exported.serialize()), facts, session)


def _program(session):
    """The function that is exported."""

    def detect(images, score):
        # Behind a barrier: the compiler would otherwise compute with the constants for minutes.
        variables = jax.lax.optimization_barrier(session.variables)
        model = nnx.merge(session.graph, variables["params"], variables["batch_stats"])
        size = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (images.shape[0], 2))
        found = model.detect(
            images,
            size,
            proposal_settings=session.proposal_settings,
            detection_settings=session.detection_settings._replace(score_threshold=score),
        )
        return {
            "boxes": found.boxes,
            "labels": found.labels,
            "polygons": boxes_to_corners(found.boxes).reshape(*found.boxes.shape[:2], 8),
            "scores": found.scores,
            "valid": found.valid,
        }

    return detect


def _named(exported):
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


def write(exported, path):
    """Writes the file, and its facts beside it as JSON. Args: exported; path. Returns: path of the facts."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = path.with_name(f"{path.name}.json")
    files.write_bytes(path, exported.data)
    files.write_text(facts, json.dumps(exported.facts, indent=1) + "\n")
    return facts


def compare(exported, *, num_images=4, score=0.05):
    """Runs the exported program beside the live model on generated images.

    Args:
      exported: Exported.
      num_images: how many, at least a batch.
      score: lowest score of what is compared.

    Returns:
      (detections of the live model, list of sentences about those without counterpart; empty: they agree).
    """
    batch, rows, columns, bands = exported.facts["images"]["shape"]
    scenes = SceneSource(-(-num_images // batch) * batch, size=(rows, columns))
    call = jax.jit(jax_export.deserialize(bytearray(exported.data)).call)
    num_compared, different = 0, []
    for first in range(0, len(scenes), batch):
        images = np.stack([scenes[index]["image"][..., np.arange(bands) % 3] for index in range(first, first + batch)])
        size, scale = np.tile(np.int32([rows, columns]), (batch, 1)), np.ones((batch, 2), np.float32)
        live = jax.device_get(exported.session.detect(images, size, scale, score=score))
        other = jax.device_get(call(images, np.float32(score)))
        for row in range(batch):
            ours = {name: getattr(live, name)[row][live.valid[row]] for name in ("boxes", "scores", "labels")}
            theirs = {name: other[name][row][other["valid"][row]] for name in ("boxes", "scores", "labels")}
            num_compared += len(ours["scores"])
            different += [f"image {first + row}: {text}" for text in _without_counterpart(ours, theirs, score)]
    return num_compared, different


def _without_counterpart(ours, theirs, score):
    """Yields a sentence for each detection of one that the other has not."""
    for what, one, other in (("only live", ours, theirs), ("only exported", theirs, ours)):
        for box, value, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            same = (other["labels"] == label) & (np.abs(other["scores"] - value) <= _MAX_SCORE_DIFFERENCE)
            candidates = np.asarray(other["boxes"], np.float64)[same]
            near = len(candidates) and _iou(box, candidates).max() >= _MIN_IOU
            if not near and value > score + _MAX_SCORE_DIFFERENCE:  # at the threshold either may leave it out
                yield f"{what}: label {label}, score {value:.4f}"


def _iou(box, boxes):
    return rotated_iou_pairs(np.broadcast_to(np.asarray(box, np.float64), boxes.shape), boxes)
