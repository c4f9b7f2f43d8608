"""Folders, prepared data sets and generated scenes as sources of examples."""

import io
import pickle
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import outside_fraction, polygons_to_boxes
from haksnet_jax.images import reader
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.pipeline import scene_objects
from haksnet_jax.pipeline.sources import (
    FolderSource,
    SceneSource,
    TfdsSource,
    open_source,
    write_dota_folder,
)

SQUARE = "10 10 30 10 30 20 10 20"


@pytest.fixture
def folder(tmp_path):
    """Two images of 40 x 60 pixels (rows x columns), the first with two objects, the second with none."""
    for name in ("images", "labelTxt"):
        (tmp_path / name).mkdir()
    for index in range(2):
        image = np.full((40, 60, 3), (10, 100, 200), np.uint8)  # blue, green, red
        cv2.imwrite(str(tmp_path / "images" / f"P{index}.png"), image)
        (tmp_path / "labelTxt" / f"P{index}.txt").write_text(f"{SQUARE} ship 0\n{SQUARE} plane 1\n" * (1 - index))
    return tmp_path


def folder_source(folder, **kwargs):
    return FolderSource(folder / "images", folder / "labelTxt", CLASSES["dota10"], **kwargs)


def test_a_folder_gives_rgb_images_with_their_objects(folder):
    source = folder_source(folder)
    assert len(source) == 2 and source.image_ids == ["P0", "P1"] and source.has_labels and source.problems == []
    example = source[0]
    assert example["image"].shape == (40, 60, 3) and example["image"].dtype == np.uint8
    assert example["image"][0, 0].tolist() == [200, 100, 10]
    assert example["polygons"].dtype == np.float32 and example["polygons"].shape == (2, 4, 2)
    assert example["labels"].tolist() == [6, 0] and example["difficulty"].tolist() == [0, 1]
    assert source[1]["polygons"].shape == (0, 4, 2)
    assert source.num_objects.tolist() == [2, 0]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["polygons"], example["polygons"])
    with pytest.raises(IndexError):
        source[2]


def test_empty_images_are_left_out_only_when_asked_and_counted(folder):
    source = folder_source(folder, filter_empty=True)
    assert source.image_ids == ["P0"] and source.num_filtered == 1
    assert "1 more without objects left out" in source.summary()


def test_a_folder_without_labels_is_a_source_of_images(folder):
    source = FolderSource(folder / "images", None, CLASSES["dota10"])
    assert not source.has_labels and len(source) == 2 and source[0]["polygons"].shape == (0, 4, 2)


