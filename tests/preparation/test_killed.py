"""Commands killed at random moments: nothing left is taken for data, and the next start completes it."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from haksnet_jax import files
from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import sources
from haksnet_jax.preparation import validation
from haksnet_jax.preparation.whole_folder import whole_folder
from haksnet_jax.results import predictions

ROOT = pathlib.Path(__file__).resolve().parents[2]


def data_set(folder, num_images=4, side=400):
    """Writes train/images, train/labelTxt and classes.txt."""
    for part in ("images", "labelTxt"):
        (folder / "train" / part).mkdir(parents=True)
    for index in range(num_images):
        pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), np.uint8)
        cv2.imwrite(str(folder / f"train/images/{index}.png"), pixels)
        (folder / f"train/labelTxt/{index}.txt").write_text("1 1 20 1 20 20 1 20 ship 0\n")
    (folder / "classes.txt").write_text("ship\n")
    return folder


def start(*words):
    """Starts a command in a process group of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "haksnet_jax", *map(str, words)]
    return subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_soon_after(process, sign, rng, longest=0.25):
    """Kills a command a random while after a file appeared. Returns: whether it still ran."""
    deadline = time.monotonic() + 60
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, longest))
    ran = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return ran


def assert_killed_splits_leave_no_data(tmp_path, num_kills):
    rng = random.Random(3)
    source, output = data_set(tmp_path / "data"), tmp_path / "tiles/train"
    arguments = [f"--images={source / 'train/images'}", f"--labels={source / 'train/labelTxt'}", "--tile=64"]
    arguments += ["--overlap=32", "--workers=1"]
    num_killed = num_refused = 0
    for _ in range(3 * num_kills):
        if not kill_soon_after(start("split", *arguments, f"--output={output}"), output / "labelTxt", rng):
            shutil.rmtree(output)  # of a command that was faster
            continue
        num_killed += 1
        try:
            report = validation.validate(output / "images", output / "labelTxt", ("ship",))
        except UserError as error:
            num_refused += "not complete" in str(error)
            with pytest.raises(UserError, match="not complete"):
                sources.FolderSource(output / "images", output / "labelTxt", ("ship",))
        else:  # killed before the first tile or after the last
            assert not report.lost
        if num_killed == num_kills:
            break
    assert num_killed == num_kills and num_refused
    assert program.main(["split", *arguments, f"--output={output}"]) == 0
    assert program.main(["split", *arguments, f"--output={tmp_path / 'once'}"]) == 0
    for folder in ("images", "labelTxt"):
        one, other = output / folder, tmp_path / "once" / folder
        assert sorted(os.listdir(one)) == sorted(os.listdir(other))  # no hidden left-overs either
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in os.listdir(one))
    assert sorted(p.name for p in output.iterdir() if p.name.startswith(".")) == []
    assert program.main(["build", f"--source={tmp_path / 'tiles'}", f"--output={tmp_path / 'records'}"]) == 0


def assert_killed_builds_leave_no_data(tmp_path, num_kills):
    rng = random.Random(4)
    source, output = data_set(tmp_path / "data", num_images=30), tmp_path / "records"
    arguments = ["build", f"--source={source}", f"--classes={source / 'classes.txt'}", f"--output={output}"]
    num_killed = 0
    for _ in range(3 * num_kills):
        if kill_soon_after(start(*arguments), tmp_path / ".records.building/content", rng, longest=0.6):
            num_killed += 1
            assert not output.exists() or len(sources.TfdsSource(output, "train")) == 30
        shutil.rmtree(output, ignore_errors=True)  # of a command that was faster
        if num_killed == num_kills:
            break
    assert num_killed == num_kills
    assert program.main(arguments) == 0
    assert len(sources.TfdsSource(output, "train")) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "records"]


def test_a_killed_splitter_leaves_nothing_that_is_taken_for_data(tmp_path):
    assert_killed_splits_leave_no_data(tmp_path, num_kills=3)


def test_a_killed_build_leaves_nothing_that_is_taken_for_data(tmp_path):
    assert_killed_builds_leave_no_data(tmp_path, num_kills=2)


