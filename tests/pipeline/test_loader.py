"""Batches: order, sharding, positions, caps, and what a worker process needs."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import cv2
import detection_batches
import numpy as np
import pytest

from haksnet_jax.geometry.polygons import boxes_to_polygons, polygons_to_boxes
from haksnet_jax.pipeline import batches as batching
from haksnet_jax.pipeline import loader, transforms
from haksnet_jax.pipeline.sources import FolderSource, SceneSource, write_dota_folder

CLASSES = ("plane", "ship")
ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}


class Numbered:
    """Grey images whose value is their index, each with `boxes_each` boxes; quick to make."""

    class_names = CLASSES

    def __init__(self, length, size=(20, 30), boxes_each=2):
        self.length, self.size, self.boxes_each = length, size, boxes_each

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        boxes = np.array([[15, 10, 12, 8, 0.3 + 0.01 * row] for row in range(self.boxes_each)]).reshape(-1, 5)
        return {
            "image": np.full((*self.size, 3), index % 256, np.uint8),
            "polygons": boxes_to_polygons(boxes).astype(np.float32),
            "labels": np.arange(self.boxes_each, dtype=np.int32) % 2,
            "difficulty": np.zeros(self.boxes_each, np.int32),
            "image_id": f"number {index}",
        }


SETTINGS = {"batch_size": 2, "image_size": (24, 32), "max_boxes": 4, "seed": 7, "num_threads": 2}


def training(source, count=None, **kwargs):
    batches = detection_batches.train_batches(source, **(SETTINGS | kwargs))
    taken = [next(batches) for _ in range(count)] if count is not None else list(batches)
    batches.close()
    return taken


def assert_same(first, second):
    assert len(first) == len(second) and len(first) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_training_batch_has_the_agreed_arrays():
    (batch,) = training(Numbered(5), 1)
    shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert shapes == {
        "image": ((2, 24, 32, 3), "uint8"),
        "boxes": ((2, 4, 5), "float32"),
        "labels": ((2, 4), "int32"),
        "valid": ((2, 4), "bool"),
        "image_size": ((2, 2), "int32"),
        "image_index": ((2,), "int32"),
        "num_cut": ((2,), "int32"),
        "num_dropped": ((2,), "int32"),
        "num_replaced": ((2,), "int32"),
    }
    # 20 x 30 grows to fit 24 x 32 by 16/15: 21.3 rows
    assert batch["image_size"].tolist() == [[21, 32]] * 2
    assert np.all(batch["image"][:, 21:] == transforms.PADDING)


@pytest.mark.parametrize("process_count", range(1, 9))
@pytest.mark.parametrize("length", [1, 7, 16])
def test_each_epoch_of_the_stream_holds_every_example_once_over_all_processes(length, process_count):
    num_batches = 3 * loader.steps_per_epoch(length, 2 * process_count)
    stream = np.empty((num_batches, process_count, 2), int)
    for process in range(process_count):
        batches = training(Numbered(length), process_index=process, process_count=process_count, num_epochs=3)
        assert len(batches) == num_batches
        stream[:, process] = [batch["image_index"] for batch in batches]
    stream = stream.reshape(-1)
    for epoch in range(3):
        assert sorted(stream[epoch * length : (epoch + 1) * length]) == list(range(length))
    if length == 16:
        assert stream[:16].tolist() != stream[16:32].tolist() and stream[:16].tolist() != list(range(16))


def test_the_number_of_processes_does_not_change_what_is_trained_on():
    alone = training(Numbered(9), 4, batch_size=4)
    for process in range(2):
        part = training(Numbered(9), 4, batch_size=2, process_index=process, process_count=2)
        rows = slice(2 * process, 2 * process + 2)  # one after another, as their shares lie in a global array
        assert_same(part, [{name: value[rows] for name, value in batch.items()} for batch in alone])


def test_the_number_of_processes_does_not_change_the_micro_batches():
    alone = training(Numbered(9), 4, batch_size=8, accumulate_steps=2)
    parts = [
        training(Numbered(9), 4, batch_size=4, accumulate_steps=2, process_index=process, process_count=2)
        for process in range(2)
    ]
    for step in range(4):
        for micro in range(2):
            together = [part[step]["image_index"].reshape(2, 2)[micro] for part in parts]
            expected = alone[step]["image_index"].reshape(2, 4)[micro]
            np.testing.assert_array_equal(np.concatenate(together), expected)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    assert_same(training(Numbered(9), 6), training(Numbered(9), 6, num_threads=1))
    first, other = training(Numbered(9), 6), training(Numbered(9), 6, seed=8)
    assert any(np.any(a["image_index"] != b["image_index"]) for a, b in zip(first, other, strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one():
    whole = training(Numbered(5), 8)
    batches = detection_batches.train_batches(Numbered(5), **SETTINGS)
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    assert state == {"next_example": 6, "batches_given": 3}
    next(batches)  # read ahead, then thrown away
    batches.close()
    resumed = detection_batches.train_batches(Numbered(5), **SETTINGS)
    resumed.set_state(state)
    assert_same(whole[3:], [next(resumed) for _ in range(5)])
    assert_same(whole[3:], training(Numbered(5), 5, first_example=6))
    resumed.set_state(state)
    assert_same(whole[3:4], [next(resumed)])
    resumed.close()
    # with another number of processes, at the same place of the stream
    part = training(Numbered(5), 5, batch_size=1, first_example=6, process_index=1, process_count=2)
    assert_same(part, [{name: value[1::2] for name, value in batch.items()} for batch in whole[3:]])


def test_sizes_and_gains_are_drawn_from_the_example_alone():
    ranges = {"scale_range": (0.5, 1.5), "gain_range": (0.8, 1.25)}
    whole = training(Numbered(5), 6, **ranges)
    assert_same(whole[2:], training(Numbered(5), 4, first_example=4, **ranges))
    assert len({tuple(size) for batch in whole for size in batch["image_size"]}) > 6
    assert all((batch["image_size"] <= (24, 32)).all() for batch in whole)
    # Without them nothing is drawn for them: order, flips and turns are as before.
    plain = training(Numbered(5), 6)
    assert_same(plain, training(Numbered(5), 6, scale_range=(1.0, 1.0), gain_range=(1.0, 1.0)))
    assert [batch["image_index"].tolist() for batch in plain] == [batch["image_index"].tolist() for batch in whole]


def test_a_limited_run_ends_where_it_was_resumed_too():
    batches = detection_batches.train_batches(Numbered(5), **SETTINGS, num_epochs=2)
    assert len(batches) == 6
    next(batches)
    state = batches.get_state()
    assert len(list(batches)) == 5
    batches.set_state(state)
    assert len(list(batches)) == 5
    with pytest.raises(TypeError, match="no end"):
        len(detection_batches.train_batches(Numbered(5), **SETTINGS))


def test_worker_processes_give_the_same_batches(tmp_path):
    """In a process of its own: workers import the main module anew, which must not be the test runner."""
    write_dota_folder(SceneSource(5, 64, seed=0), tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, numpy as np\n"
        "import detection_batches\n"
        "from haksnet_jax.pipeline.folder_source import FolderSource\n"
        "from haksnet_jax.pipeline.scene_source import SCENE_CLASSES\n"
        "if __name__ == '__main__':\n"
        "    source = FolderSource(sys.argv[1] + '/images', sys.argv[1] + '/labelTxt', SCENE_CLASSES)\n"
        "    taken = []\n"
        "    for num_workers in (0, 2):\n"
        "        batches = detection_batches.train_batches(source, batch_size=2, image_size=(64, 64), max_boxes=8,\n"
        "                                                  seed=1, num_workers=num_workers)\n"
        "        taken.append([next(batches) for _ in range(5)])\n"
        "        batches.close()\n"
        "    for a, b in zip(*taken, strict=True):\n"
        "        for name in a:\n"
        "            np.testing.assert_array_equal(a[name], b[name])\n"
        "    print('same')\n"
    )
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "same", done.stderr[-3000:]
    assert "leaked" not in done.stderr  # though all batches are there to the end


def test_the_package_that_workers_run_does_not_import_jax():
    code = (
        "import sys\n"
        "from haksnet_jax.labels import dota\n"
        "from haksnet_jax.pipeline import detection_rows, loader, scenes, sources, transforms\n"
        "print(sorted({'jax', 'flax', 'tensorflow', 'grain'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_boxes_beyond_the_cap_and_dropped_ones_are_counted():
    (batch,) = training(Numbered(3, boxes_each=7), 1, rotation_probability=0.0)
    assert batch["num_cut"].tolist() == [3, 3] and batch["num_dropped"].tolist() == [0, 0]
    assert batch["valid"].all()
    (batch,) = training(Numbered(3), 1, rotation_probability=0.0, min_side=9.0)
    assert batch["num_dropped"].tolist() == [2, 2] and not batch["valid"].any() and not batch["boxes"].any()
    (batch,) = training(Numbered(3), 1, rotation_probability=0.0, min_side=0.0)
    assert batch["num_dropped"].tolist() == [0, 0] and batch["valid"].sum() == 4


def test_images_without_objects_are_batches_without_valid_boxes():
    (batch,) = training(Numbered(3, boxes_each=0), 1)
    assert not batch["valid"].any() and batch["image_size"].tolist() == [[21, 32]] * 2


def test_odd_polygons_become_boxes_or_are_counted():
    class Odd(Numbered):
        def __getitem__(self, index):
            polygons = np.array(
                [
                    [[2, 2], [12, 2], [12, 12], [2, 12]],  # inside
                    [[-8, 2], [10, 2], [10, 12], [-8, 12]],  # partly outside, its centre inside
                    [[-30, 2], [-10, 2], [-10, 12], [-30, 12]],  # wholly outside
                    [[5, 5], [5, 5], [5, 5], [5, 5]],  # without area
                ],
                np.float32,
            )
            return super().__getitem__(index) | {"polygons": polygons, "labels": np.zeros(4, np.int32)}

    (batch,) = training(Odd(2, size=(24, 32)), 1, flip_probabilities=(0, 0, 0), rotation_probability=0.0)
    assert batch["num_dropped"].tolist() == [2, 2] and batch["valid"].sum(axis=1).tolist() == [2, 2]
    np.testing.assert_allclose(batch["boxes"][0, 1, :4], [1, 7, 18, 10], atol=1e-5)


def test_names_and_labels_of_quarter_turn_classes_are_the_same():
    settings = {"rotation_probability": 1.0, "flip_probabilities": (0, 0, 0)}
    named = training(Numbered(4, size=(24, 24)), 4, quarter_turn_classes=("ship",), **settings)
    assert_same(named, training(Numbered(4, size=(24, 24)), 4, quarter_turn_classes=(1,), **settings))
    angles = np.stack([batch["boxes"][:, 0, 4] for batch in named])
    turns = (angles - 0.3) % (np.pi / 2)
    np.testing.assert_allclose(np.minimum(turns, np.pi / 2 - turns), 0, atol=1e-5)


@pytest.mark.parametrize("process_count", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 6, 7])
def test_evaluation_sees_every_image_once_in_batches_of_one_shape(length, process_count):
    seen = collections.Counter()
    counts = set()
    for process in range(process_count):
        batches = detection_batches.evaluation_batches(
            Numbered(length),
            batch_size=2,
            image_size=(24, 32),
            process_index=process,
            process_count=process_count,
            num_threads=2,
        )
        count = 0
        for batch in batches:
            count += 1
            assert batch["image"].shape == (2, 24, 32, 3) and batch.keys() == {
                "image", "image_size", "image_index", "scale", "original_size"
            }  # fmt: skip
            for row, index in enumerate(batch["image_index"]):
                if index >= 0:
                    seen[int(index)] += 1
                    assert np.all(batch["image"][row, :21] == index)
                    assert batch["original_size"][row].tolist() == [20, 30]
                    np.testing.assert_allclose(batch["scale"][row], [32 / 30, 21 / 20])
        counts.add(count)
        assert count == len(batches)
    assert seen == dict.fromkeys(range(length), 1)
    assert len(counts) == 1


def test_evaluation_can_carry_boxes_and_be_resumed():
    kwargs = {"batch_size": 2, "image_size": (24, 32), "max_boxes": 1, "num_threads": 1}
    batches = detection_batches.evaluation_batches(Numbered(5), **kwargs)
    whole = list(batches)
    assert whole[0]["num_cut"].tolist() == [1, 1] and whole[2]["valid"].tolist() == [[True], [False]]
    np.testing.assert_allclose(whole[0]["boxes"][0, 0, :2], [16, 10.5], atol=1e-4)
    batches = detection_batches.evaluation_batches(Numbered(5), **kwargs)
    batches.set_state({"next_example": 2, "batches_given": 1})
    assert_same(whole[1:], list(batches))


def test_images_that_do_not_fit_are_refused_where_resizing_is_off():
    (batch,) = training(Numbered(2), 1, resize="none")
    assert batch["image_size"].tolist() == [[20, 30]] * 2
    with pytest.raises(ValueError, match=r"number \d of 20 x 30 pixels.*16 x 16"):
        training(Numbered(2), 1, resize="none", image_size=(16, 16))


def test_an_unreadable_image_is_named_by_the_iterator(tmp_path):
    write_dota_folder(SceneSource(2, 64), tmp_path)
    path = next((tmp_path / "images").iterdir())
    path.write_bytes(path.read_bytes()[:500])
    source = FolderSource(tmp_path / "images", tmp_path / "labelTxt", SceneSource(1).class_names)
    with pytest.raises(ValueError, match=path.name):
        training(source, 2, image_size=(64, 64))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"resize": "stretch"}, "stretch"),
        ({"flip_probabilities": (0.5, 0.5, 0.5)}, "flip_probabilities"),
        ({"rotation_probability": 1.5}, "rotation_probability"),
        ({"quarter_turn_classes": ("tank",)}, "tank"),
        ({"quarter_turn_classes": (2,)}, "2"),
        ({"seed": -1}, "seed"),
        ({"scale_range": (1.2, 0.8)}, "scale_range"),
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"gain_range": (2.0, 2.0)}, "gain_range"),
        ({"scale_range": (0.8, 1.2), "resize": "none"}, "scale_range"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(wrong, words):
    with pytest.raises(ValueError, match=words):
        detection_batches.train_batches(Numbered(3), **(SETTINGS | wrong))
    with pytest.raises(ValueError, match="no example"):
        detection_batches.train_batches(Numbered(0), **SETTINGS)


def test_steps_of_an_epoch_round_up():
    assert [loader.steps_per_epoch(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.6, 1.3)])
def test_boxes_lie_on_their_objects_after_augmentation(scale_range):
    """White rectangles on black: inside each box the turned image is white, around it black."""

    class Drawn(Numbered):
        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            box = [rng.uniform(40, 60), rng.uniform(40, 60), 40, 16, rng.uniform(-1.5, 1.5)]
            polygons = boxes_to_polygons([box]).astype(np.float32)
            image = np.zeros((100, 100, 3), np.uint8)
            cv2.fillPoly(image, [np.rint(polygons[0]).astype(np.int32)], (255, 255, 255))
            return super().__getitem__(index) | {
                "image": image, "polygons": polygons, "labels": np.zeros(1, np.int32)
            }  # fmt: skip

    settings = {"image_size": (160, 160), "max_boxes": 1, "rotation_probability": 0.8, "scale_range": scale_range}
    for batch in training(Drawn(8), 6, **settings):
        for row in np.flatnonzero(batch["valid"][:, 0]):
            mask = np.zeros((160, 160), np.uint8)
            (polygon,) = boxes_to_polygons(batch["boxes"][row])
            cv2.fillPoly(mask, [np.rint(polygon).astype(np.int32)], 1)
            white = batch["image"][row, :, :, 0] > 127
            assert polygons_to_boxes(polygon[None])[1].all()
            # an outline of 180 pixels, half a pixel off, around 1640 pixels; some are cut off by the canvas
            assert (white & (mask > 0)).sum() > 0.9 * white.sum()


class Stuck(Numbered):
    """Numbered, but for images from the fifth on, which do not come until `released` is set."""

    released = threading.Event()

    def __getitem__(self, index):
        if index >= 4:
            self.released.wait()
        return super().__getitem__(index)


def test_a_batch_that_does_not_come_is_told_of_and_then_given_up(caplog):
    batches = detection_batches.evaluation_batches(
        Stuck(8), batch_size=2, image_size=(24, 32), num_threads=1, prefetch=1, stall_seconds=0.2
    )
    try:
        assert [int(next(batches)["image_index"][0]) for _ in range(2)] == [0, 2]
        with pytest.raises(
            batching.PipelineError, match=r"waited 2 s for a batch of evaluation data, which did not come"
        ):
            next(batches)
    finally:
        Stuck.released.set()  # or this process would wait for it at its end
    told = [record.getMessage() for record in caplog.records if "waiting for" in record.getMessage()]
    periods = range(1, batching.MAX_STALLED_PERIODS)
    # The last ones: on a busy machine the first batches are waited for as well.
    assert told[-len(periods) :] == [f"waiting for a batch of evaluation data since {n * 0.2:g} s" for n in periods]


def test_a_start_makes_the_first_batch_meanwhile_and_may_be_closed_before_it_is_taken():
    def opened():
        return detection_batches.evaluation_batches(
            Counting(8), batch_size=2, image_size=(24, 32), num_threads=1, prefetch=1, stall_seconds=60
        )

    Counting.read.clear()
    batches = opened()
    assert not Counting.read.is_set()
    batches.start()
    batches.start()
    assert Counting.read.wait(60)
    assert [int(next(batches)["image_index"][0]) for _ in range(4)] == [0, 2, 4, 6]
    assert next(batches, None) is None
    batches = opened()
    batches.start()
    batches.close()
    assert int(next(batches)["image_index"][0]) == 0  # opened again where it was


class Counting(Numbered):
    """Says when an example is read."""

    read = threading.Event()

    def __getitem__(self, index):
        self.read.set()
        return super().__getitem__(index)


def test_errors_of_reading_come_through_the_watch():
    class Broken(Numbered):
        def __getitem__(self, index):
            raise ValueError(f"number {index}: not an image")

    batches = detection_batches.evaluation_batches(
        Broken(4), batch_size=2, image_size=(24, 32), num_threads=1, stall_seconds=60
    )
    with pytest.raises(ValueError, match="number 0: not an image"):
        next(batches)


# Of a process that starts workers: a file, since they start by importing it. Numbered is too quick to be worth copying.
WORKERS = """
import multiprocessing, os, signal, sys, time
import detection_batches
from absl import logging
from haksnet_jax.pipeline import batches as batching
from haksnet_jax.pipeline.sources import SceneSource

