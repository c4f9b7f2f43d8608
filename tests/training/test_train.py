"""The training loop: its steps, what it keeps, what it refuses."""

import functools
import json
import os
import signal

import jax
import numpy as np
import optax
import pytest
from bucket import local_bucket
from flax import nnx
from tiny_config import tiny_config

import haksnet_jax
from configs import demo
from haksnet_jax.cli import checkpoint_evaluation
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.inference import detection_evaluator
from haksnet_jax.models.oriented_rcnn import OrientedRCNN
from haksnet_jax.tasks import detection
from haksnet_jax.training import checkpoint, log, loop, optimizer, resume, stop
from haksnet_jax.training.state import create_state
from haksnet_jax.training.step import make_train_step
from haksnet_jax.weights import model_folder


def new_state(config, tx, mesh):
    """(graph definition, TrainState) of a new run."""
    return create_state(
        lambda rngs: detection.build_model(config, rngs=rngs), tx, mesh, seed=config.seed, ema=bool(config.ema_decay)
    )


def _once(function, key):
    """`function`, called once for each value of `key`, which takes the same arguments."""
    results = {}

    @functools.wraps(function)
    def shared(*arguments, **settings):
        wanted = key(*arguments, **settings)
        if wanted not in results:
            results[wanted] = function(*arguments, **settings)
        return results[wanted]

    return shared


def _all_that_is_given(*arguments, **settings):
    return (*arguments, repr(sorted(settings.items())))


# Tracing the step and the detector takes a run of these tests longer than all its steps.
_make_optimizer = _once(optimizer.of_config, lambda config: config.optimizer.to_json())
_loss = _once(detection.loss, lambda config: (config.rpn.to_json(), config.roi.to_json()))
_make_train_step = _once(make_train_step, _all_that_is_given)
_make_detect_step = _once(detection_evaluator.make_step, _all_that_is_given)


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """The loop takes all devices; these runs are of one, and those that are alike share their compiled functions."""
    mesh_of = devices.data_mesh
    monkeypatch.setattr(devices, "data_mesh", lambda chosen=None, **more: mesh_of(chosen or jax.devices()[:1], **more))
    monkeypatch.setattr(optimizer, "of_config", _make_optimizer)
    monkeypatch.setattr(detection, "loss", _loss)
    monkeypatch.setattr(loop, "make_train_step", _make_train_step)
    monkeypatch.setattr(detection_evaluator, "make_step", _make_detect_step)


def _batch(num_images, seed=0):
    generator = np.random.default_rng(seed)
    shape = (num_images, 8)
    boxes = np.stack(
        [
            generator.uniform(12, 52, shape),
            generator.uniform(12, 52, shape),
            generator.uniform(12, 20, shape),
            generator.uniform(5, 11, shape),
            generator.uniform(-1.5, 1.5, shape),
        ],
        axis=-1,
    )
    return {
        "image": generator.integers(0, 255, (num_images, 64, 64, 3)).astype(np.uint8),
        "boxes": boxes.astype(np.float32),
        "labels": generator.integers(0, 5, shape).astype(np.int32),
        "valid": np.arange(8)[None] < generator.integers(0, 8, (num_images, 1)),
        "image_size": np.full((num_images, 2), 64, np.int32),
    }


def _stepper(config, mesh):
    tx = optimizer.make_optimizer(optimizer.OptimizerSettings(clip_norm=config.optimizer.clip_norm))
    graph, state = new_state(config, tx, mesh)
    return make_train_step(graph, tx, mesh, detection.loss(config), ema_decay=config.ema_decay), state


