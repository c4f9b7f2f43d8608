"""The output folder: what a stopped run left is used or done again, and what an earlier one left is removed."""

import numpy as np
import pytest

from haksnet_jax.results import output

NAMES = ("ship",)


class Blank:
    width, height = 40, 30

    def thumbnail(self, longest_side):
        return np.zeros((30, 40, 3), np.uint8), 1.0

    def close(self):
        pass


FOUND = {
    "boxes": np.array([[9, 9, 6, 3, 0]], np.float32),
    "scores": np.array([0.5], np.float32),
    "labels": np.zeros(1, int),
}


def folder_of(folder, formats=("task1",), drawings=True):
    folder.mkdir(exist_ok=True)
    return output.OutputFolder(folder, NAMES, None, drawings=drawings, drawing_score=0.3, formats=formats)


@pytest.fixture
def paths(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"pixels")
    return [tmp_path / "a.png", tmp_path / "b.png"]


def run(folder, paths, **more):
    results = folder_of(folder, **more)
    results.resume("the same")
    for path in paths:
        if not results.has(path):
            results.add(path, Blank(), FOUND)
    results.finish(paths)
    return results


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", None])
def test_damaged_results_of_a_stopped_run_are_counted_and_done_again(tmp_path, paths, damage):
    results = folder_of(tmp_path / "out")
    results.resume("the same")
    for path in paths:
        results.add(path, Blank(), FOUND)
    part = tmp_path / "out" / output.UNFINISHED / "a.npz"
    data = bytearray(part.read_bytes())
    if damage is None:
        data[data.index(b"\x93NUMPY") + 130] ^= 0xFF  # the sum of the archive's first member tells
    part.write_bytes(damage if damage is not None else bytes(data))
    again = folder_of(tmp_path / "out")
    again.resume("the same")
    assert [again.has(path) for path in paths] == [False, True] and again.num_damaged == 1


def test_files_of_former_images_and_formats_are_removed_and_others_stay(tmp_path, paths):
    folder = tmp_path / "out"
    run(folder, paths, formats=("task1", "labels", "csv"))
    (folder / "notes.txt").write_text("mine")
    (folder / "drawings" / "other.jpg").write_text("mine")
    results = run(folder, paths[1:], formats=("labels",))
    assert files_in(folder) == [
        "classes.txt", "detections.json", "drawings/b.jpg", "drawings/other.jpg", "labels/b.txt", "notes.txt",
    ]  # fmt: skip
    assert sorted(results.removed) == ["detections.csv", "drawings/a.jpg", "labels/a.txt", "task1/Task1_ship.txt"]


def test_drawings_of_a_stopped_run_with_other_settings_are_removed(tmp_path, paths):
    folder = tmp_path / "out"
    stopped = folder_of(folder)
    stopped.resume("other settings")
    stopped.add(paths[0], Blank(), FOUND)
    run(folder, paths[1:])
    assert "drawings/a.jpg" not in files_in(folder)


def test_nothing_is_removed_beside_a_detections_json_that_is_not_ours(tmp_path, paths):
    folder = tmp_path / "out"
    (folder / "drawings").mkdir(parents=True)
    (folder / "drawings" / "a.jpg").write_text("mine")
    (folder / "detections.json").write_text('{"a": 1}')
    assert run(folder, paths[1:]).removed == [] and "drawings/a.jpg" in files_in(folder)
