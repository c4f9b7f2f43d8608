"""The table of finished runs."""

import json

import cv2
import pytest

from benchmarks import compare_runs


def write_run(folder, *, seed, curve, arguments=None, config="ships"):
    """A finished run whose AP50 has the values of `curve` at steps 100, 200, ..."""
    folder.mkdir()
    figures = [{"AP50_voc07": a - 0.1, "AP50_voc12": a, "AP75_voc12": a / 2, "AP50:95": a / 4} for a in curve]
    facts = {
        "config": config,
        "seed": seed,
        "steps": 100 * len(curve),
        "global_batch": 4,
        "commit": "abc",
        "hardware": "x",
    }
    facts |= {"minutes": 1.5, "images_per_second": 20.0}
    (folder / "result.json").write_text(json.dumps({"facts": facts, "mean": figures[-1]}))
    records = [{"step": 50, "loss": 2.0}]
    records += [{"step": 100 * i, "loss": 1.0 / i, **one} for i, one in enumerate(figures, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if arguments is not None:
        (folder / "learn.json").write_text(json.dumps({"arguments": arguments}))
        (folder / "scores.json").write_text(json.dumps({"mean": figures[-1]}))
    return folder


def test_seeds_are_summed_up_and_changed_runs_stand_apart(tmp_path, capsys):
    changed = "--config=configs/ships.py --config.seed=2 --config.num_epochs=9"
    folders = [
        write_run(tmp_path / "a", seed=0, curve=(0.5, 0.9, 0.8), arguments="--config=configs/ships.py"),
        write_run(tmp_path / "b", seed=1, curve=(0.5, 0.6, 0.7), arguments="--config=configs/ships.py --config.seed=1"),
        write_run(tmp_path / "c", seed=2, curve=(0.5, 0.4, 0.3), arguments=changed),
        write_run(tmp_path / "d", seed=3, curve=(0.2,), config="planes"),
    ]
    picture = tmp_path / "curves.png"
    compare_runs.main([str(folder) for folder in folders] + [f"--figure={picture}"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert len({len(row) for row in rows}) == 1
    column = rows[0].index("AP50 (VOC12)")
    assert [(row[0], row[1], row[column]) for row in rows[2:]] == [
        ("ships", "0", "0.800"),
        ("ships", "1", "0.700"),
        ("ships", "2 seeds", "**0.750** (0.700 to 0.800)"),
        ("ships num_epochs=9", "2", "0.300"),
        ("planes", "3", "0.200"),
    ]
    assert rows[2][-2:] == ["0.900 (200)", "0.800"] and rows[-1][-2:] == ["0.200 (100)", ""]
    assert cv2.imread(str(picture)).std() > 5


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=rf"{tmp_path.name} has no result.json"):
        compare_runs.main([str(tmp_path)])
    folder = write_run(tmp_path / "a", seed=0, curve=(0.5,))
    (folder / "result.json").write_text(json.dumps({"facts": {"config": "ships"}}))
    with pytest.raises(SystemExit, match="not evaluated"):
        compare_runs.main([str(folder)])