@pytest.fixture(scope="module")
def stepper():
    """(mesh, compiled step, function that makes a fresh state) on one device, as `train_and_evaluate` sets them up."""
    mesh = devices.data_mesh(jax.devices()[:1])
    config = tiny_config()
    compiled, _ = _stepper(config, mesh)

    @functools.wraps(compiled)
    def step(*arguments):
        with jax.set_mesh(mesh):
            return compiled(*arguments)

    step.num_compilations = compiled._cache_size
    return mesh, step, lambda: _stepper(config, mesh)[1]


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_losses_fall_on_one_batch_and_one_compilation_serves_all_steps(stepper):
    mesh, step, fresh = stepper
    state, losses = fresh(), []
    batch = devices.place_batch(mesh, _batch(4))
    for _ in range(30):
        state, metrics = step(state, batch, np.float32(3e-3))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    assert step.num_compilations() == 1
    assert int(state.step) == 30 and int(state.skipped) == 0
    # the average of the weights follows them: nearer to them than to the start
    start, end, average = jax.device_get((fresh().params, state.params, state.ema["params"]))

    def distance(a, b):
        return sum(np.abs(x - y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    moved, behind = distance(end, start), distance(end, average)
    assert 0 < behind < 0.6 * moved


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(stepper):
    mesh, step, fresh = stepper

    def broken():
        state = fresh()
        bias = jax.device_put(np.full(3, np.inf, np.float32), devices.replicated(mesh))
        state.params["rpn"]["logits"]["bias"] = bias
        return state

    state, metrics = step(broken(), devices.place_batch(mesh, _batch(4)), np.float32(1e-3))
    assert not metrics["finite"]
    before = broken()
    assert _same((state.params, state.batch_stats, state.opt_state, state.ema),
                 (before.params, before.batch_stats, before.opt_state, before.ema))  # fmt: skip
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1, 1, 1)


def test_a_batch_without_any_object_gives_finite_losses(stepper):
    mesh, step, fresh = stepper
    batch = _batch(4)
    batch["valid"][:] = False
    _, metrics = step(fresh(), devices.place_batch(mesh, batch), np.float32(1e-3))
    assert metrics["finite"] and float(metrics["loss_rpn_box"]) == 0 and float(metrics["positive_rois"]) == 0


def test_four_devices_that_share_the_state_take_the_same_step_as_one(stepper, monkeypatch):
    mesh, step, fresh = stepper
    batch = _batch(4)
    state, metrics = step(fresh(), devices.place_batch(mesh, batch), np.float32(1e-3))
    monkeypatch.setattr(devices, "MIN_SPLIT_SIZE", 256)  # so that arrays of this narrow model are split
    four = devices.data_mesh(jax.devices()[:4], fsdp=2)
    step_of_four, state_of_four = _stepper(tiny_config(), four)
    split = [leaf for leaf in jax.tree.leaves(state_of_four.params) if not leaf.is_fully_replicated]
    assert len(split) > 5 and all(leaf.addressable_shards[0].data.size * 2 == leaf.size for leaf in split)
    with jax.set_mesh(four):
        state_of_four, metrics_of_four = step_of_four(state_of_four, devices.place_batch(four, batch), np.float32(1e-3))
    assert [leaf.sharding for leaf in jax.tree.leaves(state_of_four.params) if not leaf.is_fully_replicated] == [
        leaf.sharding for leaf in split
    ]
    # sums over the batch in another order, in float32
    for name in ("loss", "loss_rpn_cls", "loss_rpn_box", "loss_roi_cls", "loss_roi_box", "grad_norm"):
        np.testing.assert_allclose(metrics_of_four[name], metrics[name], rtol=1e-4, err_msg=name)
    ours, theirs = model_folder.flatten(state.batch_stats), model_folder.flatten(state_of_four.batch_stats)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow  # two more programs to compile, which a change of the other tests' steps cannot break alone
def test_micro_batches_add_up_to_their_mean():
    mesh = devices.data_mesh(jax.devices()[:1])
    config = tiny_config(accumulate_steps=2)
    tx = optimizer.make_optimizer(optimizer.OptimizerSettings(weight_decay=0.05, betas=(0.9, 0.999), clip_norm=35.0))
    graph, state = new_state(config, tx, mesh)
    loss = detection.loss(config)
    halves = _batch(2, seed=1), _batch(2, seed=2)
    keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.rng), 0), 2)

    @jax.jit
    def loss_and_norm(params, batch, key):
        def loss_of(params):
            model = nnx.merge(graph, params, state.batch_stats)  # (in training a batch's own statistics count)
            return loss(model, batch, key)[0]

        return jax.value_and_grad(loss_of)(params)

    found = [loss_and_norm(state.params, half, key) for half, key in zip(halves, keys, strict=True)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *[gradients for _, gradients in found])
    step = make_train_step(graph, tx, mesh, loss, ema_decay=0.0, accumulate_steps=2)
    batch = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    state, metrics = step(state, devices.place_batch(mesh, batch, accumulate_steps=2), np.float32(1e-3))
    # the same sums in another program
    np.testing.assert_allclose(metrics["loss"], np.mean([loss for loss, _ in found]), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(mean), rtol=1e-4)
    assert int(state.step) == 1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    # The schedule of a shorter run would be another one: the first part is of the same length, and is ended after its
    # first checkpoint.
    whole = loop.run(tiny_config(), tmp_path / "whole")

    # The signal comes in the middle of the second step.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop.Stopped, match="stopped at step 2 of 4"):
        add, asked = log.RunLog.add, []

        def add_and_ask(self, *args):
            add(self, *args)
            asked.append(1)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(log.RunLog, "add", add_and_ask)
        loop.run(tiny_config(checkpoint_every=4), tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = loop.run(tiny_config(), tmp_path / "parts")
    assert (whole["facts"]["resumed_at_step"], resumed["facts"]["resumed_at_step"]) == (0, 2)

    def final(name):
        return model_folder.flatten(model_folder.restore_numpy(tmp_path / name / "checkpoints" / "4" / "state"))

    once, twice = final("whole"), final("parts")
    assert once.keys() == twice.keys() and len(once) > 300
    for name, value in once.items():
        np.testing.assert_array_equal(twice[name], value, err_msg=name)


def test_a_run_leaves_a_card_curves_pictures_and_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative folder, as in the commands of the README
    card = loop.run(tiny_config(eval_every=4), "run")
    assert set(card["mean"]) == {"AP50_voc07", "AP50_voc12", "AP75_voc12", "AP50:95"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["facts"] == card["facts"]
    assert "| **mean** |" in (tmp_path / "run" / "result.md").read_text()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert (tmp_path / card["picture"]).exists()
    arrays, info = model_folder.load_model(tmp_path / "run")
    assert info["class_names"] == list(demo.get_config().data.class_names)
    assert info["architecture"]["channels"] == [4, 4, 8, 8]
    assert haksnet_jax.load(tmp_path / "run").session.proposal_settings.max_proposals == tiny_config().rpn.max_proposals
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]  # nothing half-written
    # the same weights start another run
    config = tiny_config(init=str(tmp_path / "run"), num_steps=2)
    loop.run(config, tmp_path / "second")
    assert len(arrays) > 100


def test_a_run_in_a_bucket_is_evaluated_resumed_and_loaded(tmp_path):
    with local_bucket() as bucket:
        workdir = "gs://some-bucket/runs/tiny"
        config = tiny_config(eval_every=4, checkpoints_kept=1)
        card = loop.run(config, workdir)
        names = {name.removeprefix("some-bucket/runs/tiny/") for name in bucket}
        assert {"result.json", "result.md", "metrics.jsonl", "config.json", "model.json", "curves.png"} <= names
        assert any(name.startswith("events/") for name in names)
        assert bucket["some-bucket/runs/tiny/curves.png"].startswith(b"\x89PNG")
        assert bucket[card["picture"].removeprefix("gs://")].startswith(b"\x89PNG")
        assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"4"}  # step 2 was removed
        # The same run on a disk: the storage changes nothing.
        on_disk = loop.run(config, tmp_path / "disk")
        assert card["mean"] == on_disk["mean"]

        again = loop.run(config, workdir)
        assert again["facts"]["resumed_at_step"] == 4 and again["mean"] == card["mean"]

        arrays, info = model_folder.load_model(workdir)
        assert info["step"] == 4
        expected, _ = model_folder.load_model(tmp_path / "disk")
        for name, value in expected.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)
        assert checkpoint_evaluation.run_settings(workdir)["name"] == config.name


