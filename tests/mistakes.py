"""A folder to make mistakes in, and what an answer has to be."""

import json
import pathlib
import shutil

import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from haksnet_jax import demo, tasks
from haksnet_jax.cli import configuration, program
from haksnet_jax.models import architecture
from haksnet_jax.weights import model_folder

IMAGE = sorted(demo.IMAGES.iterdir())[0]


def answered(capsys, words, status, *parts):
    """Asserts the exit status, and that the last line of the answer has these parts. Returns: all of it."""
    assert program.main(list(words)) == status
    err = capsys.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert "Traceback" not in err
    for part in parts:
        assert part in sentence, err
    return err


def write_files(folder):
    """Images, labels and files that are not what their names say; among them an empty folder and an empty image."""
    for name in ("images", "empty", "yolo", "run/checkpoints", "masks", "A", "B", "classes/ship", "classes/plane"):
        (folder / name).mkdir(parents=True)
    for name in (f"images/{IMAGE.name}", "a.png", "A/one.png", "B/two.png", "classes/ship/1.png"):
        shutil.copy(IMAGE, folder / name)
    shutil.copytree(demo.LABELS, folder / "labelTxt")
    Image.fromarray(np.full((192, 192), 77, np.uint8)).save(folder / "masks" / f"{IMAGE.stem}.png")
    texts = {
        f"yolo/{IMAGE.stem}.txt": "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n",
        "notimage.png": "text",
        "empty.png": "",
        "empty.txt": "",
        "broken.json": "{",
        "list.json": "[]",
        "classes.txt": "ship\nplane\n",
        "twice.txt": "ship\nship\n",
        "blank.txt": "\n\n",
        "model.safetensors": "x" * 100,
        "text.pth": "x" * 100,
        "bad.py": "def get_config(:\n",
        "none.py": "x = 1\n",
        "raises.py": "def get_config():\n    return 1 / 0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def write_model(folder, config_name):
    """A run of a configuration with weights of zeros: whole, and never meant to be run."""
    config = configuration.load(config_name)
    task = tasks.of(config)
    config = task.prepared(config)
    info = task.model_info(config)
    _, *states = architecture.abstract(info, dtype="float32")
    arrays = {
        name.removesuffix(".value"): np.zeros(leaf.shape, leaf.dtype)
        for state in states
        for name, leaf in model_folder.flatten(nnx.as_pure(state)).items()
    }
    best = pathlib.Path(folder) / "best"
    best.mkdir(parents=True)
    save_file(arrays, best / model_folder.ARRAYS_FILE)
    for place in (best, best.parent):
        (place / model_folder.MODEL_FILE).write_text(json.dumps(info))
    (best.parent / "config.json").write_text(config.to_json_best_effort())
