"""Models and results in a bucket (one of this machine, see bucket.py), where nothing can be renamed.

A run in a bucket is among the tests of the training loop, whose compiled step it shares.
"""

import numpy as np
import pytest
from bucket import local_bucket

from haksnet_jax import files
from haksnet_jax.cli import evaluation as evaluate
from haksnet_jax.pipeline import sources
from haksnet_jax.results import dota
from haksnet_jax.weights import model_folder


@pytest.fixture
def bucket():
    with local_bucket() as objects:
        yield objects


def test_a_model_whose_saving_was_cut_off_is_none(bucket):
    arrays = {"a.b": np.arange(3.0)}
    model_folder.save_model("gs://some-bucket/models/one", arrays, {"architecture": {}, "task": "first"})
    model_folder.save_model("gs://some-bucket/models/one", {"a.b": np.ones(3)}, {"architecture": {}, "task": "second"})
    loaded, info = model_folder.load_model("gs://some-bucket/models/one")
    assert info == {"architecture": {}, "task": "second"} and loaded["a.b"].tolist() == [1, 1, 1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(model_folder, "_save_arrays", stop)
        model_folder.save_model("gs://some-bucket/models/one", arrays, {"architecture": {}, "task": "third"})
    with pytest.raises(model_folder.CheckpointError, match=r"model\.json is missing"):
        model_folder.load_model("gs://some-bucket/models/one")


def test_files_in_a_bucket_are_uploaded_once_and_whole(bucket, tmp_path):
    files.write_text("gs://some-bucket/a/text", "words")
    with files.whole("gs://some-bucket/a/picture.png") as temporary:
        temporary.write_bytes(b"pixels")
        assert "some-bucket/a/picture.png" not in bucket  # nothing of it is there before all of it is
    assert bucket == {"some-bucket/a/text": b"words", "some-bucket/a/picture.png": b"pixels"}
    with pytest.raises(RuntimeError), files.whole("gs://some-bucket/a/text") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert bucket["some-bucket/a/text"] == b"words"

    one = {
        "boxes": np.array([[20.0, 20, 8, 4, 0.3]]),
        "scores": np.array([0.9]),
        "labels": np.array([1]),
        "size": (64, 64),
    }
    for folder in ("gs://some-bucket/found", tmp_path / "found"):
        evaluate.write_predictions(folder, {"image": one}, ("ship", "plane"))
    for name in ("classes.txt", "detections.json", "task1/Task1_plane.txt", "task1/Task1_ship.txt"):
        assert bucket[f"some-bucket/found/{name}"] == (tmp_path / "found" / name).read_bytes()
    with pytest.raises(ValueError, match="files of other classes"):
        dota.write_task1("gs://some-bucket/found/task1", {}, ("car",))


def test_data_in_a_bucket_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"directory: gs://data/records is in a bucket.*copy the folder"):
        sources.open_source("tfds", ("ship",), directory="gs://data/records", split="train")


def test_a_scheme_that_nothing_here_reaches_is_named():
    with pytest.raises(ValueError, match=r"nowhere://a/b: .*; for gs:// paths: pip install"):
        files.reachable("nowhere://a/b")
