"""The command `python -m haksnet_jax.convert`: whole checkpoints, honest reports, one sentence for every refusal."""

import hashlib
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from reference_weights import make_input, make_state_dict
from torch_files import TINY, Call, Global, Raw, make_weights, tensor, write_legacy, write_zip

import haksnet_jax
from haksnet_jax.cli import program
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.weights import convert
from haksnet_jax.weights import model_folder as checkpoint
from haksnet_jax.weights.torch_reader import read_checkpoint
from haksnet_jax.weights.torch_weights import from_torch

DOTA = CLASSES["dota10"]
CONFIG = """
img_norm_cfg = dict(mean=[100.0, 101.5, 102], std=[50.0, 51.0, 52.5], to_rgb=True)
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(800, 608), transforms=[dict(type='Pad', size_divisor=64)])]
"""


@pytest.fixture(scope="module")
def weights():
    return make_weights(TINY, "convert")


@pytest.fixture(scope="module")
def detector(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector.pth"
    optimizer = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return write_zip(path, {"meta": {"CLASSES": DOTA, "epoch": 12}, "state_dict": weights, "optimizer": optimizer})


def run(*arguments):
    """The command in this process. Returns: exit status."""
    return program.main(["convert", *arguments])


def without(weights, *starts):
    return {name: value for name, value in weights.items() if not name.startswith(starts)}


def test_a_detector_becomes_a_checkpoint_with_its_description(detector, weights, tmp_path, capsys):
    output, report = tmp_path / "out", tmp_path / "reports" / "report.txt"
    assert run(f"--input={detector}", f"--output={output}", f"--report={report}") == 0
    params, info = checkpoint.load_model(output)
    expected, _ = from_torch(weights)
    assert set(params) == set(expected)
    assert all(np.array_equal(params[name], expected[name]) for name in expected)
    assert info["architecture"] == {**TINY, "backbone": "haksnet", "in_channels": 3} and info["task"] == "detection"
    assert info["class_names"] == list(DOTA)
    assert info["pixel_mean"] == [123.675, 116.28, 103.53] and info["pixel_std"] == [58.395, 57.12, 57.375]
    assert info["input_size"] == [1024, 1024] and info["keep_ratio"] is True and info["padding_divisor"] == 32
    assert info["source"]["sha256"] == hashlib.sha256(detector.read_bytes()).hexdigest()
    printed = capsys.readouterr().out
    assert "257 loaded, 0 missing, 0 unexpected, 0 mismatched" in printed
    assert all(name in printed for name in weights if not name.endswith("num_batches_tracked"))
    assert report.read_text() == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reports"]


def test_a_converted_model_fits_the_detector(detector, tmp_path):
    from flax import nnx

    from haksnet_jax.models.architecture import haksnet_detector
    from haksnet_jax.models.backbones.haksnet import BackboneSize

    convert.convert(detector, tmp_path / "out")
    params, info = checkpoint.load_model(tmp_path / "out")
    a = info["architecture"]
    size = BackboneSize(tuple(a["channels"]), tuple(a["depths"]), tuple(a["mlp_ratios"]))
    widths = {"channels": a["fpn_channels"], "hidden": a["hidden"]}
    model = nnx.eval_shape(lambda: haksnet_detector(size, a["num_classes"], **widths, rngs=nnx.Rngs(0)))
    checkpoint.fill(nnx.state(model, (nnx.Param, nnx.BatchStat)), params, what="converted")  # raises if it does not


def test_the_way_back_is_exact(detector, weights, tmp_path):
    counted = weights | {name: np.array(8400, np.int64) for name in weights if name.endswith("num_batches_tracked")}
    source = write_legacy(tmp_path / "a.pth", {"meta": {"CLASSES": DOTA}, "state_dict": counted})
    assert run(f"--input={source}", f"--output={tmp_path / 'out'}") == 0
    target = tmp_path / "back.safetensors"
    assert run(f"--input={tmp_path / 'out'}", f"--to={target}") == 0
    back = read_checkpoint(target).tree
    assert set(back) == set(counted)
    for name, value in counted.items():
        assert back[name].numpy().tobytes() == value.tobytes() and back[name].shape == value.shape, name
    # And the exported file converts like the first one, class names included.
    assert run(f"--input={target}", f"--output={tmp_path / 'again'}") == 0
    first, second = checkpoint.load_model(tmp_path / "out"), checkpoint.load_model(tmp_path / "again")
    assert all(np.array_equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1]["class_names"] == second[1]["class_names"]


def test_pytorch_files_need_pytorch(detector, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    assert run(f"--input={detector}", f"--to={tmp_path / 'a.pth'}") == 1
    assert "needs PyTorch" in capsys.readouterr().err
    assert run(f"--input={detector}", f"--to={tmp_path / 'a.onnx'}") == 1
    assert ".safetensors, .pth or .pt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pytorch_reads_what_we_write(detector, weights, tmp_path):
    torch = pytest.importorskip("torch")
    convert.export(detector, tmp_path / "a.pth")
    back = torch.load(tmp_path / "a.pth", weights_only=True)
    assert back["meta"]["CLASSES"] == DOTA and list(back["state_dict"]) == list(weights)
    for name, value in weights.items():
        assert back["state_dict"][name].numpy().tobytes() == value.tobytes(), name


def test_a_counter_that_is_no_whole_number_is_unexpected(weights, tmp_path):
    name = "backbone.patch_embed1.norm.num_batches_tracked"
    path = write_zip(tmp_path / "a.pth", {"state_dict": weights | {name: np.array(np.nan, np.float32)}})
    assert list(convert.read_torch_model(path).report.unexpected) == [name]


def test_outputs_that_cannot_be_written_are_one_sentence_and_leave_nothing(detector, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    for target in (f"--output={tmp_path / 'file' / 'out'}", f"--to={tmp_path / 'file' / 'a.safetensors'}"):
        assert run(f"--input={detector}", target) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: cannot write") and error.count("\n") == 1 and "Errno" not in error
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert run(f"--input={detector}", f"--output={tmp_path / 'out'}") == 1
    assert "0 MiB free on its disk" in capsys.readouterr().err
    # Files of more than 64 blocks fail to be written, as on a full disk.
    command = [sys.executable, "-m", "haksnet_jax.convert", f"--input={detector}", f"--to={tmp_path / 'a.safetensors'}"]
    done = subprocess.run(["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", *command], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("a.safetensors: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_is_a_sentence_and_leaves_what_was_there(detector, tmp_path, monkeypatch, capsys):
    assert run(f"--input={detector}", f"--output={tmp_path / 'out'}") == 0
    before = (tmp_path / "out" / "model.json").read_bytes()

    def stop(*_, **__):
        raise KeyboardInterrupt

    # (Raised inside the checkpoint library, it would also end one of its tasks, which is told of in a later test.)
    monkeypatch.setattr("haksnet_jax.weights.model_folder._save_arrays", stop)
    assert run(f"--input={detector}", f"--output={tmp_path / 'out'}", "--classes=dota10") == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_that_cannot_be_written_is_said(detector, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(f"--input={detector}", f"--output={tmp_path / 'out'}", f"--report={tmp_path / 'file' / 'x'}") == 1
    assert "report cannot be written" in capsys.readouterr().err


def test_an_image_classifier_is_converted_whole_with_the_plain_weights_unless_asked(weights, tmp_path, capsys):
    backbone = {n.removeprefix("backbone."): v for n, v in weights.items() if n.startswith("backbone.")}
    averaged = {name: np.asarray(value + 1) for name, value in backbone.items()}
    head = {"head.weight": np.arange(320, dtype=np.float32).reshape(10, 32), "head.bias": np.ones(10, np.float32)}
    arguments = {"model": "haks", "lr": 0.1, "img_size": 160}
    namespace = Call(Global("argparse", "Namespace"), (), arguments, b"\x81")
    path = write_zip(
        tmp_path / "a.pth.tar",
        {"epoch": 299, "state_dict": backbone | head, "args": namespace, "state_dict_ema": averaged | head},
    )
    for flags, shift in (((), 0), (("--ema",), 1)):
        assert run(f"--input={path}", f"--output={tmp_path / f'out{shift}'}", *flags) == 0
        params, info = checkpoint.load_model(tmp_path / f"out{shift}")
        np.testing.assert_array_equal(params["backbone.stages.3.norm.bias"], backbone["norm4.bias"] + shift)
        assert info["task"] == "classification" and info["architecture"]["num_classes"] == 10
        assert "fpn_channels" not in info["architecture"] and info["input_size"] == [160, 160]
        assert info["class_names"] == [f"class-{index}" for index in range(10)]
        np.testing.assert_array_equal(params["head.kernel"], head["head.weight"].T)
        assert "229 loaded, 0 missing, 0 unexpected" in capsys.readouterr().out
        back = tmp_path / f"back{shift}.safetensors"
        assert run(f"--input={tmp_path / f'out{shift}'}", f"--to={back}") == 0
        assert set(read_checkpoint(back).tree) == set(backbone | head)
        assert run(f"--input={back}", f"--output={tmp_path / f'again{shift}'}") == 0
        again = checkpoint.load_model(tmp_path / f"again{shift}")[1]
        assert {name: again[name] for name in info if name != "source"} == {
            name: value for name, value in info.items() if name != "source"
        }
        capsys.readouterr()
    assert run(f"--input={path}", f"--output={tmp_path / 'x'}", "--classes=a,b") == 1
    assert "--reinit-classifier" in capsys.readouterr().err
    assert run(f"--input={path}", f"--output={tmp_path / 'x'}", "--classes=a,b", "--reinit-classifier") == 0
    params, info = checkpoint.load_model(tmp_path / "x")
    assert params["head.kernel"].shape == (32, 2) and info["class_names"] == ["a", "b"]


def test_a_backbone_alone_has_no_classes(weights, tmp_path, capsys):
    backbone = {n.removeprefix("backbone."): v for n, v in weights.items() if n.startswith("backbone.")}
    path = write_zip(tmp_path / "a.pth", {"state_dict": backbone})
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}") == 0
    params, info = checkpoint.load_model(tmp_path / "out")
    assert info["architecture"]["num_classes"] is None and info["class_names"] == [] and "task" not in info
    assert all(name.startswith("backbone.") for name in params)
    assert run(f"--input={tmp_path / 'out'}", f"--to={tmp_path / 'back.safetensors'}") == 0
    assert set(read_checkpoint(tmp_path / "back.safetensors").tree) == set(backbone)
    capsys.readouterr()
    assert run(f"--input={path}", f"--output={tmp_path / 'x'}", "--classes=a,b") == 1
    assert "a backbone alone" in capsys.readouterr().err


def test_what_model_json_says_survives_the_way_through_safetensors(detector, tmp_path, capsys):
    assert run(f"--input={detector}", f"--output={tmp_path / 'out'}", "--classes=" + ",".join("abcdefghijklmno")) == 0
    arrays, info = checkpoint.load_model(tmp_path / "out")
    info["architecture"].pop("backbone")  # as runs from before there was a choice describe themselves
    info |= {
        "input_size": [320, 448],
        "padding_divisor": 64,
        "keep_ratio": False,
        "proposals": {"candidates_per_level": 77, "max_proposals": 55, "iou_threshold": 0.6},
        "detections": {"iou_threshold": 0.2, "max_detections": 33},
        "images": {"bands": [1, 2, 3]},
    }
    checkpoint.save_model(tmp_path / "mine", arrays, info)
    target = tmp_path / "a.safetensors"
    assert run(f"--input={tmp_path / 'mine'}", f"--to={target}") == 0
    assert run(f"--input={target}", f"--output={tmp_path / 'back'}") == 0
    _, back = checkpoint.load_model(tmp_path / "back")
    source, former = back.pop("source"), info.pop("source")
    assert back == info
    assert source["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert source["origin"] == {"file": "detector.pth", "sha256": former["sha256"]}
    # Other classes than the file's are still the user's to say.
    assert run(f"--input={target}", f"--output={tmp_path / 'named'}", "--classes=" + ",".join("ABCDEFGHIJKLMNO")) == 0
    assert checkpoint.load_model(tmp_path / "named")[1] == back | {
        "class_names": list("ABCDEFGHIJKLMNO"),
        "source": source,
    }


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("[]", "is a list of 0"),
        ('{"architecture": {"channels": "x"}}', "architecture.channels is 'x'"),
        (
            '{"architecture": {"channels": [8, 16, 24, 33], "depths": [1, 1, 2, 1], "mlp_ratios": [8, 8, 4, 4]}}',
            "channels",
        ),
        ("{", "not valid JSON"),
    ],
)
def test_a_description_in_a_file_that_does_not_fit_is_refused(weights, tmp_path, capsys, description, words):
    from safetensors.numpy import save_file

    save_file(weights, tmp_path / "a.safetensors", metadata={"haksnet_jax": description})
    assert run(f"--input={tmp_path / 'a.safetensors'}", f"--output={tmp_path / 'out'}") == 1
    error = capsys.readouterr().err
    assert words in error and "metadata" in error and error.count("\n") == 1


def test_weights_that_are_not_finite_are_refused_unless_allowed(weights, tmp_path, capsys):
    bad = {
        "backbone.norm1.bias": np.full(8, np.inf, np.float32),
        "rpn_head.rpn_cls.bias": np.full(3, np.nan, np.float32),
    }
    path = write_zip(tmp_path / "a.pth", {"state_dict": weights | bad})
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}") == 1
    printed = capsys.readouterr()
    assert "2 parameters hold numbers that are not finite: backbone.norm1.bias, rpn_head.rpn_cls.bias" in printed.err
    assert "backbone.norm1.bias: 8 numbers" in printed.out and not (tmp_path / "out").exists()
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}", "--allow-nonfinite") == 0
    assert run(f"--input={tmp_path / 'out'}", f"--to={tmp_path / 'b.safetensors'}") == 1
    assert "not finite" in capsys.readouterr().err
    assert run(f"--input={tmp_path / 'out'}", f"--to={tmp_path / 'b.safetensors'}", "--allow-nonfinite") == 0
    back = read_checkpoint(tmp_path / "b.safetensors").tree
    np.testing.assert_array_equal(back["rpn_head.rpn_cls.bias"].numpy(), bad["rpn_head.rpn_cls.bias"])


def test_one_of_two_models_is_chosen_on_the_command_line(weights, tmp_path, capsys):
    both = {f"{part}.{name}": value for part in ("teacher", "student") for name, value in weights.items()}
    path = write_zip(tmp_path / "a.pth", {"state_dict": both})
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}") == 1
    assert "--part=teacher" in capsys.readouterr().err
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}", "--part=student") == 0
    assert checkpoint.load_model(tmp_path / "out")[1]["source"]["part"] == "student"


