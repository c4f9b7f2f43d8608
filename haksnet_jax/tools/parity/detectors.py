"""Pyramid, RPN and whole inference against the reference's, stage by stage."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from haksnet_jax.geometry.anchors import STRIDES, level_shapes
from haksnet_jax.geometry.box_coders import decode_delta_xywha
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs
from haksnet_jax.kernels.roi_align import roi_levels
from haksnet_jax.models.oriented_rcnn import BoxSettings
from haksnet_jax.models.roi_head import select_detections
from haksnet_jax.models.rpn import ProposalSettings
from haksnet_jax.pipeline import transforms
from haksnet_jax.structures import Proposals
from haksnet_jax.tools.parity.models import (
    NETWORK,
    nchw,
    neck_and_rpn,
    nhwc,
    read_rgb,
    reference_model,
    second_stage,
    to_upstream_levels,
    variant_of,
)
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Found, Limits, Row, equal_row, found_rows, match_boxes

ROUNDED_LIMITS = Limits(score=0.02, iou=0.95, pixels=0.0)  # bfloat16, for detections above ROUNDED_SCORE


def neck_rpn_rows(fixture: Fixture) -> list[Row]:
    """FPN levels and outputs of the RPN on recorded maps of even and odd sizes."""
    rows = []
    make_input = fixture.reference_weights().make_input
    for case, settings in fixture.manifest["cases"].items():
        model = reference_model(fixture, settings.get("variant") or variant_of(case, fixture.folder))
        maps = [nhwc(make_input(settings["seed"] + i, shape)) for i, shape in enumerate(settings["shapes"])]
        levels, logits, deltas = neck_and_rpn(*nnx.split(model), maps)
        shapes = [level.shape[1:3] for level in levels]
        comparisons = [Comparison(fixture, f"{case}: {what}", relative=NETWORK) for what in ("FPN", "RPN")]
        for i, level in enumerate(levels):
            comparisons[0].add_stored(f"{case}/fpn{i}", nchw(level))
        for i, (cls, reg) in enumerate(
            zip(to_upstream_levels(logits, shapes, 1), to_upstream_levels(deltas, shapes, 6), strict=True)
        ):
            comparisons[1].add_stored(f"{case}/rpn_cls{i}", cls)
            comparisons[1].add_stored(f"{case}/rpn_reg{i}", reg)
        rows += [comparison.row() for comparison in comparisons]
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _first_stage(graph, state, images, image_size):
    """Everything of `detect` up to the proposals. Returns: (normalised images, levels, logits, deltas, Proposals)."""
    model = nnx.merge(graph, state)
    levels = model.features(images, image_size)
    logits, deltas = model.rpn(levels)
    proposals = model.proposals(logits, deltas, images.shape[1:3], ProposalSettings())
    return model.normalize(images, image_size), levels, logits, deltas, proposals


_select = jax.jit(functools.partial(select_detections, stds=BoxSettings().roi_stds))


def _found(detections):
    valid = np.asarray(detections.valid[0])
    return Found(*(np.asarray(part[0])[valid] for part in (detections.boxes, detections.scores, detections.labels)))


def _enclosing_iou(boxes, others):
    """IoU of the axis-parallel boxes that enclose oriented ones, which the RPN's suppression looks at."""
    one, other = (boxes_to_hboxes(np.asarray(x, np.float64)) for x in (boxes, others))
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    return shared / (sum(np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (one, other)) - shared)


def _rotated_iou(boxes, others):
    return rotated_iou_pairs(np.asarray(boxes, np.float64), np.asarray(others, np.float64))


def _recorded_found(fixture, prefix):
    boxes = fixture[f"{prefix}det_boxes"]
    return Found(boxes[:, :5], boxes[:, 5], fixture[f"{prefix}det_labels"].astype(int))


def inference_rows(fixture: Fixture, dtype: DTypeLike = jnp.float32) -> list[Row]:
    """Inference stage by stage, each also on the reference's inputs to it, and as a whole.

    Args:
      fixture: Fixture.
      dtype: bfloat16 compares the detections alone, with the tolerances for it.
    """
    rows = []
    pixels = read_rgb(fixture.folder / fixture.manifest["image"])
    models = {}
    for case, settings in fixture.manifest["cases"].items():
        variant = settings["variant"]
        if variant not in models:
            models[variant] = reference_model(fixture, variant, dtype=dtype)
        image = pixels
        if "crop" in settings:
            (sides,) = re.findall(r"(\d+):(\d+), *(\d+):(\d+)\]", settings["crop"])
            top, bottom, left, right = map(int, sides)
            image = pixels[top:bottom, left:right]
        scale = np.broadcast_to(np.asarray(settings["scale_factor"], np.float32), (4,))[:2]
        rows += _one_inference(fixture, f"{case}/", f"{case}: ", models[variant], image, image.shape[:2], scale, dtype)
    return rows


