"""What is odd about folders of classes is named, with what is lost by it."""

import shutil

import pytest
from class_folders import write_classes

from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.preparation.class_validation import validate_class_folders


@pytest.fixture
def splits(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_classes(tmp_path / split, {"forest": 12, "lake": 11}, seed=seed)
    return tmp_path / "train", tmp_path / "val"


def reasons(report):
    return [str(problem.reason) for problem in report.problems]


def test_good_folders_have_no_problems_and_are_counted(splits, capsys):
    report = validate_class_folders(splits)
    assert report.problems == [] and report.class_names == ("forest", "lake")
    assert [counts.tolist() for counts in report.counts.values()] == [[12, 11], [12, 11]]
    assert program.main(["validate", "--class-folders", *map(str, splits)]) == 0
    out = capsys.readouterr().out
    assert "no problems" in out and "24 to 24 pixels wide" in out


def test_images_that_cannot_be_read_and_empty_classes_are_lost(splits, capsys):
    train, val = splits
    path = train / "lake" / "003.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    (train / "town").mkdir()
    (train / "town" / "list.csv").write_text("x")
    report = validate_class_folders(splits)
    assert reasons(report) == ["truncated_image", "no_image", "class_without_images", "class_missing"]
    assert [str(problem.reason) for problem in report.lost] == [
        "truncated_image",
        "class_without_images",
        "class_missing",
    ]
    assert str(path) in str(report.problems[0]) and "1 of .csv" in report.problems[2].detail
    assert report.problems[3].path == str(val)
    assert program.main(["validate", "--class-folders", *map(str, splits)]) == 1
    assert "(something would be lost)" in capsys.readouterr().out
    assert program.main(["validate", "--class-folders", str(train), "--keep"]) == 2


def test_the_same_image_is_found_in_splits_classes_and_twice(splits):
    train, val = splits
    shutil.copy(train / "lake" / "000.jpg", val / "lake" / "other.jpg")
    shutil.copy(train / "forest" / "001.jpg", train / "lake" / "wrong.jpg")
    shutil.copy(val / "forest" / "002.jpg", val / "forest" / "again.jpg")
    report = validate_class_folders(splits)
    # In the order of the folders; within one, names are sorted: again.jpg comes after 002.jpg.
    assert sorted(reasons(report)) == ["twice", "two_classes", "two_splits"]
    assert report.lost == []
    assert str(train / "lake" / "000.jpg") in next(p.detail for p in report.problems if p.reason == "two_splits")


def test_few_images_are_named_and_a_split_is_named_once(splits):
    train, val = splits
    for number in range(3, 11):
        (val / "lake" / f"{number:03d}.jpg").unlink()
    report = validate_class_folders(splits)
    assert reasons(report) == ["few_images"] and "3 images" in report.problems[0].detail
    with pytest.raises(UserError, match="the same"):
        validate_class_folders([train, train])
    with pytest.raises(UserError, match="no folder in it"):
        validate_class_folders([train / "lake"])


def test_images_without_a_class_are_named(splits):
    train, _ = splits
    shutil.copy(train / "lake" / "000.jpg", train / "loose.jpg")
    (train / "lake" / "more").mkdir()
    shutil.move(train / "lake" / "001.jpg", train / "lake" / "more" / "001.jpg")
    report = validate_class_folders(splits)
    assert [(p.path, str(p.reason)) for p in report.lost] == [
        (str(train / "loose.jpg"), "no_class"),
        (str(train / "lake" / "more" / "001.jpg"), "no_class"),
    ]


def test_a_link_that_leads_nowhere_is_a_lost_image(splits):
    train, _ = splits
    (train / "lake" / "linked.jpg").symlink_to("/no/such/file.jpg")
    report = validate_class_folders(splits)
    assert reasons(report) == ["unreadable_image"] and report.problems[0].loses
    assert report.problems[0].detail == "No such file or directory"
