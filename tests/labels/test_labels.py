"""Label files, and polygons as boxes."""

import math

import numpy as np
import pytest
import shapely

from haksnet_jax.labels import dota as labels
from haksnet_jax.labels.dota import CLASSES, polygons_to_boxes, read_labels


def assert_boxes_equal(actual, expected, *, pixels=1e-3, radians=1e-4):
    """Equal within the tolerance that the recorded reference states (1e-3 pixel, 1e-4 rad, angle modulo pi)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual[:, :4], expected[:, :4], atol=pixels, rtol=0)
    turn = (actual[:, 4] - expected[:, 4] + math.pi / 2) % math.pi - math.pi / 2
    np.testing.assert_allclose(turn, 0, atol=radians)


def test_boxes_of_polygons_equal_the_reference(golden):
    recorded = golden("box_transforms")
    boxes, valid = polygons_to_boxes(recorded["poly2obb_np/polys"].reshape(-1, 4, 2), min_side=2.0)
    np.testing.assert_array_equal(valid, recorded["poly2obb_np/valid"] > 0)
    assert_boxes_equal(boxes, recorded["poly2obb_np/obbs"])


@pytest.mark.parametrize(
    ("case", "threshold"),
    [("100_filter_empty_True", 100), ("100_filter_empty_False", 100), ("1_filter_empty_True", 1)]
    + [("0_filter_empty_True", 0)],
)
def test_label_files_give_the_boxes_of_the_reference(golden, tmp_path, case, threshold):
    manifest = golden("label_parsing").manifest
    for image, record in manifest["expected"][f"difficulty_{case}"].items():
        path = tmp_path / (image.removesuffix(".png") + ".txt")
        path.write_text(manifest["files"][path.stem])
        objects, _ = read_labels(path, CLASSES["dota10"])
        boxes, valid = polygons_to_boxes(objects.polygons, min_side=2.0)
        keep = valid & (objects.difficulty <= threshold)
        assert_boxes_equal(boxes[keep], np.reshape(record["bboxes"], (-1, 5)))
        np.testing.assert_array_equal(objects.labels[keep], record["labels"])


def write(tmp_path, text):
    path = tmp_path / "P0001.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


SQUARE = "10 10 20 10 20 20 10 20"


def test_headers_blank_lines_bom_crlf_and_extra_columns_are_no_problem(tmp_path):
    text = f"\ufeffimagesource:GoogleEarth\r\ngsd:0.146\r\n\r\n{SQUARE} ship 1 extra columns\r\n{SQUARE} plane\r\n"
    objects, problems = read_labels(write(tmp_path, text), CLASSES["dota10"])
    assert problems == []
    assert objects.labels.tolist() == [6, 0]
    assert objects.difficulty.tolist() == [1, 0]
    assert objects.lines.tolist() == [4, 5]
    assert objects.polygons.dtype == np.float64


@pytest.mark.parametrize(
    ("line", "reason", "kept"),
    [
        ("10 10 20 10 20 20 ship 0", "too_few_numbers", False),
        ("10 10 20 10 20 20 10 ship 0", "bad_number", False),
        ("10 10 20 10 20 nan 10 20 ship 0", "bad_number", False),
        ("10 10 20 10 20 inf 10 20 ship 0", "bad_number", False),
        ("10 10 20 10 20 1e30 10 20 ship 0", "bad_number", False),
        (f"{SQUARE} submarine 0", "unknown_class", False),
        ("10 10 20 20 30 30 40 40 ship 0", "zero_area", False),
        ("5 5 5 5 5 5 5 5 ship 0", "zero_area", False),
        ("10 10 20 20 20 10 10 20 ship 0", "crossed", True),
        (f"{SQUARE} plane 0\n{SQUARE} plane 1", "duplicate", True),
        (f"{SQUARE} Small_Vehicle 0", "class_respelled", True),
        (f"{SQUARE} ship hard", "bad_difficulty", True),
        (b"10 10 20 10 20 20 10 20 \xff\xfe 0", "unknown_class", False),
    ],
)
def test_each_odd_line_is_named_with_its_number(tmp_path, line, reason, kept):
    first = "1 1 2 1 2 2 1 2 ship 0\n"
    text = first.encode() + line if isinstance(line, bytes) else first + line
    objects, problems = read_labels(write(tmp_path, text), CLASSES["dota10"])
    assert [problem.reason for problem in problems] == [reason]
    (problem,) = problems
    assert problem.line == (3 if reason == "duplicate" else 2)
    assert problem.path.endswith("P0001.txt") and len(problem.detail) > 10
    assert (problem.line in objects.lines) == kept == (reason not in labels.LEFT_OUT)
    assert objects.lines[0] == 1


def test_clockwise_and_counter_clockwise_points_are_the_same_box(tmp_path):
    text = "10 10 30 10 30 20 10 20 ship 0\n10 20 30 20 30 10 10 10 ship 0"
    objects, problems = read_labels(write(tmp_path, text), CLASSES["dota10"])
    assert problems == []
    boxes, _ = polygons_to_boxes(objects.polygons)
    np.testing.assert_allclose(boxes, [[20, 15, 20, 10, 0]] * 2, atol=1e-5)


def test_classes_with_spaces_and_aliases_are_found(tmp_path):
    text = f"{SQUARE} Cargo Truck 1\n{SQUARE} lorry 0\n{SQUARE} Cargo-Truck 2"
    objects, problems = read_labels(write(tmp_path, text), CLASSES["fair1m"], class_aliases={"lorry": "Cargo Truck"})
    assert objects.labels.tolist() == [CLASSES["fair1m"].index("Cargo Truck")] * 3
    assert objects.difficulty.tolist() == [1, 0, 2]
    assert "class_respelled" in {problem.reason for problem in problems}
    with pytest.raises(ValueError, match="lorry"):
        read_labels(write(tmp_path, text), CLASSES["dota10"], class_aliases={"lorry": "truck"})


def test_an_empty_file_has_no_objects(tmp_path):
    objects, problems = read_labels(write(tmp_path, ""), CLASSES["dota10"])
    assert problems == [] and objects.polygons.shape == (0, 4, 2)
    boxes, valid = polygons_to_boxes(objects.polygons)
    assert boxes.shape == (0, 5) and valid.shape == (0,)


def test_a_formatted_line_reads_back(tmp_path):
    polygon = np.array([[1.25, 2], [30.5, 4], [29.125, 20], [0, -18.75]])
    line = labels.format_label_line(polygon, "Cargo Truck", 2)
    objects, _ = read_labels(write(tmp_path, line), CLASSES["fair1m"])
    np.testing.assert_array_equal(objects.polygons[0], polygon)
    assert objects.difficulty.tolist() == [2]


def test_boxes_go_to_polygons_and_back():
    rng = np.random.default_rng(0)
    w = rng.uniform(5, 200, 200)
    boxes = np.stack(
        [rng.uniform(0, 1000, 200), rng.uniform(0, 1000, 200), w, w * rng.uniform(0.1, 0.95, 200)]
        + [rng.uniform(-math.pi / 2, math.pi / 2, 200)],
        axis=-1,
    )
    back, valid = polygons_to_boxes(labels.boxes_to_polygons(boxes))
    assert valid.all()
    # float32 corners near 1000 px are 6e-5 px coarse, which turns the shortest side (5 px) by 2e-5 rad
    assert_boxes_equal(back, boxes, pixels=2e-3, radians=2e-4)


@pytest.mark.parametrize("degrees", [0.0, 15.0, 45.0, 89.0, 90.0, 135.0, 180.0])
def test_angles_stay_in_le90_for_squares_and_upright_boxes(degrees):
    for w, h in [(40, 40), (40, 10)]:
        polygon = labels.boxes_to_polygons([[100, 100, w, h, math.radians(degrees)]])
        (box,), _ = polygons_to_boxes(polygon)
        assert box[2] >= box[3]
        assert np.float32(-math.pi / 2) <= box[4] < np.float32(math.pi / 2)
        same = shapely.intersection(shapely.polygons(polygon[0]), shapely.polygons(labels.boxes_to_polygons(box)[0]))
        assert shapely.area(same) == pytest.approx(w * h, rel=1e-4)  # float32 corners


def test_outside_fraction_is_the_cut_share_of_the_area():
    polygons = np.array(
        [
            [[10, 10], [20, 10], [20, 20], [10, 20]],  # inside
            [[-5, 10], [5, 10], [5, 20], [-5, 20]],  # half
            [[-5, -5], [5, -5], [5, 5], [-5, 5]],  # three quarters
            [[200, 10], [210, 10], [210, 20], [200, 20]],  # outside
            [[100, 0], [110, 0], [110, 10], [100, 10]],  # touches the border from outside
        ],
        float,
    )
    np.testing.assert_allclose(labels.outside_fraction(polygons, 100, 50), [0, 0.5, 0.75, 1, 1], atol=1e-12)
    assert labels.outside_fraction(np.zeros((0, 4, 2)), 10, 10).shape == (0,)


def test_published_class_counts():
    counts = {name: len(names) for name, names in CLASSES.items()}
    # From the releases: DOTA 15, 16, 18; DIOR 20; FAIR1M 37.
    assert counts == {
        "dota10": 15,
        "dota15": 16,
        "dota20": 18,
        "hrsc2016": 1,
        "dior_r": 20,
        "fair1m": 37,
        "ssdd": 1,
        "hrsid": 1,
        "ucas_aod": 2,
    }
    assert all(len(set(names)) == len(names) for names in CLASSES.values())
