"""Shapes in annotations are checked while tests run, and never otherwise."""

import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import shape_checks
from jaxtyping import Array, Float

from haksnet_jax.geometry import boxes, matching, nms, polygon_iou
from haksnet_jax.models import detection_loss
from haksnet_jax.structures import GroundTruth

REFUSED = jaxtyping.TypeCheckError


def test_a_wrong_shape_is_refused():
    with pytest.raises(REFUSED, match="boxes"):
        boxes.boxes_to_corners(np.zeros((3, 4)))
    with pytest.raises(REFUSED, match="polygons"):
        polygon_iou.polygon_area(np.zeros((3, 5, 2)))
    with pytest.raises(REFUSED, match="gt_valid"):  # the letters of one call agree
        matching.match_proposals(jnp.zeros((4, 3)), jnp.ones(4, bool), jnp.ones(4, bool), positive_iou=0.5)
    with pytest.raises(REFUSED, match="valid"):  # and kinds of numbers
        nms.nms_rotated(jnp.zeros((4, 5)), jnp.zeros(4), jnp.ones(4), iou_threshold=0.5, max_outputs=2)


def _ground_truth(num_images=2, num_boxes=3, sides=5):
    return GroundTruth(
        jnp.ones((num_images, num_boxes, sides)),
        jnp.zeros((num_images, 3), jnp.int32),
        jnp.ones((num_images, 3), bool),
        jnp.full((num_images, 2), 64),
    )


@pytest.mark.parametrize("wrong", [{"sides": 4}, {"num_boxes": 2}, {"num_images": 1}])
def test_a_wrong_shape_within_a_tuple_is_refused(wrong):
    samples = matching.Samples(
        jnp.zeros((2, 6), jnp.int32), jnp.ones((2, 6), bool), jnp.ones((2, 6), bool), jnp.ones(2, int), jnp.ones(2, int)
    )
    arguments = jnp.zeros((2, 6, 8)), jnp.zeros((2, 6, 5)), jnp.ones((2, 6, 5)), jnp.zeros((2, 6), jnp.int32), samples
    settings = {"beta": 1.0, "stds": (0.1, 0.1, 0.2, 0.2, 0.1)}
    losses = detection_loss.roi_losses(*arguments, _ground_truth(), **settings)
    assert all(np.isfinite(loss) for loss in losses)
    with pytest.raises(REFUSED, match="ground_truth"):
        detection_loss.roi_losses(*arguments, _ground_truth(**wrong), **settings)


@jaxtyping.jaxtyped(typechecker=shape_checks.checked)
def _areas(boxes: Float[Array, "N 5"], wrong: bool) -> Float[Array, " N"]:
    return boxes[:, 2:3] * boxes[:, 3:4] if wrong else boxes[:, 2] * boxes[:, 3]


def test_a_wrong_result_is_refused():
    assert _areas(jnp.ones((2, 5)), False).shape == (2,)
    with pytest.raises(REFUSED, match="return value"):
        _areas(jnp.ones((2, 5)), True)


def test_users_pay_for_no_check():
    code = (
        "import sys, numpy as np\n"
        "from haksnet_jax.geometry import polygon_iou\n"
        "assert polygon_iou.polygon_area(np.zeros((3, 5, 2))).shape == (3,)\n"
        "assert 'jax' not in sys.modules and 'beartype' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
