"""Reports of the other tasks; what they count is compared with scikit-learn, and with what was counted by hand."""

import json
import re

import numpy as np
import pytest
from report_page import SECTIONS, Elements, console_errors, find_browser
from sklearn.metrics import average_precision_score

from haksnet_jax.pipeline import dense_sources
from haksnet_jax.results import class_report, confusion, page, pixel_report
from haksnet_jax.results.dense_maps import CHANGE_COLOURS, colours_of
from haksnet_jax.results.pixel_errors import PixelErrors


def errors_of(labels, predicted, num_classes=3, **options):
    errors = PixelErrors([f"c{i}" for i in range(num_classes)], **options)
    errors.add("a", np.asarray(labels, np.int32), np.asarray(predicted, np.uint8))
    return errors


def test_regions_are_found_where_half_of_them_is():
    labels, predicted = np.zeros((64, 64)), np.zeros((64, 64))
    labels[2:8, 2:8] = labels[20:40, 20:40] = 1  # sizes 6 and 20: bins 0 and 2
    predicted[2:8, 2:5] = 1  # half of the first, none of the second
    predicted[50:60, 2:12] = 1  # size 10, false: bin 1
    predicted[60:63, 60:63] = 1  # nine pixels: a speck
    errors = errors_of(labels, predicted, of_interest=(1,))
    assert errors.found.tolist() == [1, 0, 0, 0, 0, 0, 0] and errors.missed.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert errors.right.tolist() == [1, 0, 0, 0, 0, 0, 0] and errors.false.tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_errors_are_counted_by_their_distance_from_a_border():
    labels = np.zeros((40, 40))
    labels[:, 20:] = 1
    predicted = labels.copy()
    predicted[:, 20] = 0  # at the border
    predicted[:, 0] = 1  # 19 pixels from it
    errors = errors_of(labels, predicted)
    assert errors.near_wrong.tolist() == [40, 0, 0, 0, 40, 0] and errors.near_all.sum() == 1600
    labels[0] = -1  # a border of what has no label counts too; its own pixels do not
    assert errors_of(labels, predicted).near_all.sum() == 1560
    assert errors_of(np.zeros((8, 8)), np.zeros((8, 8))).near_all.tolist() == [0, 0, 0, 0, 0, 64]


def test_precision_over_recall_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, (50, 60))
    sums = rng.integers(0, 256, (3, 50, 60)).astype(np.float32)
    sums = np.stack([sums[0], (255 - sums[0]) * sums[1] / 255, (255 - sums[0]) * (1 - sums[1] / 255)])
    errors = PixelErrors("abc")
    errors.add_sums(labels[:20].astype(np.int32), 7 * sums[:, :20])  # in parts, and whatever their sum is
    errors.add_sums(labels[20:].astype(np.int32), sums[:, 20:])
    known = labels >= 0
    for label in range(3):
        levels = (sums[label] / sums.sum(axis=0) * 255).round()[known]
        expected = average_precision_score(labels[known] == label, levels)
        assert errors.average_precision(label) == pytest.approx(expected, abs=1e-9)
    assert PixelErrors("ab").average_precision(0) is None


