"""The program: its commands, their help, their exit statuses, and what a mistake of use is answered with."""

import errno
import importlib
import os
import pathlib
import subprocess
import sys
import time

import pytest

from haksnet_jax import demo
from haksnet_jax.cli import program, terminal
from haksnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments, **options):
    """The program in a process of its own. Returns: subprocess.CompletedProcess."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    command = [sys.executable, "-m", "haksnet_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


@pytest.mark.parametrize("command", program.COMMANDS)
def test_every_command_has_help_with_an_example_and_status_0(command, capsys):
    for option in ("--help", "-h"):
        assert program.main([command, option]) == 0
        help_text = capsys.readouterr().out
        assert help_text.startswith(f"usage: haksnet {command}")
        assert f"\n    haksnet {command}" in help_text
        assert "--quiet" in help_text and "--version" in help_text
        assert not any(len(line) > 120 for line in help_text.splitlines())


@pytest.mark.parametrize("command", program.COMMANDS)
def test_help_imports_nothing_that_takes_time(command):
    # Seconds would depend on what else the machine does; these are what takes them.
    code = (
        "import sys; from haksnet_jax.cli import program; program.main([sys.argv[1], '--help']);"
        "slow = {'jax', 'numpy', 'cv2', 'flax', 'matplotlib', 'tensorflow_datasets', 'orbax', 'shapely'};"
        "slow &= set(sys.modules);"
        "assert not slow, slow"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_takes_a_moment():
    code = "import time; began = time.process_time(); import haksnet_jax; print(time.process_time() - began)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 0.1  # processor seconds, as promised


@pytest.mark.parametrize("command", ["", *program.COMMANDS])
def test_version_is_known_to_all(command, capsys):
    assert program.main([*([command] if command else []), "--version"]) == 0
    assert "haksnet_jax 0." in capsys.readouterr().out


def test_without_a_command_all_are_listed(capsys):
    assert program.main([]) == 2
    assert program.main(["--help"]) == 0
    out, err = capsys.readouterr()
    for text in (out, err):
        for command in program.COMMANDS:
            assert f"\n  {command} " in text


def test_a_misspelt_command_and_option_are_answered_with_the_right_one(capsys):
    for arguments, meant in (
        (["predcit"], "meant is predict?"),
        (["predict", "--image=a.png"], "unknown option --image; meant is --images"),
        (["predict", "--chekpoint=a"], "meant is --checkpoint?"),
        (["validate", "--min-sides=3"], "meant is --min-side?"),
    ):
        assert program.main(arguments) == 2
        err = capsys.readouterr().err
        assert meant in err and len(err.splitlines()) == 1


def test_options_may_be_spelled_with_underscores():
    parser = terminal.Parser("p")
    parser.add_argument("--min-side", type=float)
    parser.add_argument("--as-dota", action="store_true")
    found = parser.parse_args(["--min_side=3", "--as_dota"])
    assert found.min_side == 3 and found.as_dota


def test_lists_come_by_commas_blanks_and_repeated_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.png").touch()
    parser = terminal.Parser("p")
    terminal.add_list(parser, "--scales", kind=float, default=(1.0,))
    terminal.add_list(parser, "--images")
    for words in (
        ["--scales=0.5,1"],
        ["--scales", "0.5", "1"],
        ["--scales=0.5", "--scales=1"],
        ["--scales", "0.5,", "1"],
    ):
        assert parser.parse_args(words).scales == [0.5, 1]
    assert parser.parse_args([]).scales == (1.0,)
    assert parser.parse_args(["--images", "a,b.png", "c,d"]).images == ["a,b.png", "c", "d"]


def test_a_stray_word_says_how_lists_are_given(capsys):
    assert program.main(["predict", "--checkpoint=a", "--images=b", "--output=c", "--scales=0.5", "1"]) == 2
    err = capsys.readouterr().err
    assert "unexpected argument '1'" in err and "--images A B" in err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--score=30", "--score: expected a number above 0 and at most 1 (0.3 for 30 %), got '30'"),
        ("--score=nan", "--score: expected a number"),
        ("--scales=0", "--scales: expected factors between 0.05 and 20, got '0'"),
        ("--scales=a", "--scales: expected numbers separated by commas, got 'a'"),
        ("--batch-size=0", "--batch-size: expected a whole number of at least 1, got '0'"),
        ("--resize=all", "--resize: invalid choice"),
    ],
)
def test_values_are_checked_before_anything_is_loaded(option, message, capsys):
    assert program.main(["predict", "--checkpoint=a", "--images=b", "--output=c", option]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def _raises(error):
    def function(*_):
        raise error

    return function


def test_a_users_mistake_is_a_sentence_and_a_bug_keeps_its_traceback(capsys, tmp_path):
    assert program.guarded(_raises(UserError("x: expected 1, got \x1b[2J"))) == 1
    assert capsys.readouterr().err == "error: x: expected 1, got \\x1b[2J\n"
    assert program.guarded(_raises(terminal.UsageError("expected --a")), prog="haksnet p") == 2
    assert capsys.readouterr().err == "error: expected --a (haksnet p --help shows the options)\n"
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    assert program.guarded(_raises(full)) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "a") in err and "No space left" in err and "make room" in err
    assert program.guarded(_raises(KeyboardInterrupt())) == 130
    for bug in (KeyError("x"), TypeError("x"), RuntimeError("x"), AttributeError("x")):
        with pytest.raises(type(bug)):
            program.guarded(_raises(bug))
    assert program.guarded(lambda: None) == 0
    assert program.guarded(lambda: 75) == 75


def test_ctrl_c_while_a_command_is_loaded_is_a_word_and_status_130(monkeypatch, capsys):
    monkeypatch.setattr(program, "parser_of", _raises(KeyboardInterrupt()))
    assert program.main(["split", "--images=a"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_quiet_leaves_warnings_errors_and_results(capsys, monkeypatch):
    def run(_):
        print("1 of 2 images", file=sys.stderr)
        print("warning: 2 labels are left out", file=sys.stderr, flush=True)
        print("the result")
        raise UserError("x: expected 1")

    monkeypatch.setattr("haksnet_jax.cli.version.run", run)
    assert program.main(["version", "--quiet"]) == 1
    assert tuple(capsys.readouterr()) == ("the result\n", "warning: 2 labels are left out\nerror: x: expected 1\n")
    assert program.main(["version"]) == 1
    assert capsys.readouterr().err.startswith("1 of 2 images\n")


def test_a_broken_pipe_is_no_error():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # The reader is gone before the first line is written.
    command = f"({sys.executable} -m haksnet_jax --help; echo status $? >&2) | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.stderr == "status 0\n"


@pytest.mark.parametrize("module", ["haksnet_jax.main", "haksnet_jax.convert", "data.validate", "data.dota.split"])
def test_the_published_doors_lead_to_the_commands(module):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: haksnet ")


def test_every_command_of_the_table_is_a_file_and_the_other_way_round():
    for command in program.COMMANDS:
        module = importlib.import_module(f"haksnet_jax.cli.{command}")
        assert callable(module.add_arguments) and callable(module.run)
    made = {
        path.stem
        for path in (ROOT / "haksnet_jax" / "cli").glob("*.py")
        if "\ndef add_arguments(" in path.read_text() and path.stem != "configuration"
    }
    assert made == set(program.COMMANDS)


def test_what_comes_with_the_package_is_small_and_whole():
    shipped = [path for path in pathlib.Path(demo.MODEL).parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in shipped) < 2e6
    images = {path.stem for path in demo.IMAGES.glob("*.png")}
    assert images and images == {path.stem for path in demo.LABELS.glob("*.txt")}


def test_the_shipped_detector_finds_what_is_in_the_shipped_scenes(tmp_path):
    began = time.monotonic()
    done = run("predict", "--checkpoint=demo", "--images=demo", "--output=found", "--score=0.3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found" / "drawings").is_dir() and time.monotonic() - began < 300
    done = run("evaluate", "--predictions=found", "--labels=demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mean = next(line for line in done.stdout.splitlines() if line.startswith("mean"))
    assert float(mean.split()[4]) > 75, done.stdout  # AP50 in percent; 0.88 on a hundred scenes