if __name__ == "__main__":
    batches = detection_batches.train_batches(SceneSource(50, size=64, seed=0), batch_size=2, image_size=(64, 64),
                                              max_boxes=8, seed=0, num_workers=1, prefetch=1, stall_seconds=5)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)  # as a scheduler sends it to every process of a run
    for _ in range(10):
        next(batches)
    print(worker.pid, flush=True)
    if sys.argv[1] == "parent":
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(worker.pid, signal.SIGKILL)
    killed = time.monotonic()
    try:
        while True:
            next(batches)
    except batching.PipelineError as error:
        print(f"{error} {time.monotonic() - killed < 30}", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_dead_worker_ends_the_batches_and_a_dead_parent_its_workers(victim, tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), victim],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    if victim == "worker":
        assert "a process that makes a batch of training data died (signal 9;" in done.stdout
        assert done.stdout.endswith("True\n")
        return
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    until = time.monotonic() + 20

    def runs():
        try:  # (a process that has ended, and that nobody asked how, is a zombie)
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    while runs() and time.monotonic() < until:
        time.sleep(0.1)
    assert not runs()


class Hanging(Numbered):
    """Its examples never come."""

    def __getitem__(self, index):
        time.sleep(1000)


def test_a_pipeline_whose_worker_hangs_is_given_up_and_closed_at_once(monkeypatch):
    monkeypatch.setattr(batching, "MAX_STALLED_PERIODS", 2)
    batches = detection_batches.train_batches(Hanging(9), **(SETTINGS | {"num_workers": 1, "stall_seconds": 3.0}))
    with pytest.raises(batching.PipelineError, match="this was the last of 2"):
        next(batches)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 10  # (grain's own ending waits for the worker, for ever)
