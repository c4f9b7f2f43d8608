"""The report: one file, complete, small, with everything escaped; and in a browser, where there is one."""

import json

import numpy as np
import pytest
from report_page import SECTIONS, Elements, console_errors, find_browser

from haksnet_jax.cli import program, reporting
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels.dota import format_label_line
from haksnet_jax.results import charts, detections_json, page, report, visualize

NAMES = ("ship", "</script><b>plane")


def subject(title="run", seed=0, history=(), pixels=96):
    rng = np.random.default_rng(seed)
    detections, labels, pictures = {}, {}, {}
    for number in range(12):
        boxes = np.stack([rng.uniform(*pair, 5) for pair in ((9, 80), (9, 80), (10, 24), (5, 9), (-1.5, 1.5))], -1)
        kinds = rng.integers(0, 2, 5)
        labels[f"i{number}"] = {
            "polygons": boxes_to_corners(boxes), "labels": kinds, "difficulty": np.zeros(5, int),
        }  # fmt: skip
        moved = boxes + rng.normal(0, 1.5, (5, 5)) * [1, 1, 1, 0.5, 0.1]
        detections[f"i{number}"] = {
            "boxes": moved, "scores": rng.uniform(0.1, 1, 5), "labels": kinds, "size": (96, 96),
        }  # fmt: skip
        pictures[f"i{number}"] = rng.integers(0, 255, (pixels, pixels, 3), np.uint8)
    facts = {"config": "demo", "peak_memory_gib": None, "steps": 20}
    return report.Subject(title, NAMES, detections, labels, pictures.get, facts, list(history), ["one <warning>"])


def test_a_report_is_one_file_with_every_section(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "AP50_voc12": 0.5}]
    size = report.write_report(tmp_path / "r.html", [subject(history=history)])
    text = (tmp_path / "r.html").read_text()
    elements = Elements(text)
    assert size == len(text.encode()) <= page.MAX_BYTES
    assert [name for tag, name in elements.seen if tag == "section"] == ["card", "curves", *SECTIONS[1:]]
    assert (
        elements.count("figure") == 8
        and elements.count("polygon", "label") == 8 * 5
        and elements.count("input", "score") == 1
    )
    assert all(link.startswith("data:") for link in elements.links) and "http" not in text
    assert "<b>plane" not in text.replace("&lt;b&gt;plane", "") and "one &lt;warning&gt;" in text
    assert "None" not in text and "peak memory" not in text


def test_two_are_shown_side_by_side(tmp_path):
    report.write_report(tmp_path / "r.html", [subject("a"), subject("b", seed=1)])
    elements = Elements((tmp_path / "r.html").read_text())
    assert elements.count("section", "comparison") == 1 and elements.count("div", "column") == 2
    assert elements.count("section", "images") == 2


def test_large_images_are_reduced_until_the_file_is_small_enough(tmp_path, monkeypatch):
    one = subject(pixels=900)  # noise, which compresses worst
    monkeypatch.setattr(page, "MAX_BYTES", 600_000)
    assert report.write_report(tmp_path / "r.html", [one]) <= 600_000
    assert Elements((tmp_path / "r.html").read_text()).count("figure") == 8
    monkeypatch.setattr(page, "MAX_BYTES", 60_000)
    report.write_report(tmp_path / "r.html", [one])
    assert Elements((tmp_path / "r.html").read_text()).count("figure") == 0


def test_lines_of_metrics_that_are_cut_off_are_left_out():
    lines = ['{"step": 1, "loss": 2.0}', "[]", '{"loss": 1}', '{"step": 2, "lo']
    assert page.read_history(lines) == [{"step": 1, "loss": 2.0}]


def test_charts_leave_out_what_cannot_be_drawn():
    svg = charts.lines({"a": ([0, 1, 2], [1.0, np.nan, 100.0]), "b": ([], [])}, x_label="x", y_label="y", log=True)
    assert svg.count("<polyline") == 1 and "nan" not in svg and ">10<" in svg and "<span>" in svg
    assert "<polyline" not in charts.lines({}, x_label="x", y_label="y")
    bars = charts.stacked_bars(["a", "b"], {"one": [2, 0], "two": [1, 4]}, x_label="x", y_label="y")
    assert bars.count("<rect") == 3


@pytest.fixture
def files(tmp_path):
    one = subject()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, truth in one.labels.items():
        visualize.write_image(tmp_path / "images" / f"{name}.png", one.picture(name))
        rows = zip(truth["polygons"], truth["labels"], strict=True)
        lines = [format_label_line(polygon, ("ship", "plane")[label]) for polygon, label in rows]
        (tmp_path / "labels" / f"{name}.txt").write_text("\n".join(lines))
    entries = ((f"{name}.png", 96, 96, found) for name, found in one.detections.items())
    detections_json.write(tmp_path / "detections.json", entries, ("ship", "plane"))
    return tmp_path


def test_the_command_reports_predictions_in_files(files, capsys):
    command = ["report", f"--predictions={files / 'detections.json'}", f"--labels={files / 'labels'}"]
    output = files / "made" / "r.html"
    assert program.main([*command, f"--images={files / 'images'}", f"--output={output}"]) == 0
    elements = Elements(output.read_text())
    assert [name for tag, name in elements.seen if tag == "section"] == SECTIONS and elements.count("figure") == 8
    assert program.main([*command, f"--compare={files}", f"--output={output}"]) == 0
    assert "The images are not at hand." in output.read_text()
    assert program.main(["report", f"--predictions={files}"]) == 2
    assert "--predictions needs --labels" in capsys.readouterr().err


def test_the_card_of_a_run_is_part_of_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "best").mkdir()
    assert reporting.facts_of(tmp_path / "best") == {}
    (tmp_path / "result.json").write_text(json.dumps({"facts": {"steps": 3, "odd": [1]}}))
    assert reporting.facts_of(tmp_path / "best") == {"steps": 3}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        reporting.facts_of(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no chromium here")
def test_a_browser_shows_it_without_an_error(tmp_path):
    report.write_report(tmp_path / "r.html", [subject()])
    text = (tmp_path / "r.html").read_text()
    # The slider at its end hides every detection; the page says in its title what it then shows.
    check = (
        "<script>const s=document.querySelector('.score');s.value=1;s.dispatchEvent(new Event('input'));"
        "document.title=document.querySelectorAll('polygon.detection:not(.hidden)').length+'/'+"
        "document.querySelectorAll('polygon.detection').length</script></body>"
    )
    (tmp_path / "r.html").write_text(text.replace("</body>", check))
    errors, dom = console_errors(tmp_path / "r.html", tmp_path / "profile")
    assert not errors
    assert "<title>0/40</title>" in dom
