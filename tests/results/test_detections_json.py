"""detections.json: what is written is read back, and every wrong value is named with its place."""

import copy
import json

import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.results import detections_json, predictions

WHOLE = {
    "classes": ["ship", "plane"],
    "images": [
        {
            "image": "folder/a.b.png",
            "width": 10,
            "height": 20,
            "detections": [
                {"label": "plane", "score": 0.5, "box": [5, 3.5, 8, 5, 0.0]},
                {"label": "plane", "score": 0.25, "box": [5, 9.5, 8, 5, 0.1]},
            ],
        },
        {"image": "c.tif", "detections": []},
    ],
}


def read(tmp_path, content):
    path = tmp_path / "d.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return detections_json.read(path)


def test_what_is_written_is_read_back(tmp_path):
    found = {"boxes": np.array([[5, 3.5, 8, 5, 0.25]]), "scores": np.array([0.5]), "labels": np.array([1])}
    nothing = {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    entries = [("a.png", 10, 20, found), ("b.png", 30, 40, nothing)]
    assert detections_json.write(tmp_path / "d.json", entries, ("ship", "plane")) == 1
    by_image, names, listed = detections_json.read(tmp_path / "d.json")
    assert names == ("ship", "plane") and listed and list(by_image) == ["a", "b"]
    np.testing.assert_array_equal(by_image["a"]["boxes"], found["boxes"].astype(np.float32))
    assert by_image["a"]["labels"].tolist() == [1] and by_image["b"]["size"] == (30, 40)
    found["scores"] = np.array([np.nan])
    with pytest.raises(ValueError, match="not finite"):
        detections_json.write(tmp_path / "d.json", [("a.png", 1, 1, found)], ("a", "b"))


def test_without_classes_they_are_those_that_occur(tmp_path):
    by_image, names, listed = read(tmp_path, {"images": WHOLE["images"]})
    assert names == ("plane",) and not listed and by_image["a.b"]["labels"].tolist() == [0, 0]
    assert by_image["c"]["size"] is None and by_image["c"]["boxes"].shape == (0, 5)


def changed(*place, value):
    content = copy.deepcopy(WHOLE)
    *parents, last = place
    node = content
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return content


_DETECTION = ("images", 0, "detections", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(*_DETECTION, "box", value=[1, 2, 3, 4]), r"images\[0\]\.detections: \[1\]\.box is a list of 4"),
        (changed(*_DETECTION, "box", value=[1, 2, 3, "4", 5]), r"\[1\]\.box\[3\] is '4', expected a number"),
        (changed(*_DETECTION, "box", 0, value=1e9), r"\[1\]\.box\[0\] is 1000000000\.0, expected a number between"),
        (changed(*_DETECTION, "label", value=None), r"\[1\]\.label is None, expected the name of a class"),
        (changed(*_DETECTION, "label", value=...), r"\[1\]\.label is missing"),
        (changed(*_DETECTION, "score", value=1.5), r"\[1\]\.score is 1\.5, expected a number from 0 to 1"),
        (changed(*_DETECTION, "score", value=True), r"\[1\]\.score is True"),
        (changed(*_DETECTION, value=7), r"\[1\] is 7, expected an object"),
        (changed(*_DETECTION, "label", value="boat"), r"images\[0\] has a detection of 'boat', which is not among"),
        (changed("images", 0, "width", value=0), r"images\[0\]: width is 0"),
        (changed("images", 0, "width", value=2.5), r"images\[0\]: width is 2\.5"),
        (changed("images", 1, "image", value="x/a.b.jpg"), "two images are called 'a.b'"),
        (changed("images", value={}), "images is an object of 0 keys, expected a list of images"),
        (changed("classes", value=["a", "a"]), "names a class twice"),
        ([], "its content is a list of 0, expected an object"),
        (json.dumps(changed("images", 0, "width", value=1)).replace('"width": 1', '"width": Infinity'), "Infinity"),
        ('{"images": [{"image": "a", "detections": [{"score": NaN}]}]}', "NaN"),
        ("{", "not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"d\.json.*{message}"):
        read(tmp_path, content)


def test_classes_that_are_asked_for_must_hold_all_that_occur(tmp_path):
    read(tmp_path, WHOLE)
    found = predictions.read(tmp_path / "d.json", ("plane", "boat", "ship"))
    assert found.by_image["a.b"]["labels"].tolist() == [0, 0]
    with pytest.raises(UserError, match="not among the 1 given: 2 of 'plane'"):
        predictions.read(tmp_path / "d.json", ("ship",))
