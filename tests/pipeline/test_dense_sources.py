"""Folders of masks and of pairs, and generated scenes with both."""

import pickle

import numpy as np
import pytest
from dense_folders import two_fields, write_change_folder, write_image, write_mask, write_segmentation_folder

from haksnet_jax.errors import UserError
from haksnet_jax.images.headers import ImageError
from haksnet_jax.labels import masks
from haksnet_jax.pipeline import dense_sources, scene_objects, scenes


def open_folder(root, legend=None, names=("land", "water"), **more):
    return dense_sources.MaskFolder(
        root / "train" / "images", root / "train" / "masks", names, legend or masks.number_legend(2), **more
    )


def test_a_folder_gives_images_with_their_labels_the_same_from_the_cache(tmp_path):
    write_segmentation_folder(tmp_path)
    source = open_folder(tmp_path)
    kept = pickle.loads(pickle.dumps(open_folder(tmp_path, cache_gib=1.0)))
    image, labels = two_fields(np.random.default_rng(0))
    for example in (source[0], kept[0], kept[0]):
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["mask"], labels)
        assert example["image_id"] == "train_0" and example["num_unknown"] == 0
    assert source.summary() == "4 images of 2 classes"


def test_files_without_partners_are_left_out_named_and_counted(tmp_path):
    write_segmentation_folder(tmp_path)
    (tmp_path / "train" / "masks" / "train_1.png").unlink()
    (tmp_path / "train" / "images" / "train_2.png").unlink()
    source = open_folder(tmp_path)
    assert source.image_ids == ["train_0", "train_3"]
    assert [(problem.reason, problem.path.rsplit("/", 1)[1]) for problem in source.problems] == [
        ("no_partner", "train_1.png"),
        ("no_partner", "train_2.png"),
    ]
    assert "left out 2 files without a partner" in source.summary()


def test_without_any_partner_the_sentence_says_what_was_expected(tmp_path):
    write_image(tmp_path / "train" / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_mask(tmp_path / "train" / "masks" / "b.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"has a mask of its name .* a\.png"):
        open_folder(tmp_path)


def test_masks_that_hold_other_values_than_the_classes_end_the_run_before_it_begins(tmp_path):
    write_segmentation_folder(tmp_path)
    with pytest.raises(UserError, match=r"train_0\.png: .* no class: 1; .*data\.mask_values"):
        open_folder(tmp_path, masks.number_legend(1), ("land",))


def test_a_mask_of_another_size_names_both_files(tmp_path):
    write_segmentation_folder(tmp_path)
    write_mask(tmp_path / "train" / "masks" / "train_3.png", np.zeros((10, 20), np.uint8))
    with pytest.raises(UserError, match=r"masks/train_3\.png has 10 x 20 pixels, its image .* 96 x 80"):
        open_folder(tmp_path)[3]


def test_a_mask_that_cannot_be_read_is_found_before_training_and_in_validation_at_its_turn(tmp_path):
    write_segmentation_folder(tmp_path)
    (tmp_path / "train" / "masks" / "train_1.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"train_1\.png: the mask cannot be read: the file is empty"):
        open_folder(tmp_path)
    source = open_folder(tmp_path, keep_unreadable=True)
    assert source[0]["mask"].shape == (96, 80)
    with pytest.raises(ImageError, match=r"train_1\.png: the mask cannot be read"):
        source[1]
    (tmp_path / "train" / "images" / "train_2.png").unlink()
    with pytest.raises(ImageError, match=r"train_2\.png: the image cannot be read"):
        source[2]


def test_masks_without_any_label_are_refused(tmp_path):
    write_segmentation_folder(tmp_path, num=1)
    write_mask(tmp_path / "train" / "masks" / "train_0.png", np.full((96, 80), 255, np.uint8))
    with pytest.raises(UserError, match="no pixel of the masks"):
        open_folder(tmp_path)


def test_pairs_read_0_and_255_as_unchanged_and_changed(tmp_path):
    write_change_folder(tmp_path)
    folders = (tmp_path / "train" / name for name in ("A", "B", "label"))
    example = dense_sources.PairFolder(*folders)[0]
    assert set(np.unique(example["mask"])) == {0, 1} and example["mask"].sum() == 24 * 24
    assert (example["after"][example["mask"] == 1] == 230).all()


def test_scenes_with_masks_are_the_scenes_that_detection_sees():
    looks = [scene_objects.LOOKS[name] for name in dense_sources.SCENE_CLASSES]
    plain, boxes, labels = scenes.draw_scene(np.random.default_rng([3, 0]), (128, 128), looks, (3, 14))
    example = dense_sources.MaskScenes(1, size=128, seed=3)[0]
    np.testing.assert_array_equal(example["image"], plain)
    for (cx, cy, *_), label in zip(boxes, labels, strict=True):
        if dense_sources.SCENE_CLASSES[label] in ("vehicle", "building", "storage-tank"):  # whose middle is theirs
            assert example["mask"][int(cy), int(cx)] == 2 + label


def test_pairs_of_scenes_differ_most_where_objects_came_or_went():
    example = dense_sources.PairScenes(1, size=192, seed=4)[0]
    changed = example["mask"] == 1
    assert 0 < changed.mean() < 0.5
    difference = np.abs(example["before"].astype(float) - example["after"]).mean(axis=-1)
    assert difference[changed].mean() > 1.5 * difference[~changed].mean()
