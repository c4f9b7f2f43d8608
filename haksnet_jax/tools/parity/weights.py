"""Initial weights and checkpoint files against the reference's."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.tools.parity.models import (
    NETWORK,
    call,
    model_with,
    nchw,
    neck_and_rpn,
    nhwc,
    second_stage,
    to_upstream_levels,
    upstream_arrays,
)
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Row, equal_row
from haksnet_jax.weights import convert, model_folder
from haksnet_jax.weights.torch_weights import entries, is_detector, read_architecture


def init_rows(fixture: Fixture, seed: int = 0) -> list[Row]:
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
        arrays = upstream_arrays(model, nnx.state(model, nnx.Param))
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


def checkpoint_rows(fixture: Fixture) -> list[Row]:
    """Each recorded checkpoint file, converted, and what the network computes with it."""
    rows = []
    manifest = fixture.manifest
    image = nhwc(fixture.reference_weights().make_input(**manifest["input"]))
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
        has_detector = is_detector(architecture)
        architecture = architecture if has_detector else architecture | heads
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
        filled = model_with(architecture, zeros | model.params)
        stages = call(*nnx.split(filled.backbone), image)
        outputs = Comparison(fixture, f"{file}: outputs", relative=NETWORK)
        for i, stage in enumerate(stages):
            outputs.add_stored(f"{key}/stage{i + 1}", nchw(stage))
        if has_detector:
            levels, logits, _ = neck_and_rpn(*nnx.split(filled), stages)
            for i, cls in enumerate(to_upstream_levels(logits, [level.shape[1:3] for level in levels], 1)):
                if f"{key}/rpn_cls{i}" in fixture:
                    outputs.add_stored(f"{key}/rpn_cls{i}", cls)
            rois = [name for name in (f"{key}/rois", "tiny_mmrotate/rois") if name in fixture]
            if rois and f"{key}/roi_cls_logits" in fixture:
                boxes = fixture[rois[0]][None]
                boxes = boxes[..., -5:]  # a leading batch index, where there is one, is 0
                _, roi_logits, roi_deltas = second_stage(
                    *nnx.split(filled), levels, jnp.asarray(boxes), jnp.ones(boxes.shape[:2], bool)
                )
                outputs.add_stored(f"{key}/roi_cls_logits", np.asarray(roi_logits[0]))
                outputs.add_stored(f"{key}/roi_deltas", np.asarray(roi_deltas[0]))
        rows.append(outputs.row())
    return rows