def pixels_subject(title="run", seed=0, change=False, size=96, num=10):
    """Generated scenes, predicted with errors: each tenth block of 8 pixels has another class."""
    source = (dense_sources.PairScenes if change else dense_sources.MaskScenes)(num, size, seed)
    names = source.class_names
    errors = PixelErrors(names, (1,) if change else None)
    rng, matrix, predicted = np.random.default_rng(seed), 0, {}
    for index, name in enumerate(source.image_ids):
        mask = source[index]["mask"]
        blocks = rng.random((size // 8, size // 8)) < 0.02 * index
        noise = np.kron(blocks, np.ones((8, 8), bool))
        predicted[name] = np.where(noise, (mask + 1) % len(names), mask).astype(np.uint8)
        matrix = matrix + errors.add(name, mask.astype(np.int32), predicted[name])
        errors.add_sums(mask.astype(np.int32), 0.8 * np.eye(len(names))[predicted[name]].transpose(2, 0, 1) + 0.02)

    def pixels(name):
        example = source[source.image_ids.index(name)]
        return pixel_report.Pixels({k: example[k] for k in source.image_names}, example["mask"], predicted[name])

    history = [{"step": 1, "learning_rate": 1.0, "loss": 2.0, "accuracy": 0.4}, {"step": 9, "mean_iou": 0.5}]
    kind = confusion.ChangeConfusion if change else confusion.Confusion
    return pixel_report.Subject(
        title, kind(matrix, names), errors, pixels, CHANGE_COLOURS if change else colours_of(names),
        {"steps": 9, "peak_memory_gib": None, "best_mean_iou": 0.5}, history, ("loss", "accuracy", "mean_"),
        ["one <warning>"],
    )  # fmt: skip


NAMES = ("sea", "</script><b>land", "town", "empty")


def images_subject(title="run", seed=0, num=60):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet((0.4, 0.4, 0.4, 0.1), num).astype(np.float32)
    classes = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    labels = np.where(rng.random(num) < 0.7, classes[:, 0] % 3, rng.integers(0, 3, num))
    pictures = rng.integers(0, 255, (num, 64, 64, 3), np.uint8)
    return class_report.Subject(
        title, NAMES, [f"i{n}.jpg" for n in range(num)], labels, np.take_along_axis(scores, classes, 1), classes,
        lambda index: pictures[index], {"steps": 9}, [{"step": 9, "top1": 0.5, "top5": 1.0}], ("loss", "top"), [],
    )  # fmt: skip


def test_the_classes_precision_is_that_of_scikit_learn():
    subject = images_subject()
    dense = np.zeros((60, 4))
    np.put_along_axis(dense, subject.classes, subject.scores, 1)
    curves = class_report._curves_of(subject)
    for label in range(3):
        expected = average_precision_score(subject.labels == label, dense[:, label])
        assert class_report._average_precision(curves[label]) == pytest.approx(expected, abs=1e-9)
    assert class_report._average_precision(curves[3]) is None


def without_images(text):
    return re.sub(r"base64,[^\")]*", "", text)


@pytest.mark.parametrize("change", [False, True])
def test_a_report_of_pixels_has_every_section(change, tmp_path):
    subject = pixels_subject(change=change)
    size = pixel_report.write_report(tmp_path / "r.html", [subject])
    text = (tmp_path / "r.html").read_text()
    elements = Elements(text)
    assert size == len(text.encode()) <= page.MAX_BYTES
    assert [name for tag, name in elements.seen if tag == "section"] == ["card", "curves", *SECTIONS[1:]]
    assert elements.count("figure") == 8 and elements.count("img", "mask") == 8 * 3
    assert elements.count("div", "panel") == 8 * (5 if change else 4) and elements.count("input", "opacity") == 1
    assert all(link.startswith("data:") for link in elements.links) and "http" not in text
    assert not re.search(r"\b(None|nan)\b", without_images(text))
    assert "peak memory" not in text and "one &lt;warning&gt;" in text
    assert ("F1 of change in %" in text) == change and "50.00 %" in text
    worst, _ = subject.errors.ranked()
    assert text.index(f"{worst[0][0]}: among the worst, {100 * worst[0][1]:.2f} %") < text.index(worst[1][0])


def test_a_report_of_images_has_every_section(tmp_path):
    class_report.write_report(tmp_path / "r.html", [images_subject()])
    text = (tmp_path / "r.html").read_text()
    elements = Elements(text)
    assert [name for tag, name in elements.seen if tag == "section"] == ["card", "curves", *SECTIONS[1:]]
    assert elements.count("figure") == 8 and elements.count("div", "bar") + elements.count("div", "bar own") == 8 * 3
    assert "</script><b>land" not in text and "1 class has none" in text
    assert not re.search(r"\b(None|nan)\b", without_images(text))


@pytest.mark.parametrize(
    ("module", "make"), [(pixel_report, pixels_subject), (class_report, images_subject)], ids=["pixels", "images"]
)
def test_two_runs_are_shown_side_by_side(module, make, tmp_path):
    module.write_report(tmp_path / "r.html", [make("a"), make("b", seed=1)])
    elements = Elements((tmp_path / "r.html").read_text())
    assert elements.count("section", "comparison") == 1 and elements.count("div", "column") == 2


def test_masks_and_images_are_reduced_until_the_file_is_small_enough(tmp_path, monkeypatch):
    subject = pixels_subject(size=256)
    monkeypatch.setattr(page, "MAX_BYTES", 200_000)
    monkeypatch.setattr(page, "_SIDES", (256, 64))
    assert pixel_report.write_report(tmp_path / "r.html", [subject]) <= 200_000
    assert Elements((tmp_path / "r.html").read_text()).count("figure") == 8


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no chromium here")
@pytest.mark.parametrize("make", [pixels_subject, images_subject], ids=["pixels", "images"])
def test_a_browser_shows_them_without_an_error(make, tmp_path):
    module = pixel_report if make is pixels_subject else class_report
    module.write_report(tmp_path / "r.html", [make()])
    text = (tmp_path / "r.html").read_text()
    # The slider at its end lets nothing but colours be seen; the page says in its title what it found.
    script = (
        "<script>const s=document.querySelector('.opacity');if(s){s.value=1;s.dispatchEvent(new Event('input'))}"
        "document.title=JSON.stringify([...document.querySelectorAll('img')].filter(i=>!i.naturalWidth).length)+'/'+"
        "[...document.querySelectorAll('.mask')].filter(m=>m.style.opacity=='1').length</script></body>"
    )
    (tmp_path / "r.html").write_text(text.replace("</body>", script))
    errors, dom = console_errors(tmp_path / "r.html", tmp_path / "profile")
    assert not errors
    assert f"<title>{json.dumps(0)}/{24 if make is pixels_subject else 0}</title>" in dom