def pipeline_rows(fixture: Fixture, dtype: DTypeLike = jnp.float32) -> list[Row]:
    """The configured test pipeline: resizing, normalising, padding, the detector, scaling back."""
    manifest = fixture.manifest
    variant = manifest.get("variant") or variant_of(fixture.name.removeprefix("inference_pipeline_"), fixture.folder)
    pixels = read_rgb(fixture.folder / manifest["image"])
    canvas = tuple(manifest.get("img_scale", (max(manifest["img_shape"][:2]),) * 2))
    resized, _, scale = transforms.resize_keep_ratio(pixels, np.zeros((0, 5), np.float32), canvas)
    recorded = fixture["network_input_uint8"][..., ::-1]
    greys = np.abs(resized.astype(int) - recorded.astype(int)) if resized.shape == recorded.shape else np.full(1, 255)
    rows = [
        Row(
            fixture.name, "resized image, grey levels", int(greys.max()), float(greys.max() / 255),
            "1 for 99.5 % of values", bool((greys <= 1).mean() >= 0.995), f"{(greys <= 1).mean():.2%} within 1",
        )
    ]  # fmt: skip
    factors = Comparison(fixture, "scale factors", relative=1e-6)
    factors.add(scale, manifest["scale_factor"][:2])
    rows.append(factors.row())
    # The recorded pixels go on, so that what follows is compared exactly; then ours, as a user's image goes.
    model = reference_model(fixture, variant, dtype=dtype)
    for what, image in (("", recorded), ("own resizing: ", resized)):
        padded = np.zeros((*manifest["pad_shape"][:2], 3), np.uint8)
        padded[: image.shape[0], : image.shape[1]] = image
        limits = Limits() if what == "" else Limits(score=5e-3, iou=0.99, pixels=0.2)
        rows += _one_inference(
            fixture, "", what, model, padded, image.shape[:2], scale, dtype, limits=limits, whole_only=bool(what)
        )
    return rows


def _one_inference(fixture, prefix, what, model, image, image_size, scale, dtype, *, limits=None, whole_only=False):
    """Rows for one image. Args: prefix of its arrays; what, of the rows' names; image [H, W, 3] uint8, padded."""
    graph, state = nnx.split(model)
    size = jnp.asarray([image_size], jnp.int32)
    normalized, levels, logits, deltas, proposals = _first_stage(graph, state, jnp.asarray(image[None]), size)
    rounded = dtype != jnp.float32
    _, roi_logits, roi_deltas = second_stage(graph, state, levels, proposals.boxes, proposals.valid)
    factors = jnp.asarray(scale, jnp.float32)[None]
    ours = _found(_select(roi_logits, roi_deltas, proposals, size, factors))
    theirs = _recorded_found(fixture, prefix)
    settings = {"overlaps": _rotated_iou, "iou_threshold": 0.1, "score_threshold": 0.05}
    if rounded:
        return _rounded_rows(fixture, f"{what}detections", ours, theirs)
    if whole_only:
        # Another resizing moves the scores of boxes that overlap: flips are as many as the manifest allows.
        rows, _ = found_rows(fixture, f"{what}detections", ours, theirs, limits=limits, share=0.02, **settings)
        return [_without_reasons(rows[0], len(theirs.boxes)), *rows[1:]]

    rows = []
    for key in (f"{prefix}input_slice", "input_slice", f"{prefix}network_input"):
        if key in fixture and fixture.manifest["arrays"][key]["shape"] == list(nchw(normalized).shape):
            network_input = Comparison(fixture, f"{what}network input", relative=1e-5)
            network_input.add_stored(key, nchw(normalized))
            rows.append(network_input.row())
            break
    pyramid = Comparison(fixture, f"{what}FPN", relative=NETWORK)
    for i, level in enumerate(levels):
        pyramid.add_stored(f"{prefix}fpn{i}", nchw(level))
    rows.append(pyramid.row())
    if f"{prefix}rpn/level0_top_index" in fixture:
        rows += _candidate_rows(fixture, prefix, what, np.asarray(logits[0]), np.asarray(deltas[0]), image.shape[:2])

    recorded = fixture[f"{prefix}proposals"]
    valid = np.asarray(proposals.valid[0])
    ours_proposed = Found(
        *(np.asarray(x[0])[valid] for x in (proposals.boxes, proposals.scores)), np.zeros(valid.sum())
    )
    theirs_proposed = Found(recorded[:, :5], recorded[:, 5], np.zeros(len(recorded)))
    found, differing = found_rows(
        fixture, f"{what}proposals", ours_proposed, theirs_proposed,
        overlaps=_enclosing_iou, iou_threshold=0.8, score_threshold=0.0,
    )  # fmt: skip
    rows += found

    if f"{prefix}roi_cls_logits" in fixture:
        rows += _second_stage_rows(fixture, prefix, what, model, levels, proposals, image_size, scale, theirs, settings)
    found, _ = found_rows(fixture, f"{what}detections", ours, theirs, causes=differing, **settings)
    return rows + found