def _save_model(folder, **changes):
    """Saves the model of a new run. Returns: its arrays, what is known about it."""
    config = tiny_config(**changes)
    _, state = new_state(config, optimizer.make_optimizer(optimizer.OptimizerSettings()), devices.data_mesh())
    arrays = model_folder.flatten(state.params) | model_folder.flatten(state.batch_stats)
    info = detection.model_info(config)
    model_folder.save_model(folder, arrays, info)
    return arrays, info


def test_weights_of_another_shape_are_refused_with_every_name(tmp_path):
    _save_model(tmp_path / "model")
    config = tiny_config(init=str(tmp_path / "model"))
    config.model.hidden = 24
    with pytest.raises(checkpoint.CheckpointError, match=r"roi_head\.fc_1\.bias has shape \(16,\), expected \(24,\)"):
        loop.run(config, tmp_path / "other")


def test_a_backbone_fills_only_the_backbone(tmp_path):
    saved, _ = _save_model(tmp_path / "model", seed=1)
    config = tiny_config(pretrained=str(tmp_path / "model"), seed=5)
    mesh = devices.data_mesh()
    _, state = new_state(config, optimizer.make_optimizer(optimizer.OptimizerSettings()), mesh)
    loaded = model_folder.flatten(resume.load_initial_weights(detection, config, state, mesh).params)
    fresh = model_folder.flatten(
        new_state(config, optimizer.make_optimizer(optimizer.OptimizerSettings()), mesh)[1].params
    )
    for name, value in loaded.items():
        expected = saved[name] if name.startswith("backbone.") else fresh[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_a_converted_model_starts_a_detector_as_far_as_its_classes_and_values_go(tmp_path, caplog):
    mesh = devices.data_mesh()

    def start(**changes):
        config = tiny_config(seed=5, init=str(tmp_path / "model"), **changes)
        _, state = new_state(config, optimizer.make_optimizer(optimizer.OptimizerSettings()), mesh)
        return model_folder.flatten(state.params), model_folder.flatten(
            resume.load_initial_weights(detection, config, state, mesh).params
        )

    arrays, info = _save_model(tmp_path / "model", seed=1)

    # What `convert --allow-missing` left out starts at random, and is named.
    wanting = "roi_head.fc_1.kernel"
    some = {name: value for name, value in arrays.items() if name != wanting}
    model_folder.save_model(tmp_path / "model", some, info | {"without_value": [wanting]})
    fresh, loaded = start()
    assert f"has no value for {wanting}: random start" in caplog.text
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, fresh[name] if name == wanting else arrays[name], err_msg=name)
    # A name that is wanting without having been left out is damage.
    model_folder.save_model(tmp_path / "model", some, info)
    with pytest.raises(checkpoint.CheckpointError, match=r"roi_head\.fc_1\.kernel is missing"):
        start()

    others = {"class_names": ["a", "b", "c", "d", "e"]}
    model_folder.save_model(tmp_path / "model", arrays, info | others)
    _, loaded = start()
    assert "the classifier of a, b, c, d, e goes on as one of" in caplog.text
    np.testing.assert_array_equal(loaded["roi_head.logits.kernel"], arrays["roi_head.logits.kernel"])
    fresh, loaded = start(init_new_classes=True)
    np.testing.assert_array_equal(loaded["roi_head.logits.kernel"], fresh["roi_head.logits.kernel"])

    model_folder.save_model(tmp_path / "model", arrays, info | {"class_names": ["a", "b"]})
    with pytest.raises(UserError, match=r"knows 2 classes and data\.class_names has 5; init_new_"):
        start()
    backbone = info["architecture"] | {"fpn_channels": None}
    of_backbone = {name: value for name, value in arrays.items() if name.startswith("backbone.")}
    model_folder.save_model(tmp_path / "model", of_backbone, info | {"class_names": [], "architecture": backbone})
    with pytest.raises(UserError, match="holds a backbone alone; name it with pretrained"):
        start()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_every": 0}, "log_every: expected at least 1, got 0"),
        ({"pretrained": "a", "init": "b"}, "pretrained and init: expected at most one of them, got both"),
        ({"init": "nowhere"}, "nowhere: no such checkpoint folder"),
    ],
)
def test_mistakes_in_a_configuration_are_named(tmp_path, change, message):
    with pytest.raises((UserError, checkpoint.CheckpointError), match=message):
        loop.run(tiny_config(**change), tmp_path)


