"""A prepared data set is data: what its description names is never imported."""

import json
import random
import shutil
import sys

import cv2
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import prepared
from haksnet_jax.pipeline.sources import TfdsSource

tfds = pytest.importorskip("tensorflow_datasets")


class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        objects = {
            "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=["ship"]),
            "difficulty": tfds.features.Scalar(np.int32),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "image_id": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        yield "a", {"image": image, "image_id": "a", "objects": []}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    builder = Small(data_dir=str(tmp_path_factory.mktemp("data")), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "small" / "1.2.0")


def test_a_data_set_is_found_by_its_folder_and_by_its_name(folder, tmp_path):
    for name in (folder, "small", "small:1.2.0"):
        assert len(TfdsSource(name, "train", data_dir=tmp_path)) == 1
    for name in ("small:1.3.0", "../small", "smal", "os"):
        with pytest.raises(UserError, match="no prepared data set"):
            TfdsSource(name, "train", data_dir=tmp_path)


def _nodes(value):
    """Every object in JSON."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(part)


def _with_class(node, name):
    if "pythonClassName" in node:
        node["pythonClassName"] = name


CHANGES = {
    "another class": lambda node: _with_class(node, "planted.Text"),
    "a class of TFDS that is none of ours": lambda node: _with_class(
        node, "tensorflow_datasets.core.features.dataset_feature.Dataset"
    ),
    "the other spelling of the key": lambda node: node.update(python_class_name="planted.Text"),
    "the older form": lambda node: node.update(type="planted.Text", content={}),
    "the older form with a message": lambda node: node.update(proto_cls="planted.Text"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_module_that_a_data_set_names_is_imported(change, folder, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    text = (folder / "features.json").read_text()
    tried = 0
    for place in range(len(list(_nodes(json.loads(text))))):
        features = json.loads(text)
        node = list(_nodes(features))[place]
        CHANGES[change](node)
        if features == json.loads(text):
            continue
        (folder / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=r"features\.json: .*(expected|unknown key|is missing)"):
            TfdsSource(folder, "train")
        tried += 1
    assert tried > 5 and not (tmp_path / "it-ran").exists() and "planted" not in sys.modules


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fileFormat": "riegeli"}, "fileFormat is 'riegeli', expected array_record"),
        ({"splits": [{"name": "train", "filepathTemplate": "/etc/{SPLIT}"}]}, r"splits\[0\]\.filepathTemplate is"),
        ({"splits": {}}, "splits is an object of 0 keys"),
        ({"name": "../x"}, "name is"),
    ],
)
def test_a_description_that_points_elsewhere_is_refused(change, expected, folder):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"dataset_info\.json: {expected}"):
        prepared.open_builder(folder)


def test_a_missing_or_broken_description_is_named(folder):
    for content, words in (
        (b"{", "not valid JSON"),
        (b"[]", "expected the description of a feature"),
        (None, "missing"),
    ):
        path = folder / "features.json"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=rf"features\.json.*{words}"):
            prepared.open_builder(folder)


def test_damaged_files_of_records_are_one_sentence(folder):
    """Bytes anywhere in them: a sentence, or the same image as before."""
    path = next(folder.glob("*array_record*"))
    whole, draw = path.read_bytes(), random.Random(0)
    before = TfdsSource(folder, "train")[0]
    refused = 0
    for place in (*range(0, 200, 10), *(draw.randrange(len(whole)) for _ in range(20)), len(whole) - 5, None):
        data = bytearray(whole)
        if place is None:
            del data[1000:]
        else:
            data[place] ^= 0x10
        path.write_bytes(data)
        try:
            after = TfdsSource(folder, "train")[0]
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and "cannot be read" in str(error)
        else:
            np.testing.assert_array_equal(after["image"], before["image"])
    assert refused > 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"objects": {"polygon": [[0.0] * 8], "label": [7], "difficulty": [0]}}, "of other classes"),
        ({"objects": {"polygon": [[0.0] * 8], "label": [-1], "difficulty": [0]}}, "of other classes"),
        ({"objects": {"polygon": [[np.nan] * 8], "label": [0], "difficulty": [0]}}, "corners that are not finite"),
        ({"objects": {"polygon": [[0.0] * 8] * 2, "label": [0], "difficulty": [0]}}, "different counts"),
        ({"objects": {"polygon": [[0.0] * 7], "label": [0], "difficulty": [0]}}, "has no objects of polygon"),
        ({"objects": {}}, "has no objects of polygon"),
        ({"image_id": b"\xff"}, "no image_id that is text"),
        ({"image": b"no image"}, "record 0, image a"),
    ],
)
def test_records_that_hold_something_else_are_one_sentence(change, expected, folder):
    source = TfdsSource(folder, "train")
    record = {**source._records[0], **change}
    source._records = [record]
    with pytest.raises(UserError, match=expected) as raised:
        source[0]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": "1.NaN.0"}, "version is '1.NaN.0', expected a version of three numbers"),
        ({"version": ""}, "version is ''"),
        ({"splits": [{"name": "\x1b[2J"}]}, r"splits\[0\]\.name is '\\x1b\[2J'"),
        ({"moduleName": 1.5}, "its description cannot be read"),
        ({"9" * 400: 1}, "its description cannot be read"),
    ],
)
def test_what_tfds_cannot_read_in_a_description_is_one_sentence(change, expected, folder):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=expected) as raised:
        prepared.open_builder(folder)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1000


_OF_TFDS = "tensorflow_datasets.core.features"
_TEXT = {"pythonClassName": f"{_OF_TFDS}.text_feature.Text", "text": {}}
_LABEL = {"pythonClassName": f"{_OF_TFDS}.class_label_feature.ClassLabel", "classLabel": {}}


@pytest.mark.parametrize(
    ("place", "change"), [("objects", _TEXT), ("objects", _LABEL), ("label", _TEXT), ("", _TEXT), ("", _LABEL)]
)
def test_features_of_other_kinds_are_one_sentence(change, place, folder, capsys):
    """They are names of the right features, in an allowed class that has nothing of what is asked of them."""
    path = folder / "features.json"
    features = json.loads(path.read_text())
    for node in list(_nodes(features)):
        if place in node:
            node[place] = change
    path.write_text(json.dumps(change if not place else features))
    with pytest.raises(UserError):
        TfdsSource(folder, "train")
    assert capsys.readouterr().out == ""
