"""The command that predicts: its files, and what happens when something goes wrong."""

import json
import math

import cv2
import numpy as np
import pytest
from bright_objects import CLASS_NAMES, save_tiny, scene, use_bright_objects

from haksnet_jax.cli import program
from haksnet_jax.results import detections_json, dota, output, visualize

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
HARBOUR = [(40, 40, 30, 10, 20), (170, 60, 24, 12, 0), (128, 20, 20, 8, 90)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden_file):
    return save_tiny(
        tmp_path_factory.mktemp("model") / "tiny", golden_file("state_dict_tiny.json"), input_size=(128, 128)
    )


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """Runs the command with the stand-in. command(images, *more) -> (exit status, content of detections.json)."""
    stand_in = use_bright_objects(monkeypatch)
    monkeypatch.setattr("haksnet_jax.distributed.mesh.enable_compilation_cache", lambda: None)  # tests have their own

    def run(images, *more):
        images = [images] if isinstance(images, (str, bytes)) or not isinstance(images, list) else images
        folder = tmp_path / "out"
        status = program.main(
            [
                "predict",
                f"--checkpoint={tiny}",
                "--images",
                *map(str, images),
                f"--output={folder}",
                "--batch-size=1",
                *more,
            ]
        )
        path = folder / "detections.json"
        return status, json.loads(path.read_text()) if path.exists() else None

    run.stand_in = stand_in
    run.output = tmp_path / "out"
    return run


@pytest.fixture
def images(tmp_path):
    """A folder of three images: a small one, a large one, one without objects."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in (
        ("small.png", scene(128, 100, HARBOUR[:1])),
        ("large.png", scene(200, 240, HARBOUR)),
        ("nothing.png", scene(90, 90, [])),
    ):
        cv2.imwrite(str(folder / name), image)
    return folder


def by_name(content):
    return {entry["image"]: entry for entry in content["images"]}


def test_detections_json_has_the_agreed_form(command, images):
    status, content = command(images)
    assert status == 0
    assert list(content) == ["classes", "images"] and content["classes"] == list(CLASS_NAMES)
    assert [entry["image"] for entry in content["images"]] == ["large.png", "nothing.png", "small.png"]
    entry = by_name(content)["small.png"]
    assert set(entry) == {"image", "width", "height", "detections"}
    assert (entry["width"], entry["height"]) == (100, 128)
    (detection,) = entry["detections"]
    assert set(detection) == {"label", "score", "box", "polygon"}
    assert detection["label"] == CLASS_NAMES[0] and 0 < detection["score"] <= 1
    # Edges of a rotated rectangle are steps of a pixel.
    np.testing.assert_allclose(detection["box"], [40, 40, 30, 10, math.radians(20)], atol=1.5)
    assert detection["box"][4] == pytest.approx(math.radians(20), abs=0.1)
    corners = np.array(detection["polygon"]).reshape(4, 2)
    np.testing.assert_allclose(corners.mean(axis=0), detection["box"][:2], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(corners[0] - corners[1]), detection["box"][2], atol=1e-3)
    assert by_name(content)["nothing.png"]["detections"] == []
    assert len(by_name(content)["large.png"]["detections"]) == 3


def test_text_files_drawings_and_classes_lie_beside_it(command, images):
    status, content = command(images)
    assert status == 0
    assert sorted(path.name for path in command.output.iterdir()) == [
        "classes.txt",
        "detections.json",
        "drawings",
        "task1",
    ]
    assert (command.output / "classes.txt").read_text().split("\n")[:-1] == list(CLASS_NAMES)
    detections, problems = dota.read_task1(command.output / "task1", CLASS_NAMES)
    assert not problems and {name: len(one["scores"]) for name, one in detections.items()} == {"large": 3, "small": 1}
    drawing = cv2.imread(str(command.output / "drawings" / "large.jpg"))
    assert drawing.shape[1] == 240 and drawing.shape[0] > 200  # the legend below
    plain = cv2.imread(str(images / "large.png"))
    assert np.abs(drawing[:200].astype(int) - plain).max() > 100
    boxes, _, _ = detections_json.read(command.output / "detections.json")
    np.testing.assert_allclose(sorted(boxes["large"]["scores"]), sorted(detections["large"]["scores"]), atol=1e-6)
    assert len(content["images"]) == 3


def test_what_is_not_wanted_is_not_written(command, images):
    status, content = command(images, "--no-drawings", "--no-task1", "--no-geojson", "--classes=ship", "--score=0.06")
    assert status == 0
    assert sorted(path.name for path in command.output.iterdir()) == ["classes.txt", "detections.json"]
    assert not any(entry["detections"] for entry in content["images"])


def test_files_patterns_and_folders_name_images(command, images, capsys):
    assert len(command([images / "small.png", images / "large.png", images / "small.png"])[1]["images"]) == 2
    assert len(command(f"{images}/*l*.png")[1]["images"]) == 2
    assert len(command(f"{images.parent}/**/n*.png")[1]["images"]) == 1
    (images / "notes.txt").write_text("no image")
    capsys.readouterr()
    assert len(command(images)[1]["images"]) == 3
    assert "left out: 1 file not named like an image" in capsys.readouterr().err


def test_georeferenced_images_give_geojson(command, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "harbour.tif"
    pixels = np.moveaxis(scene(200, 240, HARBOUR), -1, 0)
    with rasterio.open(
        path, "w", driver="GTiff", width=240, height=200, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    status, content = command(path)
    assert status == 0
    local = json.loads((command.output / "geojson" / "harbour.geojson").read_text())
    world = json.loads((command.output / "geojson" / "harbour.wgs84.geojson").read_text())
    for feature, detection in zip(local["features"], content["images"][0]["detections"], strict=True):
        x, y = np.mean(feature["geometry"]["coordinates"][0][:4], axis=0)
        assert (2 * (x - 500_000), 2 * (5_000_000 - y)) == pytest.approx(detection["box"][:2], abs=0.01)
    assert len(world["features"]) == 3
    assert 15 < world["features"][0]["geometry"]["coordinates"][0][0][0] < 15.01


def test_unreadable_images_are_named_and_the_others_done(command, images, capsys):
    whole = (images / "large.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "page.png").write_bytes(b"<html>")
    status, content = command(images)
    assert status == 1
    assert set(by_name(content)) == {"small.png", "large.png", "nothing.png"}
    errors = capsys.readouterr().err
    assert "cut.png: the file is truncated" in errors and "page.png: expected a PNG" in errors
    assert "2 of 5 images could not be used" in errors
    assert "Traceback" not in errors


def test_a_stopped_run_goes_on_where_it_ended(command, images, monkeypatch, capsys):
    write = visualize.write_image
    drawn = []

    def stop_at_the_second(path, image):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(path.name)
        write(path, image)

    monkeypatch.setattr(visualize, "write_image", stop_at_the_second)
    assert command(images) == (130, None)
    assert "Stopped: 1 of 3 images done" in capsys.readouterr().err

    def go_on(path, image):
        drawn.append(path.name)
        write(path, image)

    monkeypatch.setattr(visualize, "write_image", go_on)
    status, content = command(images)
    assert status == 0 and len(content["images"]) == 3
    assert sorted(drawn) == ["large.jpg", "nothing.jpg", "small.jpg"]  # none of them twice
    assert "1 of 3 images done already" in capsys.readouterr().err
    assert not (command.output / output.UNFINISHED).exists()


@pytest.fixture
def stopped(command, images):
    """The command, stopped when all images were done but the files of the whole run were not written."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output.OutputFolder, "finish", stop)
        assert command(images) == (130, None)
    command.stand_in.num_images = 0
    return command


