"""How the process of a run ends: without a word of libraries, and where it cannot write with its sentence last."""

import os
import pathlib
import subprocess
import sys

import pytest

CHANGES = ("num_steps=90", "eval_every=30", "checkpoint_every=45")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(workdir, largest, *changes):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("HAKSNET_TRACEBACK", None)
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "run_dummy.py", workdir, str(largest), *CHANGES, *changes],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_a_run_with_worker_processes_ends_without_a_word_about_shared_memory(tmp_path):
    done = _run(tmp_path / "run", 0, "data__num_workers=2")
    assert done.returncode == 0, done.stderr
    assert "step 90/90" in done.stderr
    for words in ("leaked", "shared_memory", "Traceback", "font cache"):
        assert words not in done.stderr, done.stderr


# Bytes after which nothing more of a file is written: the configuration, a file of a checkpoint, the metrics.
@pytest.mark.parametrize("largest", [300, 2500, pytest.param(9000, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_process_with_one_sentence(tmp_path, largest):
    done = _run(tmp_path / "run", largest)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines[-1].startswith("error: ") and str(tmp_path / "run") in lines[-1], lines[-1]
    assert "File too large" in lines[-1]
    # With room again, the same command ends well.
    assert largest != 2500 or _run(tmp_path / "run", 0).returncode == 0
