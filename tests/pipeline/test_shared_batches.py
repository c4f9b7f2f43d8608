"""Shared memory of batches: used again when nobody reads it any more, and without a name once it is mapped."""

import gc
import multiprocessing
import pickle
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from haksnet_jax.pipeline import batches
from haksnet_jax.pipeline.shared_batches import Pieces, Received


def rows(value, count=2):
    image = np.full((160, 150, 3), value, np.uint8)  # large enough to be a view
    return [{"image": image, "label": np.int32(value), "boxes": np.full((3, 5), value, np.float32)}] * count


def through_the_pipe(sent):
    return pickle.loads(pickle.dumps(sent))


@pytest.fixture
def pieces():
    made = Pieces()
    yield made
    made.forget()


def test_what_arrives_is_what_was_stacked(pieces):
    made = rows(1)[:1] + rows(2)[:1]
    batch = Received().arrays(through_the_pipe(pieces.stack(made)))
    assert list(batch) == ["image", "label", "boxes"]
    for name, array in batch.items():
        expected = np.stack([row[name] for row in made])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_memory_is_used_again_once_no_view_of_it_is_left(pieces):
    received = Received()
    first = pieces.stack(rows(1))
    batch = received.arrays(through_the_pipe(first))
    part, labels = batch["image"][1, 5:], batch["label"]
    del batch
    gc.collect()
    second = pieces.stack(rows(2))  # (a view is left)
    assert second.name != first.name and (part == 1).all()
    del part
    gc.collect()
    third = pieces.stack(rows(3))
    assert third.name == first.name
    assert (received.arrays(through_the_pipe(third))["image"] == 3).all()
    assert labels.tolist() == [1, 1]  # a copy: small arrays do not keep the pixels


def test_arrays_outlive_who_received_them(pieces):
    received = Received()
    image = received.arrays(through_the_pipe(pieces.stack(rows(7))))["image"]
    del received
    gc.collect()
    assert (image == 7).all()


def test_a_piece_has_no_name_once_it_has_arrived_or_its_maker_has_ended(pieces):
    arrived, left = through_the_pipe(pieces.stack(rows(1))), pieces.stack(rows(2))
    with pytest.raises(FileNotFoundError):
        SharedMemory(arrived.piece.name)
    pieces.forget()
    for sent in (left, pieces.stack(rows(3))):  # (a thread may still make one)
        with pytest.raises(FileNotFoundError):
            SharedMemory(sent.name)
    assert (Received().arrays(arrived)["image"] == 1).all()  # asked for after its worker has ended
    with pytest.raises(RuntimeError, match="is gone"):
        Received().arrays(through_the_pipe(left))


def test_rows_that_do_not_match_leave_their_piece_free(pieces):
    different = rows(1)[:1] + [rows(1)[0] | {"boxes": np.zeros((3, 5), np.float64)}]
    with pytest.raises(TypeError):
        pieces.stack(different)
    taken = pieces.stack(rows(1))
    assert [piece.name for piece in pieces._pieces] == [taken.name]


class Numbered:
    """Rows for worker processes; `bad` cannot be read."""

    def __init__(self, count, bad=None):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError(f"row {index} cannot be read")
        return {"image": np.full((160, 150, 3), index, np.uint8)}


def test_batches_that_nobody_takes_end_quietly(capfd):
    iterator = batches.iterate(Numbered(200), 1, num_workers=2, num_threads=1, prefetch=2)
    next(iterator)
    time.sleep(0.5)  # the pipes are full
    iterator.close()
    for process in multiprocessing.active_children():
        process.join(20)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("bad", [None, 9])
def test_batches_outlive_the_workers_that_made_them(bad):
    iterator = batches.iterate(Numbered(12, bad), 1, num_workers=2, num_threads=1, prefetch=2)
    found = []
    try:
        for index in range(12 if bad is None else bad):
            found.append(int(next(iterator)["image"][0, 0, 0, 0]))
            if index in (5, 7):
                time.sleep(1)  # the workers are done, and end
        with pytest.raises(StopIteration if bad is None else ValueError, match=None if bad is None else "row 9"):
            next(iterator)
    finally:
        iterator.close()
    assert found == list(range(12 if bad is None else bad))