def test_missing_weights_end_with_status_1_and_leave_nothing(weights, tmp_path, capsys):
    path = write_zip(tmp_path / "a.pth", {"state_dict": without(weights, "roi_head.", "neck.fpn_convs.2")})
    output, report = tmp_path / "out", tmp_path / "report.txt"
    assert run(f"--input={path}", f"--output={output}", f"--report={report}") == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "10 parameters of the model have no value" in printed.err
    assert "roi_head.bbox_head.fc_cls.weight" in printed.out and "neck.fpn_convs.2.conv.bias" in printed.out
    assert "10 missing" in report.read_text() and "error:" in report.read_text()
    assert not output.exists()
    assert run(f"--input={path}", f"--output={output}", "--allow-missing=roi_head.*") == 1
    assert not output.exists()
    assert run(f"--input={path}", f"--output={output}", "--allow-missing=roi_head.*", "--allow-missing=fpn.*") == 0
    params, info = checkpoint.load_model(output)
    assert not any(name.startswith("roi_head.") for name in params) and "fpn.outputs.2.kernel" not in params
    assert len(info["without_value"]) == 10
    with pytest.raises(checkpoint.CheckpointError, match=r"10 of its parameters have no value .*--config.init"):
        haksnet_jax.load(output)
    assert run(f"--input={output}", f"--to={tmp_path / 'back.safetensors'}") == 0


