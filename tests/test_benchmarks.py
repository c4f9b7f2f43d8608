"""The scripts of benchmarks/, which nothing else runs: what they take from the package is still there."""

import importlib.util
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_is_there_and_its_first_lines_show_how_it_is_called(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])  # as `python benchmarks/NAME.py` has it
    spec = importlib.util.spec_from_file_location(f"benchmark_script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main) and f"benchmarks/{path.name}" in module.__doc__
