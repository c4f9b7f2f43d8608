"""Published sets laid out for training, from folders in their own forms."""

import importlib

import numpy as np
import pytest
from dense_folders import write_image, write_mask
from PIL import Image

from data import dense_sets
from haksnet_jax import tasks


def colours(path, labels, palette):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.array([tuple(bytes.fromhex(line.split()[0])) for line in palette], np.uint8)
    Image.fromarray(table[labels]).save(path)


def opened(name, root, split):
    config = importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.data.root = str(root)
    task = tasks.of(config)
    return task.open_source(task.prepared(config), split)


def test_potsdam_is_tiled_for_training_and_whole_with_eroded_borders_for_val(tmp_path, monkeypatch):
    monkeypatch.setattr(dense_sets, "_TILE", 64)
    rng = np.random.default_rng(0)
    for key in ("2_10", "2_13", "7_10"):
        write_image(tmp_path / "rgb" / f"top_potsdam_{key}_RGB.tif", rng.integers(0, 255, (100, 64, 3), np.uint8))
        labels = rng.integers(0, 6, (100, 64))
        colours(tmp_path / "all" / f"top_potsdam_{key}_label.tif", labels, dense_sets.ISPRS_PALETTE)
        labels[:10] = 6
        colours(tmp_path / "eroded" / f"top_potsdam_{key}_label_noBoundary.tif", labels, dense_sets.ISPRS_PALETTE)
    monkeypatch.setattr(dense_sets, "starts", lambda length, tile, overlap: [0, 36] if length == 100 else [0])
    folders = [f"--{name}={tmp_path / name}" for name in ("eroded",)]
    arguments = ["potsdam", f"--images={tmp_path}/rgb", f"--masks={tmp_path}/all", *folders, f"--output={tmp_path}/out"]
    assert dense_sets.main(arguments) == 0
    train, val = (opened("potsdam", tmp_path / "out", split) for split in ("train", "val"))
    assert train.image_ids == ["2_10__0__0", "2_10__0__36"] and val.image_ids == ["2_13"]  # 7_10 has faulty labels
    assert train.class_names[-1] == "clutter"
    assert train[1]["image"].shape == (64, 64, 3) and (train[1]["mask"] != 255).all()
    assert (val[0]["mask"][:10] == 255).all() and (val[0]["mask"][10:] != 255).all()


def test_loveda_joins_urban_and_rural_and_reads_zero_as_no_label(tmp_path):
    for split in ("Train", "Val"):
        for place in ("Urban", "Rural"):
            folder = tmp_path / "LoveDA" / split / place
            write_image(folder / "images_png" / "1.png", np.zeros((32, 32, 3), np.uint8))
            write_mask(folder / "masks_png" / "1.png", np.arange(1024, dtype=np.uint8).reshape(32, 32) % 8)
    assert dense_sets.main(["loveda", f"--source={tmp_path}/LoveDA", f"--output={tmp_path}/out"]) == 0
    source = opened("loveda", tmp_path / "out", "train")
    assert source.image_ids == ["rural_1", "urban_1"]
    np.testing.assert_array_equal(source[0]["mask"][0, :8], [255, 0, 1, 2, 3, 4, 5, 6])


def test_uavid_keeps_its_sequences_apart(tmp_path):
    for split in ("train", "val"):
        for sequence in ("seq1", "seq2"):
            folder = tmp_path / "UAVid" / f"uavid_{split}" / sequence
            write_image(folder / "Images" / "000000.png", np.zeros((40, 48, 3), np.uint8))
            labels = np.arange(40 * 48).reshape(40, 48) % 8
            colours(folder / "Labels" / "000000.png", labels, dense_sets.UAVID_PALETTE)
    assert dense_sets.main(["uavid", f"--source={tmp_path}/UAVid", f"--output={tmp_path}/out"]) == 0
    source = opened("uavid", tmp_path / "out", "val")
    assert source.image_ids == ["seq1_000000", "seq2_000000"]
    assert source.class_names[7] == "background clutter" and source[0]["mask"][0, 7] == 7


@pytest.mark.parametrize("name", ["s2looking", "whu_cd", "clcd", "levir_cd"])
def test_pairs_are_read_in_the_folders_of_their_release(tmp_path, name):
    config = importlib.import_module(f"configs.{name}").get_config()
    for split in ("train", "val"):
        for key in ("before_dir", "after_dir"):
            write_image(tmp_path / config.data[split][key] / "1.png", np.zeros((32, 32, 3), np.uint8))
        write_mask(tmp_path / config.data[split]["masks_dir"] / "1.png", np.full((32, 32), 255, np.uint8))
    assert opened(name, tmp_path, "val")[0]["mask"].all()


def test_a_mask_without_an_image_is_told(tmp_path, capsys):
    write_mask(tmp_path / "LoveDA" / "Train" / "Urban" / "masks_png" / "1.png", np.zeros((8, 8), np.uint8))
    assert dense_sets.main(["loveda", f"--source={tmp_path}/LoveDA", f"--output={tmp_path}/out"]) == 1
    assert "there is no image" in capsys.readouterr().err
