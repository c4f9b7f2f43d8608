"""An exported model gives what the live one gives, in each form and for each task, and runs without this package."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from haksnet_jax import demo
from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.models import architecture
from haksnet_jax.tools.export import comparison, forms, onnx_graph, programs
from haksnet_jax.weights import model_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = {"channels": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "mlp_ratios": [1, 1, 1, 1]}
UNET = {"decoder": "unetformer", "decoder_channels": 8}
MODELS = {
    "detection": TINY | {"fpn_channels": 8, "hidden": 16},
    "classification": TINY,
    "classification by ResNet": {"backbone": "resnet", "depths": [1, 1, 1, 1]},
    "segmentation": TINY | UNET,
    "segmentation by UPerNet": TINY | UNET | {"decoder": "upernet"},
    "change": TINY | UNET | {"head": "difference"},
    "change by exchange": TINY | {"head": "exchange", "head_channels": 8},
}


def info_of(name):
    """A model.json."""
    task = name.split()[0]
    class_names = ["unchanged", "changed"] if task == "change" else ["a", "b", "c"]
    info = {
        "task": task,
        "architecture": MODELS[name] | {"num_classes": len(class_names)},
        "class_names": class_names,
        "pixel_mean": [100.0, 110.0, 120.0],
        "pixel_std": [50.0, 55.0, 60.0],
        "input_size": [64, 64],
    }
    if task == "detection":
        proposals = {"candidates_per_level": 30, "max_proposals": 30}
        info |= {
            "keep_ratio": True,
            "padding_divisor": 32,
            "proposals": proposals,
            "detections": {"max_detections": 20},
        }
    elif task == "classification":
        info |= {"num_views": 2 if "ResNet" in name else 1}
    else:
        info |= {"overlap": 16}
    return info


def write_model(folder, name):
    """A model of random weights whose results depend on the image. Returns: its folder."""
    info = info_of(name)
    model = architecture.build(info, rngs=nnx.Rngs(0))
    arrays = model_folder.flatten(nnx.as_pure(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    rng = np.random.default_rng(0)
    # Biases, means and variances that are not 0 and 1; outputs that are not all alike.
    arrays = {
        key: np.asarray(x) + (0.1 * rng.standard_normal(x.shape, np.float32) if x.ndim == 1 else 0)
        for key, x in arrays.items()
    }
    for key in arrays:
        if key.endswith(("head.kernel", "logits.kernel")) and info["task"] != "detection" and "ResNet" not in name:
            arrays[key] = arrays[key] * 10
    model_folder.save_model(folder / "model", arrays, info)
    return folder / "model"


def found(boxes, scores, labels):
    return {"boxes": np.array(boxes, float).reshape(-1, 5), "scores": np.array(scores), "labels": np.array(labels)}


def test_what_differs_is_told_with_its_score():
    ours = found([[10, 10, 8, 4, 0.1], [30, 30, 8, 4, 0]], [0.9, 0.5], [0, 1])
    assert not list(comparison._without_counterpart(ours, ours, 0.05))
    moved = found([[10, 10, 8, 4, 0.1], [30.1, 30, 8, 4, 0]], [0.9, 0.5], [0, 1])  # IoU 0.975
    assert len(list(comparison._without_counterpart(ours, moved, 0.05))) == 2
    fewer = found([[10, 10, 8, 4, 0.1]], [0.9], [0])
    assert list(comparison._without_counterpart(ours, fewer, 0.05)) == ["only live: label 1, score 0.5000"]
    at_threshold = found([[10, 10, 8, 4, 0]], [0.0501], [0])
    assert not list(comparison._without_counterpart(at_threshold, found([], [], []), 0.05))


# (live models compile for up to a minute: one with every change, all of them where documentation is run)
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if "ResNet" in x else [pytest.mark.slow, pytest.mark.documented]) for x in MODELS],
)
def test_each_task_gives_in_onnx_runtime_what_it_gives_live(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    opened = programs.open_program(write_model(tmp_path, name), batch=2)
    given = []
    with forms.made(opened, "onnx") as result:

        def call(*inputs):
            given.append(result.call(*inputs))
            return given[-1]

        told, different = comparison.compare(opened, call, num_images=2)
        assert not different, told
        for key, value in given[0].items():
            assert opened.facts["results"][key] == {"shape": list(value.shape), "dtype": str(value.dtype)}
    # Something was compared: objects, or probabilities that are not all alike, nor all 0 and 1.
    if opened.task == "detection":
        assert int(told.split()[0]) > 5
    else:
        first = given[0]["probabilities"]
        assert np.ptp(first) > 0.02 and ((first > 0.02) & (first < 0.98)).any()


def test_what_differs_in_probabilities_is_told(tmp_path):
    """The comparison could fail: a probability off by twice the tolerance, labels that are others."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    right = {"probabilities": np.float32([[0.7, 0.2, 0.1]]), "labels": np.int32([0])}
    opened = programs.Program("classification", None, None, {"images": images}, lambda images: right, {})
    assert comparison.compare(opened, lambda images: right, num_images=1)[1] == []
    moved = right | {"probabilities": np.float32([[0.698, 0.202, 0.1]])}
    assert comparison.compare(opened, lambda images: moved, num_images=1)[1] == ["image 0: a probability by 0.002"]
    named = right | {"labels": np.int32([1])}
    assert comparison.compare(opened, lambda images: named, num_images=1)[1] == ["image 0: 1 labels"]


