"""Files that detections leave in, read back: by this project where it reads the format, else by its description."""

import csv
import json

import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.results import dota, formats, visualize
from haksnet_jax.results.detections import Detections

CLASSES = ("ship", "storage tank")


def image(name, count, path=None, seed=0):
    rng = np.random.default_rng(seed)
    limits = ((20, 180), (20, 80), (8, 20), (3, 8), (-1.5, 1.5))
    boxes = np.stack([rng.uniform(*pair, count) for pair in limits], -1)
    labels = rng.integers(0, 2, count)
    return Detections(boxes, rng.uniform(0.1, 1, count), labels, CLASSES, image=name, path=path, size=(200, 100))


@pytest.fixture
def images():
    return [image("a.png", 5), image("b.c.tif", 3, seed=1), image("empty.png", 0)]


def test_task1_files_are_read_back(tmp_path, images):
    formats.write_task1(tmp_path, images, CLASSES)
    by_image, problems = dota.read_task1(tmp_path / "task1", CLASSES)
    assert not problems and list(by_image) == ["a", "b.c"]
    order = np.lexsort((-images[0].scores, images[0].labels))  # a file a class, best first
    np.testing.assert_allclose(by_image["a"]["scores"], images[0].scores[order], atol=1e-6)


@pytest.mark.parametrize(("name", "labels_format"), [("labels", "dota"), ("yolo-obb", "yolo-obb")])
def test_label_files_are_read_back_as_labels(tmp_path, images, name, labels_format):
    formats.FORMATS[name](tmp_path, images, CLASSES)
    label_set = LabelSet(tmp_path / name, labels_format)
    for one in images:
        stem = dota.image_stem(one.image)
        path = tmp_path / f"{stem}.png"
        visualize.write_image(path, np.zeros((100, 200, 3), np.uint8))
        objects, _ = label_set.read(stem, CLASSES, path)
        assert objects.labels.tolist() == one.labels.tolist()
        # Three decimals of a pixel, or six of 200 pixels.
        np.testing.assert_allclose(objects.polygons.reshape(-1, 4, 2), one.polygons, atol=1e-3)


def test_coco_results_refer_to_images_and_categories_beside_them(tmp_path, images):
    formats.write_coco(tmp_path, images, CLASSES)
    results = json.loads((tmp_path / "coco" / "results.json").read_text())
    described = json.loads((tmp_path / "coco" / "images.json").read_text())
    names = {one["id"]: one["file_name"] for one in described["images"]}
    assert names == {1: "a.png", 2: "b.c.tif", 3: "empty.png"}
    assert described["categories"] == [{"id": 1, "name": "ship"}, {"id": 2, "name": "storage tank"}]
    assert [entry["image_id"] for entry in results] == [1] * 5 + [2] * 3
    for entry, box in zip(results, images[0].polygons, strict=False):
        x, y, w, h = entry["bbox"]  # a tenth of a hundredth from rounding
        np.testing.assert_allclose([x, y, x + w, y + h], [*box.min(axis=0), *box.max(axis=0)], atol=0.011)


def test_csv_has_a_row_for_each_object(tmp_path, images):
    formats.write_csv(tmp_path, images, CLASSES)
    with open(tmp_path / "detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["image"] for row in rows} == {"a.png", "b.c.tif"}
    corner = [float(rows[0]["x1"]), float(rows[0]["y1"])]
    np.testing.assert_allclose(corner, images[0].polygons[0, 0], atol=1e-3)
    assert float(rows[0]["angle"]) == pytest.approx(images[0].boxes[0, 4], abs=1e-6)


def test_a_geopackage_has_a_layer_for_each_coordinate_system(tmp_path, images):
    pyogrio, rasterio = pytest.importorskip("pyogrio"), pytest.importorskip("rasterio")
    import shapely

    path = tmp_path / "geo.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=200, height=100, count=1, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
    ) as dataset:  # fmt: skip
        dataset.write(np.zeros((1, 100, 200), np.uint8))
    placed = image("geo.tif", 4, path=path)
    formats.write_geopackage(tmp_path, [placed, *images], CLASSES)
    layers = pyogrio.list_layers(tmp_path / "detections.gpkg")
    assert layers[:, 0].tolist() == ["detections", "detections_2"]
    meta, _, geometry, fields = pyogrio.raw.read(tmp_path / "detections.gpkg", layer="detections")
    assert meta["crs"] == "EPSG:32633" and meta["fields"].tolist() == ["image", "label", "score"]
    assert fields[1].tolist() == placed.names
    centres = [(shape.centroid.x, shape.centroid.y) for shape in shapely.from_wkb(geometry)]
    expected = [(500_000 + 0.5 * x, 5_000_000 - 0.5 * y) for x, y in placed.boxes[:, :2]]
    np.testing.assert_allclose(centres, expected, atol=1e-3)
    assert pyogrio.read_info(tmp_path / "detections.gpkg", layer="detections_2")["features"] == 8


def test_formats_are_known_by_name():
    assert formats.checked(["json", "coco", "coco"]) == ("coco",)
    with pytest.raises(UserError, match=r"expected some of json, task1, geojson.*got kml"):
        formats.checked(["kml"])


def test_class_names_that_cannot_be_files_are_refused_before_any_is_written(tmp_path):
    assert dota.task1_file_name("car/truck") == "Task1_car%2Ftruck.txt"
    assert dota.task1_class_name("Task1_car%2Ftruck.txt") == "car/truck"
    for names, message in (
        (("a" * 300,), "cannot be the name of a file"),
        (("ship", "a\0b"), "without control characters"),
        (("small car", "small-car"), "would share the file Task1_small-car.txt"),
    ):
        with pytest.raises(UserError, match=message):
            dota.write_task1(tmp_path / "task1", {}, names)
    assert not (tmp_path / "task1").exists()
    found = {"a": {"boxes": [[5, 5, 4, 2, 0]], "scores": [0.5], "labels": [0]}}
    dota.write_task1(tmp_path / "task1", found, ("car/truck",))
    assert dota.read_task1(tmp_path / "task1", ("car/truck",))[0]["a"]["labels"].tolist() == [0]
