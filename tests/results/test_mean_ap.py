import json

import numpy as np
import pytest

from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results.detection_errors import KINDS, analyse_errors
from haksnet_jax.results.mean_ap import mean_average_precision

CLASSES = ("plane", "ship", "harbor")


def boxes_at(*centres, side=10.0):
    return np.array([[x, y, 2 * side, side, 0.3] for x, y in centres]).reshape(-1, 5)


def found(boxes, scores, labels):
    return {"boxes": boxes, "scores": np.array(scores, np.float64), "labels": np.array(labels, np.int64)}


def labelled(boxes, labels, difficulty=None):
    difficulty = np.zeros(len(labels), int) if difficulty is None else np.array(difficulty)
    return {"polygons": boxes_to_corners(boxes), "labels": np.array(labels, np.int64), "difficulty": difficulty}


@pytest.fixture(scope="module")
def recorded(golden):
    """(detections, labels, fixture) of the recorded scenes."""
    fixture = golden("evaluation")
    rows = fixture["det/image_class_box_score"]
    detections, labels = {}, {}
    for image in range(fixture.manifest["num_images"]):
        own = rows[rows[:, 0] == image]
        detections[image] = found(own[:, 2:7], own[:, 7], own[:, 1])
        counts, ignored = fixture["ann/bboxes_image"] == image, fixture["ann/bboxes_ignore_image"] == image
        boxes = np.concatenate([fixture["ann/bboxes"][counts], fixture["ann/bboxes_ignore"][ignored]])
        classes = np.concatenate([fixture["ann/labels"][counts], fixture["ann/labels_ignore"][ignored]])
        difficulty = np.repeat([0, 1], [counts.sum(), ignored.sum()])
        labels[image] = labelled(boxes.astype(np.float64), classes, difficulty)
    return detections, labels, fixture


@pytest.fixture(scope="module")
def recorded_result(recorded):
    detections, labels, fixture = recorded
    return mean_average_precision(detections, labels, fixture.manifest["class_names"])