def test_a_classifier_as_stablehlo_and_onnx_by_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = write_model(tmp_path, "classification by ResNet")
    monkeypatch.chdir(tmp_path)
    for output in ("out/a.stablehlo", "out/a.onnx"):
        words = ["export", f"--checkpoint={model}", f"--output={output}", "--size=64,96", "--compare=1"]
        assert program.main(words) == 0
        assert "compared with the live model: 1 labels in 1 generated images are equal" in capsys.readouterr().out
        facts = json.loads(pathlib.Path(f"{output}.json").read_text())
        assert facts["task"] == "classification" and facts["inputs"]["images"]["shape"] == [1, 64, 96, 3]
    assert facts["opset"] == onnx_graph.OPSETS[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.onnx", "a.onnx.json", "a.stablehlo", "a.stablehlo.json"]  # fmt: skip


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    model = write_model(tmp_path, "classification by ResNet")
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: ("told", ["image 0: 3 labels"]))
    assert program.main(["export", f"--checkpoint={model}", f"--output={tmp_path}/a.onnx"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.onnx*"))


MISTAKES = [
    (("--output=x", "--size=100"), 1, ("--size: expected multiples of 32, 32 or more, got 100 x 100",)),
    (("--output=x", "--size=64,64,64"), 2, ("--size: expected one number, or rows and columns",)),
    (("--output=x", "--to=torchscript"), 2, ("--to", "torchscript", "stablehlo", "onnx", "savedmodel")),
    (("--output=x.onnx", "--to=stablehlo"), 1, ("x.onnx", "--to=onnx", "--to=stablehlo", "name it anew")),
    (("--output=x.stablehlo", "--to=onnx"), 1, ("x.stablehlo", "--to=stablehlo", "name it anew")),
    (("--output=there", "--to=savedmodel"), 1, ("there exists", "name a new one")),
    (("--output=there", "--to=onnx"), 1, ("expected a file", "there is a folder")),
    (("--output=x.onnx", "--opset=11"), 2, ("--opset", "at least 18", "11")),
    (("--output=x.stablehlo", "--opset=18"), 1, ("--opset", "--to=stablehlo", "leave it out")),
    (("--output=x", "--batch=0"), 2, ("--batch", "at least 1")),
    (("--output=x", "--compare=0"), 2, ("--compare", "at least 1")),
    (("--output=x", "--checkpoint=NOWHERE"), 1, ("NOWHERE", "no such checkpoint folder")),
]


@pytest.mark.parametrize(
    ("words", "status", "parts"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_a_mistake_is_answered_in_a_sentence(words, status, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if all were installed
    assert program.main(["export", "--checkpoint=demo", *words]) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for part in parts:
        assert part in err.strip().splitlines()[-1], err


@pytest.mark.parametrize(
    ("form", "missing", "command"),
    [
        ("stablehlo", "flatbuffers", "pip install 'haksnet_jax[export]'"),
        ("onnx", "onnxruntime", "pip install 'haksnet_jax[onnx]'"),
        ("savedmodel", "tensorflow", "pip install 'haksnet_jax[savedmodel]'"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_compiled(form, missing, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    assert program.main(["export", "--checkpoint=demo", f"--output={tmp_path}/x", f"--to={form}"]) == 1
    assert f"--to={form} needs {missing}, which is not installed: {command}" in capsys.readouterr().err


def test_models_that_cannot_be_exported_are_told_so(tmp_path):
    model = write_model(tmp_path, "segmentation")
    with pytest.raises(UserError, match="multiples of 32, 64 or more, got 32 x 64"):
        programs.open_program(model, size=(32, 64))
    info = info_of("classification") | {"num_views": 8}
    arrays = model_folder.flatten(nnx.as_pure(nnx.state(architecture.build(info, rngs=nnx.Rngs(0)))))
    arrays = {key: np.asarray(x) for key, x in arrays.items()}
    model_folder.save_model(tmp_path / "turned", arrays, info)
    with pytest.raises(UserError, match="must be square, got 64 x 96"):
        programs.open_program(tmp_path / "turned", size=(64, 96))
    backbone = {key: x for key, x in arrays.items() if key.startswith("backbone")}
    architecture_ = TINY | {"num_classes": 0, "fpn_channels": None}
    detector = info_of("detection") | {"architecture": architecture_, "class_names": []}
    model_folder.save_model(tmp_path / "backbone", backbone, detector)
    with pytest.raises(UserError, match="backbone: it holds a backbone without a detector's heads"):
        programs.open_program(tmp_path / "backbone")


def exported_and_loaded(tmp_path, form, output, script):
    """Exports the demonstration model, compared on 20 images, and runs an example script on a scene, without us."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    path = tmp_path / output
    command = [sys.executable, "-m", "haksnet_jax", "export", "--checkpoint=demo", f"--output={path}", f"--to={form}"]
    done = subprocess.run([*command, "--compare=20"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # (the shipped model finds over a hundred objects in 20 scenes)
    assert "in 20 generated images, each has its counterpart" in done.stdout
    assert int(done.stdout.split("live model: ")[1].split()[0]) > 100
    image = sorted(demo.IMAGES.glob("*.png"))[0]
    environment["PYTHONPATH"] = ""
    command = [sys.executable, "-P", ROOT / "examples" / script, path, image]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 5 and (tmp_path / f"{output}.found.png").exists()
    code = (ROOT / "examples" / script).read_text().split('"""')[2]
    assert "haksnet" not in code
    return json.loads((tmp_path / f"{output}.json").read_text())


@pytest.mark.slow
@pytest.mark.documented
def test_twenty_images_agree_as_stablehlo_and_the_file_runs_without_this_package(tmp_path):
    facts = exported_and_loaded(tmp_path, "stablehlo", "demo.stablehlo", "load_stablehlo.py")
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["inputs"]["images"]["shape"] == [1, 192, 192, 3]


@pytest.mark.slow
@pytest.mark.documented
def test_twenty_images_agree_as_onnx_and_the_file_runs_without_this_package_and_jax(tmp_path):
    pytest.importorskip("onnxruntime")
    exported_and_loaded(tmp_path, "onnx", "demo.onnx", "load_onnx.py")
    assert "jax" not in (ROOT / "examples" / "load_onnx.py").read_text().split('"""')[2]


@pytest.mark.slow
@pytest.mark.documented
def test_twenty_images_agree_as_a_savedmodel_of_tensorflow(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed (600 MB, not in the test extra): pip install tensorflow")
    exported_and_loaded(tmp_path, "savedmodel", "demo_tf", "load_savedmodel.py")
