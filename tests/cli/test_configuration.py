"""--config and --set: which file is meant, and what a text becomes."""

import os
import pathlib
import subprocess
import sys

import pytest

from haksnet_jax.cli import configuration, program, terminal
from haksnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def of(*words):
    parser = terminal.Parser("p")
    configuration.add_arguments(parser)
    return configuration.of(parser.parse_args(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--config=demo", "--set", "optimizer.learning_rate=2e-4", "data.image_size=(256,256)"],
        ["--config=configs/demo.py", "--config.optimizer.learning_rate=2e-4", "--config.data.image_size", "256,256"],
        ["demo", "--set=optimizer.learning_rate=0.0002", "--set", "data.image_size=(256, 256)"],
    ],
)
def test_values_are_set_in_each_spelling(words):
    config = of(*words)
    assert config.optimizer.learning_rate == 2e-4 and config.data.image_size == (256, 256) and config.is_locked


@pytest.mark.parametrize("name", configuration.names())
def test_every_configuration_is_found_by_its_name_and_as_of_a_checkout(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder configs/
    assert configuration.find(name) == configuration.find(f"configs/{name}.py")
    assert configuration.load(name).name == name
    configuration.check(configuration.load(name))


def test_a_copy_of_a_configuration_works_anywhere(tmp_path):
    (tmp_path / "mine.py").write_bytes(configuration.find("folder").read_bytes())
    code = "from haksnet_jax.cli import configuration; print(configuration.load('mine.py').name)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", code]  # -P: without the current folder, as an installed program
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "folder\n", done.stderr


@pytest.mark.parametrize(
    ("present", "text", "value"),
    [
        (1, "20_000", 20000),
        (1, "1e4", 10000),
        (0.5, "2e-4", 2e-4),
        (0.5, "1", 1.0),
        (True, "false", False),
        (False, "1", True),
        ("a", "b c", "b c"),
        ((1, 2), "[3, 4]", (3, 4)),
        ((0.5, 1.0), "0.6,1.5", (0.6, 1.5)),
        (("ship",), "plane, ship", ("plane", "ship")),
        ((), "('plane',)", ("plane",)),
        ((), "plane,ship", ("plane", "ship")),
        (None, "3", 3),
        (None, "word", "word"),
    ],
)
def test_a_text_gets_the_type_of_what_is_there(present, text, value):
    found = configuration.parse("key", text, present)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.num_stpes=10"], "num_stpes: there is no such setting; meant is num_steps"),
        (["--config.optimizer.learningrate=1e-3"], "meant is optimizer.learning_rate"),
        (["--config.learning_rate=1e-3"], "meant is optimizer.learning_rate"),
        (["--config.data=3"], "data: is a group of settings: data."),
        (["--config.num_steps=ten"], "num_steps: expected a whole number, got 'ten'"),
        (["--config.num_steps=1.5"], "num_steps: expected a whole number, got '1.5'"),
        (["--config.data.filter_empty=maybe"], "data.filter_empty: expected true or false, got 'maybe'"),
        (
            ["--config.data.image_size=256"],
            "data.image_size: expected 2 numbers, rows and columns in pixels, such as '(192, 192)'",
        ),
        (["--config.model.dtype=bf16"], "model.dtype: expected float32 or bfloat16, got 'bf16'; meant is bfloat16?"),
        (["--config.data.kind=folders"], "data.kind: expected folder or tfds or scenes"),
        (["--config.optimizer.schedule=cosin"], "meant is cosine?"),
    ],
)
def test_what_does_not_fit_is_said_with_its_key(words, message):
    with pytest.raises(UserError) as found:
        of("--config=demo", *words)
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmeo", "meant is demo?"),
        ("nowhere/demo.py", "no such file, looked for from"),
        ("configs/nothing.py", "there are "),
    ],
)
def test_a_missing_configuration_lists_those_there_are(name, message):
    with pytest.raises(UserError) as found:
        configuration.find(name)
    assert message in str(found.value) and "dota_ss_t" in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 1 is no Python"),
        ("import nothing_of_the_kind\n", "No module named 'nothing_of_the_kind'"),
        ("x = 1\n", "expected a function get_config()"),
    ],
)
def test_a_file_that_is_no_configuration_is_said(tmp_path, text, message):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(UserError) as found:
        configuration.load(str(tmp_path / "a.py"))
    assert message in str(found.value) and str(tmp_path / "a.py") in str(found.value)


def test_without_a_configuration_the_command_shows_how(capsys):
    assert program.main(["train"]) == 2
    err = capsys.readouterr().err
    assert "--config=demo" in err and "dota_ss_t" in err
