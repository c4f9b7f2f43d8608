"""The backbone against the recorded reference: each block with all that is inside it, then whole."""

import json

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from detectors import PIXEL_MEAN, PIXEL_STD, detector_of, reference_detector
from flax import nnx
from reference_weights import make_input, make_state_dict

from haksnet_jax.models import layers
from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.models.oriented_rcnn import num_parameters
from haksnet_jax.weights import model_folder, torch_weights

# A block of 16 channels, one stage: the rows of the weight table name everything inside it.
BLOCK_ARCHITECTURE = {
    "channels": [16], "depths": [1], "mlp_ratios": [8], "fpn_channels": None, "hidden": None, "num_classes": None,
}  # fmt: skip


def _with_weights(make, manifest, theirs_prefix, ours_prefix, architecture=BLOCK_ARCHITECTURE):
    """A module with the fixture's weights: `make(rngs)` built, its parameters found through the table of names."""
    weights = make_state_dict(manifest["entries"], prefix=manifest["weight_prefix"])
    arrays = {}
    for entry in torch_weights.entries(architecture):
        name = entry.theirs.removeprefix(theirs_prefix)
        if name != entry.theirs and name in weights:
            arrays[entry.ours.removeprefix(ours_prefix)] = entry.layout.to_ours(weights[name], entry.scope)
    graph, params, stats = nnx.split(make(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    return nnx.merge(
        graph, *(model_folder.fill(nnx.as_pure(state), arrays, what="fixture") for state in (params, stats))
    )


def _nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def _nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def _compare(fixture, key, ours, rtol=1e-5):
    # The manifest's tolerance: float32, rtol 1e-5 and atol 1e-5 of the array's largest value (gradients 1e-4).
    fixture.compare(key, ours, rtol=rtol, atol=rtol * fixture.manifest["arrays"][key]["abs_max"])


BLOCK, ATTENTION = "backbone.block1.0.", "backbone.stages.0.blocks."
PARTS = {
    "rsblock": (lambda r: haksnet.RedundancySuppression(16, 128, dtype=jnp.float32, rngs=r), "mlp.", "mlp."),
    "rsblock_default_hidden": (
        lambda r: haksnet.RedundancySuppression(16, 4, dtype=jnp.float32, rngs=r), "mlp.", "mlp.",
    ),
    "seexpansion": (
        lambda r: haksnet.ChannelMixing(16, dtype=jnp.float32, rngs=r), "attn.channe_mix.", "attention.channel_mixing.",
    ),
    "kssblock": (
        lambda r: haksnet.KernelSelection(16, dtype=jnp.float32, rngs=r),
        "attn.spatial_mix.", "attention.kernel_selection.",
    ),
    "atten": (lambda r: haksnet.Attention(16, dtype=jnp.float32, rngs=r), "attn.", "attention."),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_each_part_of_a_block_gives_the_recorded_output(golden, name):
    fixture = golden("backbone_blocks")
    make, theirs, ours = PARTS[name]
    module = _with_weights(make, fixture.manifest["blocks"][name], BLOCK + theirs, ATTENTION + ours)
    output = jax.jit(lambda x: nnx.merge(*nnx.split(module))(x))(_nhwc(fixture[f"{name}/input"]))
    _compare(fixture, f"{name}/output", _nchw(output))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_block_gives_the_recorded_output_gradients_and_statistics(golden, mode):
    fixture = golden("backbone_blocks")
    name = f"block_{mode}"
    manifest = fixture.manifest["blocks"][name]
    block = _with_weights(
        lambda r: haksnet.Block(16, 4, momentum=0.9, dtype=jnp.float32, rngs=r), manifest, BLOCK, ATTENTION
    )
    graph, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)
    params, stats = nnx.as_pure(params), nnx.as_pure(stats)

    @jax.jit
    def forward_and_back(params, x, output_gradient):
        def forward(params, x):
            block = nnx.merge(graph, params, stats)
            return block(x, train=mode == "train"), nnx.as_pure(nnx.state(block, nnx.BatchStat))

        output, back, new_stats = jax.vjp(forward, params, x, has_aux=True)
        return output, back(output_gradient), new_stats

    output, (params_gradient, input_gradient), new_stats = forward_and_back(
        params, _nhwc(fixture[f"{name}/input"]), _nhwc(fixture[f"{name}/grad_output"])
    )
    _compare(fixture, f"{name}/output", _nchw(output))
    _compare(fixture, f"{name}/grad_input", _nchw(input_gradient), rtol=1e-4)
    ours = model_folder.flatten(params_gradient) | model_folder.flatten(new_stats)
    compared = 0
    for entry in torch_weights.entries(BLOCK_ARCHITECTURE):
        theirs = entry.theirs.removeprefix(BLOCK)
        key = f"{name}/after/{theirs}" if "running" in theirs else f"{name}/grad/{theirs}"
        if theirs != entry.theirs and key in fixture:
            array = entry.layout.to_torch(np.asarray(ours[entry.ours.removeprefix(ATTENTION)]), entry.scope)
            _compare(fixture, key, array, rtol=1e-5 if "running" in theirs else 1e-4)
            compared += 1
    assert compared == 35 + (4 if mode == "train" else 0)  # every parameter, and the buffers of both norms


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("name", "stage"), [("patch_embed_7x7_s4", 0), ("patch_embed_3x3_s2", 1)])
def test_patch_embedding_gives_the_recorded_output_and_statistics(golden, name, stage, mode):
    fixture = golden("backbone_blocks")
    name = f"{name}_{mode}"
    channels_in, channels, size, stride = ((3, 16, 7, 4), (16, 24, 3, 2))[stage]
    architecture = {**BLOCK_ARCHITECTURE, "channels": [16, 24], "depths": [0, 0], "mlp_ratios": [8, 8]}
    module = _with_weights(
        lambda r: haksnet.PatchEmbedding(
            channels_in, channels, size=size, stride=stride, momentum=0.9, dtype=jnp.float32, rngs=r
        ),
        fixture.manifest["blocks"][name],
        f"backbone.patch_embed{stage + 1}.",
        f"backbone.stages.{stage}.patch_embed.",
        architecture,
    )
    output = module(_nhwc(fixture[f"{name}/input"]), train=mode == "train")
    _compare(fixture, f"{name}/output", _nchw(output))
    if mode == "train":
        _compare(fixture, f"{name}/after/norm.running_mean", module.norm.mean[...])
        _compare(fixture, f"{name}/after/norm.running_var", module.norm.var[...])


def test_stochastic_depth_scales_the_samples_that_stay(golden, monkeypatch):
    fixture = golden("drop_path")
    mask = fixture["kept_mask"].astype(bool)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, keep, shape: jnp.asarray(mask).reshape(shape))
    # rtol 1e-6 given the mask, as in the manifest
    np.testing.assert_allclose(layers.drop_path(jnp.asarray(fixture["x"]), 0.3, None), fixture["y"], rtol=1e-6)


