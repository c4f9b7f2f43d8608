"""Blocks and whole backbones against the reference's: outputs, gradients, batch statistics, stochastic depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax.models import layers
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.tools.parity.models import (
    NETWORK,
    call,
    nchw,
    nhwc,
    normalized,
    read_rgb,
    reference_model,
    upstream_arrays,
)
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Row
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.torch_weights import entries

MOMENTUM = 0.9  # of the reference's batch statistics: PyTorch's 0.1


def _block_module(name, weights, shape):
    """(module, upstream's prefix, our prefix, architecture that names its weights) of a block; None if fused."""
    channels = shape[1]
    make = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    architecture = {"channels": [channels], "depths": [1], "mlp_ratios": [1]}
    theirs, ours = "backbone.block1.0.", "backbone.stages.0.blocks."
    if name.startswith("patch_embed"):
        channels_out, channels_in, size, _ = weights["proj.weight"].shape
        stage = 0 if size == 7 else 1
        module = haksnet.PatchEmbedding(
            channels_in, channels_out, size=size, stride=4 if size == 7 else 2, momentum=MOMENTUM, **make
        )
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
        module = haksnet.Block(channels, ratio, momentum=MOMENTUM, **make)
    else:
        return None
    return module, theirs, ours, architecture | {"fpn_channels": None, "hidden": None, "num_classes": None}


def block_rows(fixture: Fixture) -> list[Row]:
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
        graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
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
        x = jnp.asarray(nhwc(fixture[f"{name}/input"]))
        if f"{name}/grad_output" in fixture:

            def with_gradient(params, x, back, forward=forward):
                output, pull, new = jax.vjp(forward, params, x, has_aux=True)
                return output, pull(back), new

            back = jnp.asarray(nhwc(fixture[f"{name}/grad_output"]))
            output, (gradient, input_gradient), new_stats = jax.jit(with_gradient)(params, x, back)
            gradients = Comparison(fixture, f"{name}: gradients", relative=1e-4)
            gradients.add_stored(f"{name}/grad_input", nchw(input_gradient))
            flat = model_folder.flatten(gradient)
            for short, (entry, our) in named.items():
                if f"{name}/grad/{short}" in fixture:
                    gradients.add_stored(
                        f"{name}/grad/{short}", entry.layout.to_torch(np.asarray(flat[our]), entry.scope)
                    )
        else:
            output, new_stats = jax.jit(forward)(params, x)
            gradients = None
        outputs.add_stored(f"{name}/output", nchw(output))
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
def _call_evaluating(graph, state, x):
    return nnx.merge(graph, state)(x, train=False)


def backbone_rows(fixture: Fixture) -> list[Row]:
    """Stage outputs of whole backbones; outputs of every block, and statistics after training, where recorded."""
    rows = []
    for case, settings in fixture.manifest["cases"].items():
        given = settings["input"]
        if given["rule"] == "make_input":
            images = nhwc(fixture.reference_weights().make_input(given["seed"], given["shape"]))
        else:
            images = normalized(read_rgb(fixture.folder / given["file"]))
        model = reference_model(fixture, settings["variant"], drop_path_rate=0.0)
        stages = Comparison(fixture, f"{case}: stages", relative=NETWORK)
        for i, output in enumerate(call(*nnx.split(model.backbone), images)):
            stages.add_stored(f"{case}/stage{i + 1}", nchw(output))
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
        inner.add_stored(f"{case}/inner/patch_embed{i + 1}", nchw(x))
        graph, blocks = nnx.split(stage.blocks)
        for j in range(stage.depth):
            x = _call_evaluating(graph, jax.tree.map(lambda leaf, j=j: leaf[j], blocks), x)
            inner.add_stored(f"{case}/inner/block{i + 1}.{j}", nchw(x))
        x = call(*nnx.split(stage.norm), x)
    return inner.row()


@functools.partial(jax.jit, static_argnums=0)
def _call_training(graph, state, x):
    module = nnx.merge(graph, state)
    return module(x, train=True), nnx.as_pure(nnx.state(module))


def _backbone_in_training(fixture, case, model, images):
    outputs, state = _call_training(*nnx.split(model.backbone), images)
    stages = Comparison(fixture, f"{case}: stages", relative=NETWORK)
    for i, output in enumerate(outputs):
        stages.add_stored(f"{case}/stage{i + 1}", nchw(output))
    statistics = Comparison(fixture, f"{case}: batch statistics", relative=1e-5)
    for name, array in upstream_arrays(model, {"backbone": state}).items():
        key = f"{case}/after/{name.removeprefix('backbone.')}"
        if key in fixture:
            statistics.add_stored(key, array)
    return [stages.row(), statistics.row()]


def drop_path_rows(fixture: Fixture) -> list[Row]:
    """Stochastic depth, given the recorded decisions, and its rates over the blocks."""
    x, mask = jnp.asarray(fixture["x"]), fixture["kept_mask"].astype(bool)
    kept_share = float(np.max(np.abs(fixture["y"]) / np.maximum(np.abs(fixture["x"]), 1e-30)))
    rate = 1 - 1 / kept_share
    drawn = jax.random.bernoulli

    def recorded(key, keep, shape):
        return jnp.asarray(mask).reshape(shape)

    try:
        jax.random.bernoulli = recorded  # type: ignore[assignment]
        scaled = layers.drop_path(x, rate, jax.random.key(0))
    finally:
        jax.random.bernoulli = drawn
    outputs = Comparison(fixture, "scaled samples", relative=1e-6)
    outputs.add(scaled, fixture["y"])
    rates = Comparison(fixture, "rates over the blocks", absolute=1e-6)
    for name, size in haksnet.SIZES.items():
        schedule = fixture.manifest["schedule"].get(name)
        if schedule is not None:
            rates.add(np.linspace(0, schedule[-1], sum(size.depths)), schedule)
    return [outputs.row(f"at the recorded rate {rate:.3g}"), rates.row()]
