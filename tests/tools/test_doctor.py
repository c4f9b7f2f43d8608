"""What `doctor` says of a machine: each problem has a remedy, and what is missing is seen."""

import json
import pathlib

import pytest

from haksnet_jax.cli import program
from haksnet_jax.tools import doctor


def test_the_command_names_everything_and_its_json_is_read_back(capsys):
    status = program.main(["doctor", "--json", "--fast"])
    rows = json.loads(capsys.readouterr().out)
    names = {row["name"] for row in rows}
    assert {"haksnet_jax", "python", "jax", "devices", "memory", "open files", "compilation cache"} <= names
    assert all(row["remedy"] for row in rows if row["problem"])
    assert status == (1 if any(row["problem"] for row in rows) else 0)


def test_a_release_that_was_not_tried_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", {"jax": "0.4.30", "flax": "0.12.8"}.get)
    rows = {row.name: row for row in doctor.versions()}
    assert "jax>=0.10,<0.13" in rows["jax"].remedy and not rows["flax"].problem
    assert rows["numpy"].problem and not rows["rasterio"].problem and "pip install rasterio" in rows["rasterio"].value


@pytest.mark.parametrize(
    ("plugins", "chosen", "problem"),
    [((), "cpu", "without CUDA"), ((13,), "", "does not use it"), ((13,), "cpu", "")],
)
def test_a_gpu_that_jax_does_not_use_is_seen(plugins, chosen, problem, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    known = [f"jax_cuda{version}_plugin" for version in plugins]
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name if name in known else None)
    found = doctor._unseen("cpu", "535.1")
    assert problem in found[0] and found[1] if problem else not found


def test_jax_that_does_not_start_is_told_and_not_raised(monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    row = list(doctor.devices())[-1]
    assert "Unable to initialize" in row.problem and "more" not in row.problem and row.remedy


def test_a_folder_that_cannot_be_written_to_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    row = doctor._writable("current folder", tmp_path / "new", "", "name another")
    assert row.problem == "cannot be written to" and row.remedy == "name another"


def test_it_measures_what_this_machine_does(monkeypatch):
    monkeypatch.setattr(doctor, "_SECONDS", 0.1)
    rows = {row.name: row for row in doctor.speed()}
    assert set(rows) == {"matrix product", "copy", "decoding"}
    for row in rows.values():
        assert float(row.value.split()[0]) > 0


def test_memory_is_that_of_the_machine_or_less():
    total = next(line for line in pathlib.Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < doctor._memory_gib() <= int(total.split()[1]) / 2**20