def assert_killed_predictions_are_no_data(tmp_path, num_kills):
    """What was there before is not taken for the results of a run that was killed either."""
    rng = random.Random(5)
    for index in range(6):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = cv2.resize(np.random.default_rng(index).integers(0, 255, (6, 6, 3), np.uint8), (192, 192))
        cv2.imwrite(str(tmp_path / f"images/{index}.png"), pixels)
    arguments = [
        "predict",
        "--checkpoint=demo",
        f"--images={tmp_path / 'images'}",
        "--score=0.05",
        "--format=task1,coco",
    ]
    assert program.main([*arguments, f"--output={tmp_path / 'once'}"]) == 0
    whole = (tmp_path / "once/detections.json").read_bytes()
    output = tmp_path / "found"
    shutil.copytree(tmp_path / "once", output)
    content = json.loads(whole)
    content["images"] = content["images"][:1]  # as of an earlier run on one image
    (output / "detections.json").write_text(json.dumps(content))
    num_killed = num_refused = 0
    for _ in range(3 * num_kills):
        num_killed += kill_soon_after(
            start(*arguments, f"--output={output}"), output / ".unfinished/run.json", rng, 3.0
        )
        if (output / ".unfinished/run.json").exists():
            num_refused += 1
            for place in (output, output / "task1", output / "detections.json"):
                with pytest.raises(UserError, match="not complete"):
                    predictions.read(place)
        else:
            assert (output / "detections.json").read_bytes() == whole
        if num_killed == num_kills:
            break
    assert num_killed == num_kills and num_refused
    assert program.main([*arguments, f"--output={output}"]) == 0
    listed = [sorted(path.relative_to(place) for path in place.rglob("*")) for place in (output, tmp_path / "once")]
    assert listed[0] == listed[1] and (output / "detections.json").read_bytes() == whole


def test_predictions_beside_those_of_a_stopped_run_are_not_read(tmp_path):
    (tmp_path / "detections.json").write_text(json.dumps({"classes": ["ship"], "images": []}))
    assert predictions.read(tmp_path).class_names == ("ship",)
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished/run.json").write_text("{}")
    for place in (tmp_path, tmp_path / "task1", tmp_path / "detections.json"):
        with pytest.raises(UserError, match=r"not complete.*give the same command again"):
            predictions.read(place)


@pytest.mark.slow
def test_twenty_kills_of_a_prediction_leave_no_data(tmp_path):
    assert_killed_predictions_are_no_data(tmp_path, num_kills=20)


@pytest.mark.slow
def test_twenty_kills_of_the_splitter_leave_no_data(tmp_path):
    assert_killed_splits_leave_no_data(tmp_path, num_kills=20)


@pytest.mark.slow
def test_twenty_kills_of_the_build_leave_no_data(tmp_path):
    assert_killed_builds_leave_no_data(tmp_path, num_kills=20)


def test_a_second_process_on_an_output_folder_is_told_who_holds_it(tmp_path, capsys):
    source = data_set(tmp_path / "data", num_images=1)
    (tmp_path / "tiles").mkdir()
    (tmp_path / ".records.building").mkdir()
    with files.held(tmp_path / "tiles"), files.held(tmp_path / ".records.building"):
        split = ["split", f"--images={source / 'train/images'}", f"--output={tmp_path / 'tiles'}"]
        build = ["build", f"--source={source}", f"--output={tmp_path / 'records'}"]
        for command in (split, build):
            assert program.main(command) == 1
            assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert program.main(split) == 0 and program.main(build) == 0


def test_a_build_that_was_killed_between_its_two_renamings_keeps_what_was_there(tmp_path):
    output, place = tmp_path / "out", tmp_path / ".out.building"
    (place / "former").mkdir(parents=True)
    (place / "former/known.txt").write_text("old")
    (place / "content").mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(output, overwrite=True, known_by="known.txt") as folder:
        assert (output / "known.txt").read_text() == "old" and not any(folder.iterdir())
        raise ZeroDivisionError
    assert (output / "known.txt").read_text() == "old"
    with whole_folder(output, overwrite=True, known_by="known.txt") as folder:
        (folder / "known.txt").write_text("new")
    assert (output / "known.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