def _second_stage_rows(fixture, prefix, what, model, levels, proposals, image_size, scale, theirs, settings):
    """The second stage, fed with the recorded proposals: their order, and so every row, is the reference's."""
    recorded = fixture[f"{prefix}proposals"]
    size, factors = jnp.asarray([image_size], jnp.int32), jnp.asarray(scale, jnp.float32)[None]
    padding = proposals.boxes.shape[1] - len(recorded)
    fed = Proposals(
        jnp.asarray(np.pad(recorded[None, :, :5], ((0, 0), (0, padding), (0, 0)))),
        jnp.asarray(np.pad(recorded[None, :, 5], ((0, 0), (0, padding)))),
        jnp.arange(proposals.boxes.shape[1])[None] < len(recorded),
    )
    pooled, fed_logits, fed_deltas = (
        np.asarray(x[0][: len(recorded)]) for x in second_stage(*nnx.split(model), levels, fed.boxes, fed.valid)
    )
    rows = [equal_row(fixture, f"{what}RoI levels", [(roi_levels(recorded[:, :5]), fixture[f"{prefix}roi_levels"])])]
    features, head = (
        Comparison(fixture, f"{what}{part}", relative=NETWORK) for part in ("RoI features", "RoI logits and deltas")
    )
    features.add_stored(f"{prefix}roi_feats", nchw(pooled))
    head.add_stored(f"{prefix}roi_cls_logits", fed_logits)
    head.add_stored(f"{prefix}roi_deltas", fed_deltas)
    decoded = Comparison(fixture, f"{what}decoded boxes", relative=1e-5)
    decoded.add_boxes(
        decode_delta_xywha(
            recorded[:, :5], fixture[f"{prefix}roi_deltas"], model.boxes.roi_stds, image_size=image_size
        ),
        fixture[f"{prefix}roi_boxes"] * np.array([*scale, *scale, 1]),
    )
    rows += [features.row(), head.row(), decoded.row()]
    recorded_logits, recorded_deltas = (
        jnp.asarray(np.pad(fixture[f"{prefix}{name}"][None], ((0, 0), (0, padding), (0, 0))))
        for name in ("roi_cls_logits", "roi_deltas")
    )
    selected = _found(_select(recorded_logits, recorded_deltas, fed, size, factors))
    found, _ = found_rows(
        fixture, f"{what}selection from recorded logits", selected, theirs, limits=Limits(score=1e-5), **settings
    )
    return rows + found


def _without_reasons(row, num_boxes):
    """A row of counterparts that judges their number alone."""
    return row._replace(passed=row.absolute <= max(1.0, 0.02 * num_boxes))


def _rounded_rows(fixture, what, ours, theirs):
    """Detections of a network of lower precision: those with a good score need a counterpart of any score near it."""
    _, left_of_ours, left_of_theirs = match_boxes(ours, theirs, ROUNDED_LIMITS)
    rows = []
    for name, found, left in (("reference's", theirs, left_of_theirs), ("ours", ours, left_of_ours)):
        high = int((found.scores > ROUNDED_SCORE).sum())
        missing = int((found.scores[left] > ROUNDED_SCORE).sum())
        rows.append(
            Row(
                fixture.name, f"{what} above {ROUNDED_SCORE}, {name}", missing, missing / max(high, 1),
                f"{ROUNDED_SHARE:.0%} without counterpart", missing <= ROUNDED_SHARE * high,
                f"{high} boxes; IoU > {ROUNDED_LIMITS.iou}, score within {ROUNDED_LIMITS.score}",
            )
        )  # fmt: skip
    return rows


def _candidate_rows(fixture, prefix, what, logits, deltas, image_shape):
    """The best anchors of each level: scores and deltas at the recorded places, and whether we choose the same."""
    scores, offsets = (Comparison(fixture, f"{what}RPN {x}", relative=NETWORK) for x in ("scores", "deltas"))
    num_differ = num_candidates = 0
    unexplained = 0
    counts = [3 * h * w for h, w in level_shapes(image_shape, STRIDES)]
    for i, (start, count) in enumerate(zip(np.cumsum([0, *counts[:-1]]), counts, strict=True)):
        key = f"{prefix}rpn/level{i}_top"
        index = fixture[f"{key}_index"]
        level_scores = 1 / (1 + np.exp(-logits[start : start + count].astype(np.float64)))
        scores.add_stored(f"{key}_scores", level_scores[index])
        offsets.add_stored(f"{key}_deltas", deltas[start : start + count][index])
        chosen = np.argsort(-level_scores, kind="stable")[: len(index)]
        differing = np.setxor1d(chosen, index)
        # A candidate that only one side has must lie at the end of the list, where rounding decides.
        unexplained += int((np.abs(level_scores[differing] - level_scores[chosen[-1]]) > 1e-5).sum())
        num_differ += len(differing) // 2
        num_candidates += len(index)
    row = Row(
        fixture.name, f"{what}RPN candidates", num_differ, num_differ / num_candidates, "ties at the end of a level",
        unexplained == 0, f"{num_candidates} candidates",
    )  # fmt: skip
    return [scores.row(), offsets.row(), row]


ROUNDED_SCORE, ROUNDED_SHARE = 0.3, 0.03