def test_missing_and_empty_folders_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        FolderSource(tmp_path / "nowhere", None, ("ship",))
    with pytest.raises(UserError, match="no_labels"):
        FolderSource(folder / "images", tmp_path / "no_labels", ("ship",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*\.jpg"):
        FolderSource(tmp_path / "empty", None, ("ship",))
    with pytest.raises(ValueError, match=r"expected for example P0\.txt"):
        FolderSource(folder / "images", tmp_path / "empty", ("ship",))
    with pytest.raises(UserError, match="'P7'"):
        folder_source(folder, image_ids=["P0", "P7"])


def test_labels_without_any_known_object_are_an_error_that_says_why(folder):
    with pytest.raises(ValueError, match="unknown_class: 2"):
        FolderSource(folder / "images", folder / "labelTxt", ("submarine",))


def test_problems_are_collected_and_counted_by_reason(folder):
    (folder / "labelTxt" / "P0.txt").write_text(
        f"{SQUARE} ship 0\n1 2 3 ship 0\n{SQUARE} tank 0\n1 1 3 1 3 2 1 2 ship 0"
    )
    (folder / "labelTxt" / "P1.txt").unlink()
    (folder / "labelTxt" / "P9.txt").write_text("")
    cv2.imwrite(str(folder / "images" / "P0.bmp"), np.zeros((4, 4, 3), np.uint8))
    source = folder_source(folder, min_side=2.0)
    reasons = sorted(problem.reason for problem in source.problems)
    expected = ["image_without_labels", "labels_without_image", "same_name", "too_few_numbers", "too_small"]
    assert reasons == [*expected, "unknown_class"]
    summary = source.summary()
    assert "P0.txt:2" in summary and "P0.txt:4" in summary and "unknown_class: 1" in summary


def test_damaged_images_are_named_before_and_in_training(folder):
    whole = (folder / "images" / "P0.png").read_bytes()
    (folder / "images" / "P0.png").write_bytes(whole[: len(whole) // 2])
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    (folder / "images" / "P1.png").write_bytes(b"no image at all")
    (folder / "images" / "P2.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "images" / "P3.jpg").write_bytes(b"")
    (folder / "images" / "P4.jpg").write_bytes(jpeg)
    source = folder_source(folder)
    found = source.check_images()
    damaged = [problem for problem in found if problem.reason == "unreadable_image"]
    assert sorted(problem.path[-6:] for problem in damaged) == ["P0.png", "P1.png", "P2.jpg", "P3.jpg"]
    assert found == source.problems[-len(found) :]
    for index, name in enumerate(["P0.png", "P1.png", "P2.jpg", "P3.jpg"]):
        with pytest.raises(ValueError, match=name):
            source[index]
    assert source[4]["image"].shape == (40, 60, 3)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp"])
def test_boxes_outside_the_image_are_found_before_training(folder, extension, decode):
    (folder / "images" / "P0.png").unlink()
    cv2.imwrite(str(folder / "images" / f"P0.{extension}"), np.zeros((40, 60, 3), np.uint8))
    lines = [f"{SQUARE} ship 0", "-10 10 10 10 10 20 -10 20 ship 0", "70 10 90 10 90 20 70 20 plane 0"]
    (folder / "labelTxt" / "P0.txt").write_text("\n".join(lines))
    found = folder_source(folder).check_images(decode=decode)
    assert [problem.reason for problem in found] == ["partly_outside", "wholly_outside"]
    assert "50.0% of the ship" in found[0].detail and "60 x 40" in found[1].detail


def encoded(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


def test_grey_transparent_and_16_bit_images_become_8_bit_rgb():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(reader.decode(encoded(grey, ".png"), "a"), np.stack([grey] * 3, -1))
    transparent = np.dstack([grey, grey + 1, grey + 2, np.zeros_like(grey)])
    np.testing.assert_array_equal(reader.decode(encoded(transparent, ".png"), "a"), transparent[..., 2::-1])
    deep = grey.astype(np.uint16) * 80  # up to 3760, so 12 bits
    expected = np.rint(deep * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(reader.decode(encoded(deep, ".png"), "a"), np.stack([expected] * 3, -1))


def test_a_jpeg_with_bytes_after_its_end_is_whole():
    jpeg = encoded(np.zeros((8, 8, 3), np.uint8), ".jpg")
    assert reader.decode(jpeg + b"\0" * 100, "a").shape == (8, 8, 3)


def test_scenes_depend_on_seed_and_index_alone():
    source = SceneSource(4, 96, seed=3)
    first = source[2]
    source[0]
    again = SceneSource(3, 96, seed=3)[2]
    for key in ("image", "polygons", "labels", "difficulty"):
        np.testing.assert_array_equal(first[key], again[key])
    assert np.any(SceneSource(4, 96, seed=4)[2]["image"] != first["image"])
    assert source.image_ids[2] == first["image_id"] == again["image_id"]


def test_objects_of_scenes_hardly_overlap_and_lie_in_the_image():
    source = SceneSource(6, (128, 192), seed=0, objects_per_scene=(5, 9))
    seen = set()
    for index in range(6):
        example = source[index]
        assert example["image"].shape == (128, 192, 3)
        assert 1 <= len(example["labels"]) <= 9
        seen.update(example["labels"].tolist())
        boxes, valid = polygons_to_boxes(example["polygons"])
        assert valid.all() and boxes[:, 3].min() > 4
        # places are refused where more than a quarter of their grid points is outside
        assert outside_fraction(example["polygons"], 192, 128).max() < 0.4
        for row, box in enumerate(boxes.tolist()):
            for other in boxes[:row].tolist():
                first, second = ((b[:2], b[2:4], np.degrees(b[4])) for b in (box, other))
                _, points = cv2.rotatedRectangleIntersection(first, second)
                shared = 0 if points is None else cv2.contourArea(cv2.convexHull(points))
                assert shared < 0.05 * min(box[2] * box[3], other[2] * other[3])
    assert len(seen) >= 4


@pytest.mark.parametrize("name", scene_objects.LOOKS)
def test_each_look_fills_its_box_and_nothing_beyond(name):
    image = np.zeros((120, 160, 3), np.uint8)
    look = scene_objects.LOOKS[name]
    length = 100.0
    width = length / np.mean(look.aspect)
    look.draw(scene_objects.Pen(image, (80.0, 60.0, length, width, 0.0)), np.random.default_rng(0))
    rows, columns = np.nonzero(image.max(axis=-1) > 20)
    # to within two pixels of 100: rounded hulls, ellipses of 24 corners, antialiasing
    assert abs(columns.min() - 30) <= 2 and abs(columns.max() - 130) <= 2, (columns.min(), columns.max())
    assert abs(rows.min() - (60 - width / 2)) <= 2 and abs(rows.max() - (60 + width / 2)) <= 2, (rows.min(), rows.max())


def test_scenes_of_unknown_classes_or_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot draw dragon"):
        SceneSource(1, class_names=("plane", "dragon"))
    with pytest.raises(ValueError, match="64 x 64"):
        SceneSource(1, 32)
    with pytest.raises(ValueError, match="objects_per_scene"):
        SceneSource(1, objects_per_scene=(5, 2))


def test_a_written_folder_reads_back(tmp_path):
    source = SceneSource(3, 96, seed=1, class_names=CLASSES["dota10"], objects_per_scene=(3, 6))
    images_dir, labels_dir = write_dota_folder(source, tmp_path)
    back = FolderSource(images_dir, labels_dir, CLASSES["dota10"])
    assert back.image_ids == source.image_ids and back.problems == []
    for index in range(3):
        np.testing.assert_array_equal(back[index]["image"], source[index]["image"])
        np.testing.assert_array_equal(back[index]["labels"], source[index]["labels"])
        # three decimals are written
        np.testing.assert_allclose(back[index]["polygons"], source[index]["polygons"], atol=6e-4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small prepared data set of three images: one object of class b, two of class a, none."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            objects = {
                "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
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
            for index, labels in enumerate([["b"], ["a", "a"], []]):
                image = np.full((20, 30 + index, 3), (1, 2, 3), np.uint8)
                polygon = np.array([1, 1, 9, 1, 9, 5, 1, 5], np.float32) + index
                objects = [{"polygon": polygon, "label": label, "difficulty": index} for label in labels]
                data = io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
                yield index, {"image": data, "image_id": f"P{index}", "objects": objects}

    builder = Tiny(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_a_prepared_data_set_is_read_by_folder_with_labels_matched_by_name(prepared):
    source = TfdsSource(prepared, "train", ("b", "c", "a"))
    assert len(source) == 3 and sorted(source.image_ids) == ["P0", "P1", "P2"]
    examples = {source[index]["image_id"]: source[index] for index in range(3)}
    assert examples["P0"]["labels"].tolist() == [0] and examples["P1"]["labels"].tolist() == [2, 2]
    assert examples["P2"]["polygons"].shape == (0, 4, 2) and examples["P2"]["image"].shape == (20, 32, 3)
    assert examples["P1"]["image"][0, 0].tolist() == [3, 2, 1]
    assert examples["P1"]["difficulty"].tolist() == [1, 1]
    assert examples["P1"]["polygons"][0].tolist() == [[2, 2], [10, 2], [10, 6], [2, 6]]
    again = pickle.loads(pickle.dumps(source))
    assert again[1]["image_id"] == source[1]["image_id"]


def test_a_prepared_data_set_without_its_empty_images(prepared):
    source = TfdsSource(prepared, "train", filter_empty=True)
    assert source.class_names == ("a", "b") and len(source) == 2
    assert sorted(source[index]["image_id"] for index in range(2)) == ["P0", "P1"] == sorted(source.image_ids)


def test_a_prepared_data_set_that_does_not_fit_is_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match="no split 'test'"):
        TfdsSource(prepared, "test")
    with pytest.raises(ValueError, match="not asked for: b"):
        TfdsSource(prepared, "train", ("a",))
    with pytest.raises(ValueError, match="no prepared data set"):
        TfdsSource("nothing_here", "train", data_dir=str(tmp_path))


def test_a_source_is_opened_by_kind_and_settings(folder, prepared):
    places = {"images_dir": folder / "images", "labels_dir": folder / "labelTxt"}
    opened = [
        open_source("folder", CLASSES["dota10"], filter_empty=True, **places),
        open_source("tfds", ("a", "b"), filter_empty=True, directory=prepared, split="train"),
        open_source("scenes", ("plane", "ship"), filter_empty=True, num_scenes=3, size=64, seed=1),
    ]
    assert [type(source) for source in opened] == [FolderSource, TfdsSource, SceneSource]
    assert [len(source) for source in opened] == [1, 2, 3] == [len(source.image_ids) for source in opened]
    for source in opened:
        assert str(len(source)) in source.summary()
        for index in range(len(source)):
            example, labels = source[index], source.labels(index)
            assert labels.keys() == {"polygons", "labels", "difficulty"}
            for name, value in labels.items():
                np.testing.assert_array_equal(value, example[name])
        with pytest.raises(IndexError):
            source.labels(len(source))
    with pytest.raises(ValueError, match="among folder, tfds, scenes, found 'zip'"):
        open_source("zip", ("a",))
    with pytest.raises(ValueError, match=r"'scenes' do not fit.*images_dir"):
        open_source("scenes", ("plane",), num_scenes=1, **places)


@pytest.mark.parametrize("names", [("ship",), ("vehicle",), ("harbor", "storage-tank")])
def test_scenes_of_few_classes_hold_objects(names):
    source = SceneSource(8, 96, seed=5, class_names=names, objects_per_scene=(1, 3))
    counts = [len(source.labels(index)["labels"]) for index in range(8)]
    assert max(counts) <= 3 and np.mean(np.array(counts) > 0) >= 0.7, counts


def test_worker_processes_need_neither_jax_nor_tensorflow():
    code = "import sys, haksnet_jax.pipeline.sources; print({'jax', 'flax', 'tensorflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"set\(\)\s*", result.stdout), result.stdout


def test_most_labels_of_unknown_classes_are_an_error_unless_allowed(folder):
    (folder / "labelTxt" / "P0.txt").write_text("".join(f"{SQUARE} {name} 0\n" for name in ("ship", "tank", "car")))
    with pytest.raises(UserError, match=r"of \d+ labels \(.* %\) are left out.*tank \(1\).*allow_unknown_classes"):
        FolderSource(folder / "images", folder / "labelTxt", ("ship",))
    source = FolderSource(folder / "images", folder / "labelTxt", ("ship",), allow_unknown_classes=True)
    assert "warning: " in source.summary() and "tank (1)" in source.summary()


def test_a_label_file_that_cannot_be_read_is_refused(folder):
    (folder / "labelTxt" / "P0.txt").write_bytes(f"{SQUARE} ship 0".encode("utf-16"))
    with pytest.raises(UserError, match=r"P0\.txt: .*UTF-16"):
        folder_source(folder)


def test_labels_in_other_formats_are_read_as_they_are(folder):
    for path in (folder / "labelTxt").iterdir():
        path.write_text("1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("names: [plane, ship]\n")
    source = FolderSource(folder / "images", folder / "labelTxt", ("ship", "plane"), format="yolo-obb")
    height, width = source[0]["image"].shape[:2]
    np.testing.assert_allclose(source[0]["polygons"][0][2], [0.75 * width, 0.5 * height])
    assert source[0]["labels"].tolist() == [0]  # "ship", whose index in data.yaml is another one