@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("metric", ["voc07", "area"])
def test_ap_equals_the_reference(recorded, recorded_result, threshold, metric):
    expected = recorded[2].manifest["eval_rbbox_map"][f"iou_{threshold}_{metric}"]
    table = recorded_result.ap_voc07 if metric == "voc07" else recorded_result.ap_voc12
    column = recorded_result.threshold_index(threshold)
    for label, one in enumerate(expected["classes"]):
        assert recorded_result.num_gts[label] == one["num_gts"]
        assert recorded_result.num_detections[label] == one["num_dets"]
        if one["num_gts"]:
            # The reference adds precisions in float32.
            np.testing.assert_allclose(table[label, column], one["ap"], atol=1e-6)
        else:
            assert np.isnan(table[label, column])
    np.testing.assert_allclose(np.nanmean(table[:, column]), expected["mAP"], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("metric", ["voc07", "area"])
def test_ap_equals_the_official_tool(recorded, recorded_result, threshold, metric):
    manifest = recorded[2].manifest
    table = recorded_result.ap_voc07 if metric == "voc07" else recorded_result.ap_voc12
    for name, one in manifest["devkit"]["results"][f"iou_{threshold}_{metric}"].items():
        if one["ap"] is not None:
            got = table[manifest["class_names"].index(name), recorded_result.threshold_index(threshold)]
            np.testing.assert_allclose(got, one["ap"], atol=1e-12)  # both float64, same order of sums


def test_json_has_the_published_form(recorded_result):
    tree = json.loads(json.dumps(recorded_result.to_json(), allow_nan=False))
    assert set(tree) == {"mean", "classes"}
    figures = {"AP50_voc07", "AP50_voc12", "AP75_voc12", "AP50:95"}
    assert set(tree["mean"]) == figures
    assert list(tree["classes"]) == list(recorded_result.class_names)
    assert all(set(one) == figures | {"num_gts", "num_detections"} for one in tree["classes"].values())
    assert tree["classes"]["bridge"]["AP50_voc07"] == 0.0  # objects, but no detection
    assert tree["classes"]["harbor"]["AP50_voc07"] is None  # detections, but no object
    counted = [one["AP50:95"] for one in tree["classes"].values() if one["num_gts"]]
    np.testing.assert_allclose(tree["mean"]["AP50:95"], np.mean(counted))


def test_table_names_every_class_and_the_mean(recorded_result):
    lines = recorded_result.table().splitlines()
    assert len(lines) == len(recorded_result.class_names) + 4
    assert lines[-1].split()[3:] == ["29.50", "29.09", "10.50", "13.06"]
    assert lines[2 + recorded_result.class_names.index("harbor")].split()[-1] == "-"


def plain_ap(detections, labels, label, threshold):
    """VOC12 AP of one class by loops and shapely."""
    import shapely

    rows = sorted(
        (
            (-score, image, row)
            for image, one in enumerate(detections)
            for row, score in enumerate(one["scores"])
            if one["labels"][row] == label
        ),
    )
    taken, outcome = set(), []
    for _, image, row in rows:
        polygon = shapely.Polygon(boxes_to_corners(np.asarray(detections[image]["boxes"])[row]))
        best, best_iou = None, -1.0
        for gt, other in enumerate(labels[image]["polygons"]):
            if labels[image]["labels"][gt] == label:
                other = shapely.Polygon(other)
                shared = polygon.intersection(other).area
                iou = shared / (polygon.area + other.area - shared)
                if iou > best_iou:
                    best, best_iou = gt, iou
        if best_iou > threshold:
            if labels[image]["difficulty"][best] == 1:
                continue
            outcome.append((image, best) not in taken)
            taken.add((image, best))
        else:
            outcome.append(False)
    num_gts = sum(((one["labels"] == label) & (one["difficulty"] != 1)).sum() for one in labels)
    precision = [sum(outcome[: i + 1]) / (i + 1) for i in range(len(outcome))]
    return sum(max(precision[i:]) for i in range(len(outcome)) if outcome[i]) / num_gts


def test_ap_equals_plain_loops_with_shapely():
    generator = np.random.default_rng(3)
    detections, labels = [], []
    for _ in range(6):
        boxes = generator.uniform([0, 0, 15, 8, -1.5], [120, 120, 50, 30, 1.5], (12, 5))
        classes = generator.integers(0, 3, 12)
        labels.append(labelled(boxes, classes, generator.choice([0, 0, 0, 1, 2], 12)))
        pick = generator.integers(0, 12, 40)
        moved = boxes[pick] + generator.normal(size=(40, 5)) * [3, 3, 2, 2, 0.05]
        detections.append(found(moved, generator.uniform(size=40), classes[pick]))
    result = mean_average_precision(detections, labels, CLASSES)
    for label in range(3):
        for column, threshold in enumerate(result.iou_thresholds):
            expected = plain_ap(detections, labels, label, threshold)
            np.testing.assert_allclose(result.ap_voc12[label, column], expected, atol=1e-12)


def test_perfect_detections_have_ap_one():
    boxes = boxes_at((50, 50), (100, 50), (150, 90))
    result = mean_average_precision([found(boxes, [0.9, 0.8, 0.7], [0, 1, 1])], [labelled(boxes, [0, 1, 1])], CLASSES)
    assert result.figures() == dict.fromkeys(("AP50_voc07", "AP50_voc12", "AP75_voc12", "AP50:95"), pytest.approx(1.0))
    assert result.figures(2)["AP50_voc12"] is None


def test_second_detection_of_an_object_is_a_false_positive():
    boxes = boxes_at((50, 50), (50, 50), (100, 50))
    result = mean_average_precision([found(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], [labelled(boxes[1:], [0, 0])], CLASSES)
    recall, precision, scores = result.precision_recall(0)
    np.testing.assert_allclose(recall, [1 / 2, 1 / 2, 1])
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(result.ap_voc12[0, 0], 1 / 2 + 1 / 2 * 2 / 3)
    np.testing.assert_allclose(result.ap_voc07[0, 0], (6 * 1 + 5 * 2 / 3) / 11)


def test_match_needs_more_than_the_threshold():
    # 24 x 8 boxes that are 8 apart share 16 of 32 columns; all the numbers are exact in binary.
    objects = np.array([[12.0, 6.0, 24.0, 8.0, 0.0]])
    moved = objects + [8.0, 0, 0, 0, 0]
    result = mean_average_precision(
        [found(moved, [0.9], [0])], [labelled(objects, [0])], CLASSES, iou_thresholds=(0.5,)
    )
    assert result.ap_voc12[0, 0] == 0
    closer = objects + [7.9, 0, 0, 0, 0]
    result = mean_average_precision(
        [found(closer, [0.9], [0])], [labelled(objects, [0])], CLASSES, iou_thresholds=(0.5,)
    )
    assert result.ap_voc12[0, 0] == 1


@pytest.mark.parametrize(
    ("arguments", "num_gts"),
    [
        ({}, 2),
        ({"ignore_truncated": True}, 1),
        ({"ignore_difficult": False}, 3),
        ({"ignore_difficult": False, "ignore_truncated": True}, 2),
    ],
)
def test_difficult_and_truncated_objects_count_as_asked(arguments, num_gts):
    boxes = boxes_at((50, 50), (100, 50), (150, 90))
    labels = labelled(boxes, [0, 0, 0], [0, 1, 2])
    result = mean_average_precision([found(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], [labels], CLASSES, **arguments)
    assert result.num_gts[0] == num_gts
    assert result.num_detections[0] == 3
    assert len(result.precision_recall(0)[0]) == num_gts
    assert result.ap_voc12[0, 0] == 1


def test_equal_scores_keep_the_order_of_images_and_detections():
    first, second = boxes_at((50, 50)), boxes_at((50, 50), (200, 200))
    detections = [found(boxes_at((300, 300)), [0.5], [0]), found(second, [0.5, 0.5], [0, 0])]
    result = mean_average_precision(detections, [labelled(first, [1]), labelled(first, [0])], CLASSES)
    np.testing.assert_array_equal(result.outcomes[0][0], [0, 1, 0])


def test_images_are_paired_by_name():
    boxes = boxes_at((50, 50))
    labels = {"a": labelled(boxes, [0]), "b": labelled(boxes, [0])}
    result = mean_average_precision({"b": found(boxes, [0.9], [0])}, labels, CLASSES)
    assert result.ap_voc12[0, 0] == 0.5
    with pytest.raises(ValueError, match="1 image with detections and without labels, for example 'c'"):
        mean_average_precision({"c": found(boxes, [0.9], [0])}, labels, CLASSES)


def test_detections_may_be_polygons_and_crossed_labels_are_uncrossed():
    boxes = boxes_at((50, 50))
    polygons = boxes_to_corners(boxes)
    detections = {"polygons": polygons, "scores": np.array([0.9]), "labels": np.array([0])}
    crossed = {"polygons": polygons[:, [0, 2, 1, 3]], "labels": np.array([0]), "difficulty": np.array([0])}
    assert mean_average_precision([detections], [crossed], CLASSES).figures()["AP50:95"] == 1.0


def test_no_objects_give_no_figure_instead_of_zero():
    none = labelled(boxes_at(), [])
    result = mean_average_precision([found(boxes_at((5, 5)), [0.9], [0])], [none], CLASSES)
    assert set(result.figures().values()) == {None}
    assert set(mean_average_precision([], [], CLASSES).figures().values()) == {None}


def test_wrong_input_is_named():
    boxes = boxes_at((50, 50))
    with pytest.raises(ValueError, match="labels of image 0 have labels 7 to 7; there are 3 classes"):
        mean_average_precision([None], [labelled(boxes, [7])], CLASSES)
    with pytest.raises(ValueError, match="detections of image 0 hold numbers that are not finite"):
        mean_average_precision([found(boxes, [np.nan], [0])], [None], CLASSES)
    with pytest.raises(ValueError, match="detections of image 'a' hold numbers that are not finite"):
        mean_average_precision({"a": found(boxes * np.inf, [0.9], [0])}, {"a": None}, CLASSES)
    with pytest.raises(ValueError, match="unequal length"):
        mean_average_precision([found(boxes, [0.9], [0, 1])], [None], CLASSES)
    with pytest.raises(ValueError, match="got 1 and 2"):
        mean_average_precision([None], [None, None], CLASSES)


def test_errors_are_told_apart():
    objects = boxes_at((50, 50), (150, 50), (250, 50), (350, 50), (450, 50))
    labels = labelled(objects, [0, 0, 1, 0, 2], [0, 0, 0, 1, 0])
    boxes = np.concatenate([objects[[0, 0, 2, 3]], objects[[1]] + [9, 0, 0, 0, 0], boxes_at((900, 900)), objects[[4]]])
    scores = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.1]
    errors = analyse_errors([found(boxes, scores, [0, 0, 0, 0, 0, 1, 2])], [labels], CLASSES)
    expected = ["correct", "duplicate", "other class", "ignored", "poor overlap", "background"]  # 0.1 is below 0.3
    assert [KINDS[kind] for kind in errors.kind] == expected
    np.testing.assert_array_equal(errors.gt_found_as, [0, -1, 0, -2, -1])
    np.testing.assert_array_equal(errors.confused_with, [-1, -1, 1, -1, -1, -1])
    np.testing.assert_array_equal(errors.confusion_matrix(), [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1], [2, 1, 0, 0]])
    counts = errors.by_size(edges=(10, 20))  # all are sqrt(200) = 14.1 pixels
    np.testing.assert_array_equal(counts["objects"], [0, 4, 0])
    np.testing.assert_array_equal(counts["missed"], [0, 3, 0])
    assert {kind: int(counts[kind][1]) for kind in KINDS[:-1]} == dict.fromkeys(KINDS[:-1], 1) | {"wrong angle": 0}
    assert errors.worst_images() == [(0, 7)]


def test_error_analysis_counts_every_object_and_detection_once(recorded):
    detections, labels, fixture = recorded
    errors = analyse_errors(detections, labels, fixture.manifest["class_names"], score_threshold=0.0)
    matrix = errors.confusion_matrix()
    np.testing.assert_array_equal(matrix.sum(axis=1)[:-1], np.bincount(fixture["ann/labels"], minlength=15))
    assert matrix[:, :-1].sum() == (errors.kind != KINDS.index("ignored")).sum()
    true_positives = fixture.manifest["eval_rbbox_map"]["iou_0.5_area"]["classes"]
    np.testing.assert_array_equal(np.diag(matrix)[:-1], [one["tp"] for one in true_positives])


def test_equal_scores_count_together_whatever_their_order():
    rng = np.random.default_rng(7)
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float64)
    labels, detections = {}, {}
    for image in range(6):
        at = rng.permutation(9)[:5] * 20.0
        labels[image] = {"polygons": square + at[:4, None, None], "labels": np.zeros(4, int)}
        found = square + at[[0, 1, 1, 4], None, None]  # two true, one double, one false
        detections[image] = {"polygons": found, "scores": np.full(4, 0.5), "labels": np.zeros(4, int)}
    results = []
    for order in (np.arange(6), np.arange(6)[::-1], rng.permutation(6)):
        rows = rng.permutation(4)
        mixed = {int(i): {name: values[rows] for name, values in detections[int(i)].items()} for i in order}
        result = mean_average_precision(mixed, {int(i): labels[int(i)] for i in order}, ["ship"])
        results.append(result.figures())
    # One step: half of the objects at a precision of one half (12 of 24 detections).
    assert results[0]["AP50_voc12"] == pytest.approx(0.25)
    assert results[0] == results[1] == results[2] and result.num_tied() == 24


def test_what_would_match_at_the_objects_angle_has_the_wrong_angle():
    truth = np.array([[50, 50, 40, 10, 0.0], [200, 50, 40, 10, 0.0], [350, 50, 10, 10, 0.1]])
    boxes = np.array([[50, 50, 40, 10, 0.6], [212, 53, 40, 10, 0.0], [350, 50, 10, 10, 0.1 + np.pi / 2]])
    labels = {"polygons": boxes_to_corners(truth), "labels": np.zeros(3, int)}
    detections = {"boxes": boxes, "scores": np.array([0.9, 0.8, 0.7]), "labels": np.zeros(3, int)}
    errors = analyse_errors([detections], [labels], ["ship"])
    assert [KINDS[kind] for kind in errors.kind] == ["wrong angle", "poor overlap", "correct"]