def test_finished_images_are_not_looked_at_again(stopped, images):
    status, content = stopped(images)
    assert status == 0 and stopped.stand_in.num_images == 0
    assert len(by_name(content)["large.png"]["detections"]) == 3


def test_other_settings_begin_anew(stopped, images):
    assert stopped(images, "--score=0.2")[0] == 0
    assert stopped.stand_in.num_images > 2


def test_a_changed_image_is_looked_at_again(stopped, images):
    cv2.imwrite(str(images / "small.png"), scene(110, 128, HARBOUR[:1]))
    assert stopped(images)[0] == 0
    assert stopped.stand_in.num_images == 1


@pytest.mark.parametrize(
    ("images_argument", "more", "message"),
    [
        ("none.png", (), "neither a file"),
        ("none*.png", (), "no file matches"),
        (".", ("--classes=boat",), "boat is not among"),
        (".", ("--overlap=500",), "overlap"),
        (".", ("--checkpoint=/nowhere",), "no such checkpoint"),
    ],
)
def test_mistakes_end_with_a_sentence(command, images, monkeypatch, capsys, images_argument, more, message):
    monkeypatch.chdir(images)
    assert command(images_argument, *more) == (1, None)
    captured = capsys.readouterr().err
    assert message in captured and captured.startswith("error: ") and captured.count("\n") == 1


def test_a_folder_without_images_and_an_output_that_is_a_file_are_refused(command, tmp_path, images, capsys):
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty")[0] == 1
    assert "no images in" in capsys.readouterr().err
    command.output.rmdir() if command.output.exists() else None
    command.output.write_text("in the way")
    assert command(images)[0] == 1
    assert "--output=" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused(command, images, capsys):
    cv2.imwrite(str(images / "small.jpg"), scene(64, 64, []))
    assert command(images)[0] == 1
    assert "the same name" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(command, images, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    assert command(images)[0] == 0
    before = (command.output / "detections.json").read_bytes()
    monkeypatch.setattr(detections_json, "lines", full)
    assert command(images, "--score=0.1")[0] == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (command.output / "detections.json").read_bytes() == before
    assert sorted(path.name for path in command.output.iterdir() if path.is_file()) == [
        "classes.txt",
        "detections.json",
    ]


def test_names_with_spaces_and_other_letters_come_through(command, tmp_path):
    path = tmp_path / 'Häfen "1" (a).png'
    path.write_bytes(cv2.imencode(".png", scene(128, 128, HARBOUR[:1]))[1].tobytes())
    status, content = command(path)
    assert status == 0 and content["images"][0]["image"] == path.name
    assert (command.output / "drawings" / (path.stem + ".jpg")).is_file()
