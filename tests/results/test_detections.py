"""Detections as objects: arrays, names, choosing, drawing, and the ways out."""

import json
import sys
import types

import cv2
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.labels.dota import read_labels
from haksnet_jax.results import detections_json
from haksnet_jax.results.detections import Detections

CLASSES = ("ship", "plane", "storage tank")


def some(**more):
    boxes = [[50, 40, 20, 10, 0.0], [20, 20, 8, 4, 0.5], [70, 60, 12, 12, -0.3]]
    return Detections(boxes, [0.9, 0.5, 0.2], [0, 2, 0], CLASSES, image="a.png", size=(100, 80), **more)


def test_arrays_names_and_rows_say_the_same():
    found = some()
    assert len(found) == 3 and found.names == ["ship", "storage tank", "ship"]
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int32
    # By hand: 20 x 10 around (50, 40), not turned.
    assert {tuple(point) for point in found.polygons[0].tolist()} == {(40, 35), (60, 35), (60, 45), (40, 45)}
    first, second, _ = found
    assert (first.name, first.label) == ("ship", 0) and first.score == pytest.approx(0.9)
    np.testing.assert_array_equal(second.polygon, found.polygons[1])
    assert found[1].name == second.name and found[-1].name == "ship"
    assert repr(found) == "<Detections a.png: 2 ship, 1 storage tank>"


def test_names_of_arrays_still_give_them():
    found = some()
    np.testing.assert_array_equal(found["boxes"], found.boxes)
    assert "polygons" in found and "masks" not in found
    with pytest.raises(KeyError, match="expected one of boxes"):
        found["box"]


def test_rows_are_chosen_by_masks_slices_classes_and_scores():
    found = some()
    assert found[found.scores > 0.4].names == ["ship", "storage tank"]
    assert found[1:].names == ["storage tank", "ship"] and len(found[[]]) == 0
    assert found.filter(classes="ship").scores.tolist() == pytest.approx([0.9, 0.2])
    assert len(found.filter(classes=["ship", "plane"], score=0.5)) == 1
    assert found[1:].size == (100, 80) and found[1:].image == "a.png"
    with pytest.raises(UserError, match="boat is not among"):
        found.filter(classes=["boat"])


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        Detections([[1, 2, 3, 4, 0]], [0.5, 0.4], [0], CLASSES)


def test_a_drawing_shows_them_where_they_are(tmp_path):
    image = np.full((80, 100, 3), 40, np.uint8)
    found = some(read=lambda side: (image, 1.0))
    drawing = found.plot(text=False, legend=False)
    assert drawing.shape == image.shape and (drawing[34:37, 45:55] != 40).any() and (drawing[:10] == 40).all()
    found.save(tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] == 100
    with pytest.raises(ValueError, match="not at hand"):
        some().plot()


def test_files_are_written_by_their_endings(tmp_path):
    found = some()
    by_image, names, listed = detections_json.read(found.save(tmp_path / "a.json"))
    assert names == CLASSES and listed and by_image["a"]["size"] == (100, 80)
    np.testing.assert_allclose(by_image["a"]["boxes"], found.boxes, atol=1e-4)
    objects, _ = read_labels(found.save(tmp_path / "a.txt"), CLASSES)
    assert objects.labels.tolist() == [0, 2, 0]
    np.testing.assert_allclose(objects.polygons[0], found.polygons[0])
    assert found.save(tmp_path / "a.csv").read_text().splitlines()[1].startswith("a.png,ship,0.9,50.0,40.0,20.0,10.0,")
    with pytest.raises(UserError, match=r"expected a name ending in \.jpg"):
        found.save(tmp_path / "a.xyz")
    with pytest.raises(UserError, match="no place on the ground"):
        found.save(tmp_path / "a.geojson")


def test_coco_entries_hold_the_box_around_the_corners():
    first, second, _ = some().to_coco(image_id=7)
    assert first["bbox"] == [40, 35, 20, 10] and first["category_id"] == 1 and first["image_id"] == 7
    x, y, w, h = second["bbox"]
    points = np.array(second["segmentation"][0]).reshape(4, 2)
    # Each number is rounded to a hundredth.
    np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], [x, y, x + w, y + h], atol=0.011)
    json.dumps([first, second])


def test_supervision_gets_corners_where_it_keeps_oriented_boxes(monkeypatch):
    # Its own form: OrientedBoxAnnotator looks for data["xyxyxyxy"], labels for data["class_name"].
    module = types.ModuleType("supervision")
    module.Detections = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "supervision", module)
    fields = some().to_supervision()
    assert fields["xyxy"][0].tolist() == [40, 35, 60, 45] and fields["class_id"].tolist() == [0, 2, 0]
    assert fields["data"]["xyxyxyxy"].shape == (3, 4, 2) and fields["data"]["class_name"][1] == "storage tank"
    assert some()[[]].to_supervision()["xyxy"].shape == (0, 4)


@pytest.mark.parametrize("name", ["supervision", "geopandas"])
def test_what_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install {name}"):
        getattr(some(), {"supervision": "to_supervision", "geopandas": "to_geodataframe"}[name])()
