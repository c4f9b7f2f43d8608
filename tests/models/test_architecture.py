"""One description of a model, from configurations, to and from model.json; and a backbone that is one file."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import demo, dota_ss, dota_ss_r50, dota_ss_t
from haksnet_jax.errors import UserError
from haksnet_jax.models import architecture
from haksnet_jax.models.backbones import haksnet
from haksnet_jax.tasks import detection
from haksnet_jax.weights.model_folder import flatten

# model.json as runs wrote it before there was a choice of backbones and tasks.
OLD = {
    "architecture": {
        "channels": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2], "fpn_channels": 8, "hidden": 16,
        "num_classes": 2,
    },
    "class_names": ["ship", "plane"], "pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375],
    "input_size": [64, 64], "keep_ratio": True, "padding_divisor": 32,
}  # fmt: skip


def _shapes(*states):
    return {name: leaf.shape for state in states for name, leaf in flatten(state).items()}


def test_a_named_size_is_the_one_of_its_file_and_own_sizes_replace_it():
    model = dota_ss_t.get_config().model
    described = architecture.describe_backbone(model)
    assert described == {
        "backbone": "haksnet", "in_channels": 3, "channels": [32, 64, 160, 256], "depths": [3, 3, 5, 2],
        "mlp_ratios": [8, 8, 4, 4],
    }  # fmt: skip
    assert architecture.describe_backbone(dota_ss.get_config().model)["channels"] == [64, 128, 320, 512]
    model.channels = (8, 8, 8, 8)
    assert architecture.describe_backbone(model) == described | {"channels": [8, 8, 8, 8]}
    # A configuration from before sizes had names.
    written_out = haksnet.SIZES["t"]._asdict()
    assert architecture.describe_backbone(written_out) == described


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg_16"}, r"model\.backbone: expected one of haksnet, haksnet_t, .*resnet_50.*, got 'vgg'"),
        ({"backbone": "haksnet_xl"}, r"model\.backbone: expected one of .*, got 'haksnet_xl'"),
        ({"backbone": "haksnet"}, r"model\.channels: expected the sizes of haksnet, or a model\.backbone that names"),
        ({"backbone": "resnet_50", "channels": (8, 8)}, r"model\.channels: resnet has no such size"),
    ],
)
def test_what_describes_no_backbone_is_named(change, message):
    with pytest.raises(UserError, match=message):
        architecture.describe_backbone(change)


def test_a_model_is_the_same_from_its_configuration_and_from_its_description():
    config = demo.get_config()
    model = nnx.eval_shape(lambda: detection.build_model(config, rngs=nnx.Rngs(0)))
    _, params, stats = architecture.abstract(detection.model_info(config))
    assert _shapes(params, stats) == _shapes(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def test_old_descriptions_are_of_detectors_with_haksnet():
    graph, params, stats = architecture.abstract(OLD)
    new = OLD | {"task": "detection", "architecture": OLD["architecture"] | {"backbone": "haksnet", "in_channels": 3}}
    assert _shapes(params, stats) == _shapes(*architecture.abstract(new)[1:])
    model = nnx.merge(graph, params, stats)
    assert model.strides == (4, 8, 16, 32, 64) and model.boxes.anchor_ratios == (0.5, 1.0, 2.0)
    with pytest.raises(UserError, match=r"task: expected one of detection.*, got 'dreaming'"):
        architecture.abstract(OLD | {"task": "dreaming"})


def test_a_number_of_bands_is_the_first_convolutions():
    of_five = {
        "architecture": OLD["architecture"] | {"in_channels": 5},
        "pixel_mean": [0.0] * 5,
        "pixel_std": [1.0] * 5,
    }
    _, params, _ = architecture.abstract(OLD | of_five)
    assert _shapes(params)["backbone.stages.0.patch_embed.conv.kernel"] == (7, 7, 5, 4)


def test_anchors_of_a_description_reach_the_heads():
    more = OLD | {"architecture": OLD["architecture"] | {"anchor_ratios": [0.5, 1.0, 2.0, 4.0], "anchor_scale": 4.0}}
    graph, params, stats = architecture.abstract(more)
    assert _shapes(params)["rpn.logits.kernel"] == (8, 4)
    anchors = nnx.merge(graph, params, stats).anchors((64, 64))
    assert anchors.shape == (4 * (16**2 + 8**2 + 4**2 + 2**2 + 1), 4)
    square = anchors[1]  # ratio 1, at the first place of the finest level: 4 strides of 4 pixels
    assert square.tolist() == [-8, -8, 8, 8]


def test_a_backbone_is_one_file(monkeypatch):
    monkeypatch.setitem(architecture.BACKBONES, "meannet", "dummy_backbone")
    config = demo.get_config()
    config.model.backbone = "meannet_two"
    for name in ("channels", "depths", "mlp_ratios"):
        config.model[name] = ()
    info = detection.model_info(config)
    assert info["architecture"]["width"] == 8
    model = detection.build_model(config, rngs=nnx.Rngs(0))
    features = jax.eval_shape(lambda: model.features(jnp.zeros((1, 64, 96, 3), jnp.uint8), jnp.array([[64, 96]])))
    assert [level.shape[1:3] for level in features] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    detections = jax.eval_shape(lambda: model.detect(jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.array([[64, 64]])))
    assert detections.boxes.shape == (1, 2000, 5)
    _, params, stats = architecture.abstract(info)
    assert _shapes(params, stats) == _shapes(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def test_the_baseline_has_resnet_50_with_two_frozen_parts():
    config = dota_ss_r50.get_config()
    model = nnx.eval_shape(lambda: detection.build_model(config, rngs=nnx.Rngs(0)))
    assert model.backbone.channels == (256, 512, 1024, 2048) and model.strides == (4, 8, 16, 32, 64)
    trained = {name for name in flatten(nnx.state(model, nnx.Param)) if name.startswith("backbone.")}
    assert not any(name.startswith(("backbone.conv1", "backbone.stages.0.")) for name in trained)
    # 23,508,032 of torchvision's ResNet-50 without its last layer (25,557,032 - 2,049,000), of them 9,408 + 128 in the
    # stem and 215,808 in the first stage
    counts = {name: leaf.size for name, leaf in flatten(nnx.state(model, nnx.Param)).items() if name in trained}
    assert sum(counts.values()) == 23_508_032 - 9_408 - 128 - 215_808
    # A detector with it is described so that it loads without what training needs.
    _, params, stats = architecture.abstract(detection.model_info(config))
    assert _shapes(params, stats) == _shapes(nnx.state(model, (nnx.Param, nnx.BatchStat)))
