"""Runs, models and results in a bucket (one of this machine, see bucket.py), where nothing can be renamed."""

import numpy as np
import pytest
from bucket import local_bucket
from test_train import _tiny_config, one_program  # noqa: F401 (a fixture of every test here)

from haksnet_jax import checkpoint, evaluate, files, train
from haksnet_jax.pipeline import sources
from haksnet_jax.results import dota


@pytest.fixture
def bucket():
    with local_bucket() as objects:
        yield objects


def test_a_run_in_a_bucket_is_evaluated_resumed_and_loaded(bucket, tmp_path):
    workdir = "gs://some-bucket/runs/tiny"
    config = _tiny_config(eval_every=4, checkpoints_kept=1)
    card = train.train_and_evaluate(config, workdir)
    names = {name.removeprefix("some-bucket/runs/tiny/") for name in bucket}
    assert {"result.json", "result.md", "metrics.jsonl", "config.json", "model.json", "curves.png"} <= names
    assert any(name.startswith("events/") for name in names)
    assert bucket["some-bucket/runs/tiny/curves.png"].startswith(b"\x89PNG")
    assert bucket[card["picture"].removeprefix("gs://")].startswith(b"\x89PNG")
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"4"}  # step 2 was removed
    # The same run on a disk: the storage changes nothing.
    on_disk = train.train_and_evaluate(config, tmp_path / "disk")
    assert card["mean"] == on_disk["mean"]

    again = train.train_and_evaluate(config, workdir)
    assert again["facts"]["resumed_at_step"] == 4 and again["mean"] == card["mean"]

    arrays, info = checkpoint.load_model(workdir)
    assert info["step"] == 4
    expected, _ = checkpoint.load_model(tmp_path / "disk")
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert evaluate.run_settings(workdir)["name"] == config.name


def test_a_model_whose_saving_was_cut_off_is_none(bucket):
    arrays = {"a.b": np.arange(3.0)}
    checkpoint.save_model("gs://some-bucket/models/one", arrays, {"kind": "first"})
    checkpoint.save_model("gs://some-bucket/models/one", {"a.b": np.ones(3)}, {"kind": "second"})
    loaded, info = checkpoint.load_model("gs://some-bucket/models/one")
    assert info == {"kind": "second"} and loaded["a.b"].tolist() == [1, 1, 1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "_save_arrays", stop)
        checkpoint.save_model("gs://some-bucket/models/one", arrays, {"kind": "third"})
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.json is missing"):
        checkpoint.load_model("gs://some-bucket/models/one")


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
