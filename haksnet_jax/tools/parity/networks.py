"""Everything with weights: blocks, backbones, pyramid and RPN, inference, training, initial weights, checkpoints."""

import functools
import json
import math
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.geometry.anchors import STRIDES, inside_image, level_shapes
from haksnet_jax.geometry.box_coders import decode_delta_xywha
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.geometry.matching import Samples
from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs
from haksnet_jax.kernels.roi_align import roi_levels
from haksnet_jax.models import detection_loss as losses
from haksnet_jax.models import layers
from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.models.oriented_rcnn import PIXEL_MEAN, PIXEL_STD
from haksnet_jax.models.roi_head import select_detections
from haksnet_jax.pipeline import transforms
from haksnet_jax.structures import GroundTruth, Proposals
from haksnet_jax.tools.parity.rows import Comparison, Found, Limits, Row, equal_row, found_rows, match_boxes
from haksnet_jax.training import optimizer
from haksnet_jax.weights import convert, model_folder
from haksnet_jax.weights.torch_weights import entries, from_torch, read_architecture

NETWORK = 1e-4  # of a tensor's largest value, float32
ROUNDED_LIMITS = Limits(score=0.02, iou=0.95, pixels=0.0)  # bfloat16, for detections above ROUNDED_SCORE
ROUNDED_SCORE, ROUNDED_SHARE = 0.3, 0.03


def model_of(state_dict, **options):
    """An OrientedRCNN that holds upstream's weights. Args: state_dict {name: array}; **options of OrientedRCNN."""
    architecture = read_architecture(state_dict)
    arrays, report = from_torch(state_dict, architecture)
    if report.missing or report.mismatched or report.unexpected:
        raise ValueError(f"the weights do not fit: {report.text()}")
    return _filled(architecture, arrays, **options)


def _filled(architecture, arrays, **options):
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
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    filled = [model_folder.fill(nnx.as_pure(state), arrays, what="reference weights") for state in (params, stats)]
    return nnx.merge(graph, *jax.device_put(filled))


def reference_model(fixture, variant, **options):
    """The detector with the reference's weights for one variant of a fixture."""
    listed = json.loads((fixture.folder / f"state_dict_{variant}.json").read_text())["entries"]
    weights = fixture.reference_weights().make_state_dict(listed, salt=fixture.manifest.get("salt", ""))
    return model_of(weights, **options)


