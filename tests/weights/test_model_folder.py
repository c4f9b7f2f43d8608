"""Models in folders: damage is named, weights that are not finite are refused, and `model.json` is checked."""

import json
import subprocess
import sys

import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.training import checkpoint
from haksnet_jax.weights import model_folder, sums
from haksnet_jax.weights.errors import CheckpointError

INFO = {
    "architecture": {
        "channels": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "mlp_ratios": [4, 4, 2, 2.5],
        "fpn_channels": 64,
        "hidden": 128,
        "num_classes": 2,
    },
    "class_names": ["ship", "storage-tank"],
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "input_size": [192, 192],
    "keep_ratio": True,
    "padding_divisor": 32,
    "proposals": {"candidates_per_level": 200, "iou_threshold": 0.8},
    "source": {"file": "a.pth", "sha256": "0" * 64},
}


def _arrays():
    draw = np.random.default_rng(0)
    return {f"part.{name}": draw.standard_normal((50, 40)).astype(np.float32) for name in ("a", "b.kernel")}


def _step(workdir):
    """A run with one checkpoint. Returns: its folder."""
    checkpoints = checkpoint.RunCheckpoints(workdir)
    checkpoints.save(3, {"params": {"a": _arrays()["part.a"]}, "batch_stats": {"b": np.ones(3)}}, {"examples": 1})
    checkpoints.close()
    (workdir / "model.json").write_text(json.dumps(INFO))
    return workdir / "checkpoints" / "3"


def _alone(folder):
    model_folder.save_model(folder, _arrays(), INFO)
    return folder


def _files_of_state(folder):
    found = [path for path in (folder / "state").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(found) > 2
    return found


@pytest.mark.parametrize("write", [_alone, _step])
def test_a_flipped_bit_in_any_file_of_the_weights_is_named(write, tmp_path):
    folder = write(tmp_path / "model")
    before, _ = model_folder.load_model(tmp_path / "model")
    for path in _files_of_state(folder):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=rf"is damaged: state/.*{path.name} is not as it was written"):
                model_folder.load_model(tmp_path / "model")
        path.write_bytes(whole[:-1])
        with pytest.raises(CheckpointError, match=rf"{path.name} has {len(whole) - 1} bytes, expected {len(whole)}"):
            model_folder.load_model(tmp_path / "model")
        path.unlink()
        with pytest.raises(CheckpointError, match=rf"{path.name} is missing"):
            model_folder.load_model(tmp_path / "model")
        path.write_bytes(whole)
    after, _ = model_folder.load_model(tmp_path / "model")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_damaged_sums_are_named(tmp_path):
    manifest = _alone(tmp_path / "model") / sums.MANIFEST_FILE
    whole = json.loads(manifest.read_text())
    for content in (
        b"",
        b"[1]",
        b'{"state/_METADATA": [1]}',
        b'{"state/_METADATA": ["a", 1]}',
        b'{"a": [1, 2], "a": []}',
    ):
        manifest.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            model_folder.load_model(tmp_path / "model")
    for name in ("/etc/hostname", "../../secret"):
        manifest.write_text(json.dumps(whole | {name: [1, 2]}))
        with pytest.raises(CheckpointError, match="which is no file of this checkpoint"):
            model_folder.load_model(tmp_path / "model")


def test_an_edited_description_is_used_and_said(tmp_path, caplog):
    folder = _alone(tmp_path / "model")
    (folder / "model.json").write_text(json.dumps(INFO | {"class_names": ["ship", "tank"]}))
    with caplog.at_level("WARNING"):
        assert model_folder.load_model(folder)[1]["class_names"] == ["ship", "tank"]
    assert "model.json was changed after it was written" in caplog.text


@pytest.mark.parametrize("write", [_alone, _step])
def test_folders_from_before_there_were_sums_load(write, tmp_path):
    (write(tmp_path / "model") / sums.MANIFEST_FILE).unlink()
    arrays, info = model_folder.load_model(tmp_path / "model")
    assert len(arrays) == 2 and info == INFO


@pytest.mark.parametrize("size", [10, 1000])
def test_a_cut_checkpoint_without_sums_is_one_sentence_and_nothing_around_it(size, tmp_path):
    folder = _alone(tmp_path / "model")
    (folder / sums.MANIFEST_FILE).unlink()
    for path in sorted(_files_of_state(folder), key=lambda path: -path.stat().st_size)[:2]:
        path.write_bytes(path.read_bytes()[:size])
    program = (
        "import sys; from haksnet_jax.weights import model_folder\n"
        f"try: model_folder.load_model({str(folder)!r})\n"
        "except ValueError as error: sys.exit(f'error: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and str(folder) in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_weights_that_are_not_finite_are_refused_unless_allowed(tmp_path):
    arrays = _arrays()
    arrays["part.a"][0, :3] = np.nan
    arrays["part.b.kernel"][1, 1] = -np.inf
    model_folder.save_model(tmp_path / "model", arrays, INFO)
    with pytest.raises(CheckpointError, match=r"2 parameters hold numbers that are not finite: part.a \(3 numbers\)"):
        model_folder.load_model(tmp_path / "model")
    loaded, _ = model_folder.load_model(tmp_path / "model", allow_nonfinite=True)
    np.testing.assert_array_equal(loaded["part.a"], arrays["part.a"])


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.tar", "weights.safetensors"])
def test_a_file_of_weights_where_a_folder_is_expected_names_the_command(name, tmp_path):
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=rf"expected the folder .*convert --input={tmp_path / name} --output"):
        model_folder.load_model(tmp_path / name)