def test_a_mismatch_ends_with_status_1_and_is_explained(weights, tmp_path, capsys):
    changed = weights | {"rpn_head.rpn_cls.weight": np.zeros((9, 32, 1, 1), np.float32)}
    path = write_zip(tmp_path / "a.pth", {"state_dict": changed})
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}") == 1
    printed = capsys.readouterr()
    assert "rpn_head.rpn_cls.weight: has shape 9 x 32 x 1 x 1, expected 3 x 32 x 1 x 1" in printed.out
    assert not (tmp_path / "out").exists()


def test_another_number_of_classes_starts_the_classifier_anew_only_when_asked(detector, weights, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(f"--input={detector}", f"--output={output}", "--classes=car,tree,boat") == 1
    assert "--reinit-classifier" in capsys.readouterr().err and not output.exists()
    assert run(f"--input={detector}", f"--output={output}", "--classes=car,tree,boat", "--reinit-classifier") == 0
    assert "starts anew with 3 classes" in capsys.readouterr().out
    params, info = checkpoint.load_model(output)
    assert params["roi_head.logits.kernel"].shape == (64, 4) and info["class_names"] == ["car", "tree", "boat"]
    # Xavier normal: std sqrt(2 / (64 + 4)) = 0.171; 256 draws give it to about 1 / sqrt(512) = 4 %.
    assert abs(params["roi_head.logits.kernel"].std() - 0.171) < 0.03
    np.testing.assert_array_equal(params["roi_head.deltas.bias"], weights["roi_head.bbox_head.fc_reg.bias"])
    assert run(f"--input={detector}", f"--output={tmp_path / 'renamed'}", "--classes=hrsc2016") == 1
    names = ",".join(f"c{i}" for i in range(15))
    assert run(f"--input={detector}", f"--output={tmp_path / 'renamed'}", f"--classes={names}") == 0
    params, info = checkpoint.load_model(tmp_path / "renamed")
    assert info["class_names"] == names.split(",")
    np.testing.assert_array_equal(params["roi_head.logits.bias"], weights["roi_head.bbox_head.fc_cls.bias"])


@pytest.mark.parametrize(("num_classes", "names"), [(15, DOTA), (16, CLASSES["dota15"]), (2, ("class-0", "class-1"))])
def test_class_names_that_the_file_lacks_are_taken_by_number_and_said(tmp_path, num_classes, names):
    path = write_zip(tmp_path / "a.pth", {"state_dict": make_weights({**TINY, "num_classes": num_classes})})
    model = convert.read_torch_model(path)
    assert model.info["class_names"] == list(names)
    assert any("no class names" in note for note in model.notes)


def test_metadata_that_contradict_the_classifier_are_an_error(weights, tmp_path):
    path = write_zip(tmp_path / "a.pth", {"meta": {"CLASSES": ("a", "b")}, "state_dict": weights})
    with pytest.raises(convert.ConversionError, match="15 classes and its metadata name 2"):
        convert.read_torch_model(path)
    path = write_zip(tmp_path / "b.pth", {"meta": {"dataset_meta": {"classes": list(DOTA)}}, "state_dict": weights})
    assert convert.read_torch_model(path).info["class_names"] == list(DOTA)


def test_image_settings_are_read_out_of_the_configuration(weights, tmp_path):
    path = write_zip(tmp_path / "a.pth", {"meta": {"config": CONFIG}, "state_dict": weights})
    info = convert.read_torch_model(path).info
    assert info["pixel_mean"] == [100.0, 101.5, 102] and info["pixel_std"] == [50.0, 51.0, 52.5]
    assert info["input_size"] == [608, 800] and info["padding_divisor"] == 64
    assert info["keep_ratio"] is True


@pytest.mark.parametrize(
    ("text", "keep_ratio"),
    [
        ("dict(type='Resize', img_scale=(800, 608), keep_ratio=False)", False),
        ("dict(type='Resize', img_scale=(800, 608), keep_ratio=True)", True),
        ("dict(type='RResize', img_scale=(800, 608)), dict(type='Other', keep_ratio=False)", True),
    ],
)
def test_whether_resizing_keeps_the_ratio_is_read_too(weights, tmp_path, text, keep_ratio):
    path = write_zip(tmp_path / "a.pth", {"meta": {"config": f"{text}, to_rgb=False"}, "state_dict": weights})
    model = convert.read_torch_model(path)
    assert model.info["keep_ratio"] is keep_ratio
    assert any("feeds images as B, G, R" in note for note in model.notes)


def test_hidden_widths_that_are_no_multiple_of_the_channels_are_built(weights, tmp_path):
    ratios = [8, 37 / 16, 4, 29 / 32]
    path = write_zip(tmp_path / "a.pth", {"state_dict": make_weights({**TINY, "mlp_ratios": ratios}, "convert")})
    convert.convert(path, tmp_path / "out")
    haksnet_jax.load(tmp_path / "out")  # refuses what does not fit
    arrays = checkpoint.load_model(tmp_path / "out")[0]
    assert [arrays[f"backbone.stages.{i}.blocks.mlp.dw_conv.kernel"].shape[-1] for i in range(4)] == [64, 37, 96, 29]


def test_safetensors_of_others_are_converted(weights, tmp_path):
    from safetensors.numpy import save_file

    half = {f"module.{name}": value.astype(np.float16) for name, value in weights.items() if value.dtype.kind == "f"}
    save_file(half, tmp_path / "a.safetensors")
    assert run(f"--input={tmp_path / 'a.safetensors'}", f"--output={tmp_path / 'out'}") == 0
    params, info = checkpoint.load_model(tmp_path / "out")
    assert info["class_names"] == list(DOTA)  # by number
    kernel = weights["roi_head.bbox_head.fc_reg.weight"].astype(np.float16).astype(np.float32).T
    np.testing.assert_array_equal(params["roi_head.deltas.kernel"], kernel)
    assert run(f"--input={tmp_path / 'out'}", f"--to={tmp_path / 'b.safetensors'}") == 0
    back = read_checkpoint(tmp_path / "b.safetensors").tree
    assert all(np.array_equal(back[name[7:]].numpy(), value.astype(np.float32)) for name, value in half.items())


def test_an_output_that_is_not_a_converted_model_is_left_alone(detector, tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    assert run(f"--input={detector}", f"--output={tmp_path}") == 1
    assert "name another --output" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


def test_wrong_use_ends_with_status_2(detector, tmp_path):
    for arguments in (
        (f"--input={detector}",),
        ("--output=x",),
        (f"--input={detector}", "--output=x", "--classes=a,a"),
    ):
        assert run(*arguments) == 2


@pytest.mark.parametrize("kind", ["attack", "web page", "truncated", "folder", "nothing", "huge", "not finite"])
def test_every_refusal_is_one_sentence(kind, detector, weights, tmp_path, capsys):
    path, output = tmp_path / "a.pth", tmp_path / "out"
    marker = tmp_path / "marker"
    if kind == "attack":
        attack = Raw(f"cos\nsystem\n(X\x20\x00\x00\x00{f'touch {marker}':32.32}tR".encode())
        write_zip(path, {"state_dict": weights, "meta": attack})
    elif kind == "web page":
        path.write_text("<!DOCTYPE html><html></html>")
    elif kind == "truncated":
        path.write_bytes(detector.read_bytes()[:-5000])
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        write_zip(
            path, {"state_dict": {"backbone.norm1.bias": tensor("float32", "0", 1, (1 << 40,), (0,))}}, {"0": b"1234"}
        )
    elif kind == "not finite":
        write_zip(path, {"state_dict": weights | {"backbone.norm1.bias": np.full(8, np.inf, np.float32)}})
    assert run(f"--input={path}", f"--output={output}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error
    assert not output.exists() and not marker.exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_control_characters_of_a_file_do_not_reach_the_terminal(weights, tmp_path, capsys):
    path = write_zip(tmp_path / "a.pth", {"state_dict": weights | {"\x1b[2J\x07": np.zeros(1, np.float32)}})
    assert run(f"--input={path}", f"--output={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[2J\\x07" in printed


def test_the_command_shows_no_traceback_and_no_torch_is_loaded(detector, tmp_path):
    code = (
        "import sys; from haksnet_jax.cli import program; status = program.main(['convert', *sys.argv[1:]]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"\x80\x02garbage")
    done = subprocess.run([*command, f"--input={bad}", f"--output={tmp_path / 'x'}"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("error:")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process as Linux counts it")
def test_the_large_model_converts_within_10_seconds_and_1_gib(golden, tmp_path):
    """The whole command, loading of JAX included, for a file of HAKSNet-S with optimizer state."""
    listed = golden("state_dict_s").manifest["entries"]
    weights = make_state_dict(listed)
    moments = [{"exp_avg": value, "exp_avg_sq": value} for value in weights.values()]
    path = write_zip(tmp_path / "s.pth", {"meta": {"CLASSES": DOTA}, "state_dict": weights, "optimizer": moments})
    code = (
        "import re, sys; from haksnet_jax.cli import program; status = program.main(['convert', *sys.argv[1:]]); "
        # Of this program alone: getrusage counts what the process had before it, which is the tests' memory.
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", code, f"--input={path}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 10
    assert int(done.stdout.splitlines()[-1]) < 1 << 20  # KiB


def test_model_json_is_plain_json(detector, tmp_path):
    convert.convert(detector, tmp_path / "out")
    text = (tmp_path / "out" / "model.json").read_text()
    assert json.loads(text)["source"]["file"] == "detector.pth"
    convert.convert(detector, tmp_path / "out")  # a converted model that is there is replaced


@pytest.fixture(scope="module")
def tiny_forward():
    """Functions of {our name: array} and inputs: the backbone's stages; RPN logits and box head. Compiled once."""
    import jax
    from flax import nnx

    from haksnet_jax.models.architecture import haksnet_detector
    from haksnet_jax.models.backbones.haksnet import BackboneSize

    size = BackboneSize(tuple(TINY["channels"]), tuple(TINY["depths"]), tuple(TINY["mlp_ratios"]))
    model = nnx.eval_shape(lambda: haksnet_detector(size, 15, channels=32, hidden=64, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)

    @jax.jit
    def run(filled, image, boxes):
        model = nnx.merge(graph, filled)
        stages = model.backbone(image)
        levels = model.fpn(stages)
        valid = np.ones(boxes.shape[:2], bool)
        return stages, [level.shape for level in levels], model.rpn(levels)[0], model.roi_head(levels, boxes, valid)

    def forward(params, image, boxes):
        # A backbone alone gets zeros behind it, and those outputs are not looked at.
        whole = {name: np.zeros(leaf.shape, np.float32) for name, leaf in checkpoint.flatten(state).items()} | params
        return run(checkpoint.fill(state, whole, what="converted"), image, boxes)

    return forward


@pytest.mark.parametrize(
    "name",
    [
        "tiny_mmrotate.pth",
        "tiny_pretrain.pth.tar",
        "tiny_legacy.pth",
        "tiny_module_prefix.pth",
        "tiny_backbone_half.pth",
    ],
)
def test_recorded_files_compute_what_the_reference_computes_with_them(name, golden, golden_file, tiny_forward):
    expected = golden("checkpoints_expected")
    key = name.split(".")[0]
    image = make_input(**expected.manifest["input"]).transpose(0, 2, 3, 1)
    boxes = expected["tiny_mmrotate/rois" if f"{key}/rois" not in expected else f"{key}/rois"]
    model = convert.read_torch_model(golden_file(name))
    stages, shapes, rpn_logits, (logits, deltas) = tiny_forward(model.params, image, boxes[None])

    def compare(key, found):
        # 1e-5 of the largest value: ten times what float32 sums in another order were seen to differ by.
        expected.compare(key, found, rtol=0, atol=1e-5 * expected.manifest["arrays"][key]["abs_max"])

    for i, stage in enumerate(stages):
        compare(f"{key}/stage{i + 1}", np.asarray(stage).transpose(0, 3, 1, 2))
    if f"{key}/rois" in expected:
        start = 0
        for i, (_, height, width, _) in enumerate(shapes):
            level = np.asarray(rpn_logits)[0, start : start + 3 * int(height) * int(width)]
            compare(f"{key}/rpn_cls{i}", level.reshape(1, int(height), int(width), 3).transpose(0, 3, 1, 2))
            start += level.size
        compare(f"{key}/roi_cls_logits", logits[0])
        compare(f"{key}/roi_deltas", deltas[0])
