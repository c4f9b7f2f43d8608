"""The configurations of the data sets: each builds, and speaks of the classes and splits that its builder makes."""

import importlib
import inspect
import re

import pytest
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.labels import classes
from haksnet_jax.preparation.data_sets import dior_r, dota, fair1m, hrsc2016, hrsid
from haksnet_jax.tasks import detection
from haksnet_jax.training.run_settings import RunSettings

# The splits that the builders' documentation promises; FAIR1M's and DOTA's are named by folders.
BUILDERS = {
    "hrsc2016": (hrsc2016.Hrsc2016, {"train", "val", "test"}),
    "dior_r": (dior_r.DiorR, {"train", "val", "test"}),
    "fair1m": (fair1m.Fair1m, {"train", "validation", "test"}),
    "hrsid": (hrsid.Hrsid, {"train", "test"}),
}


@pytest.mark.parametrize("name", [*BUILDERS, "dota20_ss"])
def test_a_data_sets_configuration_builds_and_agrees_with_its_builder(name, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.name == name and config.is_locked
    assert f"--config=configs/{name}.py" in module.__doc__
    assert set(config.augment.quarter_turn_classes) <= set(config.data.class_names)
    assert not any(side % 32 for side in config.data.image_size)
    splits = set(config.data.train.split.split("+")), set(config.data.val.split.split("+"))
    if name == "dota20_ss":
        made = dota.Dota(config="v2.0", data_dir=tmp_path)
        assert config.data.class_names == made.class_names == classes.CLASSES["dota20"]
    else:
        builder_class, published = BUILDERS[name]
        assert config.data.class_names == builder_class.CLASSES == classes.CLASSES[name]
        assert splits[0] | splits[1] <= published and not splits[0] & splits[1]
    made = nnx.eval_shape(lambda: detection.build_model(config, rngs=nnx.Rngs(config.seed)))
    assert made.roi_head.logits.kernel.shape[-1] == len(config.data.class_names) + 1


@pytest.mark.parametrize("name", ["ssdd", "ssdd_s", "ucas_aod"])
def test_a_configuration_of_folders_builds_and_its_caps_cut_no_candidate(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.name == name and config.is_locked
    assert f"--config=configs/{name}.py" in module.__doc__
    assert config.data.class_names == classes.CLASSES["ucas_aod" if name == "ucas_aod" else "ssdd"]
    assert not any(side % 32 for side in config.data.image_size)
    assert config.data.train.images_dir != config.data.val.images_dir
    # `predict` has room for 4096; what training's evaluation cut would be missing from its figures alone.
    assert config.rpn.max_proposals * len(config.data.class_names) <= config.detection.max_candidates
    made = nnx.eval_shape(lambda: detection.build_model(config, rngs=nnx.Rngs(config.seed)))
    # Widths of the last stage: those of the published sizes.
    assert made.fpn.laterals[-1].kernel.shape[-2] == (512 if name == "ssdd_s" else 256)


def test_older_configurations_get_the_values_that_the_present_ones_write_out():
    config = importlib.import_module("configs.dota_ss_t").get_config()
    for section, *kinds in detection.SETTINGS:
        assert set(config[section]) == {name for kind in kinds for name in kind._fields}, section
    # Upstream's oriented_rcnn_r50_fpn_1x_dota_le90: coders, smooth L1, samplers, test_cfg.
    assert config.boxes.rpn_stds == (1, 1, 1, 1, 0.5, 0.5) and config.boxes.roi_stds == (0.1, 0.1, 0.2, 0.2, 0.1)
    assert (config.loss.rpn_beta, config.loss.roi_beta, config.boxes.anchor_scale) == (1 / 9, 1, 8)
    assert (config.rpn.num_samples, config.rpn.positive_iou, config.rpn.max_proposals) == (256, 0.7, 2000)
    assert (config.roi.num_samples, config.roi.positive_fraction, config.detection.iou_threshold) == (512, 0.25, 0.1)
    info = detection.model_info(config)
    with config.unlocked():
        for name in ("task", "boxes", "loss"):
            del config[name]
        for name in ("in_channels", "batch_norm_momentum", "backbone"):
            del config.model[name]
        config.model.update({"channels": (32, 64, 160, 256), "depths": (3, 3, 5, 2), "mlp_ratios": (8, 8, 4, 4)})
    assert detection.model_info(detection.prepared(config)) == info
    detection.loss(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("boxes", {"anchor_size": 3}, "boxes.anchor_size: expected one of anchor_scale, anchor_ratios"),
        ("loss", {"beta": 3}, "loss.beta: expected one of rpn_cls_weight"),
        ("rpn", {"nms_pre": 3}, "rpn.nms_pre: expected one of num_samples, .*candidates_per_level"),
        ("augment", {"mosaic": 0.5}, "augment.mosaic: expected one of flip_probabilities"),
        ("model", {"pixel_mean": (1.0, 2.0)}, "expected a number for each of the 3 bands, got 2 and 3"),
    ],
)
def test_settings_that_there_are_not_are_named(key, value, message):
    config = importlib.import_module("configs.dota_ss_t").get_config()
    with config.unlocked():
        config[key].update(value)
    with pytest.raises(UserError, match=message):
        detection.prepared(config)


@pytest.mark.parametrize("name", ["dota_ss_t", "imagenet_t", "segmentation_folder"])
def test_a_base_configuration_states_of_the_run_what_differs_alone(name):
    module = importlib.import_module(f"configs.{name}")
    stated = re.findall(r"^    config\.(\w+) = ", inspect.getsource(module), re.MULTILINE)
    config = module.get_config()
    assert not [key for key in stated if config[key] == RunSettings._field_defaults.get(key, object())]
    assert set(RunSettings._fields) <= set(config)
