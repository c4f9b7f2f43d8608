"""One training step against the reference's: assignments, losses, gradients, batch statistics, the update."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.geometry.anchors import inside_image
from haksnet_jax.geometry.matching import Samples
from haksnet_jax.models import detection_loss as losses
from haksnet_jax.structures import GroundTruth, Proposals
from haksnet_jax.tools.parity.models import (
    NETWORK,
    read_rgb,
    reference_model,
    to_upstream_levels,
    upstream_arrays,
    variant_of,
)
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Row, equal_row
from haksnet_jax.training import optimizer


def train_step_rows(fixture: Fixture) -> list[Row]:
    """One step of training with the recorded proposals and samples: assignments, losses, gradients, update."""
    manifest = fixture.manifest
    variant = manifest.get("variant") or variant_of(fixture.name.removeprefix("train_step_"), fixture.folder)
    height, width = manifest["train_hw"]
    pixels = read_rgb(fixture.folder / manifest["image"])
    images = jnp.asarray(np.stack([pixels[:height, :width], pixels[-height:, -width:]]))
    rows = []
    compiled: dict[str, Callable[..., Any]] = {}
    for case in manifest["cases"]:
        model = reference_model(fixture, variant, drop_path_rate=0.0)
        rows += _train_case(fixture, case, model, images, compiled)
    return rows


def _recorded_truth(fixture, case, num_images, image_shape, num_rows):
    boxes = np.zeros((num_images, num_rows, 5), np.float32)
    labels = np.zeros((num_images, num_rows), np.int32)
    valid = np.zeros((num_images, num_rows), bool)
    for i in range(num_images):
        gt_boxes = fixture[f"{case}/img{i}/gt_boxes"]
        boxes[i, : len(gt_boxes)] = gt_boxes
        labels[i, : len(gt_boxes)] = fixture[f"{case}/img{i}/gt_labels"]
        valid[i, : len(gt_boxes)] = True
    size = np.tile(np.array(image_shape, np.int32), (num_images, 1))
    return GroundTruth(*map(jnp.asarray, (boxes, labels, valid, size)))


def _recorded_samples(positive, negative, num_rows):
    """Samples of one image from indices of positives and of negatives. Returns: (index, positive, valid)."""
    index = np.zeros(num_rows, np.int32)
    count = len(positive) + len(negative)
    index[:count] = np.concatenate([positive, negative])
    order = np.arange(num_rows)
    return index, order < len(positive), order < count


def _stacked_samples(samples):
    index, positive, valid = (jnp.asarray(np.stack(x)) for x in zip(*samples, strict=True))
    none = jnp.zeros(len(samples), jnp.int32)
    return Samples(index, positive, valid, none, none)


def _make_injected_step(graph, stats, anchors):
    """Compiles losses and gradients for given samples."""
    weights = losses.LossSettings()

    def step(params, images, truth, rpn_index, rpn_samples, boxes, roi_index, roi_samples):
        def total(params):
            model = nnx.merge(graph, params, stats)
            levels = model.features(images, truth.image_size, train=True)
            logits, deltas = jax.lax.stop_gradient(model.rpn(levels))
            at_samples = model.rpn.at(levels, rpn_samples.index)
            rpn = losses.rpn_losses(
                *at_samples, anchors, rpn_index, rpn_samples, truth, beta=weights.rpn_beta, stds=model.boxes.rpn_stds
            )
            roi_logits, roi_deltas = model.roi_head(levels, boxes, roi_samples.valid)
            *roi, accuracy = losses.roi_losses(
                roi_logits, roi_deltas, boxes, roi_index, roi_samples, truth,
                beta=weights.roi_beta, stds=model.boxes.roi_stds,
            )  # fmt: skip
            outputs = (*rpn, *roi, accuracy, logits, deltas, roi_logits, roi_deltas)
            return sum(rpn) + sum(roi), (outputs, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        (loss, (outputs, new_stats)), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return loss, outputs, new_stats, gradient

    return jax.jit(step)


def _train_case(fixture, case, model, images, compiled):
    num_images, image_shape = images.shape[0], images.shape[1:3]
    num_rows = max(1, *(max(one["num_gts"]) for one in fixture.manifest["cases"].values()))
    truth = _recorded_truth(fixture, case, num_images, image_shape, num_rows)
    anchors = model.anchors(image_shape)
    rows = _assignment_rows(fixture, case, anchors, truth, compiled)

    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = nnx.as_pure(params), nnx.as_pure(stats)
    if "step" not in compiled:  # the cases differ in their numbers alone
        compiled["step"] = _make_injected_step(graph, stats, jnp.asarray(anchors))
    samples = _recorded_choice(fixture, case, num_images, len(anchors))
    loss, outputs, new_stats, gradient = compiled["step"](params, images, truth, *samples)
    rows += _output_rows(fixture, case, loss, outputs, np.asarray(samples[-1].valid))

    rows += _gradient_rows(fixture, case, model, gradient)
    if any(key.startswith(f"{case}/step/") for key in fixture):
        rows.append(_update_row(fixture, case, model, params, gradient))
    after = upstream_arrays(model, new_stats)
    kept = [name for name in after if f"{case}/bn_after/{name}" in fixture]
    if kept:
        statistics = Comparison(fixture, f"{case}: batch statistics", relative=1e-5)
        for name in kept:
            statistics.add_stored(f"{case}/bn_after/{name}", after[name])
        rows.append(statistics.row())
    return rows


def _recorded_choice(fixture, case, num_images, num_anchors):
    """What the reference drew: (RPN's index and Samples, the RoI head's boxes, index and Samples), of all images."""
    rpn_samples, rpn_index = [], np.zeros((num_images, num_anchors), np.int32)
    roi_samples, roi_index, roi_boxes = [], [], []
    rois = fixture[f"{case}/roi/rois"]
    num_rpn, num_roi = (
        max(
            len(fixture[f"{one}/img{i}/{stage}/pos_inds{end}"]) + len(fixture[f"{one}/img{i}/{stage}/neg_inds{end}"])
            for one in fixture.manifest["cases"]
            for i in range(num_images)
        )
        for stage, end in (("rpn", "_global"), ("roi", ""))
    )
    for i in range(num_images):
        key = f"{case}/img{i}"
        positive, negative = fixture[f"{key}/rpn/pos_inds_global"], fixture[f"{key}/rpn/neg_inds_global"]
        rpn_index[i, positive] = fixture[f"{key}/rpn/pos_assigned_gt"]
        rpn_samples.append(_recorded_samples(positive, negative, num_rpn))
        positive, negative = fixture[f"{key}/roi/pos_inds"], fixture[f"{key}/roi/neg_inds"]
        roi_samples.append(_recorded_samples(positive, negative, num_roi))
        matched = np.zeros(num_roi, np.int32)
        matched[: len(positive)] = fixture[f"{key}/roi/pos_assigned_gt"]
        roi_index.append(matched)
        boxes = np.zeros((num_roi, 5), np.float32)
        mine = rois[rois[:, 0] == i, 1:]
        boxes[: len(mine)] = mine
        roi_boxes.append(boxes)
    return (
        jnp.asarray(rpn_index),
        _stacked_samples(rpn_samples),
        jnp.asarray(np.stack(roi_boxes)),
        jnp.asarray(np.stack(roi_index)),
        _stacked_samples(roi_samples),
    )


def _output_rows(fixture, case, loss, outputs, valid):
    """What the networks give, the losses and the accuracy. Args: valid [B, R], which RoIs were drawn."""
    recorded = fixture.manifest["cases"][case]
    *ours, accuracy, logits, deltas, roi_logits, roi_deltas = outputs
    network = Comparison(fixture, f"{case}: RPN and RoI outputs", relative=NETWORK)
    shapes = recorded["featmap_sizes"]
    for i, (cls, reg) in enumerate(
        zip(to_upstream_levels(logits, shapes, 1), to_upstream_levels(deltas, shapes, 6), strict=True)
    ):
        network.add_stored(f"{case}/rpn/cls_logits_level{i}", cls)
        network.add_stored(f"{case}/rpn/deltas_level{i}", reg)
    network.add_stored(f"{case}/roi/cls_logits", np.asarray(roi_logits)[valid])
    network.add_stored(f"{case}/roi/deltas", np.asarray(roi_deltas)[valid])

    compared = Comparison(fixture, f"{case}: losses", relative=1e-5)
    names = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")
    for name, value in zip(names, ours, strict=True):
        compared.add(value, np.sum(recorded["losses"][name]))
    compared.add(loss, recorded["total_loss"])
    correct = Comparison(fixture, f"{case}: RoI accuracy, %", absolute=100.5 / valid.sum())
    correct.add(100 * accuracy, np.sum(recorded["losses"]["acc"]))
    return [network.row(), compared.row("four losses and their sum"), correct.row()]


def _assignment_rows(fixture, case, anchors, truth, compiled):
    """Which object every anchor and every proposal is matched with, before anything is drawn."""
    num_images = truth.boxes.shape[0]
    inside = np.flatnonzero(inside_image(anchors, np.asarray(truth.image_size[0])))
    rows = [equal_row(fixture, f"{case}: anchors inside", [(inside, fixture[f"{case}/rpn/inside_anchor_index"])])]
    proposals = [fixture[f"{case}/img{i}/proposals"] for i in range(num_images)]
    num_proposals = max(len(fixture[key]) for key in fixture if key.endswith("/proposals"))
    boxes = np.stack([np.pad(one[:, :5], ((0, num_proposals - len(one)), (0, 0))) for one in proposals])
    valid = np.stack([np.arange(num_proposals) < len(one) for one in proposals])

    def assign(truth, boxes, valid):
        # As many samples as there are rows: nothing is left to chance, and the samples are the whole assignment.
        key = jax.random.key(0)
        gt_index, anchor_samples = losses.match_and_sample_anchors(
            key, anchors, truth, losses.AnchorSampling(num_samples=len(anchors), positive_fraction=1.0)
        )
        _, roi_index, roi_samples = losses.match_and_sample_proposals(
            key,
            Proposals(boxes, jnp.zeros(boxes.shape[:2]), valid),
            truth,
            losses.RoISampling(num_samples=num_proposals + truth.boxes.shape[1], positive_fraction=1.0),
        )
        return gt_index, anchor_samples, roi_index, roi_samples

    if "assign" not in compiled:
        compiled["assign"] = jax.jit(assign)
    gt_index, anchor_samples, roi_index, roi_samples = jax.tree.map(
        np.asarray, compiled["assign"](truth, jnp.asarray(boxes), jnp.asarray(valid))
    )
    anchor_pairs, proposal_pairs, num_at_threshold = [], [], 0
    num_gts = truth.boxes.shape[1]
    for i in range(num_images):
        drawn = anchor_samples.valid[i]
        index, positive = anchor_samples.index[i][drawn], anchor_samples.positive[i][drawn]
        assigned = np.full(len(anchors), -1)
        assigned[index] = np.where(positive, gt_index[i][index] + 1, 0)
        anchor_pairs.append((assigned[inside], fixture[f"{case}/img{i}/rpn/assigned"]))
        drawn = roi_samples.valid[i]
        index, positive = roi_samples.index[i][drawn], roi_samples.positive[i][drawn]
        assigned = np.full(num_gts + num_proposals, -1)
        assigned[index] = np.where(positive, roi_index[i][drawn] + 1, 0)
        # An overlap within rounding of the threshold may fall on either side of it.
        clear = np.abs(fixture[f"{case}/img{i}/roi/max_overlaps"] - 0.5) > 1e-5
        num_at_threshold += int((~clear).sum())
        assigned = assigned[num_gts : num_gts + len(proposals[i])]
        proposal_pairs.append((assigned[clear], fixture[f"{case}/img{i}/roi/assigned"][clear]))
    rows.append(equal_row(fixture, f"{case}: anchors' objects", anchor_pairs))
    note = f"{num_at_threshold} with an overlap of the threshold left out" if num_at_threshold else ""
    rows.append(equal_row(fixture, f"{case}: proposals' objects", proposal_pairs, note))
    return rows


def _gradient_rows(fixture, case, model, gradient):
    recorded = fixture.manifest["cases"][case]
    skipped = set(recorded["params_with_zero_gradient_in_exact_arithmetic"])
    norms = Comparison(fixture, f"{case}: gradient norms", relative=1e-3)
    total = Comparison(fixture, f"{case}: gradient norm in all", relative=1e-3)
    worst, worst_name, compared = 0.0, "", 0
    squares = 0.0
    for name, array in upstream_arrays(model, gradient).items():
        squares += float(np.square(array, dtype=np.float64).sum())
        if name in skipped:
            continue
        norms.add(np.linalg.norm(array.astype(np.float64)), recorded["grad_norms"][name])
        key = f"{case}/grad/{name}"
        if key in fixture:
            theirs = fixture[key].reshape(-1).astype(np.float64)
            error = np.linalg.norm(fixture.sampled(key, array) - theirs) / max(np.linalg.norm(theirs), 1e-30)
            compared += 1
            if not error <= worst:
                worst, worst_name = float(error), name
    rows = [norms.row(f"without {len(skipped)} biases before a norm, whose gradient is rounding")]
    if "total_grad_norm" in recorded:
        total.add(math.sqrt(squares), recorded["total_grad_norm"])
        rows.append(total.row())
    if compared:
        rows.append(
            Row(
                fixture.name, f"{case}: gradients, L2 of each tensor", math.nan, worst, "5e-03 relative",
                worst <= 5e-3, f"{compared} tensors; the worst {worst_name}",
            )
        )  # fmt: skip
    return rows


def _update_row(fixture, case, model, params, gradient):
    recorded = fixture.manifest["cases"][case]
    settings = recorded["optimizer"]
    tx = optimizer.make_optimizer(
        optimizer.OptimizerSettings(weight_decay=settings["weight_decay"], betas=tuple(settings["betas"])),
        epsilon=settings["eps"],
    )

    @jax.jit
    def update(params, gradient):
        updates, _ = tx.update(gradient, tx.init(params), params)
        return jax.tree.map(lambda p, u: p - settings["lr_used"] * u, params, updates)

    changes = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), update(params, gradient), params)
    gradients = upstream_arrays(model, gradient)
    skipped = set(recorded["params_with_zero_gradient_in_exact_arithmetic"])
    step = Comparison(fixture, f"{case}: changes of weights", absolute=2e-6)
    left_out = 0
    for name, array in upstream_arrays(model, changes).items():
        key = f"{case}/step/{name}"
        if name in skipped or key not in fixture:
            continue
        # The first step is almost the learning rate times the gradient's sign.
        clear = np.abs(fixture.sampled(key, gradients[name])) > 1e-5
        left_out += int((~clear).sum())
        step.add(fixture.sampled(key, array)[clear], fixture[key].reshape(-1)[clear])
    return step.row(f"{left_out} weights with a gradient below 1e-5 left out")