def _nhwc(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def _nchw(x):
    return np.moveaxis(np.asarray(x, np.float32), -1, 1)


def _rgb(path):
    pixels = cv2.imread(str(path))
    if pixels is None:
        raise ValueError(f"{path} cannot be read as an image")
    return pixels[..., ::-1]


def _normalized(pixels):
    return ((pixels.astype(np.float32) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD))[None]


# Blocks and backbones


def _block_module(name, weights, shape):
    """(module, upstream's prefix, our prefix, architecture that names its weights) of a block; None if fused."""
    channels = shape[1]
    make = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    architecture = {"channels": [channels], "depths": [1], "mlp_ratios": [1]}
    theirs, ours = "backbone.block1.0.", "backbone.stages.0.blocks."
    if name.startswith("patch_embed"):
        channels_out, channels_in, size, _ = weights["proj.weight"].shape
        stage = 0 if size == 7 else 1
        module = haksnet.PatchEmbedding(channels_in, channels_out, size=size, stride=4 if size == 7 else 2, **make)
        widths = [channels_out] if stage == 0 else [channels_in, channels_out]
        architecture = {"channels": widths, "depths": [0] * len(widths), "mlp_ratios": [1] * len(widths)}
        theirs, ours = f"backbone.patch_embed{stage + 1}.", f"backbone.stages.{stage}.patch_embed."
    elif name.startswith("rsblock"):
        hidden = weights["linear1.weight"].shape[0] // 2
        architecture["mlp_ratios"] = [hidden / channels]
        module = haksnet.RedundancySuppression(channels, hidden, **make)
        theirs, ours = theirs + "mlp.", ours + "mlp."
    elif name.startswith("seexpansion"):
        module = haksnet.ChannelMixing(channels, **make)
        theirs, ours = theirs + "attn.channe_mix.", ours + "attention.channel_mixing."
    elif name.startswith("kssblock"):
        module = haksnet.KernelSelection(channels, **make)
        theirs, ours = theirs + "attn.spatial_mix.", ours + "attention.kernel_selection."
    elif name.startswith("atten"):
        module = haksnet.Attention(channels, **make)
        theirs, ours = theirs + "attn.", ours + "attention."
    elif name.startswith("block"):
        ratio = weights["mlp.linear1.weight"].shape[0] // (2 * channels)
        architecture["mlp_ratios"] = [ratio]
        module = haksnet.Block(channels, ratio, **make)
    else:
        return None
    return module, theirs, ours, architecture | {"fpn_channels": None, "hidden": None, "num_classes": None}


def block_rows(fixture):
    """Every block: output, and for those recorded with gradients these, and batch statistics."""
    rows, fused = [], []
    for name, manifest in fixture.manifest["blocks"].items():
        reference = fixture.reference_weights()
        weights = reference.make_state_dict(
            manifest["entries"], salt=fixture.manifest.get("salt", ""), prefix=manifest["weight_prefix"]
        )
        found = _block_module(name, weights, fixture[f"{name}/input"].shape)
        if found is None:
            fused.append(name)
            continue
        module, theirs, ours, architecture = found
        named = {}
        for entry in entries(architecture):
            short = entry.theirs.removeprefix(theirs)
            if short != entry.theirs and short in weights:
                named[short] = (entry, entry.ours.removeprefix(ours))
        arrays = {our: entry.layout.to_ours(weights[short], entry.scope) for short, (entry, our) in named.items()}
        graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        params, stats = (
            model_folder.fill(nnx.as_pure(state), arrays, what=f"{fixture.name}, {name}") for state in (params, stats)
        )
        train = manifest.get("mode") == "train"
        # The parts of a block know no training mode: they hold no norms.
        options = {"train": train} if name.startswith(("block", "patch_embed")) else {}

        def forward(params, x, graph=graph, stats=stats, options=options):
            module = nnx.merge(graph, params, stats)
            return module(x, **options), nnx.as_pure(nnx.state(module, nnx.BatchStat))

        outputs = Comparison(fixture, f"{name}: output", relative=1e-5)
        x = jnp.asarray(_nhwc(fixture[f"{name}/input"]))
        if f"{name}/grad_output" in fixture:

            def with_gradient(params, x, back, forward=forward):
                output, pull, new = jax.vjp(forward, params, x, has_aux=True)
                return output, pull(back), new

            back = jnp.asarray(_nhwc(fixture[f"{name}/grad_output"]))
            output, (gradient, input_gradient), new_stats = jax.jit(with_gradient)(params, x, back)
            gradients = Comparison(fixture, f"{name}: gradients", relative=1e-4)
            gradients.add_stored(f"{name}/grad_input", _nchw(input_gradient))
            flat = model_folder.flatten(gradient)
            for short, (entry, our) in named.items():
                if f"{name}/grad/{short}" in fixture:
                    gradients.add_stored(
                        f"{name}/grad/{short}", entry.layout.to_torch(np.asarray(flat[our]), entry.scope)
                    )
        else:
            output, new_stats = jax.jit(forward)(params, x)
            gradients = None
        outputs.add_stored(f"{name}/output", _nchw(output))
        rows.append(outputs.row())
        if gradients:
            rows.append(gradients.row())
        after = [short for short in named if f"{name}/after/{short}" in fixture]
        if after:
            statistics = Comparison(fixture, f"{name}: batch statistics", relative=1e-5)
            flat = model_folder.flatten(new_stats)
            for short in after:
                statistics.add_stored(f"{name}/after/{short}", flat[named[short][1]])
            rows.append(statistics.row())
    if fused and rows:
        rows[-1] = rows[-1]._replace(note=f"{', '.join(fused)}: no module of ours, seen in the outputs of the others")
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _call(graph, state, x):
    return nnx.merge(graph, state)(x)


@functools.partial(jax.jit, static_argnums=0)
def _call_evaluating(graph, state, x):
    return nnx.merge(graph, state)(x, train=False)


def backbone_rows(fixture):
    """Stage outputs of whole backbones; outputs of every block, and statistics after training, where recorded."""
    rows = []
    for case, settings in fixture.manifest["cases"].items():
        given = settings["input"]
        if given["rule"] == "make_input":
            images = _nhwc(fixture.reference_weights().make_input(given["seed"], given["shape"]))
        else:
            images = _normalized(_rgb(fixture.folder / given["file"]))
        model = reference_model(fixture, settings["variant"], drop_path_rate=0.0)
        stages = Comparison(fixture, f"{case}: stages", relative=NETWORK)
        for i, output in enumerate(_call(*nnx.split(model.backbone), images)):
            stages.add_stored(f"{case}/stage{i + 1}", _nchw(output))
        rows.append(stages.row())
        if any(key.startswith(f"{case}/inner/") for key in fixture):
            rows.append(_inner_blocks(fixture, case, model.backbone, images))
        if f"{case}_train/stage1" in fixture:
            rows += _backbone_in_training(fixture, f"{case}_train", model, images)
    return rows


def _inner_blocks(fixture, case, backbone, x):
    inner = Comparison(fixture, f"{case}: every block", relative=NETWORK)
    x = jnp.asarray(x)
    for i, stage in enumerate(backbone.stages):
        x = _call_evaluating(*nnx.split(stage.patch_embed), x)
        inner.add_stored(f"{case}/inner/patch_embed{i + 1}", _nchw(x))
        graph, blocks = nnx.split(stage.blocks)
        for j in range(stage.depth):
            x = _call_evaluating(graph, jax.tree.map(lambda leaf, j=j: leaf[j], blocks), x)
            inner.add_stored(f"{case}/inner/block{i + 1}.{j}", _nchw(x))
        x = _call(*nnx.split(stage.norm), x)
    return inner.row()


@functools.partial(jax.jit, static_argnums=0)
def _call_training(graph, state, x):
    module = nnx.merge(graph, state)
    return module(x, train=True), nnx.as_pure(nnx.state(module))


def _backbone_in_training(fixture, case, model, images):
    outputs, state = _call_training(*nnx.split(model.backbone), images)
    stages = Comparison(fixture, f"{case}: stages", relative=NETWORK)
    for i, output in enumerate(outputs):
        stages.add_stored(f"{case}/stage{i + 1}", _nchw(output))
    statistics = Comparison(fixture, f"{case}: batch statistics", relative=1e-5)
    for name, array in _upstream_arrays(model, {"backbone": state}).items():
        key = f"{case}/after/{name.removeprefix('backbone.')}"
        if key in fixture:
            statistics.add_stored(key, array)
    return [stages.row(), statistics.row()]


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


def _upstream_arrays(model, state=None):
    """{upstream's name: array in upstream's layout} of a model's variables, or of a tree shaped like them."""
    flat = model_folder.flatten(nnx.state(model) if state is None else state)
    result = {}
    for entry in entries(_architecture(model)):
        if entry.ours in flat:
            array = np.asarray(flat[entry.ours])
            array = array if entry.block is None else array[entry.block]
            result[entry.theirs] = entry.layout.to_torch(array, entry.scope)
    return result


def drop_path_rows(fixture):
    """Stochastic depth, given the recorded decisions, and its rates over the blocks."""
    x, mask = jnp.asarray(fixture["x"]), fixture["kept_mask"].astype(bool)
    kept_share = float(np.max(np.abs(fixture["y"]) / np.maximum(np.abs(fixture["x"]), 1e-30)))
    rate = 1 - 1 / kept_share
    drawn = jax.random.bernoulli
    try:
        jax.random.bernoulli = lambda key, keep, shape: jnp.asarray(mask).reshape(shape)
        scaled = layers.drop_path(x, rate, None)
    finally:
        jax.random.bernoulli = drawn
    outputs = Comparison(fixture, "scaled samples", relative=1e-6)
    outputs.add(scaled, fixture["y"])
    rates = Comparison(fixture, "rates over the blocks", absolute=1e-6)
    for name, size in haksnet.SIZES.items():
        recorded = fixture.manifest["schedule"].get(name)
        if recorded is not None:
            rates.add(np.linspace(0, recorded[-1], sum(size.depths)), recorded)
    return [outputs.row(f"at the recorded rate {rate:.3g}"), rates.row()]


# Pyramid, RPN, inference


def _to_upstream_levels(values, shapes, per_anchor):
    """[B, A, ...] of all levels to a list of [B, 3 * per_anchor, H_l, W_l], as upstream's head gives them."""
    values = np.asarray(values)
    ends = np.cumsum([3 * h * w for h, w in shapes])
    parts = np.split(values.reshape(*values.shape[:2], per_anchor), ends[:-1], axis=1)
    return [_nchw(part.reshape(len(values), h, w, 3 * per_anchor)) for part, (h, w) in zip(parts, shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _neck_and_rpn(graph, state, maps):
    model = nnx.merge(graph, state)
    levels = model.fpn(maps)
    return levels, *model.rpn(levels)


def _variant_of(case, folder):
    """The variant that a case is named after: "tiny_even" -> "tiny"."""
    names = sorted((path.stem.removeprefix("state_dict_") for path in folder.glob("state_dict_*.json")), key=len)
    fitting = [name for name in names if case == name or case.startswith(f"{name}_")]
    if not fitting:
        raise ValueError(f"no state_dict_*.json in {folder} for the case {case}")
    return fitting[-1]


def neck_rpn_rows(fixture):
    """FPN levels and outputs of the RPN on recorded maps of even and odd sizes."""
    rows = []
    make_input = fixture.reference_weights().make_input
    for case, settings in fixture.manifest["cases"].items():
        model = reference_model(fixture, settings.get("variant") or _variant_of(case, fixture.folder))
        maps = [_nhwc(make_input(settings["seed"] + i, shape)) for i, shape in enumerate(settings["shapes"])]
        levels, logits, deltas = _neck_and_rpn(*nnx.split(model), maps)
        shapes = [level.shape[1:3] for level in levels]
        comparisons = [Comparison(fixture, f"{case}: {what}", relative=NETWORK) for what in ("FPN", "RPN")]
        for i, level in enumerate(levels):
            comparisons[0].add_stored(f"{case}/fpn{i}", _nchw(level))
        for i, (cls, reg) in enumerate(
            zip(_to_upstream_levels(logits, shapes, 1), _to_upstream_levels(deltas, shapes, 6), strict=True)
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
    proposals = model.proposals(logits, deltas, images.shape[1:3])
    return model.normalize(images, image_size), levels, logits, deltas, proposals


@functools.partial(jax.jit, static_argnums=0)
def _second_stage(graph, state, levels, boxes, valid):
    """Returns: (pooled features, logits, deltas) for boxes [1, R, 5]."""
    head = nnx.merge(graph, state).roi_head
    return head.pool(levels, boxes, valid), *head(levels, boxes, valid)


_select = jax.jit(select_detections)


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


def inference_rows(fixture, dtype=jnp.float32):
    """Inference stage by stage, each also on the reference's inputs to it, and as a whole.

    Args:
      fixture: Fixture.
      dtype: bfloat16 compares the detections alone, with the tolerances for it.
    """
    rows = []
    pixels = _rgb(fixture.folder / fixture.manifest["image"])
    models = {}
    for case, settings in fixture.manifest["cases"].items():
        variant = settings["variant"]
        if variant not in models:
            models[variant] = reference_model(fixture, variant, dtype=dtype)
        image = pixels
        if "crop" in settings:
            top, bottom, left, right = map(int, re.search(r"(\d+):(\d+), *(\d+):(\d+)\]", settings["crop"]).groups())
            image = pixels[top:bottom, left:right]
        scale = np.broadcast_to(np.asarray(settings["scale_factor"], np.float32), (4,))[:2]
        rows += _one_inference(fixture, f"{case}/", f"{case}: ", models[variant], image, image.shape[:2], scale, dtype)
    return rows


def pipeline_rows(fixture, dtype=jnp.float32):
    """The configured test pipeline: resizing, normalising, padding, the detector, scaling back."""
    manifest = fixture.manifest
    variant = manifest.get("variant") or _variant_of(fixture.name.removeprefix("inference_pipeline_"), fixture.folder)
    pixels = _rgb(fixture.folder / manifest["image"])
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
    pooled, roi_logits, roi_deltas = _second_stage(graph, state, levels, proposals.boxes, proposals.valid)
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
        if key in fixture and fixture.manifest["arrays"][key]["shape"] == list(_nchw(normalized).shape):
            network_input = Comparison(fixture, f"{what}network input", relative=1e-5)
            network_input.add_stored(key, _nchw(normalized))
            rows.append(network_input.row())
            break
    pyramid = Comparison(fixture, f"{what}FPN", relative=NETWORK)
    for i, level in enumerate(levels):
        pyramid.add_stored(f"{prefix}fpn{i}", _nchw(level))
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
        # Fed with the recorded proposals: their order, and so every row, is the reference's.
        padding = proposals.boxes.shape[1] - len(recorded)
        fed = Proposals(
            jnp.asarray(np.pad(recorded[None, :, :5], ((0, 0), (0, padding), (0, 0)))),
            jnp.asarray(np.pad(recorded[None, :, 5], ((0, 0), (0, padding)))),
            jnp.arange(proposals.boxes.shape[1])[None] < len(recorded),
        )
        pooled, fed_logits, fed_deltas = (
            np.asarray(x[0][: len(recorded)]) for x in _second_stage(graph, state, levels, fed.boxes, fed.valid)
        )
        rows.append(
            equal_row(fixture, f"{what}RoI levels", [(roi_levels(recorded[:, :5]), fixture[f"{prefix}roi_levels"])])
        )
        features, head = (
            Comparison(fixture, f"{what}{part}", relative=NETWORK) for part in ("RoI features", "RoI logits and deltas")
        )
        features.add_stored(f"{prefix}roi_feats", _nchw(pooled))
        head.add_stored(f"{prefix}roi_cls_logits", fed_logits)
        head.add_stored(f"{prefix}roi_deltas", fed_deltas)
        decoded = Comparison(fixture, f"{what}decoded boxes", relative=1e-5)
        decoded.add_boxes(
            decode_delta_xywha(recorded[:, :5], fixture[f"{prefix}roi_deltas"], image_size=image_size),
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
        rows += found
    found, _ = found_rows(fixture, f"{what}detections", ours, theirs, causes=differing, **settings)
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


# Training


def train_step_rows(fixture):
    """One step of training with the recorded proposals and samples: assignments, losses, gradients, update."""
    manifest = fixture.manifest
    variant = manifest.get("variant") or _variant_of(fixture.name.removeprefix("train_step_"), fixture.folder)
    height, width = manifest["train_hw"]
    pixels = _rgb(fixture.folder / manifest["image"])
    images = jnp.asarray(np.stack([pixels[:height, :width], pixels[-height:, -width:]]))
    rows = []
    compiled = {}
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

    def step(params, images, truth, rpn_index, rpn_samples, boxes, roi_index, roi_samples):
        def total(params):
            model = nnx.merge(graph, params, stats)
            levels = model.features(images, truth.image_size, train=True)
            logits, deltas = jax.lax.stop_gradient(model.rpn(levels))
            at_samples = model.rpn.at(levels, rpn_samples.index)
            rpn = losses.rpn_losses(*at_samples, anchors, rpn_index, rpn_samples, truth)
            roi_logits, roi_deltas = model.roi_head(levels, boxes, roi_samples.valid)
            *roi, accuracy = losses.roi_losses(roi_logits, roi_deltas, boxes, roi_index, roi_samples, truth)
            outputs = (*rpn, *roi, accuracy, logits, deltas, roi_logits, roi_deltas)
            return sum(rpn) + sum(roi), (outputs, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        (loss, (outputs, new_stats)), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return loss, outputs, new_stats, gradient

    return jax.jit(step)


def _train_case(fixture, case, model, images, compiled):
    recorded = fixture.manifest["cases"][case]
    num_images, image_shape = images.shape[0], images.shape[1:3]
    num_rows = max(1, *(max(one["num_gts"]) for one in fixture.manifest["cases"].values()))
    truth = _recorded_truth(fixture, case, num_images, image_shape, num_rows)
    anchors = model.anchors(image_shape)
    rows = _assignment_rows(fixture, case, anchors, truth, compiled)

    rpn_samples, rpn_index = [], np.zeros((num_images, len(anchors)), np.int32)
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

    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = nnx.as_pure(params), nnx.as_pure(stats)
    if "step" not in compiled:  # the cases differ in their numbers alone
        compiled["step"] = _make_injected_step(graph, stats, jnp.asarray(anchors))
    loss, outputs, new_stats, gradient = compiled["step"](
        params,
        images,
        truth,
        jnp.asarray(rpn_index),
        _stacked_samples(rpn_samples),
        jnp.asarray(np.stack(roi_boxes)),
        jnp.asarray(np.stack(roi_index)),
        _stacked_samples(roi_samples),
    )
    *ours, accuracy, logits, deltas, roi_logits, roi_deltas = outputs

    network = Comparison(fixture, f"{case}: RPN and RoI outputs", relative=NETWORK)
    shapes = recorded["featmap_sizes"]
    for i, (cls, reg) in enumerate(
        zip(_to_upstream_levels(logits, shapes, 1), _to_upstream_levels(deltas, shapes, 6), strict=True)
    ):
        network.add_stored(f"{case}/rpn/cls_logits_level{i}", cls)
        network.add_stored(f"{case}/rpn/deltas_level{i}", reg)
    valid = np.stack([valid for _, _, valid in roi_samples])
    network.add_stored(f"{case}/roi/cls_logits", np.asarray(roi_logits)[valid])
    network.add_stored(f"{case}/roi/deltas", np.asarray(roi_deltas)[valid])
    rows.append(network.row())

    compared = Comparison(fixture, f"{case}: losses", relative=1e-5)
    names = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")
    for name, value in zip(names, ours, strict=True):
        compared.add(value, np.sum(recorded["losses"][name]))
    compared.add(loss, recorded["total_loss"])
    rows.append(compared.row("four losses and their sum"))
    correct = Comparison(fixture, f"{case}: RoI accuracy, %", absolute=100.5 / valid.sum())
    correct.add(100 * accuracy, np.sum(recorded["losses"]["acc"]))
    rows.append(correct.row())

    rows += _gradient_rows(fixture, case, model, gradient)
    if any(key.startswith(f"{case}/step/") for key in fixture):
        rows.append(_update_row(fixture, case, model, params, gradient))
    after = _upstream_arrays(model, new_stats)
    kept = [name for name in after if f"{case}/bn_after/{name}" in fixture]
    if kept:
        statistics = Comparison(fixture, f"{case}: batch statistics", relative=1e-5)
        for name in kept:
            statistics.add_stored(f"{case}/bn_after/{name}", after[name])
        rows.append(statistics.row())
    return rows


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
            key, anchors, truth, num_samples=len(anchors), positive_fraction=1.0
        )
        _, roi_index, roi_samples = losses.match_and_sample_proposals(
            key,
            Proposals(boxes, jnp.zeros(boxes.shape[:2]), valid),
            truth,
            num_samples=num_proposals + truth.boxes.shape[1],
            positive_fraction=1.0,
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
    for name, array in _upstream_arrays(model, gradient).items():
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
        weight_decay=settings["weight_decay"], betas=tuple(settings["betas"]), epsilon=settings["eps"]
    )

    @jax.jit
    def update(params, gradient):
        updates, _ = tx.update(gradient, tx.init(params), params)
        return jax.tree.map(lambda p, u: p - settings["lr_used"] * u, params, updates)

    changes = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), update(params, gradient), params)
    gradients = _upstream_arrays(model, gradient)
    skipped = set(recorded["params_with_zero_gradient_in_exact_arithmetic"])
    step = Comparison(fixture, f"{case}: changes of weights", absolute=2e-6)
    left_out = 0
    for name, array in _upstream_arrays(model, changes).items():
        key = f"{case}/step/{name}"
        if name in skipped or key not in fixture:
            continue
        # The first step is almost the learning rate times the gradient's sign.
        clear = np.abs(fixture.sampled(key, gradients[name])) > 1e-5
        left_out += int((~clear).sum())
        step.add(fixture.sampled(key, array)[clear], fixture[key].reshape(-1)[clear])
    return step.row(f"{left_out} weights with a gradient below 1e-5 left out")


# Initial weights and checkpoints


def init_rows(fixture, seed=0):
    """Distribution of every initial parameter: mean, standard deviation and kurtosis, in standard errors."""
    rows = []
    for variant, recorded in fixture.manifest["models"].items():
        shapes = {name: np.broadcast_to(np.float32(0), entry["shape"]) for name, entry in recorded.items()}
        architecture = read_architecture(shapes)
        size = haksnet.BackboneSize(*(tuple(architecture[name]) for name in ("channels", "depths", "mlp_ratios")))
        model = haksnet_detector(
            size,
            architecture["num_classes"],
            channels=architecture["fpn_channels"],
            hidden=architecture["hidden"],
            rngs=nnx.Rngs(seed),
        )
        arrays = _upstream_arrays(model, nnx.state(model, nnx.Param))
        constants = Comparison(fixture, f"{variant}: constants", absolute=1e-7)
        names = ("mean", "standard deviation", "kurtosis")
        worst = dict.fromkeys(names, (0.0, ""))
        missing = [name for name in recorded if name not in arrays and "running" not in name]
        num_random = 0
        for name, array in arrays.items():
            if name not in recorded:
                missing.append(name)
                continue
            theirs = recorded[name]
            if theirs["min"] == theirs["max"]:
                constants.add([array.min(), array.max()], [theirs["min"], theirs["max"]])
                continue
            num_random += 1
            for kind, value in zip(names, _standard_errors(array.astype(np.float64), theirs), strict=True):
                if not value <= worst[kind][0]:
                    worst[kind] = (value, name)
        rows.append(constants.row("biases, norms, layer scales"))
        for kind, (value, name) in worst.items():
            rows.append(
                Row(
                    fixture.name, f"{variant}: {kind}, standard errors", value, math.nan, "6", value <= 6,
                    f"{num_random} tensors; the farthest {name}",
                )
            )  # fmt: skip
        if missing:
            rows[-1] = rows[-1]._replace(passed=False, note=f"on one side only: {', '.join(missing[:5])}")
    return rows


def _standard_errors(array, recorded):
    """Differences of (mean, deviation, excess kurtosis) of two random draws, in standard errors of the difference."""
    count = array.size
    std = recorded["std"]
    kurtosis = recorded["excess_kurtosis"] or 0.0
    shape = -1.2 if kurtosis < -0.6 else 0.0  # uniform or normal
    mean_error = abs(array.mean() - recorded["mean"]) / (std * math.sqrt(2 / count))
    std_error = abs(array.std() - std) / (std * math.sqrt(2 * (2 + shape) / (4 * count)))
    if count < 500:  # too few for a fourth moment
        return mean_error, std_error if count >= 50 else std_error / 2, 0.0
    ours = (((array - array.mean()) / array.std()) ** 4).mean() - 3
    # Of the kurtosis of a normal sample; a uniform one's is steadier.
    return mean_error, std_error, abs(ours - kurtosis) / math.sqrt(2 * 24 / count)


def checkpoint_rows(fixture):
    """Each recorded checkpoint file, converted, and what the network computes with it."""
    rows = []
    manifest = fixture.manifest
    image = _nhwc(fixture.reference_weights().make_input(**manifest["input"]))
    digest = fixture.reference_weights().tensor_digest
    for file, recorded in manifest["files"].items():
        key = file.split(".")[0]
        model = convert.read_torch_model(fixture.folder / file)
        architecture = model.info["architecture"]
        back = {}
        for entry in entries(architecture):
            array = model.params[entry.ours]
            back[entry.theirs] = entry.layout.to_torch(
                array if entry.block is None else array[entry.block], entry.scope
            )
        pairs = []
        for name, expected in recorded["state_dict"].items():
            plain = name.removeprefix("module.")
            plain = plain if plain in back else f"backbone.{plain}"
            if plain in back:
                array = back[plain].astype(expected.get("dtype", "float32"))
                pairs.append((digest(array)["crc32"], expected["crc32"]))
        rows.append(equal_row(fixture, f"{file}: digests of tensors", pairs, f"{len(pairs)} tensors"))
        # A backbone alone gets zeros behind it, and those outputs are not looked at.
        heads = {"fpn_channels": 8, "hidden": 8, "num_classes": 1}
        is_detector = architecture["fpn_channels"] is not None
        architecture = architecture if is_detector else architecture | heads
        state = nnx.eval_shape(
            lambda architecture=architecture: haksnet_detector(
                haksnet.BackboneSize(*(tuple(architecture[name]) for name in ("channels", "depths", "mlp_ratios"))),
                architecture["num_classes"],
                channels=architecture["fpn_channels"],
                hidden=architecture["hidden"],
                rngs=nnx.Rngs(0),
            )
        )
        zeros = {
            name: np.zeros(leaf.shape, np.float32) for name, leaf in model_folder.flatten(nnx.state(state)).items()
        }
        filled = _filled(architecture, zeros | model.params)
        stages = _call(*nnx.split(filled.backbone), image)
        outputs = Comparison(fixture, f"{file}: outputs", relative=NETWORK)
        for i, stage in enumerate(stages):
            outputs.add_stored(f"{key}/stage{i + 1}", _nchw(stage))
        if is_detector:
            levels, logits, _ = _neck_and_rpn(*nnx.split(filled), stages)
            for i, cls in enumerate(_to_upstream_levels(logits, [level.shape[1:3] for level in levels], 1)):
                if f"{key}/rpn_cls{i}" in fixture:
                    outputs.add_stored(f"{key}/rpn_cls{i}", cls)
            rois = [name for name in (f"{key}/rois", "tiny_mmrotate/rois") if name in fixture]
            if rois and f"{key}/roi_cls_logits" in fixture:
                boxes = fixture[rois[0]][None]
                boxes = boxes[..., -5:]  # a leading batch index, where there is one, is 0
                _, roi_logits, roi_deltas = _second_stage(
                    *nnx.split(filled), levels, jnp.asarray(boxes), jnp.ones(boxes.shape[:2], bool)
                )
                outputs.add_stored(f"{key}/roi_cls_logits", np.asarray(roi_logits[0]))
                outputs.add_stored(f"{key}/roi_deltas", np.asarray(roi_deltas[0]))
        rows.append(outputs.row())
    return rows
