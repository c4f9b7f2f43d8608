"""What the script that trains and scores says of a run: agreement of two ways, and the drawn images."""

import cv2
import numpy as np
import pytest

from benchmarks import learn
from haksnet_jax.geometry.polygons import boxes_to_polygons
from haksnet_jax.results import detections_json


def detections_file(path, boxes_by_image):
    """A detections.json of ships with score 0.9, images of 90 x 60 pixels."""
    path.parent.mkdir(exist_ok=True)
    entries = (
        (
            f"{name}.png",
            90,
            60,
            {
                "boxes": np.array(boxes, np.float32).reshape(-1, 5),
                "scores": np.full(len(boxes), 0.9, np.float32),
                "labels": np.zeros(len(boxes), int),
            },
        )
        for name, boxes in boxes_by_image.items()
    )
    detections_json.write(path, entries, ("ship",))
    return path


def test_average_precisions_are_equal_to_as_many_digits():
    rows = learn.compare(
        {"AP50_voc12": 0.93125, "AP75_voc12": 0.5, "AP50:95": None},
        {"AP50_voc12": 0.93128, "AP75_voc12": 0.5, "AP50:95": 0.4},
    )
    assert list(rows) == ["AP50_voc12", "AP75_voc12"]
    assert rows["AP50_voc12"]["difference"] == pytest.approx(3e-5)
    assert (rows["AP50_voc12"]["equal_digits"], rows["AP75_voc12"]["equal_digits"]) == (4, 15)


def test_detections_without_a_counterpart_are_counted(tmp_path):
    ship, other = [30, 30, 40, 12, 0.3], [60, 40, 20, 10, 0.0]
    first = detections_file(tmp_path / "a" / "detections.json", {"one": [ship, other], "two": [other]})
    second = detections_file(tmp_path / "b" / "detections.json", {"one": [ship], "two": [[60, 41, 20, 10, 0.0]]})
    # `other` is missing in "one", and a pixel aside in "two": an IoU of 9 / 11
    assert learn.without_counterpart(first, second) == {"without_counterpart": 2, "of": 3}
    assert learn.without_counterpart(second, second) == {"without_counterpart": 0, "of": 2}


def test_sheets_begin_with_the_worst_and_the_fullest_faultless_image(tmp_path):
    ships = [[20, 20, 20, 10, 0.0], [60, 40, 20, 10, 0.0]]
    levels = {"empty": (30, []), "full": (120, ships), "missed": (210, ships[:1])}
    for folder in ("images", "labelTxt"):
        (tmp_path / folder).mkdir()
    for name, (level, boxes) in levels.items():
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((60, 90, 3), level, np.uint8))
        polygons = boxes_to_polygons(np.array(boxes).reshape(-1, 5))
        lines = [" ".join(f"{x:.1f}" for x in polygon.ravel()) + " ship 0" for polygon in polygons]
        (tmp_path / "labelTxt" / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
    predictions = detections_file(tmp_path / "found" / "detections.json", {"full": ships})
    settings = {"images": tmp_path / "images", "labels": tmp_path / "labelTxt"}
    learn.write_sheets(tmp_path, predictions, settings, ("ship",))
    for file_name, level in (("worst.jpg", 210), ("best.jpg", 120)):
        sheet = cv2.imread(str(tmp_path / file_name))
        first = sheet[: learn.SHEET_CELL, : learn.SHEET_CELL]
        # The first image fills most of its cell; JPEG moves grey levels by a few.
        assert abs(int(np.median(first)) - level) < 4
        assert (tmp_path / file_name).stat().st_size <= learn.SHEET_BYTES
