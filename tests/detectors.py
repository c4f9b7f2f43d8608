"""Detectors with the reference's weights, for the tests of every part."""

import json

from reference_weights import make_state_dict

from haksnet_jax.tools.parity import models

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
    return models.model_of(state_dict, **options)
