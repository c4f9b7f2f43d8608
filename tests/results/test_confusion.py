"""Confusion matrices and their measures: hand-made counts and plain loops; scikit-learn is asked in tests/tasks."""

import numpy as np
import pytest

from haksnet_jax.results.confusion import ChangeConfusion, Confusion, confusion_matrix, top_k_correct


def test_counting_is_that_of_a_loop_and_leaves_out_labels_beyond_the_classes():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(-1, 6, (7, 9)), rng.integers(0, 5, (7, 9))
    expected = np.zeros((5, 5), int)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if 0 <= label < 5:
            expected[label, prediction] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 5), expected)


def test_a_prediction_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="between 0 and 7"):
        confusion_matrix(np.array([0, 1]), np.array([0, 7]), 3)


def test_counts_beyond_32_bits_stay_exact():
    counts = np.array([[3_000_000_000, 1], [2, 5_000_000_000]])
    measures = Confusion(counts, ("a", "b")).per_class()
    assert measures["IoU"][0] == 3_000_000_000 / 3_000_000_003


def test_measures_of_a_small_matrix_by_hand():
    result = Confusion(np.array([[8, 2, 0], [1, 5, 0], [0, 0, 0]]), ("a", "b", "nowhere"))
    measures = result.per_class()
    np.testing.assert_allclose(measures["IoU"][:2], [8 / 11, 5 / 8])
    np.testing.assert_allclose(measures["F1"][:2], [16 / 19, 10 / 13])
    np.testing.assert_allclose(measures["precision"][:2], [8 / 9, 5 / 7])
    np.testing.assert_allclose(measures["recall"][:2], [0.8, 5 / 6])
    assert np.isnan(measures["IoU"][2])  # in neither labels nor predictions: no part of a mean
    assert result.figures()["mean_iou"] == pytest.approx((8 / 11 + 5 / 8) / 2)
    assert result.figures()["accuracy"] == 13 / 16
    assert result.figures()["iou:nowhere"] is None


def test_a_class_left_out_counts_in_accuracy_and_as_an_error_of_others():
    matrix = np.array([[5, 0, 1], [0, 4, 0], [2, 0, 3]])
    result = Confusion(matrix, ("road", "roof", "clutter"), ("clutter",))
    assert result.mean("IoU") == pytest.approx((5 / 8 + 1) / 2)
    assert result.accuracy() == 12 / 15
    assert "not in the means" in result.table()


def test_change_is_told_by_the_second_class():
    result = ChangeConfusion(np.array([[90, 4], [2, 6]]), ("unchanged", "changed"))
    figures = result.figures()
    assert figures["f1_change"] == pytest.approx(12 / 18)
    assert figures["iou_change"] == pytest.approx(6 / 12)
    assert figures["precision_change"] == 0.6 and figures["recall_change"] == 0.75


def test_without_any_label_there_is_no_measure():
    result = Confusion(np.zeros((2, 2), int), ("a", "b"))
    assert result.figures() == {"mean_iou": None, "mean_f1": None, "accuracy": None, "iou:a": None, "iou:b": None}
    result.table()
    result.to_json()


def test_top_k_counts_labels_among_the_best_scores_ties_to_the_lower_class():
    scores = np.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.2, 0.2, 0.2]])
    labels = np.array([2, 1, 1])
    assert top_k_correct(scores, labels, 1) == 0
    assert top_k_correct(scores, labels, 2) == 2  # of the last row's equal scores, 0 and 1
    assert top_k_correct(scores, labels, 9) == 3