def test_another_file_where_a_folder_is_expected_names_the_folder_that_is_meant(tmp_path):
    model_folder.save_model(tmp_path / "model", _arrays(), INFO)
    with pytest.raises(
        CheckpointError, match=rf"expected the folder of a checkpoint \(meant is {tmp_path / 'model'}\?\)"
    ):
        model_folder.load_model(tmp_path / "model" / "model.json")


DESCRIPTIONS = {
    "channels as text": (("architecture", "channels"), "16", r"architecture\.channels is '16', expected widths"),
    "negative channels": (
        ("architecture", "channels", 0),
        -16,
        r"architecture\.channels\[0\] is -16, expected a whole",
    ),
    "broken channels": (("architecture", "channels", 1), 16.5, r"architecture\.channels\[1\] is 16.5"),
    "channels of truth": (("architecture", "channels", 1), True, r"architecture\.channels\[1\] is True"),
    "huge channels": (("architecture", "channels", 1), 10**400, r"architecture\.channels\[1\] is a whole number of 1"),
    "one stage less": (("architecture", "depths"), [1, 1, 1], r"architecture describes different numbers of stages"),
    "no architecture": (("architecture",), None, r"architecture is None, expected an object"),
    "nested in architecture": (("architecture", "other"), [[1]], r"architecture\.other is a list of 1, expected"),
    "class name": (("class_names", 0), 7, r"class_names\[0\] is 7, expected a name"),
    "class names": (("class_names",), "ship", r"class_names is 'ship', expected names"),
    "control characters": (("class_names", 0), "a\x1b[31m", r"class_names\[0\] is 'a\\x1b\[31m', expected a name"),
    "a class twice": (("class_names", 0), "storage-tank", r"class_names has 'storage-tank' twice"),
    "long class name": (("class_names", 0), "x" * 5000, r"class_names\[0\] is 'xxx.*5000 letters"),
    "input size 0": (("input_size",), [0, 0], r"input_size\[0\] is 0, expected a whole number from 1"),
    "input size": (("input_size",), 192, r"input_size is 192, expected rows and columns"),
    "three sizes": (("input_size",), [192] * 3, r"input_size is a list of 3, expected rows and columns"),
    "divisor 0": (("padding_divisor",), 0, r"padding_divisor is 0, expected"),
    "divisor": (("padding_divisor",), None, r"padding_divisor is None, expected"),
    "std 0": (("pixel_std", 1), 0, r"pixel_std\[1\] is 0, expected a positive number"),
    "mean as text": (("pixel_mean",), ["a", "b", "c"], r"pixel_mean\[0\] is 'a', expected a number"),
    "bands": (("pixel_mean",), [1, 2], r"pixel_mean has 2 bands and pixel_std 3"),
    "keep ratio": (("keep_ratio",), "no", r"keep_ratio is 'no', expected true or false"),
    "proposals": (("proposals",), [1], r"proposals is a list of 1, expected settings"),
    "a proposal setting": (("proposals", "iou_threshold"), "0.8", r"proposals\.iou_threshold is '0.8', expected"),
    "task": (("task",), ["detection"], r"task is a list of 1, expected the name of a task"),
    "without value": (("without_value",), {"a": 1}, r"without_value is an object of 1 keys"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_description_that_no_model_can_have_is_one_sentence(case, tmp_path):
    (*parents, last), value, expected = DESCRIPTIONS[case]
    folder = _alone(tmp_path / "model")
    info = json.loads(json.dumps(INFO))
    place = info
    for key in parents:
        place = place[key]
    place[last] = value
    (folder / "model.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=rf"model\.json: {expected}") as raised:
        model_folder.load_model(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", r"model\.json:1: not valid JSON"),
        (b"[]", r"model\.json: its content is a list of 0, expected an object"),
        (b"{}", r"model\.json: architecture is missing"),
        (b'{"architecture": {}, "a": NaN}', r"model\.json: it holds NaN"),
        (b'{"architecture": {}, "a": -1e999}', r"model\.json: it holds the number -1e999"),
        (b'{"architecture": {}, "architecture": {}}', r"model\.json: it names the key 'architecture' twice"),
        (b'{"architecture": ' + b"[" * 100_000, r"model\.json: its JSON is nested too deeply"),
        (
            b'{"architecture": {}, "task": ' + b"[" * 970 + b"]" * 970 + b"}",
            r"model\.json: .*(nested too deeply|expected)",
        ),
        (
            b'{"architecture": {}, "task": ' + b"[" * 900 + b"]" * 900 + b"}",
            r"model\.json: .*(nested too deeply|expected)",
        ),
        (b'{"architecture": ' + b"9" * 10_000 + b"}", r"model\.json: it holds a whole number of thousands of digits"),
        (b'{"architecture": "\xff"}', r"model\.json is not valid JSON: byte 18 is not UTF-8"),
        (b" " * (5 << 20), r"model\.json has 5,242,880 bytes"),
        (json.dumps({k: v for k, v in INFO.items() if k != "input_size"}).encode(), r"input_size is missing"),
    ],
)
def test_a_description_that_is_no_json_of_ours_is_one_sentence(content, expected, tmp_path):
    folder = _alone(tmp_path / "model")
    (folder / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as raised:
        model_folder.load_model(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_descriptions_of_other_tasks_and_backbones_are_left_to_them(tmp_path):
    info = {
        "task": "classification",
        "architecture": {"backbone": "resnet50", "in_channels": 4, "blocks": [3, 4, 6, 3], "norm": "batch"},
        "class_names": [f"class {number}" for number in range(1000)],
        "bands": [4, 3, 2],
    }
    model_folder.save_model(tmp_path / "model", _arrays(), info)
    assert model_folder.load_model(tmp_path / "model")[1] == info
