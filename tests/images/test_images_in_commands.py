"""One scene in several forms gives the same detections, whichever command looks at it; a bad image ends nothing."""

import json

import cv2
import numpy as np
import pytest
from bright_objects import save_tiny, scene, use_bright_objects

from haksnet_jax.cli import program
from haksnet_jax.labels.dota import format_label_line

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
HARBOUR = [(40, 40, 30, 10, 20), (170, 60, 24, 12, 0), (128, 20, 20, 8, 90)]
SCENE = scene(128, 200, HARBOUR)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden_file):
    return save_tiny(
        tmp_path_factory.mktemp("model") / "tiny", golden_file("state_dict_tiny.json"), input_size=(128, 128)
    )


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr("haksnet_jax.distributed.mesh.enable_compilation_cache", lambda: None)  # tests have their own
    return use_bright_objects(monkeypatch)


def write_tiff(path, pixels, **profile):
    rows, columns, channels = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=columns, height=rows, count=channels, dtype=pixels.dtype, **profile
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def deep(image, nodata):
    """Eleven bits with a corner of no data and the largest value of the sensor somewhere."""
    values = ((image.astype(np.uint32) * 2047 + 127) // 255).astype(np.uint16)
    values[120:, 190:] = nodata
    values[0, 0] = 2047
    return values


FORMS = {
    "png": lambda path: cv2.imwrite(f"{path}.png", SCENE[..., ::-1]),
    "infrared": lambda path: write_tiff(f"{path}.tif", np.dstack([SCENE, np.full_like(SCENE[..., :1], 255)])),
    "grey": lambda path: write_tiff(f"{path}.tif", SCENE, photometric="MINISBLACK"),
    "deep": lambda path: write_tiff(f"{path}.tif", deep(SCENE, 65535), nodata=65535),
    "inverted": lambda path: write_tiff(
        f"{path}.tif",
        255 - SCENE,
        photometric="MINISWHITE",
        compress="deflate",
        tiled=True,
        blockxsize=16,
        blockysize=16,
    ),
}


def predicted(tiny, folder, *more):
    """(status, {image name without ending: set of rounded boxes}) of `predict`."""
    status = program.main(["predict", f"--checkpoint={tiny}", f"--images={folder / 'images'}", "--batch-size=1",
                           f"--output={folder / 'found'}", "--no-drawings", *more])  # fmt: skip
    found = json.loads((folder / "found/detections.json").read_text())["images"]
    return status, {
        one["image"].split(".")[0]: {tuple(np.rint(each["box"][:4])) for each in one["detections"]} for one in found
    }


@pytest.mark.parametrize("form", FORMS)
def test_predict_and_evaluate_see_one_scene_in_every_form(form, tiny, tmp_path):
    (tmp_path / "images").mkdir()
    FORMS[form](tmp_path / "images/a")
    status, found = predicted(tiny, tmp_path)
    boxes = next(iter(found.values()))
    # A box of grey on the ground of its colour, and its long side first: as they were drawn, within a pixel.
    expected = np.array([box[:4] for box in HARBOUR], float)
    assert status == 0 and len(boxes) == 3
    np.testing.assert_allclose(sorted(boxes), sorted(map(tuple, expected)), atol=2)
    (tmp_path / "labels").mkdir()
    polygons = [cv2.boxPoints(((x, y), (w, h), angle)) for x, y, w, h, angle in HARBOUR]
    lines = [format_label_line(polygon, "plane", 0) for polygon in polygons]
    (tmp_path / "labels/a.txt").write_text("".join(line + "\n" for line in lines))
    arguments = ["evaluate", f"--checkpoint={tiny}", f"--images={tmp_path / 'images'}",
                 f"--labels={tmp_path / 'labels'}", f"--json={tmp_path / 'r.json'}"]  # fmt: skip
    assert program.main(arguments) == 0
    assert json.loads((tmp_path / "r.json").read_text())["classes"]["plane"]["num_detections"] == 3


def test_a_bad_image_is_named_and_the_others_are_done(tiny, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("good", "bad", "worse"):
        FORMS["png"](tmp_path / "images" / name)
        (tmp_path / "labels" / f"{name}.txt").write_text("25 35 55 35 55 45 25 45 plane 0\n")
    data = (tmp_path / "images/bad.png").read_bytes()
    (tmp_path / "images/bad.png").write_bytes(data[:-100])
    (tmp_path / "images/worse.png").write_bytes(data[:60] + bytes(100) + data[160:])
    status, found = predicted(tiny, tmp_path)
    assert status == 1 and list(found) == ["good"]
    assert "bad.png" in (message := capsys.readouterr().err) and "worse.png" in message
    arguments = ["evaluate", f"--checkpoint={tiny}", f"--images={tmp_path / 'images'}",
                 f"--labels={tmp_path / 'labels'}", f"--json={tmp_path / 'r.json'}"]  # fmt: skip
    assert program.main(arguments) == 1
    message = capsys.readouterr().err
    assert "bad.png" in message and "worse.png" in message and "2 images could not be read" in message
    assert json.loads((tmp_path / "r.json").read_text())["classes"]["plane"]["num_gts"] == 1
    status = program.main(["split", f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'tiles'}",
                           "--tile=64", "--overlap=0", "--workers=1"])  # fmt: skip
    assert status == 1
    assert list((tmp_path / "tiles/images").glob("good__*")) and not list((tmp_path / "tiles/images").glob("bad*"))


def test_a_model_of_chosen_bands_finds_them_or_names_the_one_that_is_lacking(tiny, tmp_path, capsys):
    info = json.loads((tiny / "model.json").read_text())
    folder = tmp_path / "infrared_model"
    folder.mkdir()
    for path in tiny.iterdir():
        if path.name not in ("model.json", "sums.json"):
            (folder / path.name).symlink_to(path)
    (folder / "model.json").write_text(json.dumps(info | {"images": {"bands": [4, 3, 2]}}))
    (tmp_path / "images").mkdir()
    write_tiff(tmp_path / "images/a.tif", np.dstack([np.zeros_like(SCENE[..., :1]), SCENE[..., ::-1]]))
    status, found = predicted(folder, tmp_path)
    assert status == 0 and len(found["a"]) == 3
    FORMS["png"](tmp_path / "images/b")
    status, found = predicted(folder, tmp_path)
    message = capsys.readouterr().err
    assert status == 1 and list(found) == ["a"]
    assert "b.png: the image lacks band 4; its 3 bands: 1 (red), 2 (green), 3 (blue)" in message