def test_stochastic_depth_leaves_out_the_stated_share():
    kept = layers.drop_path(jnp.ones((20_000, 1)), 0.3, jax.random.key(0)) > 0
    assert abs(float(kept.mean()) - 0.7) < 4 * (0.3 * 0.7 / 20_000) ** 0.5  # four standard errors


@pytest.mark.parametrize("size", ["t", "s"])
def test_parameter_counts_are_the_recorded_ones(size):
    # The counts of the reference's own models, from ../design and model_summary.json.
    backbone, detector = {"t": (4_696_364, 21_701_462), "s": (15_883_032, 33_019_202)}[size]
    model = nnx.eval_shape(lambda: haksnet_detector(haksnet.SIZES[size], 15, rngs=nnx.Rngs(0)))
    assert num_parameters(model.backbone) == backbone
    assert num_parameters(model) == detector


@pytest.fixture(scope="module")
def run_backbone(golden_file):
    """(variant, images) -> four stage outputs; one compilation each."""

    def run(variant, images, **options):
        model = reference_detector(golden_file(f"state_dict_{variant}.json"), **options)
        graph, state = nnx.split(model.backbone)
        return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)

    return run


@pytest.mark.parametrize(
    "case",
    [
        "tiny_random",
        "t_random",
        "s_random",
        "tiny_image",
        # The network of t_random and the picture of tiny_image.
        pytest.param("t_image", marks=pytest.mark.slow),
    ],
)
def test_the_whole_backbone_gives_the_recorded_stages(golden, golden_file, run_backbone, case):
    fixture = golden("backbone_full")
    settings = fixture.manifest["cases"][case]
    if settings["input"]["rule"] == "make_input":
        images = _nhwc(make_input(settings["input"]["seed"], settings["input"]["shape"]))
    else:
        import cv2

        pixels = cv2.imread(str(golden_file(settings["input"]["file"])))[..., ::-1].astype(np.float32)
        images = jnp.asarray(((pixels - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD))[None])
    for i, output in enumerate(run_backbone(settings["variant"], images)):
        # 1e-4 of the largest value; the manifest would allow atol 5e-4 and rtol 1e-3
        key = f"{case}/stage{i + 1}"
        fixture.compare(key, _nchw(output), rtol=0, atol=1e-4 * fixture.manifest["arrays"][key]["abs_max"])


