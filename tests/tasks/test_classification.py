"""Classification through the loop: it learns, is measured, and its backbone serves other tasks."""

import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from class_folders import write_classes
from flax import nnx
from tiny_config import tiny_config

from configs import classification_folder
from haksnet_jax import tasks
from haksnet_jax.cli import program
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.models import architecture
from haksnet_jax.models.classifier import Classifier
from haksnet_jax.results.top_k import classification_result
from haksnet_jax.tasks import classification, detection
from haksnet_jax.training import loop, optimizer, resume
from haksnet_jax.training.state import create_state
from haksnet_jax.weights import model_folder

CONFIGS = ("imagenet_t", "imagenet_s", "classification_folder", "eurosat", "resisc45", "demo_classification")


def tiny(root, **changes):
    """The configuration for folders, narrowed until a step takes milliseconds."""
    config = classification_folder.get_config()
    with config.unlocked():
        config.num_steps = 30
        config.batch_size_per_device = 4  # four devices in the tests
        config.checkpoint_every = config.eval_every = 0
        config.log_every = 10
        config.ema_decay = 0.0
        config.model.backbone = "haksnet"
        config.model.channels = (4, 4, 8, 8)
        config.model.depths = (1, 1, 1, 1)
        config.model.mlp_ratios = (2, 2, 2, 2)
        config.model.dtype = "float32"
        config.data.root = str(root)
        config.data.image_size = (32, 32)
        config.data.num_workers = 0
        config.optimizer.learning_rate = 2e-2
        config.optimizer.max_lr = 2e-2
        config.optimizer.lr_scaling = "none"
        config.evaluation.batch_size_per_device = 2
        for name, value in changes.items():
            config[name] = value
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    for seed, split in enumerate(("train", "val")):
        write_classes(root / split, {"forest": 20 - 9 * seed, "lake": 20, "town": 20}, size=(32, 32), seed=seed)
    return root


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """A run of 30 steps on classes of different brightness. Returns: (its folder, its card)."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.run(tiny(folders, eval_every=30), workdir)


def test_a_run_learns_brightness_and_says_so_in_its_card(finished):
    workdir, card = finished
    # Three classes, 60 grey levels apart: a third would be guessed.
    assert card["mean"]["top1"] > 0.9 and card["mean"]["top5"] == 1.0
    assert card["classes"]["forest"]["num_images"] == 11
    assert sum(map(sum, card["confusion"])) == 51
    text = (workdir / "result.md").read_text()
    assert "| lake |" in text and "num_images" not in text and "| images |" in text
    assert (workdir / "pictures" / "confusion.png").exists()
    info = json.loads((workdir / "best" / "model.json").read_text())
    assert info["task"] == "classification" and info["class_names"] == ["forest", "lake", "town"]
    assert info["top1"] == card["mean"]["top1"]
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] > metrics[-2]["loss"]


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_an_image_that_cannot_be_read_is_counted_and_the_command_ends_with_status_one(
    finished, folders, tmp_path, command, capsys
):
    shutil.copytree(folders / "val", tmp_path / "val")
    (tmp_path / "val/lake/000.jpg").write_bytes(b"no image")
    output = tmp_path / "r.html" if command == "report" else tmp_path / "out"
    arguments = [f"--checkpoint={finished[0]}", f"--images={tmp_path / 'val'}", f"--output={output}"]
    assert program.main([command, *arguments]) == 1
    said = capsys.readouterr().err
    assert "lake/000.jpg" in said and "1 image could not be read" in said
    assert command == "evaluate" or "1 image could not be read and not scored" in output.read_text()


def test_its_backbone_starts_a_detector_and_its_head_does_not(finished):
    workdir, _ = finished
    config = tiny_config(pretrained=str(workdir))
    with config.unlocked():
        config.model.mlp_ratios = (2, 2, 2, 2)
    config = detection.prepared(config)
    mesh = devices.data_mesh()
    _, state = create_state(
        lambda rngs: detection.build_model(config, rngs=rngs), optimizer.of_config(config), mesh, seed=0, ema=True
    )
    start = model_folder.flatten(state.params)
    state = resume.load_initial_weights(detection, config, state, mesh)
    theirs, _ = model_folder.load_model(workdir)
    for ours in (state.params, state.ema["params"]):
        ours = model_folder.flatten(ours)
        taken = {name for name in ours if name.startswith("backbone.")}
        assert len(taken) > 50 and taken < theirs.keys()
        for name in taken:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        kept = ours.keys() - taken
        assert kept and all(np.array_equal(ours[name], start[name]) for name in kept)
    statistics = model_folder.flatten(state.batch_stats)
    assert all(np.array_equal(statistics[name], theirs[name]) for name in statistics)


def test_classes_are_the_folders_and_wrong_settings_are_named(folders):
    config = classification.prepared(tiny(folders))
    assert config.data.class_names == ("forest", "lake", "town")
    val = classification.open_source(config, "val")
    assert len(val) == 51
    assert not set(val.image_ids) & set(
        classification.open_source(config, "train").image_ids
    )  # though files are called alike

    def changed(section, key, value):
        config = tiny(folders)
        with config.unlocked():
            config[section][key] = value
            if key == "colour_jitter":
                config.data.bands = (1, 2)
        return config

    for section, key, value, said in (
        ("data", "kind", "records", "data.kind"),
        ("data", "class_names", ("forest",), "at least two classes"),
        ("data", "image_size", (16, 16), "at least 32"),
        ("augment", "colour_jitter", 0.4, "of red, green and blue"),
        ("augment", "crop_scale", (0.0, 1.0), "augment.crop_scale"),
        ("mixing", "mosaic", 0.5, "mixing.mosaic: expected one of mixup, cutmix"),
        ("evaluation", "num_views", 4, "evaluation.num_views"),
    ):
        with pytest.raises(UserError, match=said):
            classification.prepared(changed(section, key, value))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_builds_and_has_no_key_that_nobody_knows(name, folders):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.name == name and config.is_locked and tasks.of(config) is classification
    assert f"configs/{name}.py" in module.__doc__
    with config.unlocked():
        if config.data.kind == "folder":
            config.data.root = str(folders / "train") if config.data.train.folder == "." else str(folders)
    config = classification.prepared(config)
    arrays = classification.batch_arrays(config)
    assert arrays["image"][0] == (*config.data.image_size, 3)
    classification.loss(config)
    if name not in ("imagenet_s", "demo_classification"):  # (seconds each; the others change nothing of the model)
        return
    model = nnx.eval_shape(lambda: classification.build_model(config, rngs=nnx.Rngs(0)))
    widths = {"haksnet_s": 512, "haksnet": 32}  # of the published sizes, and the demonstration's
    assert model.head.kernel.shape == (widths[config.model.backbone], len(config.data.class_names))


def test_any_backbone_classifies():
    config = importlib.import_module("configs.imagenet_t").get_config()
    with config.unlocked():
        config.model.backbone = "resnet_50"
    _, params, _ = architecture.abstract(classification.model_info(classification.prepared(config)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032  # torchvision's resnet50


def test_counts_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    scores = rng.random((300, 7))
    best = np.argsort(-scores, axis=1)[:, :5]
    result = classification_result(labels, best, [f"c{i}" for i in range(7)])
    np.testing.assert_array_equal(result.matrix, metrics.confusion_matrix(labels, best[:, 0]))
    figures = result.figures()
    assert figures["top1"] == pytest.approx(metrics.accuracy_score(labels, best[:, 0]))
    assert figures["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, scores, k=5))
    assert figures["mean_recall"] == pytest.approx(metrics.balanced_accuracy_score(labels, best[:, 0]))


def test_a_class_without_images_has_no_share_and_does_not_enter_the_mean():
    result = classification_result([0, 0, 2], [[0, 1, 2], [2, 0, 1], [2, 1, 0]], ["a", "b", "c"])
    assert result.figures() == {"top1": pytest.approx(2 / 3), "top5": 1.0, "mean_recall": 0.75}
    assert result.to_json()["classes"]["b"] == {"recall": None, "precision": None, "num_images": 0}
    assert "most often taken for c (1)" in result.table()


class _Corner(nnx.Module):
    """A backbone whose only map is the image, weighted towards one corner."""

    channels = (3,)

    def __call__(self, images, *, train=False, key=None):
        rows, columns = (jnp.linspace(0, 1, images.shape[axis]) for axis in (1, 2))
        return (images * (rows[:, None] + 3 * columns)[..., None],)


def test_views_are_means_of_probabilities():
    model = Classifier(_Corner(), 4, pixel_mean=(100.0,) * 3, pixel_std=(10.0,) * 3, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    each = [model.classify(view) for view in (images, images[:, :, ::-1])]
    assert not np.allclose(*each, atol=1e-3)
    np.testing.assert_allclose(model.classify(images, num_views=2), np.mean(each, axis=0), atol=1e-6)
    # Eight views of a turned image are the same views in another order.
    turned = np.rot90(images, 1, (1, 2))
    np.testing.assert_allclose(model.classify(images, num_views=8), model.classify(turned, num_views=8), atol=1e-6)
