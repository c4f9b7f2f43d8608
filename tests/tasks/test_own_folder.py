"""A folder of one's own, as different programs lay it out."""

import pytest

from haksnet_jax.cli import configuration
from haksnet_jax.pipeline.scene_source import SceneSource
from haksnet_jax.pipeline.sources import write_dota_folder
from haksnet_jax.tasks import detection


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
