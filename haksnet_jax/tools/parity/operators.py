"""Everything without weights that the detector is made of: boxes, coders, anchors, overlaps, suppression, pooling,
matching, losses, learning rate and optimiser."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from haksnet_jax.geometry import box_coders, boxes, nms
from haksnet_jax.geometry.anchors import anchor_grid, inside_image, level_shapes
from haksnet_jax.geometry.matching import match_anchors, match_proposals
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.geometry.rotated_iou import rotated_iou_matrix, rotated_iou_pairs
from haksnet_jax.kernels.roi_align import roi_levels, rotated_roi_align
from haksnet_jax.models import detection_loss as losses
from haksnet_jax.models.oriented_rcnn import BoxSettings
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Row, equal_row
from haksnet_jax.training import optimizer

PIXELS = 1e-3  # of the manifest; coordinates near 1000 px have 6e-5 px between neighbours in float32


_BOXES = BoxSettings()


def box_transform_rows(fixture: Fixture) -> list[Row]:
    """Conversions between polygons, oriented and axis-parallel boxes; angles."""
    corners = Comparison(fixture, "oriented boxes to corners, px", absolute=PIXELS)
    corners.add_stored("obb2poly", np.asarray(boxes.boxes_to_corners(fixture["obb"])).reshape(-1, 8))
    hboxes = Comparison(fixture, "oriented boxes to enclosing boxes, px", absolute=PIXELS)
    hboxes.add_stored("obb2xyxy", boxes.boxes_to_hboxes(fixture["obb"]))
    upright = Comparison(fixture, "axis-parallel to oriented boxes", relative=1e-5)
    upright.add_boxes(boxes.hboxes_to_boxes(fixture["hbb"]), fixture["hbb2obb"])
    angles = Comparison(fixture, "angles, rad", absolute=1e-5)
    plain = np.tile(np.array([0, 0, 2, 1, 0], np.float32), (len(fixture["norm_angle/in"]), 1))
    plain[:, 4] = fixture["norm_angle/in"]
    turn = boxes.to_le90(plain)[:, 4].astype(np.float64) - fixture["norm_angle/out_numpy_f64"]
    angles.add(turn - math.pi * np.round(turn / math.pi), np.zeros_like(turn), scale=math.pi / 2)
    ours, valid = polygons_to_boxes(fixture["poly2obb_np/polys"].reshape(-1, 4, 2), min_side=2.0)
    kept = valid & (fixture["poly2obb_np/valid"] > 0)
    rectangles = Comparison(fixture, "polygons to oriented boxes", absolute=PIXELS, relative=1e-5)
    rectangles.add_boxes(ours[kept], fixture["poly2obb_np/obbs"][kept])
    return [
        corners.row(),
        hboxes.row(),
        upright.row(),
        angles.row("modulo pi"),
        equal_row(fixture, "polygons that are boxes", [(valid, fixture["poly2obb_np/valid"] > 0)]),
        rectangles.row(),
    ]


def midpoint_coder_rows(fixture: Fixture) -> list[Row]:
    """Coder of the RPN."""
    encoded = Comparison(fixture, "encoding", absolute=2e-4)
    encoded.add_stored(
        "encode/deltas",
        box_coders.encode_midpoint_offset(fixture["encode/anchors"], fixture["encode/gts"], _BOXES.rpn_stds),
    )
    decoded = Comparison(fixture, "decoding", relative=1e-5)
    for kind, deltas, key in (
        ("encode", "encode/deltas", "encode/decoded_back"),
        ("decode", "decode/deltas", "decode/boxes"),
    ):
        found = box_coders.decode_midpoint_offset(fixture[f"{kind}/anchors"], fixture[deltas], _BOXES.rpn_stds)
        decoded.add_boxes(found, fixture[key])
    noise = fixture.manifest["f32_vs_f64_max_abs"]
    return [encoded.row(f"the reference's own rounding is {noise:.1e}"), decoded.row()]


def delta_coder_rows(fixture: Fixture) -> list[Row]:
    """Coder of the RoI head."""
    rois, gts = fixture["encode/rois"], fixture["encode/gts"]
    ours, theirs = np.array(box_coders.encode_delta_xywha(rois, gts, _BOXES.roi_stds)), fixture["encode/deltas"]
    # At an eighth of a turn rounding decides which side counts as the width: both descriptions are right.
    turn = np.abs(gts[:, 4].astype(np.float64) - rois[:, 4])
    decided = (turn + math.pi / 4) % (math.pi / 2)
    decided = np.minimum(decided, math.pi / 2 - decided) < 1e-5
    encoded = Comparison(fixture, "encoding", absolute=1e-5, relative=1e-5)
    encoded.add(ours[~decided], theirs[~decided], scale=np.maximum(np.abs(theirs[~decided]), 1))
    decoded = Comparison(fixture, "decoding", relative=1e-5)
    decoded.add_boxes(box_coders.decode_delta_xywha(rois, theirs, _BOXES.roi_stds), fixture["encode/decoded_back"])
    for key in fixture:
        if key.startswith("decode/boxes_"):
            size = key.rpartition("max_shape_")[2] if "max_shape_" in key else ""
            size = tuple(map(int, size.split("x"))) if "x" in size else None
            found = box_coders.decode_delta_xywha(
                fixture["decode/rois"], fixture["decode/deltas"], _BOXES.roi_stds, image_size=size
            )
            decoded.add_boxes(found, fixture[key])
    return [encoded.row(f"{decided.sum()} at an eighth of a turn left out"), decoded.row()]


def anchor_rows(fixture: Fixture) -> list[Row]:
    """Anchors of all levels, and which lie inside the image."""
    settings = fixture.manifest["cases"]
    strides = tuple(stride[0] for stride in settings["strides"])
    options = {"strides": strides, "scale": settings["scales"][0], "ratios": tuple(settings["ratios"])}
    grids = Comparison(fixture, "anchors")
    flags = []
    for case in fixture.cases():
        if case == "base":
            continue
        shapes = settings[case]["featmap_sizes"] if case == "flags" else settings[case]
        image_shape = [side * strides[0] for side in shapes[0]]
        found = level_shapes(image_shape, strides)
        if [list(shape) for shape in found] != [list(shape) for shape in shapes]:
            raise ValueError(f"{case}: levels of {found}, the reference's are {shapes}")
        levels = np.split(
            anchor_grid(image_shape, **options), np.cumsum([len(options["ratios"]) * h * w for h, w in shapes])[:-1]
        )
        for i, anchors in enumerate(levels):
            if case == "flags":
                inside = inside_image(anchors, settings[case]["img_shape"])
                flags.append((inside, fixture[f"flags/level{i}_inside"].astype(bool)))
            else:
                grids.add_stored(f"{case}/level{i}", anchors)
                grids.add(anchors[:24], fixture[f"{case}/level{i}_first24"])
                grids.add(anchors[-24:], fixture[f"{case}/level{i}_last24"])
    return [grids.row("bit for bit"), equal_row(fixture, "inside the image", flags)]


def iou_rows(fixture: Fixture) -> list[Row]:
    """Overlaps of oriented boxes against exact polygons."""
    ours = np.asarray(jax.jit(rotated_iou_pairs)(fixture["pairs/a"], fixture["pairs/b"]))
    exact = Comparison(fixture, "pairs, against exact polygons", absolute=1e-5)
    exact.add(ours, fixture["pairs/exact_iou"])
    off = np.abs(fixture["pairs/iou"] - fixture["pairs/exact_iou"]) > 1e-4
    kinds = [group["kind"] for group in fixture.manifest["groups"] if off[slice(*group["rows"])].any()]
    note = f"the reference itself is wrong by more than 1e-4 in {off.sum()} pairs: {', '.join(kinds)}" if kinds else ""
    agreeing = Comparison(fixture, "pairs, against the reference", absolute=1e-4)
    agreeing.add(ours[~off], fixture["pairs/iou"][~off])
    matrix = Comparison(fixture, "two sets, against the reference", absolute=1e-5)
    matrix.add_stored("matrix/iou", jax.jit(rotated_iou_matrix)(fixture["matrix/a"], fixture["matrix/b"]))
    return [exact.row(note), agreeing.row("where the reference is right"), matrix.row()]


_STATIC = ("iou_threshold", "max_outputs", "block_size")
_horizontal = jax.jit(nms.nms_horizontal, static_argnames=_STATIC)
_rotated = jax.jit(nms.nms_rotated, static_argnames=_STATIC)


def _kept(result):
    index, kept, _ = map(np.asarray, result)
    return index[kept]


def _sorted_rows(*columns):
    """Rows by descending score, the first column; those of equal score, which come in any order, by their values."""
    table = np.concatenate([np.asarray(column, np.float64).reshape(len(columns[0]), -1) for column in columns], axis=1)
    return table[np.lexsort((*table.T[:0:-1], -table[:, 0]))]


def nms_rotated_rows(fixture: Fixture) -> list[Row]:
    """Suppression of oriented boxes, alone and by class."""
    pairs = []
    by_class = []
    for case in fixture.cases():
        settings = fixture.manifest["cases"].get(case, {})
        all_boxes, scores = fixture[f"{case}/boxes"], fixture[f"{case}/scores"]
        if scores.ndim == 1:
            threshold = settings.get("threshold", 0.1)
            kept = _kept(
                _rotated(all_boxes, scores, np.isfinite(scores), iou_threshold=threshold, max_outputs=len(scores))
            )
            theirs = fixture[f"{case}/keep"]
            # Copies of a box: any one of them may survive.
            pairs.append((_sorted_rows(scores[kept], all_boxes[kept]), _sorted_rows(scores[theirs], all_boxes[theirs])))
            continue
        scores = scores[:, :-1]  # the background is the last column
        box_index, labels = (x.reshape(-1).astype(np.int32) for x in np.indices(scores.shape))
        scores = scores.reshape(-1)
        kept = _kept(
            _rotated(
                all_boxes[box_index],
                scores,
                scores > settings["score_thr"],
                iou_threshold=settings["iou_thr"],
                max_outputs=settings["max_num"],
                groups=labels,
                block_size=2048,
            )
        )
        dets = fixture[f"{case}/dets"]
        by_class.append(
            (
                _sorted_rows(scores[kept], labels[kept], all_boxes[box_index[kept]]),
                _sorted_rows(dets[:, 5], fixture[f"{case}/labels"], dets[:, :5]),
            )
        )
    return [equal_row(fixture, "kept boxes", pairs), equal_row(fixture, "kept boxes by class", by_class)]


def nms_horizontal_rows(fixture: Fixture) -> list[Row]:
    """Suppression of axis-parallel boxes, alone and by level."""
    pairs = []
    for case in fixture.cases():
        hboxes, scores = fixture[f"{case}/boxes"], fixture[f"{case}/scores"]
        levels = fixture[f"{case}/levels"].astype(np.int32) if f"{case}/levels" in fixture else None
        threshold = fixture.manifest["cases"][case]["threshold"]
        kept = _kept(
            _horizontal(
                hboxes, scores, np.isfinite(scores), iou_threshold=threshold, max_outputs=len(scores), groups=levels
            )
        )
        theirs = fixture[f"{case}/keep"]
        pairs.append((_sorted_rows(scores[kept], hboxes[kept]), _sorted_rows(scores[theirs], hboxes[theirs])))
    return [equal_row(fixture, "kept boxes", pairs)]


# Sample positions near 250 features are rounded to 1.5e-5 on both sides, times the slope of the features; the manifests
# allow 1e-4 forward and 1e-3 backward.
_POOLED = {"absolute": 2e-5, "relative": 1e-5}
_POOL_STATIC = ("strides", "output_size", "samples_per_bin")


@functools.partial(jax.jit, static_argnames=_POOL_STATIC)
def _pool_and_back(features, rois_boxes, levels, valid, cotangent, **settings):
    """Pooled features of RoIs of several images (valid [B, R]: whose they are), and gradients of the features."""

    def pool(features):
        pool_image = functools.partial(rotated_roi_align, boxes=rois_boxes, levels=levels, **settings)
        return jax.vmap(lambda f, v: pool_image(f, valid=v))(features, valid).sum(axis=0)

    pooled, back = jax.vjp(pool, features)
    return pooled, back(cotangent)[0]


def _channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def _channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def roi_align_rows(fixture: Fixture) -> list[Row]:
    """Rotated RoIAlign, forward and backward, for the settings that it has."""
    rois, features = fixture["rois"], _channels_last(fixture["features"])
    valid = rois[:, 0] == np.arange(len(features))[:, None]
    pooled, gradients = (Comparison(fixture, what, **_POOLED) for what in ("pooled features", "gradients"))
    left_out = []
    make_input = fixture.reference_weights().make_input
    for case, settings in fixture.manifest["cases"].items():
        if not isinstance(settings, dict):
            continue
        if not settings["aligned"] or settings["sampling_ratio"] < 1:
            left_out.append(case)
            continue
        shape = fixture.manifest["arrays"][f"{case}/output"]["shape"]
        if list(fixture["grad_output"].shape) == shape:
            cotangent = fixture["grad_output"]
        else:
            cotangent = make_input(settings["grad_output_seed"], shape)
        turned = rois[:, 1:] * np.array([1, 1, 1, 1, 1 if settings["clockwise"] else -1], np.float32)
        output, gradient = _pool_and_back(
            (features,),
            turned,
            np.zeros(len(rois), np.int32),
            valid,
            _channels_last(cotangent),
            strides=(round(1 / settings["spatial_scale"]),),
            output_size=tuple(settings["output_size"]),
            samples_per_bin=settings["sampling_ratio"],
        )
        pooled.add_stored(f"{case}/output", _channels_first(output))
        gradients.add_stored(f"{case}/grad_features", _channels_first(gradient[0]))
    note = f"{', '.join(left_out)}: settings that no configuration has" if left_out else ""
    return [pooled.row(note), gradients.row()]


def roi_extractor_rows(fixture: Fixture) -> list[Row]:
    """Levels of RoIs, pooling over levels, and gradients."""
    manifest, rois = fixture.manifest, fixture["rois"]
    make_input = fixture.reference_weights().make_input
    shapes = manifest["feature_shapes"]
    features = tuple(
        _channels_last(make_input(seed, shape)) for seed, shape in zip(manifest["feature_seeds"], shapes, strict=True)
    )
    cotangent = _channels_last(make_input(manifest["grad_output"]["seed"], manifest["grad_output"]["shape"]))
    levels = np.asarray(roi_levels(jnp.asarray(rois[:, 1:]), num_levels=len(shapes)))
    valid = rois[:, 0] == np.arange(shapes[0][0])[:, None]
    output, gradients = _pool_and_back(features, rois[:, 1:], levels, valid, cotangent)
    pooled, back = (Comparison(fixture, what, **_POOLED) for what in ("pooled features", "gradients"))
    pooled.add_stored("output", _channels_first(output))
    for level, gradient in enumerate(gradients):
        back.add_stored(f"grad_level{level}", _channels_first(gradient))
    return [equal_row(fixture, "levels", [(levels, fixture["levels"])]), pooled.row(), back.row()]


def _assigned(matches):
    return np.where(matches.positive, np.asarray(matches.gt_index) + 1, np.where(matches.negative, 0, -1))


def assigner_rows(fixture: Fixture) -> list[Row]:
    """Which object each anchor and each proposal belongs to."""
    rows = []
    for stage in ("rpn", "roi"):
        settings = fixture.manifest[stage]
        pairs, overlaps = [], Comparison(fixture, f"{stage}: best overlaps", absolute=1e-5)
        for case in fixture.cases(f"{stage}_"):
            candidates, gts = fixture[f"{case}/boxes"], fixture[f"{case}/gts"]
            # One row more than there are objects: the detector's lists are padded, and never of length 0.
            there = np.arange(len(gts) + 1) < len(gts)
            width = 4 if stage == "rpn" else 5
            gts = np.concatenate([gts.reshape(-1, width), np.zeros((1, width), np.float32)])
            if stage == "rpn":
                matches = match_anchors(
                    candidates,
                    gts,
                    there,
                    np.ones(len(candidates), bool),
                    positive_iou=settings["pos_iou_thr"],
                    negative_iou=settings["neg_iou_thr"],
                    min_positive_iou=settings["min_pos_iou"],
                )
            else:
                iou = rotated_iou_matrix(candidates, gts)
                matches = match_proposals(
                    iou, np.ones(len(candidates), bool), there, positive_iou=settings["pos_iou_thr"]
                )
            pairs.append((_assigned(matches), fixture[f"{case}/gt_inds"]))
            overlaps.add(matches.iou, fixture[f"{case}/max_overlaps"])
        rows += [equal_row(fixture, f"{stage}: objects", pairs), overlaps.row()]
    return rows


def loss_rows(fixture: Fixture) -> list[Row]:
    """Each loss and its gradient."""
    values, gradients = (Comparison(fixture, what, relative=1e-5) for what in ("values", "gradients"))
    divisor = fixture.manifest["avg_factor"]
    settings = losses.LossSettings()
    for name, expected in fixture.manifest["values"].items():
        weights = jnp.asarray(fixture[f"{name}/weights"])
        prediction = jnp.asarray(fixture[f"{name}/logits" if name.endswith("cls") else f"{name}/pred"])

        def loss(prediction, name=name, weights=weights):
            if name == "rpn_cls":  # there the label 0 is the object and 1 the background
                targets = 1.0 - fixture[f"{name}/labels"].reshape(prediction.shape)
                each = losses.sigmoid_cross_entropy(prediction, targets)
                weights = weights.reshape(prediction.shape)
            elif name == "roi_cls":
                each = losses.softmax_cross_entropy(prediction, jnp.asarray(fixture[f"{name}/labels"]))
            else:
                beta = settings.rpn_beta if name == "rpn_bbox" else settings.roi_beta
                each = losses.smooth_l1(prediction - fixture[f"{name}/target"], beta)
            return (each * weights).sum() / divisor

        value, gradient = jax.value_and_grad(loss)(prediction)
        values.add(value, expected)
        gradients.add_stored(f"{name}/grad", gradient)
    return [values.row(), gradients.row()]


def schedule_rows(fixture: Fixture) -> list[Row]:
    """Learning rate over the steps."""
    manifest, config = fixture.manifest, fixture.manifest["lr_config"]
    rates = Comparison(fixture, "learning rate", relative=1e-6)
    for recorded in manifest["runs"].values():
        settings = optimizer.OptimizerSettings(
            schedule=config["policy"],
            drop_epochs=config["step"],
            drop_factor=config.get("gamma", 0.1),
            warmup_steps=config["warmup_iters"],
            warmup_ratio=config["warmup_ratio"],
            max_warmup_fraction=1.0,  # the reference knows no such limit
        )
        rate, _ = optimizer.learning_rate_schedule(
            settings,
            manifest["base_lr"],
            num_steps=recorded["iters_per_epoch"] * recorded["epochs"],
            steps_per_epoch=recorded["iters_per_epoch"],
        )
        for step, expected in recorded["lr"].items():
            rates.add(rate(int(step)), expected)
    return [rates.row()]


def optimizer_rows(fixture: Fixture) -> list[Row]:
    """AdamW with clipping, step by step."""
    manifest = fixture.manifest
    make_input = fixture.reference_weights().make_input
    tx = optimizer.make_optimizer(optimizer.OptimizerSettings())
    params = [jnp.asarray(fixture[f"start/{i}"]) for i in range(len(manifest["shapes"]))]
    state = tx.init(params)
    norms, weights = (
        Comparison(fixture, what, relative=1e-5) for what in ("gradient norms", "weights after each step")
    )
    for step, scale in enumerate(manifest["scale"]):
        gradients = [
            jnp.asarray(make_input(manifest["grad_seed"] + 10 * step + i, shape, scale))
            for i, shape in enumerate(manifest["shapes"])
        ]
        norms.add(optax.tree.norm(gradients), manifest["grad_norm_before_clip"][step])
        updates, state = tx.update(gradients, state, params)
        params = [p - manifest["lrs"][step] * u for p, u in zip(params, updates, strict=True)]
        for i, value in enumerate(params):
            weights.add(value, fixture[f"step{step}/{i}"])
    return [norms.row(), weights.row()]
