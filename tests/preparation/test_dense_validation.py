"""What the validator says of masks and of pairs."""

import numpy as np
import pytest
from dense_folders import write_change_folder, write_image, write_mask, write_segmentation_folder

from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.preparation import dense_validation


def reasons(report):
    return sorted((problem.path.rsplit("/", 1)[1], str(problem.reason)) for problem in report.problems)


def validate(root, **more):
    images = root / "train" / "images"
    names, legend = dense_validation.legend_of(images, **more)
    return dense_validation.validate_masks(images, root / "train" / "masks", names, legend)


def test_a_sound_folder_has_no_problem_and_its_pixels_are_counted(tmp_path):
    write_segmentation_folder(tmp_path, kind="colours")
    report = validate(tmp_path)
    assert not report.problems and report.num_images == 4
    assert report.counts.sum() == 4 * 96 * 80 and report.counts[255] == 4 * 16
    assert "without a label" in report.describe()


def test_every_kind_of_fault_is_named_with_its_file(tmp_path):
    write_segmentation_folder(tmp_path, num=6, kind="index")
    folder = tmp_path / "train" / "masks"
    write_mask(folder / "train_0.png", np.zeros((10, 20), np.uint8))
    write_mask(folder / "train_1.png", np.full((96, 80), 9, np.uint8))
    (folder / "train_2.png").unlink()
    write_image(folder / "train_2.jpg", np.zeros((96, 80, 3), np.uint8))
    (folder / "train_3.png").rename(folder / "other.png")
    (tmp_path / "train" / "images" / "train_4.png").write_bytes(b"nothing")
    report = validate(tmp_path)
    assert reasons(report) == [
        ("other.png", "no_partner"),
        ("train_0.png", "size_differs"),
        ("train_1.png", "no_labelled_pixel"),
        ("train_1.png", "unknown_value"),
        ("train_2.jpg", "unreadable_mask"),
        ("train_3.png", "no_partner"),
        ("train_4.png", "not_an_image"),
    ]


def test_classes_without_a_pixel_and_sets_of_one_class_are_told(tmp_path):
    write_image(tmp_path / "train" / "images" / "a.png", np.zeros((20, 20, 3), np.uint8))
    write_mask(tmp_path / "train" / "masks" / "a.png", np.zeros((20, 20), np.uint8))
    report = validate(tmp_path, classes=("land", "water"))
    assert [str(problem.reason) for problem in report.problems] == ["empty_class", "one_class"]
    assert not any(problem.loses for problem in report.problems)


def test_pairs_are_checked_over_three_folders(tmp_path, capsys):
    write_change_folder(tmp_path)
    options = [
        f"--before={tmp_path}/train/A", f"--after={tmp_path}/train/B", f"--masks={tmp_path}/train/label",
    ]  # fmt: skip
    assert program.main(["validate", *options]) == 0
    assert "no problems" in capsys.readouterr().out
    (tmp_path / "train" / "B" / "train_1.png").unlink()
    write_image(tmp_path / "train" / "B" / "train_2.png", np.zeros((50, 50, 3), np.uint8))
    assert program.main(["validate", *options]) == 1
    told = capsys.readouterr().out
    assert "there is no file train_1.*" in told and "train/B/train_2.png has 50 x 50" in told


def test_without_any_name_of_a_class_the_sentence_says_where_to_write_them(tmp_path):
    write_segmentation_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"--palette=FILE, or put a classes\.txt or a palette\.txt"):
        validate(tmp_path)
