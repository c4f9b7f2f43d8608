"""The validator names every problem with its file and line, and fails only when something would be lost."""

import cv2
import numpy as np
import pytest

from haksnet_jax.cli import program
from haksnet_jax.images.headers import EXTENSIONS_OF, ImageError, read_header
from haksnet_jax.preparation import validation, validation_report


def make(folder, name="a.png", lines=(), rows=100, columns=120, channels=3, dtype=np.uint8):
    """Writes an image of noise and its label file; returns the path of the image."""
    for part in ("images", "labelTxt"):
        (folder / part).mkdir(exist_ok=True)
    high = np.iinfo(dtype).max
    pixels = np.random.default_rng(1).integers(0, high, (rows, columns, channels), dtype=dtype)
    path = folder / "images" / name
    assert cv2.imwrite(str(path), pixels)
    (folder / "labelTxt" / f"{path.stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    return path


def check(folder, class_names=("plane", "ship"), **kwargs):
    report = validation.validate(folder / "images", folder / "labelTxt", class_names, num_threads=2, **kwargs)
    return report, {(problem.path.rsplit("/", 1)[-1], problem.line, problem.reason) for problem in report.problems}


def test_a_sound_data_set_has_no_problems_and_exit_status_0(tmp_path, capsys):
    make(tmp_path, "a.png", ["imagesource:x", "gsd:1", "1 1 40 1 40 20 1 20 plane 1", "50 1 60 1 60 20 50 20 ship 0"])
    make(tmp_path, "b.jpg", [])
    sheet = tmp_path / "sheet.png"
    arguments = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labelTxt"), "--sheet", str(sheet)]
    assert program.main(["validate", *arguments]) == 0
    output = capsys.readouterr().out
    assert "2 images, 120 to 120 pixels wide" in output
    assert "2 objects, at most 1 in an image" not in output
    assert "2 objects, at most 2 in an image; 1 image without objects" in output
    assert ["plane", "1", "1", "1", "27"] in [line.split() for line in output.splitlines()]  # sqrt(39 x 19) = 27
    assert ["8", "to", "16", "1", "#" * 40] in [line.split() for line in output.splitlines()]  # sqrt(10 x 19) = 14
    assert output.rstrip().endswith("no problems")
    assert cv2.imread(str(sheet)) is not None


def test_every_bad_line_is_named(tmp_path):
    make(
        tmp_path,
        "a.png",
        [
            "1 1 40 1 40 20 1 20 plane 0\r",
            "1 1 40 1 40 20 1",
            "1 1 40 1 40 x 1 20 plane 0",
            "1 1 40 1 40 20 1 20 lorry 0",
            "1 1 40 1 40 1 1 1 plane 0",
            "2 2 40 20 40 2 2 20 Plane 0",  # crossed, and another spelling
            "1 1 1 20 40 20 40 1 ship 0 extra columns",  # the other way round: no problem
            "1 1 1 20 40 20 40 1 ship 0",
            "1 1 40 1 40 20 1 20 plane easy",
            "100 50 140 50 140 60 100 60 ship 0",
            "300 50 340 50 340 60 300 60 ship 0",
            "5 5 25 5 25 6 5 6 ship 0",
        ],
    )
    report, found = check(tmp_path)
    assert found == {
        ("a.txt", 2, "too_few_numbers"),
        ("a.txt", 3, "bad_number"),
        ("a.txt", 4, "unknown_class"),
        ("a.txt", 5, "zero_area"),
        ("a.txt", 6, "crossed"),
        ("a.txt", 6, "class_respelled"),
        ("a.txt", 8, "duplicate"),
        ("a.txt", 9, "bad_difficulty"),
        ("a.txt", 9, "duplicate"),
        ("a.txt", 10, "partly_outside"),
        ("a.txt", 11, "wholly_outside"),
        ("a.txt", 12, "too_small"),
    }
    assert {problem.line for problem in report.lost} == {2, 3, 4, 5, 11, 12}
    assert len(report.images[0].objects.labels) == 6  # what training would see


def test_objects_that_tiling_cut_and_marked_are_no_problem(tmp_path):
    make(tmp_path, "a.png", ["-9 1 31 1 31 20 -9 20 ship 2", "-9 22 31 22 31 29 -9 29 ship 0"])
    report, found = check(tmp_path)
    assert found == {("a.txt", 2, "partly_outside")} and len(report.images[0].boxes) == 2


def test_every_bad_file_is_named(tmp_path):
    good = make(tmp_path, "good.png")
    images, annotations = tmp_path / "images", tmp_path / "labelTxt"
    half = make(tmp_path, "half.jpg")
    half.write_bytes(half.read_bytes()[:-200])
    damaged = make(tmp_path, "damaged.png")
    data = bytearray(damaged.read_bytes())
    data[200:300] = bytes(100)  # inside the compressed pixels; header and end are whole
    damaged.write_bytes(data)
    make(tmp_path, "empty.png").write_bytes(b"")
    make(tmp_path, "text.tif").write_text("no image")
    (images / "wrong.jpg").write_bytes(good.read_bytes())
    (annotations / "wrong.txt").touch()
    make(tmp_path, "deep.png", channels=1, dtype=np.uint16)
    make(tmp_path, "four.png", channels=4)
    make(tmp_path, "twin.png")
    make(tmp_path, "twin.jpg")
    blank = make(tmp_path, "blank.png")
    cv2.imwrite(str(blank), np.zeros((20, 20, 3), np.uint8))
    (annotations / "orphan.txt").touch()
    make(tmp_path, "unlabelled.png")
    (annotations / "unlabelled.txt").unlink()
    _, found = check(tmp_path)
    expected = {
        ("half.jpg", 0, "truncated_image"),
        ("damaged.png", 0, "undecodable_image"),
        ("empty.png", 0, "empty_image"),
        ("text.tif", 0, "not_an_image"),
        ("wrong.jpg", 0, "wrong_extension"),
        ("twin.png", 0, "same_name"),
        ("blank.png", 0, "blank_image"),
        ("orphan.txt", 0, "labels_without_image"),
        ("unlabelled.png", 0, "image_without_labels"),
    }
    assert found == expected
    _, fast = check(tmp_path, decode=False)
    assert fast == {problem for problem in expected if problem[2] not in ("undecodable_image", "blank_image")}


@pytest.mark.parametrize("channels", [2, 8])
def test_images_of_other_channels_are_named(tmp_path, channels):
    rasterio = pytest.importorskip("rasterio")
    make(tmp_path)
    profile = {"driver": "GTiff", "height": 30, "width": 40, "count": channels, "dtype": "uint8"}
    with rasterio.open(tmp_path / "images/a.tif", "w", **profile) as file:
        file.write(np.ones((channels, 30, 40), np.uint8))
    (tmp_path / "images/a.png").unlink()
    report, found = check(tmp_path)
    assert ("a.tif", 0, "first_bands") in found and not report.lost
    assert f"{channels} bands without declared colours" in str(report.problems[0])
    assert validation_report.contact_sheet(report).ndim == 3


def test_problems_are_counted_per_reason_and_loss_gives_exit_status_1(tmp_path, capsys):
    make(tmp_path, "a.png", ["1 1 40 1 plane 0"] * 3 + ["1 1 40 1 40 20 1 20 Small Car 0"])
    make(tmp_path, "b.png", ["1 1 40 1 40 20 1 20 small-car 0"])
    arguments = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labelTxt")]
    assert program.main(["validate", *arguments, "--show=1"]) == 1
    output = capsys.readouterr().out
    assert output.count("a.txt:") == 1
    assert "3  too_few_numbers  (something would be lost)" in output
    assert "1  similar_classes\n" in output
    assert program.main(["validate", *arguments, "--classes=nothing"]) == 1
    assert "expected --classes to be one of dota10" in capsys.readouterr().err


def test_ctrl_c_is_a_sentence(tmp_path, monkeypatch, capsys):
    make(tmp_path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(validation, "check_one", stop)  # in a thread, as it comes up from there
    assert program.main(["validate", "--images", str(tmp_path / "images")]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_images_alone_can_be_checked_and_missing_folders_are_one_sentence(tmp_path, capsys):
    make(tmp_path)
    assert program.main(["validate", "--images", str(tmp_path / "images")]) == 0
    assert "no labels" in capsys.readouterr().out
    assert program.main(["validate", "--images", str(tmp_path / "nowhere")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert program.main(["validate", "--images", str(tmp_path / "labelTxt")]) == 1
    assert "Found no images" in capsys.readouterr().err
    (tmp_path / "file").touch()
    arguments = ["--images", str(tmp_path / "images"), "--sheet", str(tmp_path / "file/sheet.png")]
    assert program.main(["validate", *arguments]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("extension", [".png", ".jpg", ".bmp", ".tif"])
def test_headers_say_what_the_decoder_finds_and_any_cut_is_noticed(tmp_path, extension):
    path = make(tmp_path, f"a{extension}", rows=37, columns=61)
    header = read_header(path)
    assert (header.width, header.height, header.channels, header.bits) == (61, 37, 3, 8)
    assert extension in EXTENSIONS_OF[header.format]
    data = path.read_bytes()
    for length in np.linspace(1, len(data) - 2, 40, dtype=int).tolist():
        path.write_bytes(data[:length])
        with pytest.raises(ImageError):
            read_header(path)


def test_labels_in_another_format_are_told_of_twice_and_counted(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(5):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((50, 100, 3), 9, np.uint8))
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    assert program.main(["validate", f"--images={tmp_path / 'images'}", f"--labels={tmp_path / 'labels'}"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("these look like YOLO-OBB lines") == 2 and "5  other_format" in printed
