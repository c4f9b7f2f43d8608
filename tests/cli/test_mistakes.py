"""What newcomers type by mistake, and the sentence that answers it. A test for each kind that was seen.

Mistakes that need a training or a long run have their tests beside what answers them: in tests/training another model,
data set or class order when a run is resumed, and Ctrl-C while a step is compiled; in tests/labels and
tests/cli/test_evaluate labels of unknown classes; in tests/inference drawings that an earlier run left.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from haksnet_jax import demo
from haksnet_jax.cli import program

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREDICT = ("predict", "--checkpoint=demo", "--images=demo", "--output=found")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in, with an image, a text under an image's name, and labels of another format."""
    monkeypatch.chdir(tmp_path)
    image = sorted(demo.IMAGES.iterdir())[0]
    (tmp_path / "images").mkdir()
    shutil.copy(image, tmp_path / "images")
    shutil.copy(image, tmp_path / "a.png")
    (tmp_path / "notimage.png").write_text("text")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / f"{image.stem}.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir()
    return tmp_path


def answered(capsys, words, status, *parts):
    """Asserts the exit status, and that the last line of the answer is a sentence with these parts."""
    assert program.main(words) == status
    err = capsys.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert "Traceback" not in err
    for part in parts:
        assert part in sentence, err
    return err


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        # A checkpoint that is none: where one comes from.
        (("predict", "--checkpoint=NOWHERE", "--images=a.png", "--output=found"), 1,
         ("NOWHERE", "no such checkpoint folder", "runs/NAME", "haksnet convert", "demo")),
        (("predict", "--checkpoint=weights.pth", "--images=a.png", "--output=found"), 1,
         ("weights.pth", "no such file", "haksnet convert --input=FILE --output=DIR")),
        (("predict", "--checkpoint=model.safetensors", "--images=a.png", "--output=found"), 1,
         ("model.safetensors is a file", "haksnet convert --input=model.safetensors --output=DIR")),
        (("evaluate", "--checkpoint=run"), 1, ("run",)),
        (("predict", "--checkpoint=run", "--images=a.png", "--output=found"), 1, ("run",)),
        # Options: before anything is loaded.
        ((*PREDICT, "--scales=0"), 2, ("--scales: expected factors between 0.05 and 20", "'0'")),
        ((*PREDICT, "--score=30"), 2, ("--score: expected a number", "0.3 for 30 %", "'30'")),
        (("predict", "--checkpoint=demo", "--image=a.png", "--output=found"), 2, ("--image", "meant is --images?")),
        ((*PREDICT, "--scales=0.5", "1", "--scale", "2"), 2, ("unknown option --scale", "--scales")),
        (("predict",), 2, ("required: --checkpoint, --output",)),
        # Images that are none.
        (("predict", "--checkpoint=demo", "--images=nowhere.png", "--output=found"), 1, ("nowhere.png",)),
        (("predict", "--checkpoint=demo", "--images=https://host/a.jpg", "--output=found"), 1,
         ("https://host/a.jpg", "download")),
        # Training.
        (("train",), 2, ("--config=demo", "dota_ss_t", "haksnet train --help")),
        (("train", "--config=dmeo"), 1, ("meant is demo?", "there are")),
        (("train", "elsewhere/demo.py"), 1, ("elsewhere/demo.py", "no such file, looked for from")),
        (("train", "--config=demo", "--config.data.image_size=256"), 1, ("data.image_size", "'(256, 256)'", "'256'")),
        (("train", "--config=demo", "--config.optimizer.learningrate=1e-3"), 1, ("meant is optimizer.learning_rate?",)),
        (("train", "--config=demo", "--config.num_stpes=1"), 1, ("meant is num_steps",)),
        (("train", "--config=demo", "--config.model.dtype=bf16"), 1, ("bfloat16", "model.dtype")),
        (("train", "--config=demo", "--config.model.dtype=float16"), 1, ("float32 or bfloat16", "model.dtype")),
        (("train", "--config=demo", "--set", "data.kind"), 2, ("expected KEY=VALUE", "'data.kind'")),
        (("train", "--config=demo", "--set", "data.train=x"), 1, ("data.train: is a group", "data.train.num_scenes")),
        (("train", "--config=demo", "--workdir=/proc/run"), 1, ("--workdir=/proc/run", "cannot be written to")),
        (("train", "--config=demo", "--config=demo", "demo"), 2, ("expected one configuration",)),
        (("train", "--config=demo", "--resume=maybe"), 2, ("--resume", "maybe")),
        (("train", "--config=demo", "--num-hosts=0"), 2, ("--num-hosts: expected a whole number of at least 1",)),
        # Other commands.
        (("submit",), 2, ("required: --predictions, --output", "haksnet submit --help")),
        (("plan", "--config=demo"), 2, ("v5e:16x16", "h100:8")),
        (("plan", "--topology=v5e:2x2"), 2, ("--config=demo",)),
        (("plan", "--config=demo", "--topology=h100"), 1, ("--topology=h100",)),
        (("evaluate",), 2, ("--checkpoint=DIR or --predictions=PATH",)),
        (("evaluate", "--predictions=found"), 2, ("--predictions needs --labels",)),
        (("evaluate", "--predictions=nowhere", "--labels=yolo"), 1, ("nowhere",)),
        (("validate", "--image=images"), 2, ("meant is --images?",)),
        (("validate", "--images=nowhere"), 1, ("nowhere",)),
        (("validate", "--images=images", "--labels=nowhere"), 1, ("nowhere",)),
        (("validate", "--images=images", "--labels=yolo", "--classes=nothing"), 1, ("nothing", "dota10")),
        (("split", "--images=nowhere", "--output=tiles"), 1, ("nowhere",)),
        (("split", "--images=images", "--output=tiles", "--tile=64"), 2, ("--tile above --overlap", "64", "200")),
        (("split", "--images=images", "--output=tiles", "--protocol=multi"), 2, ("multi_scale",)),
        (("build", "--output=records"), 2, ("either --source or --images",)),
        (("build", "--source=nowhere", "--output=records"), 1, ("nowhere",)),
        (("build", "ssdd", "--output=records"), 2, ("expected --source",)),
        (("build", "sdd", "--output=records"), 2, ("ssdd",)),
        (("convert", "--input=nowhere.pth", "--output=x"), 1, ("nowhere.pth",)),
        (("convert", "--input=a.png", "--output=x"), 1, ("a.png", "neither a file of torch.save nor safetensors")),
        (("convert", "--input=a.png"), 2, ("either --output=DIR or --to=FILE",)),
        (("info", "nowhere"), 1, ("nowhere", "no such file or folder")),
        (("info", "notimage.png"), 1, ("notimage.png",)),
        (("parity",), 2, ("required: --goldens",)),
        (("parity", "--goldens=yolo"), 1, ("yolo", "no fixture")),
        (("benchmark", "--batch=0"), 2, ("--batch: expected a whole number of at least 1",)),
        (("doctor", "now"), 2, ("unexpected argument 'now'",)),
        (("detect", "a.png"), 2, ("'detect' is no command", "meant is predict?")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_it_is_answered_in_a_sentence(words, status, parts, capsys):
    answered(capsys, words, status, *parts)


def test_labels_of_another_format_are_named(capsys):
    assert program.main(["validate", "--images=images", "--labels=yolo"]) == 1
    assert "--format=yolo-obb" in capsys.readouterr().out


def test_where_no_image_can_be_used_the_last_line_says_so(capsys):
    words = ["predict", "--checkpoint=demo", "--images=notimage.png", "--output=found"]
    err = answered(capsys, words, 1, "none of 1 image", "no result")
    assert "notimage.png: expected a PNG, JPEG, BMP or TIFF file" in err


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("haksnet_jax.train", "haksnet train"),
        ("haksnet_jax.detector", "haksnet predict"),
        ("haksnet_jax.predict", "haksnet predict"),
        ("haksnet_jax.cli.evaluate", "haksnet evaluate"),
        ("haksnet_jax.training.loop", "haksnet train"),
        ("haksnet_jax.preparation.splitting", "haksnet split"),
        ("haksnet_jax.anything", "haksnet --help"),
    ],
)
def test_a_module_that_is_no_command_says_which_one_is_meant(module, meant):
    command = [sys.executable, "-m", module, "--config=demo"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and f"{module} is no command" in done.stderr and meant in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_copy_of_a_configuration_trains_from_any_folder(folder, capsys):
    shutil.copy(ROOT / "configs" / "folder.py", folder / "mine.py")
    # It is read, and what it wants is looked for.
    err = answered(capsys, ["train", "--config=mine.py", "--workdir=run2"], 1, "mydata")
    assert "No module named" not in err


def test_python_names_the_option_that_is_meant():
    import haksnet_jax
    from haksnet_jax.errors import UserError

    detector = haksnet_jax.load("demo")
    with pytest.raises(UserError, match=r"'scores'.*\bscore\b"):
        detector("a.png", scores=0.3)
    with pytest.raises(UserError, match="download"):
        detector("https://host/a.jpg")
