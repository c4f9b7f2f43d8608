import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from haksnet_jax.cli import submission
from haksnet_jax.errors import UserError
from haksnet_jax.labels import classes
from haksnet_jax.results import dota, predictions

CLASSES = ("plane", "ship", "storage-tank")


def detections(*rows):
    """Rows of (label, score, centre x): boxes of 20 x 10 at height 50."""
    return {
        "boxes": np.array([[x, 50, 20, 10, 0.3] for _, _, x in rows], np.float32).reshape(-1, 5),
        "scores": np.array([score for _, score, _ in rows], np.float32),
        "labels": np.array([label for label, _, _ in rows], np.int32),
    }


@pytest.fixture
def two_images():
    return {"P1": detections((0, 0.25, 50), (0, 0.75, 90), (1, 0.5, 20)), "P2": detections((0, 0.125, 30))}


def reasons(problems):
    return sorted({problem.reason for problem in problems})


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_lines_equal_the_recorded_ones(golden):
    fixture = golden("merge")
    names = fixture.manifest["class_names"]
    merged = {}
    for image in fixture.manifest["num_merged"]:
        rows = fixture[f"merged/{image}"]
        merged[image] = {"boxes": rows[:, 1:6], "scores": rows[:, 6], "labels": rows[:, 0]}
    texts = dota.format_task1(merged, names)
    assert sorted(texts) == fixture.manifest["zip_members"]
    for name in names:
        got = sorted(texts[dota.task1_file_name(name)].splitlines())
        expected = sorted(fixture.manifest["task1_lines"].get(name, []))
        assert [line.split()[0] for line in got] == [line.split()[0] for line in expected]
        for one, other in zip(got, expected, strict=True):
            # Two decimals: the same corner in the same place may still be rounded the other way. Scores: nine decimals.
            np.testing.assert_allclose(
                np.array(one.split()[2:], float), np.array(other.split()[2:], float), rtol=0, atol=0.011
            )
            assert abs(float(one.split()[1]) - float(other.split()[1])) < 1e-8


