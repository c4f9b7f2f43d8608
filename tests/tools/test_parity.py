"""The parity report: verdicts on recordings that agree, that were changed, that are broken; how boxes are paired."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs
from haksnet_jax.tools.parity.rows import (
    Comparison,
    Fixture,
    Found,
    Limits,
    equal_row,
    explain,
    found_rows,
    match_boxes,
)

command = importlib.import_module("haksnet_jax.tools.parity.command")


def names(rows):
    return {row.part for row in rows}


@pytest.fixture
def some_goldens(golden_file, tmp_path):
    """A folder with three small recordings, to be changed."""
    for file in ("box_transforms.json", "box_transforms.npz", "anchors.json", "anchors.npz", "lr_schedule.json"):
        shutil.copy(golden_file(file), tmp_path / file)
        (tmp_path / file).chmod(0o644)
    return tmp_path


@pytest.mark.parametrize("only", ["box_*", "coder_*", "anchors", "[lm]*", "evaluation", "drop_path"])
def test_what_lies_in_the_repository_is_green(golden_file, only):
    rows, unread = command.report(golden_file("reference_weights.py").parent, only=[only])
    assert rows and all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert unread == []


def test_every_recording_of_outputs_has_a_check(golden_file):
    folder = golden_file("reference_weights.py").parent
    stems = {path.stem for path in folder.glob("*.json")} - {
        "end_to_end",
        "resnet",
    }  # (recorded for tests of their own)
    assert [n for n in stems if command.check_of(n) is None and not n.startswith(command._INPUTS)] == []


def test_another_name_finds_the_check_of_its_kind():
    assert command.CHECKS[command.check_of("inference_pipeline_other")].__name__ == "pipeline_rows"
    assert command.CHECKS[command.check_of("inference_wide")].__name__ == "inference_rows"
    assert command.check_of("inferences") is None


def test_a_changed_number_is_red_and_the_others_stay_green(some_goldens):
    arrays = dict(np.load(some_goldens / "box_transforms.npz"))
    arrays["obb2poly"][7, 3] += 0.01
    np.savez(some_goldens / "box_transforms.npz", **arrays)
    rows, _ = command.report(some_goldens)
    assert names(rows) == {"box_transforms", "anchors", "lr_schedule"}
    (red,) = [row for row in rows if not row.passed]
    assert red.what == "oriented boxes to corners, px" and red.absolute == pytest.approx(0.01, rel=0.05)


def test_a_broken_recording_is_one_red_row(some_goldens):
    (some_goldens / "anchors.npz").write_bytes(b"nothing")
    (some_goldens / "else.json").write_text("{}")
    rows, unread = command.report(some_goldens)
    (red,) = [row for row in rows if not row.passed]
    assert red.part == "anchors" and red.what == "could not be compared" and red.note
    assert unread == ["else"]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "haksnet_jax", "parity", *arguments], capture_output=True, text=True)


def test_the_command_says_it_with_its_exit_status_and_in_files(some_goldens, tmp_path):
    files = [f"--json={tmp_path / 'rows.json'}", f"--markdown={tmp_path / 'rows.md'}"]
    done = run(f"--goldens={some_goldens}", "--only=b*,l*", *files)
    assert done.returncode == 0, done.stderr
    assert "7 of 7 rows green" in done.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 7 and all(row["passed"] for row in rows)
    assert (tmp_path / "rows.md").read_text().count("| green |") == 7
    (some_goldens / "lr_schedule.json").write_text("{}")
    done = run(f"--goldens={some_goldens}", "--only=lr*")
    assert done.returncode == 1 and "RED" in done.stdout and "Traceback" not in done.stderr


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no fixture with a name like"):
        command.report(tmp_path)


@pytest.fixture
def fixture(golden_file):
    return Fixture(golden_file("anchors.json").parent, "anchors")


def test_a_comparison_is_red_for_what_is_not_a_number_and_for_nothing_at_all(fixture):
    one = Comparison(fixture, "x", absolute=1.0)
    assert not one.row().passed
    one.add([1.0, 2.0], [1.5, 2.0])
    assert one.row().passed and one.row().absolute == 0.5 and one.row().relative == 0.25
    one.add([np.nan], [1.0])
    assert not one.row().passed and one.row().absolute == np.inf
    assert not equal_row(fixture, "x", []).passed
    assert not equal_row(fixture, "x", [([1, 2], [1])]).passed


def test_boxes_are_compared_modulo_half_a_turn_and_squares_modulo_a_quarter(fixture):
    theirs = np.array([[50, 50, 20, 10, 1.5], [50, 50, 20, 20, 0.1]])
    same = theirs + [[0, 0, 0, 0, np.pi], [0, 0, 0, 0, np.pi / 2]]
    other = theirs + [[0, 0, 0, 0, np.pi / 2], [0, 0, 0, 0, 0]]
    for ours, passed in ((same, True), (other, False)):
        comparison = Comparison(fixture, "x", relative=1e-5)
        comparison.add_boxes(ours, theirs)
        assert comparison.row().passed == passed


BOXES = np.array([[50, 50, 20, 10, 0.3], [100, 50, 20, 10, 0.3], [150, 50, 20, 10, 0.3]], np.float32)


def found(boxes, scores, labels=None):
    return Found(np.asarray(boxes, np.float32), np.asarray(scores), np.zeros(len(scores)) if labels is None else labels)


def test_boxes_are_paired_one_to_one_by_label_score_and_place():
    theirs = found(BOXES, [0.9, 0.8, 0.7])
    ours = found(BOXES[::-1] + [0.05, 0, 0, 0, 0], [0.7, 0.8, 0.9])
    pairs, *left = match_boxes(ours, theirs)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (1, 1), (2, 0)] and left == [[], []]
    twice = found(BOXES[[0, 0]], [0.9, 0.9])
    assert match_boxes(twice, theirs)[1:] == ([1], [1, 2])
    for change in (found(BOXES, [0.9, 0.8, 0.71]), found(BOXES + [0, 0, 0, 0, 0.05], [0.9, 0.8, 0.7])):
        assert 2 in match_boxes(change, theirs)[2]
    assert match_boxes(found(BOXES, [0.9, 0.8, 0.7], np.array([0, 0, 1])), theirs)[2] == [2]
    assert match_boxes(found(BOXES + [0.5, 0, 0, 0, 0], [0.9, 0.8, 0.7]), theirs, Limits(iou=0.9))[1:] == ([], [])


def test_differing_boxes_need_a_reason(fixture):
    theirs = found(BOXES, [0.9, 0.0505, 0.3])
    ours = found(BOXES[[0, 2]], [0.9, 0.3])
    settings = {"overlaps": rotated_iou_pairs, "iou_threshold": 0.1, "score_threshold": 0.05}
    assert explain(([], [1]), ours, theirs, **settings) == ["score at the threshold"]
    rows, differing = found_rows(fixture, "x", ours, theirs, **settings)
    assert all(row.passed for row in rows) and differing.shape == (1, 5)
    lonely = found(BOXES, [0.9, 0.5, 0.3])
    rows, _ = found_rows(fixture, "x", ours, lonely, **settings)
    assert not rows[0].passed and "unexplained" in rows[0].note
    # Two that overlap and score alike: either may suppress the other.
    shifted = BOXES[1] + np.float32([2, 0, 0, 0, 0])
    one = found([BOXES[0], BOXES[1], BOXES[2]], [0.9, 0.50001, 0.2])
    other = found([BOXES[0], shifted, BOXES[2]], [0.9, 0.5, 0.2])
    assert explain(([1], [1]), one, other, **settings) == ["tie", "tie"]
