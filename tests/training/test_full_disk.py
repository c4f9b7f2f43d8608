"""A run that cannot write ends its process, with its sentence last and no traceback around it."""

import os
import pathlib
import subprocess
import sys

import pytest

CHANGES = ("num_steps=90", "eval_every=30", "checkpoint_every=45")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(workdir, largest):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("HAKSNET_TRACEBACK", None)
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "run_dummy.py", workdir, str(largest), *CHANGES],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


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