def test_files_come_back_as_they_were_written(tmp_path, two_images):
    paths = dota.write_task1(tmp_path, two_images, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert (tmp_path / "Task1_storage-tank.txt").read_text() == ""
    found, problems = dota.read_task1(tmp_path, CLASSES)
    assert problems == []
    assert list(found) == ["P1", "P2"]
    np.testing.assert_array_equal(found["P1"]["labels"], [0, 0, 1])
    np.testing.assert_allclose(found["P1"]["scores"], [0.75, 0.25, 0.5])
    np.testing.assert_allclose(found["P1"]["polygons"].mean(axis=1), [[90, 50], [50, 50], [20, 50]], atol=0.01)
    again = dota.format_task1(found, CLASSES)
    assert again == {path.name: path.read_text() for path in paths}


def test_line_has_ten_columns_without_exponents(two_images):
    two_images["P1"]["scores"][0] = 1e-6
    first = dota.format_task1(two_images, CLASSES)["Task1_plane.txt"].splitlines()
    assert first[0] == "P1 0.750000000 81.92 42.27 101.03 48.18 98.08 57.73 78.97 51.82"
    assert first[1].startswith("P1 0.000001000 ")
    assert first[2].startswith("P2 ")


def test_writing_into_a_folder_with_other_classes_is_refused(tmp_path, two_images):
    (tmp_path / "Task1_harbor.txt").write_text("")
    with pytest.raises(ValueError, match=r"Task1_harbor\.txt"):
        dota.write_task1(tmp_path, two_images, CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["Task1_harbor.txt"]


def test_nothing_is_left_when_writing_fails(tmp_path, two_images, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dota.pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        dota.write_task1(tmp_path, two_images, CLASSES)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(dota.zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        dota.write_submission(tmp_path / "s.zip", two_images, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_odd_lines_are_named_and_the_rest_is_read(tmp_path):
    good = "my image 0.5 0 0 2 0 2 1 0 1"
    text = f"\ufeff{good}\r\n\r\nP1 0.5 1 2 3\r\nP1 x 0 0 2 0 2 1 0 1\r\nP1 0.5 nan 0 2 0 2 1 0 1\r\n{good}"
    (tmp_path / "Task1_plane.txt").write_bytes(text.encode())
    (tmp_path / "Task1_boat.txt").write_text(good)
    found, problems = dota.read_task1(tmp_path, ("plane", "ship"))
    assert len(found["my image"]["scores"]) == 2
    assert [(problem.line, problem.reason) for problem in problems] == [
        (0, "unexpected_file"),
        (3, "bad_line"),
        (4, "bad_number"),
        (5, "bad_number"),
        (0, "missing_file"),
    ]
    with pytest.raises(UserError, match="no Task1_"):
        dota.read_task1(tmp_path / "nowhere", CLASSES)


def test_numbers_that_cannot_be_written_are_refused(two_images):
    two_images["P2"]["boxes"][0, 0] = np.inf
    with pytest.raises(ValueError, match="'P2' has boxes or scores that are not finite"):
        dota.format_task1(two_images, CLASSES)
    with pytest.raises(ValueError, match="labels 0 to 1; there are 1 classes"):
        dota.format_task1(two_images, ("plane",))


def test_submission_holds_every_class_and_passes_its_own_check(tmp_path, two_images):
    path = tmp_path / "folder" / "s.zip"
    assert dota.write_submission(path, two_images, CLASSES, image_names=["P1", "P2"]) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["Task1_plane.txt", "Task1_ship.txt", "Task1_storage-tank.txt"]
        assert archive.read("Task1_storage-tank.txt") == b""
    first = path.read_bytes()
    dota.write_submission(path, two_images, CLASSES)
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.iterdir()] == ["s.zip"]


def test_images_without_detections_are_a_warning(tmp_path, two_images):
    problems = dota.write_submission(tmp_path / "s.zip", two_images, CLASSES, image_names=["P1", "P2", "P3"])
    assert reasons(problems) == ["no_detections"]
    assert "1 of 3 test images have no detections, for example P3" in str(problems[0])
    assert (tmp_path / "s.zip").exists()


def test_submission_with_an_unknown_image_is_not_written(tmp_path, two_images):
    (tmp_path / "s.zip").write_bytes(b"older")
    problems = dota.write_submission(tmp_path / "s.zip", two_images, CLASSES, image_names=["P1"])
    assert reasons(problems) == ["unknown_image"]
    assert problems[0].path == f"{tmp_path / 's.zip'}/Task1_plane.txt"
    assert problems[0].line == 3
    assert (tmp_path / "s.zip").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


LINE = "P1 0.5 0 0 2 0 2 1 0 1\n"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"Task1_ship.txt": LINE}, []),
        ({"Task1_ship.txt": "P1 0.5 0 0 2 0 2 1 0\n"}, ["bad_line"]),
        ({"Task1_ship.txt": "P1 0.5 0 0 2 0 2 1 0 one\n"}, ["bad_number"]),
        ({"Task1_ship.txt": "P1 1.5 0 0 2 0 2 1 0 1\n"}, ["bad_score"]),
        ({"Task1_ship.txt": "P1 0.5 0 0 2 0 4 0 6 0\n"}, ["zero_area"]),
        ({"Task1_ship.txt": LINE.replace("P1", "P1.png")}, ["bad_image_name"]),
        ({"Task1_ship.txt": LINE.replace("P1", "P 1")}, ["bad_image_name"]),
        ({"Task1_ship.txt": LINE.replace("P1", "P1__1024__0___824")}, ["tile_name"]),
        ({"Task1_harbor.txt": ""}, ["unexpected_file"]),
        ({"folder/Task1_ship.txt": ""}, ["unexpected_file"]),
        ({"Task1_plane.txt": None}, ["missing_file"]),
    ],
)
def test_check_names_what_is_wrong(tmp_path, members, expected):
    every = {dota.task1_file_name(name): "" for name in CLASSES} | members
    path = write_zip(tmp_path / "s.zip", {name: text for name, text in every.items() if text is not None})
    assert reasons(dota.check_submission(path, CLASSES)) == expected


def test_check_refuses_what_is_no_zip(tmp_path):
    (tmp_path / "s.zip").write_text("<html>")
    assert reasons(dota.check_submission(tmp_path / "s.zip", CLASSES)) == ["not_a_zip"]


def write_json(path, images):
    path.write_text(json.dumps({"images": images}))
    return path


def entry(image, *rows):
    objects = [{"label": name, "score": 0.5, "box": [x, 50, 20, 10, 0.3], "polygon": [0] * 8} for name, x in rows]
    return {"image": image, "width": 1024, "height": 1024, "detections": objects}