def test_classes_of_an_own_folder_come_from_its_file(tmp_path):
    from configs import folder

    (tmp_path / "classes.txt").write_text("ship\nplane\n")
    config = folder.get_config()
    config.data.root = str(tmp_path)
    assert detection.prepared(config).data.class_names == ("ship", "plane")
    (tmp_path / "train").mkdir()
    (tmp_path / "classes.txt").rename(tmp_path / "train" / "classes.txt")  # where tiles have it
    assert detection.prepared(config).data.class_names == ("ship", "plane")
    (tmp_path / "train" / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no .*classes.txt and no .*train/classes.txt: write the names"):
        detection.prepared(config)
    (tmp_path / "classes.txt").write_text("ship\nplane\n")
    assert not config.data.class_names  # the caller's configuration stays as it was
    assert detection.prepared(tiny_config()).data.class_names == demo.get_config().data.class_names


def test_an_image_size_that_the_network_cannot_take_is_named(tmp_path):
    config = tiny_config()
    config.data.image_size = (100, 64)
    with pytest.raises(UserError, match=r"data\.image_size: expected multiples of 32 above 0, got \(100, 64\)"):
        loop.run(config, tmp_path)


def test_a_configuration_refuses_a_key_that_it_does_not_have():
    with pytest.raises(KeyError, match="num_step"):
        demo.get_config()["num_step"] = 3


def test_a_step_may_turn_the_pixels_itself():
    config = tiny_config()
    with config.unlocked():
        config.augment.rotate_on = "device"
    source = detection.open_source(config, "train")
    where = {"batch_size": 2, "first_example": 0, "process_index": 0, "process_count": 1}
    batches = detection.train_batches(config, source, **where)
    batch = next(iter(batches))
    batches.close()
    arrays = {name: batch[name] for name in detection.batch_arrays(config)}
    assert arrays["turn"].shape == (2, 2, 3)

    def step(arrays):
        return detection.loss(config)(detection.build_model(config, rngs=nnx.Rngs(0)), arrays, jax.random.key(0))

    loss, _ = jax.eval_shape(step, arrays)
    assert loss.shape == ()


def test_every_configuration_builds_its_model():

    from configs import dota15_ms, dota15_ss, dota_ms, dota_ms_t, dota_ss, dota_ss_t, ssdd

    for module in (demo, dota_ss, dota_ss_t, dota_ms, dota_ms_t, dota15_ss, dota15_ms, ssdd):
        config = module.get_config()
        assert config.name == module.__name__.split(".")[-1]
        assert config.is_locked
        assert set(config.augment.quarter_turn_classes) <= set(config.data.class_names)
        model = nnx.eval_shape(lambda c=config: detection.build_model(c, rngs=nnx.Rngs(0)))
        assert isinstance(model, OrientedRCNN)
