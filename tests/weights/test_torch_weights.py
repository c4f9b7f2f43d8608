"""The table of upstream's names: complete, exact in both directions, and honest about what does not fit."""

import json
import pathlib

import numpy as np
import pytest
from torch_files import TINY, make_weights

from haksnet_jax.weights import model_folder as checkpoint
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.state_dicts import select_state_dict, upstream_names
from haksnet_jax.weights.stored_tensors import Inert
from haksnet_jax.weights.torch_reader import read_checkpoint
from haksnet_jax.weights.torch_weights import (
    entries,
    from_torch,
    read_architecture,
    shapes,
    to_torch,
)


@pytest.fixture(scope="module")
def weights():
    return make_weights(TINY)


@pytest.mark.parametrize("size", ["tiny", "t", "s"])
def test_every_name_of_the_reference_is_used_exactly_once_in_its_order(size, golden):
    listed = golden(f"state_dict_{size}").manifest["entries"]
    stand_ins = {e["name"]: np.broadcast_to(np.zeros((), e["dtype"]), e["shape"]) for e in listed}
    architecture = read_architecture(stand_ins)
    made = [(entry.theirs, entry.shape) for entry in entries(architecture)]
    assert made == [(e["name"], tuple(e["shape"])) for e in listed if not e["name"].endswith(".num_batches_tracked")]
    places = [(entry.ours, entry.block) for entry in entries(architecture)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("size", ["t", "s"])
def test_the_table_has_the_names_and_shapes_of_our_detector(size):
    from flax import nnx

    from haksnet_jax.models.architecture import haksnet_detector
    from haksnet_jax.models.backbones.haksnet import SIZES

    chosen = SIZES[size]
    model = nnx.eval_shape(lambda: haksnet_detector(chosen, 15, rngs=nnx.Rngs(0)))
    state = checkpoint.flatten(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    architecture = {**chosen._asdict(), "fpn_channels": 256, "hidden": 1024, "num_classes": 15}
    assert shapes(architecture) == {name: tuple(leaf.shape) for name, leaf in state.items()}


def test_sizes_are_read_off_the_shapes(weights):
    assert read_architecture(weights) == TINY
    other = {**TINY, "channels": [4, 12, 20, 28], "depths": [2, 3, 1, 12], "mlp_ratios": [2, 3, 5, 1], "num_classes": 3}
    assert read_architecture(make_weights(other)) == other
    backbone = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    assert read_architecture(backbone) == {**TINY, "fpn_channels": None, "hidden": None, "num_classes": None}


def test_the_round_trip_is_exact_bit_for_bit(weights):
    weights = dict(weights)
    weights["backbone.norm1.bias"] = np.array([0.0, -0.0, 1e-45, 3e38, -1, 1, 2, 3], np.float32)
    params, report = from_torch(weights)
    back = to_torch(params, TINY)
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape, name
        assert back[name].tobytes() == value.tobytes(), name
    assert shapes(TINY) == {name: value.shape for name, value in params.items()}
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in params.values())
    assert len(report.loaded) == 257 and not report.missing and not report.unexpected and not report.mismatched


def test_blocks_are_stacked_in_order(weights):
    params, _ = from_torch(weights)
    stacked = params["backbone.stages.2.blocks.mlp.expand.kernel"]
    assert stacked.shape == (2, 24, 192)
    for block in range(2):
        upstream = weights[f"backbone.block3.{block}.mlp.linear1.weight"]
        np.testing.assert_array_equal(stacked[block], upstream[:, :, 0, 0].T)


def test_layouts_compute_what_upstream_computes(weights):
    """Each layout against the sum it stands for, written out with upstream's indices."""
    params, _ = from_torch(weights)
    draw = np.random.default_rng(0)
    # A 3 x 3 convolution at one place: sum over input channel, row and column.
    x = draw.standard_normal((32, 3, 3))
    theirs = np.einsum("oikl,ikl->o", weights["neck.fpn_convs.1.conv.weight"], x)
    ours = np.einsum("klio,kli->o", params["fpn.outputs.1.kernel"], x.transpose(1, 2, 0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    # A depthwise one.
    x = draw.standard_normal((8, 9, 9))
    theirs = np.einsum("ckl,ckl->c", weights["backbone.block1.0.attn.spatial_mix.dw_conv9.weight"][:, 0], x)
    kernel = params["backbone.stages.0.blocks.attention.kernel_selection.dw_conv9.kernel"][0]
    np.testing.assert_allclose(np.einsum("klc,klc->c", kernel, x.transpose(1, 2, 0)), theirs, rtol=1e-9)
    # The first layer of the box head, behind the two ways of flattening.
    x = draw.standard_normal((32, 7, 7))
    theirs = weights["roi_head.bbox_head.shared_fcs.0.weight"] @ x.reshape(-1)
    ours = x.transpose(1, 2, 0).reshape(-1) @ params["roi_head.fc_1.kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod."])
def test_prefixes_are_dropped(weights, prefix):
    plain, _ = from_torch(weights)
    params, report = from_torch({f"{prefix}{name}": value for name, value in weights.items()})
    assert not report.missing and not report.unexpected
    assert all(np.array_equal(params[name], plain[name]) for name in plain)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_alone_needs_no_prefix(weights, prefix):
    backbone = {n.removeprefix("backbone."): v for n, v in weights.items() if n.startswith("backbone.")}
    stored = {f"{prefix}{name}": value for name, value in backbone.items()}
    params, report = from_torch(stored)
    assert not report.missing and not report.unexpected
    architecture = read_architecture(upstream_names(stored)[0])
    back = to_torch(params, architecture, backbone_prefix=False)
    assert list(back) == list(backbone)
    assert all(np.array_equal(back[name], backbone[name]) for name in backbone)


def test_what_is_missing_unexpected_or_of_another_shape_is_named(weights):
    stored = dict(weights)
    del stored["backbone.block3.0.norm1.weight"], stored["neck.fpn_convs.1.conv.bias"]
    stored["rpn_head.rpn_cls.weight"] = np.zeros((9, 32, 1, 1), np.float32)
    stored["rpn_head.rpn_cls.bias"] = np.zeros(3, np.int64)
    stored["rpn_head.rpn_reg.bias"] = Inert("mypackage.Tensor")
    stored["rpn_head.extra"] = np.zeros(1, np.float32)
    stored["note"] = "text"
    stored["backbone.norm1.bias"] = np.full(8, np.nan, np.float32)
    params, report = from_torch(stored)
    assert sorted(report.missing) == ["backbone.block3.0.norm1.weight", "neck.fpn_convs.1.conv.bias"]
    assert report.mismatched == {
        "rpn_head.rpn_cls.weight": "has shape 9 x 32 x 1 x 1, expected 3 x 32 x 1 x 1",
        "rpn_head.rpn_cls.bias": "has whole numbers (int64), expected floating point",
        "rpn_head.rpn_reg.bias": "is a mypackage.Tensor object, expected an array 18",
    }
    assert set(report.unexpected) == {"rpn_head.extra", "note"}
    assert report.not_finite == {"backbone.norm1.bias": 8}
    # One block without a value leaves the whole stack without one: zeros never mean absence.
    assert report.left_out == [
        "backbone.stages.2.blocks.norm1.scale",
        "fpn.outputs.1.bias",
        "rpn.deltas.bias",
        "rpn.logits.bias",
        "rpn.logits.kernel",
    ]
    assert set(params) == set(shapes(TINY)) - set(report.left_out)
    text = report.text()
    for name in (*report.missing, *report.mismatched, *report.unexpected, *report.loaded):
        assert name in text


def test_other_dtypes_become_float32_without_loss(weights):
    half = {name: v.astype(np.float16) if v.dtype == np.float32 else v for name, v in weights.items()}
    params, _ = from_torch(half)
    back = to_torch(params, TINY)
    for name, value in half.items():
        np.testing.assert_array_equal(back[name], value.astype(back[name].dtype))


def test_weights_of_something_else_are_refused():
    with pytest.raises(CheckpointError, match="none of the 1 names is HAKSNet's or ResNet's"):
        from_torch({"stages.0.conv.weight": np.zeros((1, 1, 1, 1), np.float32)})
    with pytest.raises(CheckpointError, match=r"stage 2 of the backbone is missing \(no backbone.layer2"):
        from_torch({"layer1.0.conv1.weight": np.zeros((1, 1, 1, 1), np.float32)})
    layers = {f"layer{i}.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32) for i in range(1, 5)}
    with pytest.raises(CheckpointError, match="ResNet-18 or -34"):
        from_torch(layers | {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)})
    with pytest.raises(CheckpointError, match="stage 2 of the backbone is missing"):
        read_architecture({"backbone.block1.0.norm1.weight": np.zeros(8, np.float32)})
    with pytest.raises(CheckpointError, match="same parameter"):
        upstream_names({"module.backbone.norm1.bias": 1, "module.backbone.block1.0.x": 1, "backbone.norm1.bias": 1})


def test_the_dictionary_of_weights_is_found():
    array = np.zeros(1, np.float32)
    assert select_state_dict({"state_dict": {"a": array}, "state_dict_ema": {"b": array}}) == (
        {"a": array},
        "state_dict",
    )
    both = {"state_dict": {"a": array}, "state_dict_ema": {"b": array}}
    assert select_state_dict(both, ema=True) == ({"b": array}, "state_dict_ema")
    assert select_state_dict({"a": array}) == ({"a": array}, "")
    for tree, words in (
        ([1], "a list"),
        (Inert("my.Model"), "my.Model"),
        ({}, "no weights; it has nothing"),
        ({"epoch": 1}, "it has epoch"),
        ({"state_dict": [1]}, "state_dict is a list"),
    ):
        with pytest.raises(CheckpointError, match=words):
            select_state_dict(tree)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        select_state_dict({"a": array}, ema=True)


@pytest.mark.parametrize(
    "name",
    [
        "tiny_mmrotate.pth",
        "tiny_pretrain.pth.tar",
        "tiny_legacy.pth",
        "tiny_module_prefix.pth",
        "tiny_backbone_half.pth",
    ],
)
def test_recorded_files_translate_there_and_back(name, golden_file, golden):
    stored, _ = select_state_dict(read_checkpoint(golden_file(name)).tree)
    params, report = from_torch(stored)
    assert not report.missing and not report.mismatched
    assert not report.unexpected
    values, names, _ = upstream_names(stored)
    back = to_torch(params, read_architecture(values))
    if "pretrain" in name:
        assert {"head.weight", "head.bias"} <= set(back)
    for upstream, array in back.items():
        original = stored[names[upstream]].numpy()
        assert array.tobytes() == original.astype(array.dtype).tobytes()
    listed = json.loads((pathlib.Path(golden_file("state_dict_tiny.json"))).read_text())["entries"]
    in_order = [entry["name"] for entry in listed if entry["name"] in back]
    assert list(back) == in_order + ["head.weight", "head.bias"] * ("pretrain" in name)


# ------------------------------------------------------------------------------------------------------------- ResNet

RESNET = {"backbone": "resnet", "depths": [3, 4, 6, 3], "width": 64}
NO_DETECTOR = {"fpn_channels": None, "hidden": None}


def _stand_ins(architecture):
    return {entry.theirs: np.broadcast_to(np.float32(0), entry.shape) for entry in entries(architecture)}


def test_the_table_of_resnet_50_has_the_parameters_that_torchvision_counts():
    made = entries({**RESNET, **NO_DETECTOR, "num_classes": 1000})
    weights = [entry for entry in made if "running" not in entry.theirs]
    # torchvision's documentation of ResNet50_Weights: num_params 25557032; 161 arrays, and two statistics of 53 norms.
    assert sum(int(np.prod(entry.shape)) for entry in weights) == 25_557_032
    assert len(weights) == 161 and len(made) == 161 + 2 * 53
    assert [entry.theirs for entry in made][:3] == ["backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"]
    assert [entry.theirs for entry in made][-2:] == ["fc.weight", "fc.bias"]


def test_the_table_of_resnet_has_the_names_and_shapes_of_our_detector():
    from flax import nnx

    from haksnet_jax.models import architecture as models

    info = {
        "task": "detection",
        "architecture": {**RESNET, "fpn_channels": 256, "hidden": 1024, "num_classes": 15, "in_channels": 3},
        "pixel_mean": [0] * 3,
        "pixel_std": [1] * 3,
    }
    _, params, stats = models.abstract(info)
    found = {
        name: tuple(leaf.shape)
        for state in (params, stats)
        for name, leaf in checkpoint.flatten(nnx.as_pure(state)).items()
    }
    assert shapes(info["architecture"]) == found


@pytest.mark.parametrize("detector", [False, True])
def test_resnets_of_torchvision_and_of_mmrotate_are_recognised(detector):
    small = {"backbone": "resnet", "depths": [1, 2, 1, 1], "width": 8}
    heads = {"fpn_channels": 16, "hidden": 32, "num_classes": 3} if detector else {**NO_DETECTOR, "num_classes": 5}
    stored = _stand_ins(small | heads)
    if not detector:
        stored = {name.removeprefix("backbone."): value for name, value in stored.items()}
    values, _, has_backbone = upstream_names(stored)
    assert has_backbone is detector and read_architecture(values) == small | heads
    params, report = from_torch(stored)
    assert not report.missing and not report.unexpected and not report.mismatched
    assert set(params) == set(shapes(small | heads))
    back = to_torch(params, small | heads, backbone_prefix=detector)
    assert {name for name in back if "num_batches" not in name} == set(stored)


def test_bands_are_read_off_the_first_layer():
    five = {**TINY, "in_channels": 5}
    assert read_architecture(_stand_ins(five)) == five
    five = {**RESNET, **NO_DETECTOR, "num_classes": None, "in_channels": 5}
    assert read_architecture(_stand_ins(five)) == five


# --------------------------------------------------------------------------------------------- several sets of weights


def test_averages_of_mmcv_are_taken_when_asked_for(weights):
    names = [name for name in weights if "running" not in name and "num_batches" not in name]
    averages = {f"ema_{name.replace('.', '_')}": np.asarray(weights[name] + 1) for name in names}
    tree = {"state_dict": weights | averages}
    plain, _ = select_state_dict(tree)
    params, report = from_torch(plain)
    np.testing.assert_array_equal(params["backbone.stages.0.norm.bias"], weights["backbone.norm1.bias"])
    assert len(report.unexpected) == len(averages) and not report.missing
    assert all("--ema" in reason for reason in report.unexpected.values())
    averaged, where = select_state_dict(tree, ema=True)
    assert where == "state_dict (ema_*)"
    params, report = from_torch(averaged)
    assert not report.missing and not report.unexpected
    np.testing.assert_array_equal(params["backbone.stages.0.norm.bias"], weights["backbone.norm1.bias"] + 1)
    # What mmcv does not average comes from the plain names.
    mean = weights["backbone.patch_embed1.norm.running_mean"]
    np.testing.assert_array_equal(params["backbone.stages.0.patch_embed.norm.mean"], mean)
    later = {
        "state_dict": weights,
        "ema_state_dict": {f"module.{name}": v for name, v in weights.items()} | {"steps": 1},
    }
    assert select_state_dict(later, ema=True)[1] == "ema_state_dict"


def test_one_of_several_models_is_chosen_by_its_name(weights):
    stored = {f"student.{name}": value for name, value in weights.items()}
    stored |= {f"teacher.{name}": np.asarray(value + 1) for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"several models: 'student.', 'teacher.'; say which with --part"):
        from_torch(stored)
    with pytest.raises(CheckpointError, match=r"no model nobody: it has 'student.', 'teacher.'"):
        from_torch(stored, part="nobody")
    for part, shift in (("student", 0), ("teacher", 1), ("teacher.", 1)):
        params, report = from_torch(stored, part=part)
        assert not report.missing and len(report.unexpected) == len(weights)
        np.testing.assert_array_equal(params["backbone.stages.0.norm.bias"], weights["backbone.norm1.bias"] + shift)
    params, _ = from_torch({name: value for name, value in stored.items() if name.startswith("student.")})
    np.testing.assert_array_equal(params["backbone.stages.0.norm.bias"], weights["backbone.norm1.bias"])