def test_detections_json_is_read(tmp_path):
    path = write_json(tmp_path / "d.json", [entry("folder/a.b.png", ("ship", 10), ("plane", 20)), entry("c.tif")])
    found = predictions.read(path, CLASSES).by_image
    assert list(found) == ["a.b", "c"]
    np.testing.assert_array_equal(found["a.b"]["labels"], [1, 0])
    assert found["c"]["boxes"].shape == (0, 5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([entry("a.png", ("boat", 10), ("boat", 30))], "classes that are not among the 3 given: 2 of 'boat'"),
        ([entry("x/a.png"), entry("y/a.png")], "two images are called 'a'"),
        ([{"image": "a.png"}], "detections is missing"),
        (None, "images is None, expected a list"),
    ],
)
def test_other_json_is_refused_in_a_sentence(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        predictions.read(write_json(tmp_path / "d.json", images), CLASSES)


def test_submit_merges_tiles_and_warns_of_training_images(tmp_path, capsys):
    tiles = [entry("P1__1024__0___0.png", ("ship", 850)), entry("P1__1024__824___0.png", ("ship", 26))]
    write_json(tmp_path / "detections.json", tiles)
    arguments = {"test_images": ["P1", "P2"], "train_images": ["P2__1024__0___0", "P7"]}
    assert submission.submit(tmp_path, tmp_path / "s.zip", CLASSES, **arguments)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert len(archive.read("Task1_ship.txt").splitlines()) == 1  # both tiles saw the same ship
    said = capsys.readouterr()
    assert "merged 2 tiles into 1 image at" in said.out
    assert "warning: 1 image in both training and test (P2)" in said.err


def test_submit_leaves_out_and_counts_what_encloses_no_area(tmp_path, capsys):
    objects = [{"label": "ship", "score": 0.9, "box": box} for box in ([50, 50, 20, 10, 0.3], [9, 9, 20, 0.004, 0])]
    objects.append({"label": "plane", "score": 0.9, "box": [9, 9, 0, 0, 0]})
    write_json(tmp_path / "detections.json", [{"image": "P1.png", "detections": objects}])
    assert submission.submit(tmp_path, tmp_path / "s.zip", CLASSES, test_images=["P1"], train_images=["P3"])
    assert reasons(dota.check_submission(tmp_path / "s.zip", CLASSES)) == []
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        lines = {name: archive.read(name).splitlines() for name in archive.namelist()}
    assert len(lines["Task1_ship.txt"]) == 1 and not lines["Task1_plane.txt"]
    said = capsys.readouterr()
    assert "2 detections in 1 image left out" in said.err
    assert "tested on 1 image, trained on 1 image" in said.out


def test_submit_places_resized_tiles_by_the_detections_json_beside(tmp_path):
    box = [(700 - 333) * 1024 / 682, 650 * 1024 / 682, 40 * 1024 / 682, 12 * 1024 / 682, 0.0]
    detections = [{"label": "ship", "score": 0.9, "box": box}]
    tile = {"image": "P1__682__333___0.png", "width": 1024, "height": 1024, "detections": detections}
    write_json(tmp_path / "detections.json", [tile])
    found = predictions.read(tmp_path / "detections.json", CLASSES).by_image
    dota.write_task1(tmp_path / "task1", found, CLASSES)
    for source in (tmp_path, tmp_path / "task1"):
        assert submission.submit(source, tmp_path / "s.zip", CLASSES)
        with zipfile.ZipFile(tmp_path / "s.zip") as archive:
            (line,) = archive.read("Task1_ship.txt").decode().splitlines()
        corners = [float(word) for word in line.split()[2:]]
        # Two decimals in the Task-1 file, and the smallest rectangle around its corners.
        np.testing.assert_allclose(corners, [680, 644, 720, 644, 720, 656, 680, 656], atol=0.05)


def test_submit_takes_task1_files_and_fills_in_missing_classes(tmp_path, capsys, two_images):
    dota.write_task1(tmp_path / "in", two_images, CLASSES[:2])
    assert submission.submit(tmp_path / "in", tmp_path / "s.zip", CLASSES)
    assert reasons(dota.check_submission(tmp_path / "s.zip", CLASSES)) == []
    assert "Task1_storage-tank.txt" in capsys.readouterr().err


def test_submit_refuses_predictions_it_cannot_read_completely(tmp_path, capsys):
    (tmp_path / "Task1_plane.txt").write_text("P1 0.5 1 2\n")
    assert not submission.submit(tmp_path, tmp_path / "s.zip", CLASSES)
    assert "Task1_plane.txt:1" in capsys.readouterr().err
    assert not (tmp_path / "s.zip").exists()
    with pytest.raises(ValueError, match="neither a detections"):
        submission.submit(tmp_path / "nowhere", tmp_path / "s.zip", CLASSES)


def test_classes_and_images_may_be_named_in_files(tmp_path):
    assert len(classes.read_class_names("dota15")) == 16
    (tmp_path / "classes.txt").write_text("\ufeffplane\r\n\nlarge ship\n")
    assert classes.read_class_names(str(tmp_path / "classes.txt")) == ("plane", "large ship")
    (tmp_path / "classes.txt").write_text("plane\nplane\n")
    with pytest.raises(ValueError, match="plane is there twice"):
        classes.read_class_names(str(tmp_path / "classes.txt"))
    with pytest.raises(ValueError, match="to be one of dota10"):
        classes.read_class_names("dota99")
    (tmp_path / "b.PNG").write_bytes(b"")
    (tmp_path / "list.txt").write_text("x/a.png\nb\n")
    assert submission.image_names(tmp_path) == ["b"]
    assert submission.image_names(tmp_path / "list.txt") == ["a", "b"]


def test_command_ends_with_status_one_and_without_a_file_when_names_are_wrong(tmp_path, two_images):
    dota.write_task1(tmp_path / "in", two_images, CLASSES)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "list.txt").write_text("P1\n")
    options = {"predictions": "in", "output": "s.zip", "classes": "classes.txt", "image-list": "list.txt"}
    command = [sys.executable, "-m", "haksnet_jax", "submit"]
    command += [f"--{name}={tmp_path / value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'P2' is not among the 1 test images [unknown_image]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.zip").exists()
    (tmp_path / "list.txt").write_text("P1.png\nP2.png\n")
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    assert (tmp_path / "s.zip").exists()
