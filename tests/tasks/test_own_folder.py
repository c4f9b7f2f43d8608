"""A folder of one's own, as different programs lay it out."""

import json

import numpy as np
import pytest
from PIL import Image

from haksnet_jax import demo
from haksnet_jax.cli import configuration
from haksnet_jax.errors import UserError
from haksnet_jax.pipeline.scene_source import SceneSource
from haksnet_jax.pipeline.sources import write_dota_folder
from haksnet_jax.tasks import detection


def config_of_folder(root, train, val, line):
    """folder_small on three and two images in places (images, labels), each with that line of a label."""
    for (images, labels), number in ((train, 3), (val, 2)):
        (root / images).mkdir(parents=True)
        (root / labels).mkdir(parents=True)
        for one in range(number):
            Image.fromarray(np.full((50, 100, 3), one, np.uint8)).save(root / images / f"{number}_{one}.png")
            (root / labels / f"{number}_{one}.txt").write_text(f"{line}\n")
    (root / "data.yaml").write_text("names: {0: plane, 1: ship}\n")
    config = configuration.load("folder_small").unlock()
    config.data.root = str(root)
    return config


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/train", "labels/train"), ("images/val", "labels/val")),
        (("images/train", "labels/train"), ("images/valid", "labels/valid")),
        (("train/images", "train/labels"), ("valid/images", "valid/labels")),
    ],
    ids=["ultralytics", "valid", "roboflow"],
)
def test_a_data_set_of_yolo_is_trained_on_as_it_lies_there(tmp_path, train, val):
    config = config_of_folder(tmp_path, train, val, "1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6")
    with pytest.raises(UserError, match=r"data\.yaml: labels of YOLO-OBB.*data\.format=yolo-obb"):
        detection.prepared(config)
    config.data.format = "yolo-obb"
    config = detection.prepared(config)
    assert config.data.class_names == ("plane", "ship")
    assert [len(detection.open_source(config, split)) for split in ("train", "val")] == [3, 2]
    example = detection.open_source(config, "train")[0]
    assert example["labels"].tolist() == [1]
    np.testing.assert_allclose(example["polygons"][0], [[10, 10], [50, 10], [50, 30], [10, 30]], atol=1e-4)
    # Folders that the user named are those, and no others.
    config = config.copy_and_resolve_references().unlock()
    config.data.val.images_dir = "val/pictures"
    with pytest.raises(UserError, match="pictures does not exist"):
        detection.open_source(config, "val")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("train/images", "train/labelTxt"), ("valid/images", "valid/labelTxt")),
        (("images/train", "labelTxt/train"), ("images/val", "labelTxt/val")),
        (("train/images", "train/labelTxt"), ("images/val", "labels/val")),
    ],
    ids=["roboflow", "folders-of-kinds", "mixed"],
)
def test_labels_of_dota_are_found_in_the_layouts_of_other_tools(tmp_path, train, val):
    config = config_of_folder(tmp_path, train, val, "10 10 50 10 50 30 10 30 ship 0")
    with pytest.raises(UserError, match=r"there is no .*classes\.txt") as caught:
        detection.prepared(config)
    assert "YOLO" not in str(caught.value)  # the labels are none
    config.data.class_names = ("plane", "ship")
    config = detection.prepared(config)
    assert [len(detection.open_source(config, split)) for split in ("train", "val")] == [3, 2]
    assert detection.open_source(config, "val")[0]["labels"].tolist() == [1]


def test_yaml_files_without_classes_or_outside_the_data_are_not_taken_for_lists(tmp_path, monkeypatch):
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    config = configuration.load("folder_small").unlock()
    for root, text in ((str(tmp_path), "services: {}\n"), ("", "names: [plane, ship]\n")):
        (tmp_path / "compose.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        config.data.root = root
        with pytest.raises(UserError, match=r"there is no .*classes\.txt") as caught:
            detection.prepared(config)
        assert "compose" not in str(caught.value)


def test_the_small_configuration_goes_on_from_the_model_that_is_shipped():
    """Equal descriptions but for the classes: else its weights could not be taken."""
    config = configuration.load("folder_small").unlock()
    config.data.class_names = ("ship",)
    ours = detection.model_info(config)["architecture"]
    theirs = json.loads((demo.MODEL / "model.json").read_text())["architecture"]
    assert len(theirs) > 5  # (written by an earlier version: what it does not say has its default)
    assert {name: ours[name] for name in theirs if name != "num_classes"} == {
        name: theirs[name] for name in theirs if name != "num_classes"
    }
    assert config.init == "demo" and config.init_new_classes


@pytest.mark.parametrize("name", ["folder", "folder_small"])
def test_an_image_may_have_as_many_detections_and_proposals_as_objects(name):
    """Else recall is capped, in predictions too: `model.json` carries the caps along."""
    config = configuration.load(name).unlock()
    config.data.class_names = ("ship",)
    caps = detection.model_info(config)
    assert caps["detections"]["max_detections"] > config.data.max_boxes
    assert caps["proposals"]["max_proposals"] >= caps["detections"]["max_detections"]
    assert config.detection.max_candidates >= caps["detections"]["max_detections"]


def test_labels_in_a_folder_called_labels_are_found(tmp_path):
    """As YOLO lays it out; `labelTxt` stands in the configuration."""
    for split in ("train", "val"):
        write_dota_folder(SceneSource(2, 64, class_names=("ship", "plane")), tmp_path / split)
        (tmp_path / split / "labelTxt").rename(tmp_path / split / "labels")
    config = configuration.load("folder").unlock()
    config.data.root, config.data.class_names = str(tmp_path), ("ship", "plane")
    assert len(detection.open_source(config, "val")) == 2
    (tmp_path / "val" / "labels").rename(tmp_path / "val" / "elsewhere")
    with pytest.raises(ValueError, match=r"labelTxt does not exist.*data\.val\.labels_dir"):
        detection.open_source(config, "val")
