"""The loop with a task of one file: what a run keeps, compares, refuses and tells. Steps take milliseconds."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import dummy_task
import jax
import numpy as np
import pytest
from bucket import local_bucket
from flax import nnx

from haksnet_jax import files, tasks
from haksnet_jax.distributed import hosts
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.training import log, loop, resume, stop
from haksnet_jax.training.state import abstract_state, create_state
from haksnet_jax.weights import model_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def dummy(monkeypatch):
    """One line makes the file a task; runs are of one device."""
    monkeypatch.setitem(tasks.TASKS, "dummy", "dummy_task")
    mesh_of = devices.data_mesh
    monkeypatch.setattr(devices, "data_mesh", lambda chosen=None, **more: mesh_of(chosen or jax.devices()[:1], **more))


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_task_is_one_file(tmp_path):
    config = dummy_task.make_config(num_steps=60, checkpoint_every=30, eval_every=30)
    card = loop.run(config, tmp_path)
    assert card["facts"]["best_share_right"] >= 0.75 and card["facts"]["odd_examples"] == 60 * 2
    assert card["last_evaluation"] == card["mean"] == {"share_right": card["mean"]["share_right"]}
    losses = [line["loss"] for line in _lines(tmp_path) if "loss" in line]
    assert len(losses) == 60 and losses[-1] < 0.8 * losses[0]
    arrays, info = model_folder.load_model(tmp_path)
    assert info["task"] == "dummy" and set(arrays) >= {"backbone.kernel", "head.bias", "mean"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (
        "share right" in (tmp_path / "result.md").read_text() or "share_right" in (tmp_path / "result.md").read_text()
    )


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match=r"task: expected one of detection, .*, got 'dreaming'"):
        loop.run(dummy_task.make_config(task="dreaming"), "nowhere")


@pytest.mark.parametrize("every", [1000, 0, None])
def test_a_run_is_saved_at_its_end_whatever_the_interval(tmp_path, every):
    config = dummy_task.make_config(num_steps=3)
    with config.ignore_type():
        config.checkpoint_every = every
    loop.run(config, tmp_path)
    assert _steps(tmp_path) == [3]


def test_a_run_is_evaluated_at_its_end_unless_never(tmp_path, caplog):
    card = loop.run(dummy_task.make_config(num_steps=3, eval_every=1000), tmp_path / "late")
    assert "mean" in card and (tmp_path / "late" / "best" / "model.json").exists()
    with caplog.at_level("INFO"):
        card = loop.run(dummy_task.make_config(num_steps=3, eval_every=0), tmp_path / "never")
    assert "mean" not in card and not (tmp_path / "never" / "best").exists()
    assert "evaluation never; checkpoints every 2 steps and at the end, the newest 3 are kept" in caplog.text
    assert model_folder.load_model(tmp_path / "never")[1]["task"] == "dummy"  # the newest step is what loads


def test_schedules_and_compilation_are_told_before_they_are_waited_for(tmp_path, caplog):
    with caplog.at_level("INFO"):
        loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    text = caplog.text
    assert "2 steps (4 an epoch) of 4 images; learning rate 0.01 (0.01 for 4 images, scaling none)" in text
    assert "then a cosine to 0 at step 2" in text
    assert text.index("compiling the training step") < text.index("step 1/2")


# ---- going on


def test_a_run_that_differs_is_refused_with_all_that_differs_and_stays_as_it_was(tmp_path):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    described = {name: (tmp_path / name).read_text() for name in ("model.json", "config.json", "run.json")}
    for change, sentence in (
        ({"data__class_names": ("more", "less")}, r"data.class_names was \['less', 'more'\], is \['more', 'less'\]"),
        ({"model__width": 5}, "model.width was 3, is 5"),
        ({"seed": 7, "ema_decay": 0.9}, "ema_decay was 0.0, is 0.9; seed was 0, is 7"),
        ({"data__train": 20}, "data.train was 16, is 20; data.train had 16 images, has 20"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            loop.run(dummy_task.make_config(num_steps=4, **change), tmp_path)
        assert "--resume=anyway" in str(caught.value)
    assert described == {name: (tmp_path / name).read_text() for name in described}
    assert _steps(tmp_path) == [2]


def test_data_of_other_names_is_another_data_set():
    config = dummy_task.make_config()
    then = resume.data_facts({"train": dummy_task.Source("train", 4, ())})
    now = resume.data_facts({"train": dummy_task.Source("other", 4, ())})
    assert resume.compare(dummy_task, config, config, then, now).refused == ["data.train has images of other names"]
    assert resume.compare(dummy_task, config, config, {}, now).refused == []  # a run from before this was written down


def test_what_may_change_is_told_and_written_beside(tmp_path, caplog):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    before = (tmp_path / "config.json").read_text()
    card = loop.run(dummy_task.make_config(num_steps=4, optimizer__learning_rate=2e-2), tmp_path)
    assert card["facts"]["resumed_at_step"] == 2
    assert "going on with another setting: num_steps was 2, is 4" in caplog.text
    assert "going on with another setting: optimizer.learning_rate was 0.01, is 0.02" in caplog.text
    assert (tmp_path / "config.json").read_text() == before
    later = json.loads((tmp_path / "config_from_step_2.json").read_text())
    assert later["optimizer"]["learning_rate"] == 0.02
    caplog.clear()
    loop.run(dummy_task.make_config(num_steps=4, optimizer__learning_rate=2e-2), tmp_path)  # nothing changed since
    assert "another setting" not in caplog.text


def test_anyway_goes_on_and_old_checkpoints_keep_their_description(tmp_path):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    other = dummy_task.make_config(num_steps=4, ema_decay=0.5, data__class_names=("more", "less"))
    card = loop.run(other, tmp_path, resume_policy="anyway")
    assert card["facts"]["resumed_at_step"] == 2
    names = {step: model_folder.load_model(tmp_path / "checkpoints" / str(step))[1]["class_names"] for step in (2, 4)}
    assert names == {2: ["less", "more"], 4: ["more", "less"]}
    state = model_folder.restore_numpy(tmp_path / "checkpoints" / "4" / "state")
    assert "params" in state["ema"]
    # And back, without averages.
    loop.run(dummy_task.make_config(num_steps=6, data__class_names=("more", "less")), tmp_path, resume_policy="anyway")
    assert not model_folder.restore_numpy(tmp_path / "checkpoints" / "6" / "state").get("ema")


def test_another_batch_goes_on_at_the_same_example(tmp_path, caplog):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    with caplog.at_level("INFO"):
        loop.run(dummy_task.make_config(num_steps=4, batch_size_per_device=6), tmp_path)
    assert "resuming at step 2, example 8" in caplog.text
    assert "the run so far took 4 images a step, now 6: it goes on at the same example" in caplog.text
    position = json.loads((tmp_path / "checkpoints" / "4" / "data" / "metadata").read_text())
    assert position == {"examples": 8 + 2 * 6, "global_batch": 6}


def test_an_evaluation_that_fails_costs_no_step(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no such image")

    monkeypatch.setattr(dummy_task, "Result", fail)
    with pytest.raises(OSError, match="no such image"):
        loop.run(dummy_task.make_config(num_steps=3, eval_every=3, checkpoint_every=0), tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(tasks.TASKS, "dummy", "dummy_task")
    assert loop.run(dummy_task.make_config(num_steps=3, eval_every=3), tmp_path)["facts"]["resumed_at_step"] == 3


@pytest.mark.parametrize("name", ["config.json", "run.json", "best/model.json"])
def test_damage_of_what_describes_a_run_is_named(tmp_path, name):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    (tmp_path / name).write_text('{"na')
    with pytest.raises(UserError, match=f"{tmp_path / name}.* is damaged"):
        loop.run(dummy_task.make_config(num_steps=4), tmp_path)


def test_damaged_lines_of_the_metrics_are_named_and_left_out(tmp_path, caplog):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '[1]\n{"st')
    loop.run(dummy_task.make_config(num_steps=4), tmp_path)
    assert f"{path}:5 is damaged" in caplog.text and f"{path}:4 is damaged" in caplog.text
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 2, 3, 4, 4]


def test_best_weights_of_an_earlier_start_without_checkpoints_are_kept(tmp_path, caplog):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    (tmp_path / "config_from_step_2.json").write_text("{}")
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(tmp_path / f"gone.{path.name}")
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    assert resume.config_history(tmp_path) == [tmp_path / "config.json"]
    assert (tmp_path / "best.earlier" / "model.json").exists() and (tmp_path / "best" / "model.json").exists()
    assert "kept as" in caplog.text


def test_a_damaged_step_in_a_bucket_is_left_aside_and_saved_again(caplog):
    with local_bucket() as bucket:
        workdir = "gs://some-bucket/runs/dummy"
        loop.run(dummy_task.make_config(), workdir)
        of_4 = {name for name in bucket if "/checkpoints/4/state/" in name}
        largest = max(of_4, key=lambda name: len(bucket[name]))
        bucket[largest] = bucket[largest][: len(bucket[largest]) // 2]
        card = loop.run(dummy_task.make_config(), workdir)
        assert card["facts"]["resumed_at_step"] == 2
        assert "checkpoints/4 is not whole and is left aside as 4.unusable" in caplog.text
        assert any("/checkpoints/4.unusable/state/" in name for name in bucket)
        # Whole again: the next start has nothing left to do.
        assert loop.run(dummy_task.make_config(), workdir)["facts"]["resumed_at_step"] == 4


def test_weights_and_steps_draw_from_different_keys():
    config = dummy_task.make_config()
    _, state = create_state(
        lambda rngs: dummy_task.build_model(config, rngs=rngs), loop.optimizer.of_config(config),
        devices.data_mesh(jax.devices()[:1]), seed=3, ema=False,
    )  # fmt: skip
    step_key = jax.random.wrap_key_data(state.rng)
    rngs = nnx.Rngs(jax.random.key(3))
    keys = [[jax.random.fold_in(step_key, step) for step in range(100)], [rngs.params() for _ in range(100)]]
    of_steps, of_weights = ({tuple(jax.random.key_data(key).tolist()) for key in part} for part in keys)
    assert len(of_steps) == len(of_weights) == 100 and not of_steps & of_weights


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_without_values_is_that_of_a_new_run(ema):
    config = dummy_task.make_config()
    model = (lambda rngs: dummy_task.build_model(config, rngs=rngs), loop.optimizer.of_config(config))
    mesh = devices.data_mesh(jax.devices()[:1])
    (graph, made), (same_graph, wanted) = (
        function(*model, mesh, seed=0, ema=ema) for function in (create_state, abstract_state)
    )
    assert graph == same_graph and jax.tree.structure(made) == jax.tree.structure(wanted)
    for value, shape in zip(jax.tree.leaves(made), jax.tree.leaves(wanted), strict=True):
        assert (value.shape, value.dtype, value.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_a_run_that_goes_on_draws_no_new_weights(tmp_path, monkeypatch):
    loop.run(dummy_task.make_config(num_steps=2), tmp_path)
    monkeypatch.setattr(loop, "create_state", lambda *_, **__: pytest.fail("values of a new run were made"))
    assert loop.run(dummy_task.make_config(num_steps=4), tmp_path)["facts"]["resumed_at_step"] == 2


# ---- one at a time, and an end when asked


def test_a_second_process_on_a_folder_is_told_who_holds_it(tmp_path):
    with files.held(tmp_path), pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .*, since"):
        loop.run(dummy_task.make_config(), tmp_path)
    assert loop.run(dummy_task.make_config(), tmp_path)["facts"]["steps"] == 4


@pytest.mark.parametrize(("host", "kind"), [(0, UserError), (1, hosts.HostsError)])
def test_all_hosts_end_together_where_the_folder_is_in_use(tmp_path, monkeypatch, host, kind):
    told = []

    def exchange(record):  # as host 0's reaches every host
        told.append(record)
        return [record if host == 0 else {"refused": f"{tmp_path} is in use by another run"}]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: host)
    monkeypatch.setattr(hosts, "_exchange", exchange)
    with files.held(tmp_path), pytest.raises(kind, match="is in use by"), hosts.held_by_first(tmp_path):
        pass
    assert len(told) == 1 and bool(told[0]["refused"]) == (host == 0)


_BUSY = """
import ctypes, os, signal, threading, time
from haksnet_jax.training import stop
with stop.StopRequest():
    def ask():
        for pause in (0.5, 0.1, 1):  # the second is the first one's echo, as `timeout` sends it
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    # Calls that keep the main thread outside of Python, as a compilation does: handlers of Python's wait for their end.
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ctypes.CDLL(None).usleep(900000)
"""


def test_a_signal_is_answered_and_a_second_one_ends_the_process_though_it_is_busy():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BUSY], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM and 1.6 < time.monotonic() - began < 60
    assert "SIGTERM: stopping after this step" in done.stderr and "SIGTERM again: ended at once" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_asked_to_stop_says_where_and_goes_on_there(tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop.Stopped, match="stopped at step 3 of 9"):
        add, steps = log.RunLog.add, []

        def add_and_ask(self, *args):
            add(self, *args)
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(log.RunLog, "add", add_and_ask)
        loop.run(dummy_task.make_config(num_steps=9), tmp_path / "parts")
    loop.run(dummy_task.make_config(num_steps=9), tmp_path / "parts")
    loop.run(dummy_task.make_config(num_steps=9), tmp_path / "whole")
    once, twice = (
        model_folder.flatten(model_folder.restore_numpy(tmp_path / name / "checkpoints" / "9" / "state"))
        for name in ("whole", "parts")
    )
    assert once.keys() == twice.keys()
    for name, value in once.items():
        np.testing.assert_array_equal(twice[name], value, err_msg=name)


def test_a_slow_device_is_handed_no_more_steps_than_a_few():
    finished = []

    class Result:
        """An array of a step: stands for itself, and is finished when somebody waits for it."""

        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            finished.append(self.step)
            return self

    steps = loop._InFlight(ahead=3)
    for step in range(10):
        steps.add({"loss": Result(step)})
        assert step - len(finished) < 3 or len(finished) == step - 2
    assert finished == [0, 1, 2, 3, 4, 5, 6]  # three are under way


def test_every_batch_comes_once_and_an_error_behind_one_does_not_take_its_step():
    mesh = devices.data_mesh(jax.devices()[:1])

    def batches(error):
        for number in range(3):
            yield {"x": np.full(2, number, np.int32), "name": number}
        if error:
            raise OSError("batch 4 cannot be read")

    def numbers(placed):
        return [(int(arrays["x"][0]), batch["name"]) for batch, arrays, _ in placed]

    assert numbers(loop._placed(batches(error=False), ["x"], mesh, accumulate_steps=1)) == [(0, 0), (1, 1), (2, 2)]
    seen = []
    with pytest.raises(OSError, match="batch 4"):
        for item in loop._placed(batches(error=True), ["x"], mesh, accumulate_steps=1):
            seen.append(item)  # noqa: PERF402 (a list would be lost with the error)
    assert numbers(seen) == [(0, 0), (1, 1), (2, 2)]
