"""Detectors with the reference's weights, for the tests of every part."""

import json

import jax.numpy as jnp
from flax import nnx
from reference_weights import make_state_dict

from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones.haksnet import BackboneSize
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.torch_weights import from_torch, read_architecture

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def reference_detector(path, **options):
    """An OrientedRCNN that holds the weights which the reference was recorded with.

    Args:
      path: of a state_dict_*.json.
      **options: of OrientedRCNN.
    """
    state_dict = make_state_dict(json.loads(path.read_text())["entries"])
    return detector_of(state_dict, **options)


def detector_of(state_dict, **options):
    """An OrientedRCNN with upstream's weights. Args: state_dict; **options of OrientedRCNN."""
    architecture = read_architecture(state_dict)
    arrays, report = from_torch(state_dict, architecture)
    assert not report.missing and not report.mismatched and not report.unexpected
    size = BackboneSize(
        tuple(architecture["channels"]), tuple(architecture["depths"]), tuple(architecture["mlp_ratios"])
    )
    options = {"dtype": jnp.float32} | options
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
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    fill = [model_folder.fill(nnx.as_pure(state), arrays, what="reference weights") for state in (params, stats)]
    return nnx.merge(graph, *fill)
