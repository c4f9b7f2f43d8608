"""What is exported of a checkpoint: a function of images of a fixed size, by task, and the live model beside it.

detection       images [B, H, W, C], score [] -> boxes [B, N, 5], scores, labels, valid [B, N], polygons [B, N, 8],
                num_cut [B]
classification  images [B, H, W, C] -> probabilities [B, K], labels [B]
segmentation    images [B, H, W, C] -> probabilities [B, K, H, W], labels [B, H, W]
change          before, after [B, H, W, C] -> as segmentation; label 1 is changed
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.inference import dense_session
from haksnet_jax.inference.dense_predictor import DensePredictor
from haksnet_jax.inference.detection_session import Session
from haksnet_jax.inference.precision import arithmetic
from haksnet_jax.models import architecture
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError


class Program(NamedTuple):
    """What is exported.

    Attributes:
      task: "detection", "classification", "segmentation" or "change".
      function: (variables, *inputs) -> {name: array}.
      variables: parameters and batch statistics, numpy arrays.
      inputs: {name: jax.ShapeDtypeStruct}, in the function's order.
      live: (*inputs) -> {name: numpy array}, what this package gives on its own devices.
      facts: what is written beside the file: inputs, results, classes.
    """

    task: str
    function: Callable
    variables: Any
    inputs: dict[str, jax.ShapeDtypeStruct]
    live: Callable
    facts: dict[str, Any]


def open_program(checkpoint: str | os.PathLike[str], *, size: tuple[int, int] | None = None, batch: int = 1) -> Program:
    """The program of a checkpoint.

    Args:
      checkpoint: any folder that `model_folder.load_model` reads.
      size: (rows, columns) of the images; None: the model's input size.
      batch: images at a time.

    Returns:
      Program.

    Raises:
      UserError: nothing usable is there, or the size does not fit.
    """
    arrays, info = model_folder.load_model(checkpoint)
    task = info.get("task", "detection")
    try:
        opened = _OPEN[task](arrays, info)
        rows, columns = size or info["input_size"]
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    least = 32 if task in ("detection", "classification") else 64
    if rows % 32 or columns % 32 or min(rows, columns) < least:
        raise UserError(f"--size: expected multiples of 32, {least} or more, got {rows} x {columns}")
    if task == "classification" and info.get("num_views", 1) == 8 and rows != columns:
        raise UserError(f"--size: this model looks at turned images too, which must be square, got {rows} x {columns}")
    function, variables, live = opened
    images = jax.ShapeDtypeStruct((batch, rows, columns, len(info["pixel_mean"])), jnp.uint8)
    inputs = {"before": images, "after": images} if task == "change" else {"images": images}
    if task == "detection":
        inputs["score"] = jax.ShapeDtypeStruct((), jnp.float32)
    results = jax.eval_shape(function, variables, *inputs.values())
    facts = {
        "task": task,
        "inputs": {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in inputs.items()},
        "images": "RGB or the model's bands, 0..255, smaller ones padded at right and bottom with zeros",
        "results": {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in sorted(results.items())},
        "class_names": list(info["class_names"]),
    }
    if task == "detection":
        facts["boxes"] = (
            "cx, cy, w, h in pixels, angle in radians from +x towards +y, le90; polygons: four corners x, y"
        )
        facts["num_cut"] = "detections that the model's limits left out"
    if task == "classification":
        facts["images"] = "RGB or the model's bands, 0..255: the image's middle, resized"
        facts["crop_share"] = info.get("crop_share", 0.875)
    return Program(task, function, variables, inputs, live, facts)


def _model(graph, variables):
    return nnx.merge(graph, variables["params"], variables["batch_stats"])


def _detection(arrays, info):
    session = Session(arrays, info)

    def detect(variables, images, score):
        size = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (images.shape[0], 2))
        found = _model(session.graph, variables).detect(
            images,
            size,
            proposal_settings=session.proposal_settings,
            detection_settings=session.detection_settings._replace(score_threshold=score),
        )
        polygons = boxes_to_corners(found.boxes).reshape(*found.boxes.shape[:2], 8)
        return {**found._asdict(), "polygons": polygons}

    def live(images, score):
        size, scale = np.tile(np.int32(images.shape[1:3]), (len(images), 1)), np.ones((len(images), 2), np.float32)
        return jax.device_get(session.detect(images, size, scale, score=score))._asdict()

    return detect, session.variables, live


def _classification(arrays, info):
    if len(info["class_names"]) != info["architecture"]["num_classes"]:
        raise CheckpointError(
            f"model.json names {len(info['class_names'])} classes, the model has {info['architecture']['num_classes']}"
        )
    graph, params, stats = architecture.abstract(info)
    variables = model_folder.variables_of(params, stats, arrays)

    def classify(variables, images):
        probabilities = _model(graph, variables).classify(images, num_views=info.get("num_views", 1))
        return {"probabilities": probabilities, "labels": jnp.argmax(probabilities, axis=1).astype(jnp.int32)}

    compiled = jax.jit(classify)

    def live(images):
        with arithmetic("float32"):
            return jax.device_get(compiled(variables, images))

    return classify, variables, live


def _dense(arrays, info):
    predictor = DensePredictor(arrays, info)
    session = predictor.session

    def probabilities(variables, *images):
        found = _model(session.graph, variables).probabilities(*images)
        return {"probabilities": found, "labels": jnp.argmax(found, axis=1).astype(jnp.uint8)}

    def live(*images):
        found, settings = [], dense_session.Settings(tile=images[0].shape[1], overlap=0)
        with arithmetic("float32"):
            for first in range(0, len(images[0]), session.batch_size):
                some = tuple(x[first : first + session.batch_size] for x in images)
                found.append(np.asarray(session(some, settings))[: len(some[0])])
        found = np.concatenate(found)
        return {"probabilities": found, "labels": np.stack([dense_session.largest(layers) for layers in found])}

    return probabilities, predictor.variables, live


_OPEN = {"detection": _detection, "classification": _classification, "segmentation": _dense, "change": _dense}