def test_the_whole_backbone_in_training_updates_its_statistics_as_recorded(golden, golden_file):
    fixture = golden("backbone_full")
    state_dict = make_state_dict(json.loads(golden_file("state_dict_tiny.json").read_text())["entries"])
    backbone = detector_of(state_dict, drop_path_rate=0.0).backbone
    settings = fixture.manifest["cases"]["tiny_random"]["input"]
    outputs = backbone(_nhwc(make_input(settings["seed"], settings["shape"])), train=True)
    for i, output in enumerate(outputs):
        key = f"tiny_random_train/stage{i + 1}"
        fixture.compare(key, _nchw(output), rtol=0, atol=1e-4 * fixture.manifest["arrays"][key]["abs_max"])
    ours = {f"backbone.{name}": value for name, value in model_folder.flatten(nnx.state(backbone)).items()}
    architecture = torch_weights.read_architecture(state_dict)
    compared = 0
    for entry in torch_weights.entries(architecture):
        key = f"tiny_random_train/after/{entry.theirs.removeprefix('backbone.')}"
        if key in fixture:
            array = np.asarray(ours[entry.ours])
            _compare(fixture, key, entry.layout.to_torch(array if entry.block is None else array[entry.block], None))
            compared += 1
    assert compared == 2 * (4 + 2 * 5)  # mean and variance of 4 patch embeddings and of 2 norms in 5 blocks


def test_unrolled_and_recomputed_blocks_give_the_same_gradients():
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    def gradient(**options):
        size = haksnet.BackboneSize((4,), (2,), (2,))
        model = haksnet.HAKSNet(size, rngs=nnx.Rngs(0), **options)
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        stats = nnx.as_pure(stats)

        def loss(params):
            outputs = nnx.merge(graph, params, stats)(images, train=True, key=jax.random.key(1))
            return sum(jnp.sin(x).sum() for x in outputs)

        return jax.jit(jax.grad(loss))(nnx.as_pure(params))

    plain = model_folder.flatten(gradient())
    largest = max(float(jnp.abs(value).max()) for value in plain.values())
    for options in ({"unroll": True}, {"remat": True}):
        for name, value in model_folder.flatten(gradient(**options)).items():
            # sums in another order; relative to the largest gradient, since biases before a norm are pure rounding
            np.testing.assert_allclose(value, plain[name], rtol=1e-4, atol=1e-5 * largest, err_msg=f"{options} {name}")


def _count(jaxpr, primitive):
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == primitive
        found += sum(_count(inner, primitive) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return found


def test_a_scanned_block_convolves_nothing_again_for_its_gradient():
    def convolutions(**options):
        size = haksnet.BackboneSize((4,), (2,), (2,))
        model = haksnet.HAKSNet(size, rngs=nnx.Rngs(0), **options)
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

        def loss(params, stats, images):
            return sum(jnp.sin(x).sum() for x in nnx.merge(graph, params, stats)(images, train=True))

        jaxpr = jax.make_jaxpr(jax.grad(loss))(nnx.as_pure(params), nnx.as_pure(stats), jnp.ones((1, 32, 32, 3)))
        return _count(jaxpr.jaxpr, "conv_general_dilated")

    patch_embedding = 2  # forward, and its weights' gradient
    per_block = convolutions() - patch_embedding
    assert 2 * per_block == convolutions(unroll=True) - patch_embedding  # where both blocks are written out
    assert convolutions(remat=True) - patch_embedding > per_block


def test_bfloat16_stays_near_float32():
    images = _nhwc(make_input(3, (1, 3, 64, 64)))

    def run(dtype):
        model = haksnet.HAKSNet(haksnet.BackboneSize((8,), (1,), (4,)), dtype=dtype, rngs=nnx.Rngs(0))
        graph, state = nnx.split(model)
        return np.float32(jax.jit(lambda state, x: nnx.merge(graph, state)(x)[0])(state, images))

    exact = run(jnp.float32)
    # 8 bits of mantissa: each of about ten roundings on the way costs up to 2^-9
    assert np.linalg.norm(run(jnp.bfloat16) - exact) < 0.02 * np.linalg.norm(exact)


def test_the_partial_convolution_is_the_same_in_the_form_for_gpus(monkeypatch):
    convolution = haksnet.PartialConv(16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 7, 16), jnp.bfloat16)
    graph, params = nnx.split(convolution)

    def outputs():
        values, pull_back = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
        return values, jax.tree.leaves(pull_back(x))

    expected, expected_gradients = outputs()
    monkeypatch.setattr(haksnet, "platform", lambda: "gpu")
    found, found_gradients = outputs()
    # A weight of one copies exactly, and products with zeros add nothing.
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    for got, want in zip(found_gradients, expected_gradients, strict=True):
        got, want = (np.asarray(array, np.float32) for array in (got, want))
        np.testing.assert_allclose(got, want, rtol=2**-7, atol=2**-7 * np.abs(want).max())  # rounded to 8 bits
