"""An exported detector finds what the live one finds, and runs without this package."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from haksnet_jax import demo
from haksnet_jax.cli import program
from haksnet_jax.tools import export

ROOT = pathlib.Path(__file__).resolve().parents[2]


def found(boxes, scores, labels):
    return {"boxes": np.array(boxes, float).reshape(-1, 5), "scores": np.array(scores), "labels": np.array(labels)}


def test_what_differs_is_told_with_its_score():
    ours = found([[10, 10, 8, 4, 0.1], [30, 30, 8, 4, 0]], [0.9, 0.5], [0, 1])
    assert not list(export._without_counterpart(ours, ours, 0.05))
    moved = found([[10, 10, 8, 4, 0.1], [30.1, 30, 8, 4, 0]], [0.9, 0.5], [0, 1])  # IoU 0.975
    assert len(list(export._without_counterpart(ours, moved, 0.05))) == 2
    fewer = found([[10, 10, 8, 4, 0.1]], [0.9], [0])
    assert list(export._without_counterpart(ours, fewer, 0.05)) == ["only live: label 1, score 0.5000"]
    assert not list(export._without_counterpart(found([[10, 10, 8, 4, 0]], [0.0501], [0]), found([], [], []), 0.05))


def test_a_size_that_no_level_divides_is_refused(capsys):
    assert program.main(["export", "--checkpoint=demo", "--output=x", "--size=100"]) == 1
    assert "--size: expected multiples of 32, got 100 x 100" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.documented
def test_an_exported_detector_agrees_and_runs_without_this_package(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    path = tmp_path / "demo.stablehlo"
    command = [sys.executable, "-m", "haksnet_jax", "export", "--checkpoint=demo", f"--output={path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "each has its counterpart" in done.stdout
    facts = json.loads((tmp_path / "demo.stablehlo.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["images"]["shape"] == [1, 192, 192, 3]
    image = sorted(demo.IMAGES.glob("*.png"))[0]
    command = [sys.executable, "-P", ROOT / "examples" / "load_stablehlo.py", path, image]
    environment["PYTHONPATH"] = ""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        len(done.stdout.splitlines()) >= 5
        and "haksnet" not in (ROOT / "examples/load_stablehlo.py").read_text().split('"""')[2]
    )
