"""Segmentation from a folder of masks to a predicted map; change detection on generated pairs."""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from dense_folders import two_fields, write_change_folder, write_image, write_mask, write_segmentation_folder
from flax import nnx
from PIL import Image

from configs import change_folder, dubai, levir_cd, levir_cd_part, segmentation_folder
from haksnet_jax import tasks
from haksnet_jax.errors import UserError
from haksnet_jax.inference import dense_predictor
from haksnet_jax.models import architecture
from haksnet_jax.tasks import change, dense, segmentation
from haksnet_jax.training import loop


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    """One that compiles in a second; HAKSNet's maps are the matter of the models' tests, and of the detector's runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architecture.BACKBONES, "meannet", "dummy_backbone")
        yield


def tiny(config, root, **data):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update({"num_steps": 30, "batch_size_per_device": 1, "checkpoint_every": 0, "eval_every": 30})
        config.update({"log_every": 5, "ema_decay": 0.0})
        config.model.backbone = "meannet_two"
        if config.task == "change":  # the dates' features are exchanged between its stages
            config.model.backbone = "haksnet"
            config.model.update({"channels": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "mlp_ratios": (1, 1, 1, 1)})
        config.model.update({"decoder_channels": 16, "dtype": "float32", "drop_path_rate": 0.0, "dropout": 0.0})
        config.data.update({"root": str(root), "image_size": (64, 64), "num_workers": 0, **data})
        config.augment.update({"scale_range": (1.0, 1.0), "max_class_share": 1.0, "max_degrees": 0.0})
        config.evaluation.update({"tile": 64, "overlap": 32, "batch_size_per_device": 1, "num_pictures": 1})
        config.optimizer.update({"learning_rate": 1e-2, "lr_scaling": "none", "max_lr": 1e-2})
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_segmentation_folder(root, kind="colours")
    workdir = tmp_path_factory.mktemp("run")
    card = loop.run(tiny(segmentation_folder.get_config(), root), workdir)
    return root, workdir, card


def test_training_on_a_folder_of_masks_learns_and_leaves_a_card_and_pictures(run):
    _, workdir, card = run
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.6 * losses[0]
    assert card["mean"]["IoU"] > 0.8  # land and water differ in colour
    assert set(card["classes"]) == {"land", "water"}
    assert sum(map(sum, card["confusion_matrix"])) == 4 * (96 * 80 - 16)  # every labelled pixel once
    assert len(list((workdir / "pictures").glob("*.png"))) == 1
    info = json.loads((workdir / "best" / "model.json").read_text())
    assert info["task"] == "segmentation" and info["colours"] == [[132, 41, 246], [226, 169, 41]]


def test_a_trained_segmenter_predicts_arrays(run):
    image, labels = two_fields(np.random.default_rng(99), (130, 150))
    predictor = dense_predictor.load(run[1])
    found = predictor.labels(image)
    assert found.shape == labels.shape and found.dtype == np.uint8
    assert (found == labels)[labels != 255].mean() > 0.85
    with pytest.raises(UserError, match=r"expected 1 image\(s\) of one size"):
        predictor.labels(image, image)


def test_predict_writes_maps_overlays_and_areas(run, tmp_path, capsys):
    from haksnet_jax.cli import program

    image, labels = two_fields(np.random.default_rng(98), (130, 150))
    write_image(tmp_path / "in" / "scene.png", image)
    arguments = ["predict", f"--checkpoint={run[1]}", f"--images={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert program.main(arguments) == 0
    with Image.open(tmp_path / "out" / "maps" / "scene.png") as found:
        assert (np.asarray(found) == labels)[labels != 255].mean() > 0.85
        assert found.getpalette()[:3] == [132, 41, 246]
    areas = json.loads((tmp_path / "out" / "areas.json").read_text())["images"]["scene"]["classes"]
    assert areas["land"]["pixels"] + areas["water"]["pixels"] == 130 * 150
    assert (tmp_path / "out" / "overlays" / "scene.jpg").is_file()
    assert program.main([*arguments, "--before=a.tif"]) != 0
    assert "segments single images" in capsys.readouterr().err


def test_the_report_of_a_run_shows_its_pixels(run, tmp_path, capsys):
    from haksnet_jax.cli import program

    root, workdir, card = run
    command = ["report", f"--checkpoint={workdir}", f"--output={tmp_path / 'r.html'}"]
    # The images that it was validated on, named: the palette of the run's data is found for any folders.
    folders = [f"--images={root / 'val/images'}", f"--masks={root / 'val/masks'}"]
    assert program.main([*command, *folders]) == 0
    text = (tmp_path / "r.html").read_text()
    assert f"<b>{100 * card['mean']['IoU']:.2f}</b><span>mean IoU in %" in text and text.count("<figure") == 4
    shutil.copytree(root / "val", tmp_path / "val")
    next((tmp_path / "val/images").iterdir()).write_bytes(b"no image")
    for command_ in ("report", "evaluate"):
        folders = [f"--images={tmp_path / 'val/images'}", f"--masks={tmp_path / 'val/masks'}"]
        output = f"--output={tmp_path / command_}"
        capsys.readouterr()
        assert program.main([command_, f"--checkpoint={workdir}", output, *folders]) == 1
        assert "1 image could not be read" in capsys.readouterr().err  # and the others are counted
    assert program.main([*command, f"--labels={root}"]) == 1
    assert "a model of segmentation, whose examples are --images=DIR and --masks=DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mask", "counted", "sentence"),
    [
        (b"", True, "the mask cannot be read: the file is empty"),
        (None, True, "the mask cannot be read: "),  # a link to nowhere, which cannot be opened
        (np.zeros((10, 20), np.uint8), False, "has 10 x 20 pixels, its image"),
        ("JPEG", False, "a mask as JPEG"),
    ],
    ids=["empty", "no file", "another size", "JPEG"],
)
def test_an_evaluation_passes_over_what_cannot_be_read_and_refuses_what_contradicts(
    run, tmp_path, capsys, mask, counted, sentence
):
    from haksnet_jax.cli import program

    root, workdir, _ = run
    shutil.copytree(root / "val", tmp_path / "val")
    path = min((tmp_path / "val/masks").iterdir())
    if mask is None:
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
    elif isinstance(mask, bytes):
        path.write_bytes(mask)
    elif isinstance(mask, str):
        Image.open(path).convert("RGB").save(path, format=mask)
    else:
        write_mask(path, mask, "colours")
    folders = [f"--images={tmp_path / 'val/images'}", f"--masks={tmp_path / 'val/masks'}"]
    assert program.main(["evaluate", f"--checkpoint={workdir}", *folders]) == 1
    out, err = capsys.readouterr()
    assert sentence in err and path.name in err
    assert ("1 image could not be read" in err) == counted
    assert ("mean_iou" in out) == counted  # the others are scored, or nothing is


@pytest.mark.parametrize("head", ["difference", "exchange"])
def test_a_batch_of_pairs_has_a_loss_of_parts(tmp_path, head):
    write_change_folder(tmp_path, num=1)
    config = tiny(change_folder.get_config(), tmp_path)
    with config.unlocked():
        config.model.head = head
    config = change.prepared(config)
    graph, *state = nnx.split(change.build_model(config, rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    batch = {n: jax.ShapeDtypeStruct((2, *shape), dtype) for n, (shape, dtype) in change.batch_arrays(config).items()}

    def loss_of(state, batch):
        return change.loss(config)(nnx.merge(graph, *state), batch, jax.random.key(0))

    loss, parts = jax.eval_shape(loss_of, [nnx.as_pure(part) for part in state], batch)
    assert loss.shape == () and {"loss", "loss_ce", "loss_dice", "accuracy"} <= set(parts)
    assert ("loss_auxiliary" in parts) == (head == "difference")


@pytest.mark.slow
def test_a_change_detector_learns_pairs(tmp_path):
    write_change_folder(tmp_path)
    config = change.prepared(tiny(change_folder.get_config(), tmp_path))
    source = change.open_source(config, "train")
    batches = change.train_batches(config, source, batch_size=4, first_example=0, process_index=0, process_count=1)
    model = change.build_model(config, rngs=nnx.Rngs(0))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = nnx.as_pure(params), nnx.as_pure(stats)
    loss = change.loss(config)

    @jax.jit
    def step(params, stats, batch):
        def of(params):
            model = nnx.merge(graph, params, stats)
            value, metrics = loss(model, batch, jax.random.key(0))
            return value, (metrics, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        (_, (metrics, stats_after)), gradients = jax.value_and_grad(of, has_aux=True)(params)
        scale = 0.02  # sign descent: like Adam without its memory
        return jax.tree.map(lambda p, g: p - scale * jax.numpy.sign(g) * 0.2, params, gradients), stats_after, metrics

    losses = []
    for _ in range(12):
        batch = next(batches)
        arrays = {name: batch[name] for name in change.batch_arrays(config)}
        for name, (shape, dtype) in change.batch_arrays(config).items():
            assert arrays[name].shape == (4, *shape) and arrays[name].dtype == dtype
        params, stats, metrics = step(params, stats, arrays)
        losses.append(float(metrics["loss"]))
    batches.close()
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_tasks_are_found_by_their_names():
    assert tasks.of({"task": "segmentation"}) is segmentation and tasks.of({"task": "change"}) is change


@pytest.mark.parametrize("module", [segmentation_folder, change_folder, dubai, levir_cd, levir_cd_part])
def test_configurations_describe_models_of_their_task(module):
    config = module.get_config()
    with config.unlocked():
        config.data.kind = "scenes"
    config = tasks.of(config).prepared(config)
    info = tasks.of(config).model_info(config)
    assert info["task"] == config.task and info["architecture"]["channels"] == [32, 64, 160, 256]
    json.dumps(info)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.image_size", (100, 128), "data.image_size: expected multiples of 32"),
        ("evaluation.tile", 32, "evaluation.tile"),
        ("evaluation.overlap", 2000, "evaluation.overlap"),
        ("model.decoder", "fpn", "model.decoder: expected one of unetformer, upernet"),
        ("data.kind", "tfds", "data.kind"),
        ("augment.scale_range", (2.0, 0.5), "augment.scale_range"),
        ("augment.mosaic", 2.0, "augment.mosaic: expected a probability"),
        ("loss.dice", 2.0, "loss.dice: expected one of smoothing, dice_weight"),
        (
            "data.bands",
            (1, 2, 3, 4),
            "model.pixel_mean and model.pixel_std: expected a number for each of the 4 bands, got 3",
        ),
        ("evaluation.left_out", ("clutter",), "evaluation.left_out: clutter not among"),
    ],
)
def test_values_that_cannot_be_used_are_told_by_their_keys(key, value, message):
    config = segmentation_folder.get_config()
    with config.unlocked():
        config.data.kind, config.data.class_names = "scenes", ("land", "water")
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(UserError, match=message):
        segmentation.prepared(config)


def test_classes_come_from_a_palette_or_a_list_beside_the_folders(tmp_path):
    write_segmentation_folder(tmp_path / "colours", kind="colours")
    write_segmentation_folder(tmp_path / "numbers", kind="index")
    for folder in ("colours", "numbers"):
        config = segmentation.prepared(tiny(segmentation_folder.get_config(), tmp_path / folder))
        assert tuple(config.data.class_names) == ("land", "water")
        example = segmentation.open_source(config, "val")[0]
        assert set(np.unique(example["mask"])) == {0, 1, 255}
    (tmp_path / "numbers" / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"neither a palette.txt .* nor a classes.txt"):
        segmentation.prepared(tiny(segmentation_folder.get_config(), tmp_path / "numbers"))


def test_a_folder_that_is_not_named_is_told_by_its_key(tmp_path):
    config = tiny(segmentation_folder.get_config(), tmp_path)
    with config.unlocked():
        config.data.val = ml_collections.ConfigDict({"images_dir": "x"})
    with pytest.raises(UserError, match=r"data\.val\.masks_dir is empty"):
        dense.folder_of(config, "val", "masks_dir")
