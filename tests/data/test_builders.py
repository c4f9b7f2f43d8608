"""TFDS builders, on small generated data sets in the formats of the releases."""

import json
import math
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from haksnet_jax.cli import build as build_command
from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.images import reader
from haksnet_jax.labels import classes
from haksnet_jax.pipeline import sources
from haksnet_jax.preparation import building, records
from haksnet_jax.preparation.data_sets import dior_r, dota, fair1m, hrsc2016, hrsid, ssdd


def build(arguments):
    """The command `haksnet build`. Args: its arguments. Returns: exit status."""
    return program.main(["build", *arguments])


SQUARE = np.array([[10, 10], [30, 10], [30, 20], [10, 20]], np.float32)


def write_image(path, rows=40, columns=50, value=None):
    """Writes an image of noise (or of one value) and returns its pixels as RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem)).integers(0, 256, (rows, columns, 3), np.uint8)
    if value is not None:
        pixels[:] = value
    assert cv2.imwrite(str(path), pixels)
    return pixels[..., ::-1]


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def built(made, source, split="train"):
    """Builds a data set and opens one split of it."""
    return sources.TfdsSource(records.prepare(made, source), split)


def hrsc_xml(cx, cy, w, h, angle):
    return f"""<HRSC_Image>
  <Img_ID>100000001</Img_ID>
  <Annotated>1</Annotated>
  <HRSC_Objects>
    <HRSC_Object>
      <Class_ID>100000013</Class_ID>
      <difficult>1</difficult>
      <mbox_cx>{cx}</mbox_cx>
      <mbox_cy>{cy}</mbox_cy>
      <mbox_w>{w}</mbox_w>
      <mbox_h>{h}</mbox_h>
      <mbox_ang>{angle}</mbox_ang>
    </HRSC_Object>
  </HRSC_Objects>
</HRSC_Image>
"""


def write_hrsc(source):
    for split, name in (("train", "100000001"), ("val", "100000002"), ("test", "100000003")):
        write_image(source / f"FullDataSet/AllImages/{name}.bmp")
        write_text(source / f"FullDataSet/Annotations/{name}.xml", hrsc_xml(25, 20, 30, 8, -0.5))
        write_text(source / f"ImageSets/{split}.txt", f"{name}\n")
    write_image(source / "FullDataSet/AllImages/100000004.bmp")  # an image that no split lists


def test_hrsc2016_boxes_are_turned_clockwise_by_their_angle(tmp_path):
    write_hrsc(tmp_path)
    source = built(hrsc2016.Hrsc2016(data_dir=tmp_path / "out"), tmp_path)
    example = source[0]
    boxes, _ = polygons_to_boxes(example["polygons"])
    # 1e-4: corners were stored in float32
    np.testing.assert_allclose(boxes, [[25, 20, 30, 8, -0.5]], atol=1e-4)
    assert example["difficulty"].tolist() == [1]
    pixels = cv2.imread(str(tmp_path / "FullDataSet/AllImages/100000001.bmp"))
    np.testing.assert_array_equal(example["image"], pixels[..., ::-1])
    assert source.image_ids == ["100000001"]
    both = sources.TfdsSource(next((tmp_path / "out").glob("hrsc2016/*")), "train+val")
    assert both.image_ids == ["100000001", "100000002"]
    with pytest.raises(ValueError, match=r"has no split 'train\+vali'; its splits: train, val, test"):
        sources.TfdsSource(next((tmp_path / "out").glob("hrsc2016/*")), "train+vali")


def test_dior_r_corners_and_spellings(tmp_path):
    text = """<annotation>
  <filename>00001.jpg</filename>
  <object>
    <name>expressway-service-area</name>
    <type>robndbox</type>
    <robndbox>
      <x_left_top>10</x_left_top><y_left_top>10</y_left_top>
      <x_right_top>30</x_right_top><y_right_top>10</y_right_top>
      <x_right_bottom>30</x_right_bottom><y_right_bottom>20</y_right_bottom>
      <x_left_bottom>10</x_left_bottom><y_left_bottom>20</y_left_bottom>
    </robndbox>
  </object>
</annotation>
"""
    for split, folder in (("train", "trainval"), ("val", "trainval"), ("test", "test")):
        write_image(tmp_path / f"JPEGImages-{folder}/{split}1.jpg")
        write_text(tmp_path / f"Annotations/Oriented Bounding Boxes/{split}1.xml", text)
        write_text(tmp_path / f"ImageSets/Main/{split}.txt", f"{split}1\n")
    source = built(dior_r.DiorR(data_dir=tmp_path / "out"), tmp_path, "test")
    np.testing.assert_array_equal(source[0]["polygons"], SQUARE[None])
    assert source.class_names[source[0]["labels"][0]] == "Expressway-Service-area"
    assert len(source.class_names) == 20


def write_fair1m(source):
    points = "".join(f"        <point>{x:.6f},{y:.6f}</point>\n" for x, y in [*SQUARE, SQUARE[0]])
    text = f"""<annotation>
  <source><filename>0.tif</filename></source>
  <objects>
    <object>
      <coordinate>pixel</coordinate>
      <type>rectangle</type>
      <possibleresult><name>Small Car</name></possibleresult>
      <points>
{points}      </points>
    </object>
  </objects>
</annotation>
"""
    for part, name in (("train/part1", "0"), ("train/part2", "1"), ("validation", "2")):
        write_image(source / part / "images" / f"{name}.tif")
        write_text(source / part / "labelXml" / f"{name}.xml", text)
    write_image(source / "test/images/3.tif")


def test_fair1m_parts_are_one_split_and_its_test_has_no_labels(tmp_path):
    write_fair1m(tmp_path / "in")
    made = fair1m.Fair1m(data_dir=tmp_path / "out")
    source = built(made, tmp_path / "in")
    assert sorted(source.image_ids) == ["0", "1"]
    np.testing.assert_array_equal(source[0]["polygons"], SQUARE[None])
    assert source.class_names[source[0]["labels"][0]] == "Small Car"
    assert len(source.class_names) == 37
    assert len(sources.TfdsSource(made.data_dir, "test")[0]["labels"]) == 0


def test_a_data_set_can_be_written_in_dotas_format(tmp_path, capsys):
    write_fair1m(tmp_path / "in")
    assert build(["fair1m", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--as_dota"]) == 0
    assert (tmp_path / "out/train/labelTxt/0.txt").read_text() == "10 10 30 10 30 20 10 20 Small-Car 0\n"
    assert not (tmp_path / "out/test/labelTxt").exists()
    found = sources.FolderSource(
        tmp_path / "out/train/images", tmp_path / "out/train/labelTxt", classes.CLASSES["fair1m"]
    )
    assert len(found) == 2
    assert found.class_names[found[0]["labels"][0]] == "Small Car"
    assert "train: 2 images" in capsys.readouterr().out


def ssdd_xml(corners):
    box = "".join(f"<x{i}>{x:g}</x{i}><y{i}>{y:g}</y{i}>" for i, (x, y) in enumerate(corners, start=1))
    return f"""<annotation>
  <object>
    <name>ship</name>
    <difficult>0</difficult>
    <rotated_bndbox>
      <rotated_bbox_cx>20</rotated_bbox_cx>
      {box}
    </rotated_bndbox>
  </object>
</annotation>
"""


def write_ssdd(source):
    for split, name in (("train", "000002"), ("test", "000001"), ("test_inshore", "000001")):
        write_image(source / f"JPEGImages_{split}/{name}.jpg")
        write_text(source / f"Annotations_{split}/{name}.xml", ssdd_xml(SQUARE))


def test_ssdd_reads_corners_and_all_folders(tmp_path):
    write_ssdd(tmp_path)
    made = ssdd.Ssdd(data_dir=tmp_path / "out")
    source = built(made, tmp_path)
    np.testing.assert_array_equal(source[0]["polygons"], SQUARE[None])
    assert set(made.info.splits) == {"train", "test", "test_inshore"}


def write_hrsid(source, segmentation):
    for split in ("train", "test"):
        write_image(source / f"JPEGImages/{split}.jpg")
        content = {
            "images": [{"id": 3, "file_name": f"{split}.jpg", "width": 50, "height": 40}],
            "annotations": [
                {"id": 7, "image_id": 3, "category_id": 1, "segmentation": segmentation, "bbox": [10, 10, 20, 10]}
            ],
            "categories": [{"id": 1, "name": "ship"}],
        }
        write_text(source / f"annotations/{split}2017.json", json.dumps(content))


def test_hrsid_outlines_become_their_smallest_rectangles(tmp_path):
    c, s = math.cos(0.4), math.sin(0.4)
    outline = [[25 + c * x - s * y, 20 + s * x + c * y] for x, y in ((-10, -3), (0, -4), (10, -3), (10, 4), (-10, 4))]
    write_hrsid(tmp_path, [np.ravel(outline).tolist()])
    source = built(hrsid.Hrsid(data_dir=tmp_path / "out"), tmp_path)
    boxes, _ = polygons_to_boxes(source[0]["polygons"])
    # 1e-3: OpenCV finds the rectangle in float32, twice
    np.testing.assert_allclose(boxes, [[25, 20, 20, 8, 0.4]], atol=1e-3)


def dota_folder(source, lines=("10 10 30 10 30 20 10 20 ship 0",), split="train", name="a"):
    pixels = write_image(source / split / f"images/{name}.png")
    write_text(source / split / f"labelTxt/{name}.txt", "".join(f"{line}\n" for line in lines))
    return pixels


def test_a_dota_folder_is_built_by_the_command_and_read_back(tmp_path, capsys):
    pixels = dota_folder(tmp_path / "in")
    dota_folder(tmp_path / "in", [], "val", "b")
    write_image(tmp_path / "in/test/images/c.jpg")  # no labels
    arguments = [f"--source={tmp_path / 'in'}", "--classes=dota15", f"--output={tmp_path / 'out'}"]
    assert build(arguments) == 0
    assert "written to" in capsys.readouterr().out
    source = sources.TfdsSource(tmp_path / "out", "train")
    assert source.class_names == classes.CLASSES["dota15"]
    np.testing.assert_array_equal(source[0]["image"], pixels)
    np.testing.assert_array_equal(source[0]["polygons"], SQUARE[None])
    assert source.class_names[source[0]["labels"][0]] == "ship"
    assert len(sources.TfdsSource(tmp_path / "out", "val")[0]["labels"]) == 0
    assert len(sources.TfdsSource(tmp_path / "out", "test")) == 1
    assert build(arguments) == 1
    assert "is there already" in capsys.readouterr().err
    assert build([*arguments, "--overwrite"]) == 0


def test_own_classes_come_from_a_file_and_splits_from_arguments(tmp_path):
    dota_folder(tmp_path / "in", ["1 1 9 1 9 9 1 9 Cargo Truck 0"], "x")
    write_text(tmp_path / "classes.txt", "Car\nCargo Truck\n")
    folder = tmp_path / "in/x"
    arguments = ["--images", str(folder / "images"), "--labels", str(folder / "labelTxt"), "--split", "val"]
    assert build([*arguments, f"--classes={tmp_path / 'classes.txt'}", f"--output={tmp_path / 'out'}"]) == 0
    assert sources.TfdsSource(tmp_path / "out", "val")[0]["labels"].tolist() == [1]


def test_images_without_labels_and_without_classes_are_not_built_as_dotas(tmp_path, capsys):
    dota_folder(tmp_path / "in", split="x")
    images, output = f"--images={tmp_path / 'in/x/images'}", f"--output={tmp_path / 'out'}"
    shutil.rmtree(tmp_path / "in/x/labelTxt")
    for one in (images, f"--source={tmp_path / 'in'}"):
        assert build([one, output]) == 1
        err = capsys.readouterr().err
        assert "expected labels" in err and "--classes" in err and not (tmp_path / "out").exists()
    assert build([images, output, "--split=test", "--classes=dota10"]) == 0  # a test split, to be predicted on


@pytest.mark.parametrize("text", ["nothing.txt", "twice.txt"])
def test_class_files_that_cannot_be_used_are_one_sentence(tmp_path, capsys, text):
    dota_folder(tmp_path / "in")
    write_text(tmp_path / "twice.txt", "ship\nship\n")
    arguments = [f"--source={tmp_path / 'in'}", f"--classes={tmp_path / text}", f"--output={tmp_path / 'out'}"]
    assert build(arguments) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_would_be_lost_is_listed_with_its_line_and_nothing_is_built(tmp_path, capsys):
    dota_folder(tmp_path / "in", ["imagesource:x", "1 1 9 1 9 9 1 9 ship 0", "1 1 9 1 9 9 1 9 lorry 0", "1 2 3 ship"])
    write_image(tmp_path / "in/train/images/unlabelled.png")
    write_text(tmp_path / "in/train/labelTxt/orphan.txt", "")
    dota_folder(tmp_path / "in", [], name="half")
    half = tmp_path / "in/train/images/half.png"
    half.write_bytes(half.read_bytes()[:-20])
    arguments = [f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert build(arguments) == 1
    message = capsys.readouterr().err
    for expected in (
        "a.txt:3: class 'lorry'",
        "a.txt:4: expected 8 coordinates",
        "1 image_without_labels",
        "1 labels_without_image",
        "half.png: the file is truncated",
    ):
        assert expected in message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert build([*arguments, "--lossy"]) == 0
    assert sources.TfdsSource(tmp_path / "out", "train").image_ids == ["a"]


@pytest.mark.parametrize(
    "damage, reason, line",
    [
        (("<mbox_w>30</mbox_w>", ""), "missing_tag", 5),
        (("<mbox_w>30", "<mbox_w>wide"), "bad_number", 10),
        (("<mbox_h>8", "<mbox_h>0"), "zero_area", 5),
        (("</HRSC_Object>", ""), "bad_xml", 14),
    ],
)
def test_damaged_xml_is_named_with_its_line(tmp_path, damage, reason, line):
    write_hrsc(tmp_path)
    path = tmp_path / "FullDataSet/Annotations/100000001.xml"
    path.write_text(path.read_text().replace(*damage))
    made = hrsc2016.Hrsc2016(data_dir=tmp_path / "out")
    with pytest.raises(UserError, match=rf"100000001\.xml:{line}: .*\[{reason}\]"):
        records.prepare(made, tmp_path)


def test_other_damage_is_named(tmp_path):
    write_hrsc(tmp_path / "hrsc")
    write_text(tmp_path / "hrsc/ImageSets/val.txt", "100000002\n\n100000009\n")
    with pytest.raises(UserError, match=r"val\.txt:3: expected an image 100000009"):
        records.prepare(hrsc2016.Hrsc2016(data_dir=tmp_path / "out"), tmp_path / "hrsc")
    write_hrsid(tmp_path / "hrsid", {"counts": [1, 2]})
    with pytest.raises(UserError, match=r"annotation 7 has no outline as polygons \[no_outline\]"):
        records.prepare(hrsid.Hrsid(data_dir=tmp_path / "out"), tmp_path / "hrsid")
    write_text(tmp_path / "hrsid/annotations/train2017.json", '{"images": []}')
    with pytest.raises(UserError, match="is no COCO annotation file"):
        records.prepare(hrsid.Hrsid(data_dir=tmp_path / "out"), tmp_path / "hrsid")
    for made in (fair1m.Fair1m, ssdd.Ssdd, dior_r.DiorR, dota.Dota):
        with pytest.raises(UserError, match="Expected"):
            records.prepare(made(data_dir=tmp_path / "out"), tmp_path / "hrsc")


def test_an_unwritable_output_is_one_sentence(tmp_path, capsys):
    dota_folder(tmp_path / "in")
    (tmp_path / "file").touch()
    for output in (tmp_path / "file/out", tmp_path / "file", tmp_path / "in"):  # the last two hold something else
        assert build([f"--source={tmp_path / 'in'}", f"--output={output}", "--overwrite"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "in/train").is_dir()


def test_ctrl_c_while_building_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    dota_folder(tmp_path / "in")
    arguments = [f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert build(arguments) == 0
    before = sorted(path.name for path in (tmp_path / "out").iterdir())

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "encoded_image", stop)
    assert build([*arguments, "--overwrite"]) == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert "nothing was written" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    dota_folder(tmp_path / "in")

    def full(*_, **__):
        raise RuntimeError("write() failed: No space left on device\nFailed to close chunk_writer")  # ArrayRecord's

    monkeypatch.setattr(dota.Dota, "download_and_prepare", full)
    assert build([f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert len(message.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_images_are_kept_as_they_are_or_become_three_channels_of_eight_bits(tmp_path):
    write_image(tmp_path / "a.jpg")
    assert records.encoded_image(tmp_path / "a.jpg") == (tmp_path / "a.jpg").read_bytes()
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30)
    cv2.imwrite(str(tmp_path / "b.png"), deep)
    pixels = reader.decode(records.encoded_image(tmp_path / "b.png"), "b")
    np.testing.assert_array_equal(pixels, reader.read(tmp_path / "b.png"))


def test_the_index_says_what_the_records_say_and_no_record_is_read_for_it(tmp_path, monkeypatch):
    dota_folder(tmp_path / "in", ["10 10 30 10 30 20 10 20 ship 0", "1 1 4 1 4 2 1 2 plane 1"], name="b")
    dota_folder(tmp_path / "in", [], name="a")
    dota_folder(tmp_path / "in", ["10 10 30 10 30 20 10 20 plane 2"], split="val", name="c")
    assert build([f"--source={tmp_path / 'in'}", "--classes=dota10", f"--output={tmp_path / 'out'}"]) == 0

    def opened(**more):
        source = sources.TfdsSource(tmp_path / "out", "train+val", classes.CLASSES["dota10"][::-1], **more)
        return source, {name: source.labels(index) for index, name in enumerate(source.image_ids)}

    with monkeypatch.context() as patch:
        patch.setattr(sources.TfdsSource, "_record", None)  # any reading of a record would fail
        by_index, found = opened()
        _, large = opened(min_side=2.0)
        some, _ = opened(filter_empty=True)
    assert by_index.num_objects.sum() == 3 and len(large["b"]["labels"]) == 1
    assert sorted(some.image_ids) == ["b", "c"]
    assert {example["image_id"] for example in (some[0], some[1])} == {"b", "c"}
    index = tmp_path / "out/index.npz"
    data = index.read_bytes()
    for damage in (data[:-30], data[:100] + bytes(80) + data[180:], b""):
        index.write_bytes(damage)
        with pytest.raises(UserError, match=r"index\.npz"):
            opened()
    index.unlink()
    _, read_through = opened()
    assert found.keys() == read_through.keys()
    for name, one in found.items():
        for key, array in read_through[name].items():
            np.testing.assert_array_equal(one[key], array)


def test_ssdd_parts_its_training_images_by_the_last_digit(tmp_path):
    write_ssdd(tmp_path / "in")
    for name in ("000005", "000615", "000016"):
        write_image(tmp_path / f"in/JPEGImages_train/{name}.jpg")
        write_text(tmp_path / f"in/Annotations_train/{name}.xml", ssdd_xml(SQUARE))
    assert build(["ssdd", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--as-dota"]) == 0
    found = {path.stem: path.parent.parent.name for path in (tmp_path / "out").glob("*/labelTxt/*.txt")}
    assert found | {"000001": "test"} == {
        "000002": "train", "000005": "val", "000615": "train", "000016": "train", "000001": "test"
    }  # fmt: skip
    assert (tmp_path / "out/classes.txt").read_text() == "ship\n"
    with pytest.raises(UserError, match="--overwrite"):
        building.write_dota(ssdd.Ssdd(data_dir=tmp_path), tmp_path / "in", tmp_path / "out")


def test_the_published_ssdd_split_has_814_and_114_images():
    # The release's training images: numbers 1 to 1160 without those that end in 1 or 9, which are its test images.
    names = [f"{number:06d}" for number in range(1, 1161) if number % 10 not in (1, 9)]
    assert len(names) == 928
    assert sum(map(ssdd.is_validation, names)) == 114


def test_yolo_folders_are_built_with_the_classes_of_their_yaml(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / f"in/images/{split}/{split}.png")
        write_text(tmp_path / f"in/labels/{split}/{split}.txt", "1 0.2 0.25 0.6 0.25 0.6 0.5 0.2 0.5\n")
    write_text(tmp_path / "in/data.yaml", "names: {0: plane, 1: small car}\n")
    assert build([f"--source={tmp_path / 'in'}", "--format=auto", f"--output={tmp_path / 'out'}"]) == 0
    source = sources.TfdsSource(tmp_path / "out", "val")
    assert source.class_names == ("plane", "small car") and source[0]["labels"].tolist() == [1]
    np.testing.assert_allclose(source[0]["polygons"], SQUARE[None], atol=1e-5)
    assert build([f"--source={tmp_path / 'in'}", "--format=auto", f"--output={tmp_path / 'dota'}", "--as-dota"]) == 0
    assert (tmp_path / "dota/train/labelTxt/train.txt").read_text() == "10 10 30 10 30 20 10 20 small-car 0\n"


def test_the_classes_of_tiles_are_the_default_and_unknown_ones_are_counted_by_name(tmp_path, capsys):
    dota_folder(tmp_path / "in", ["10 10 30 10 30 20 10 20 lorry 0"] * 2)
    arguments = [f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert build(arguments) == 1
    assert "2 of 2 labels (100 %) are left out, their classes are not in the list: lorry (2)" in capsys.readouterr().err
    write_text(tmp_path / "in/train/classes.txt", "lorry\n")
    assert build(arguments) == 0
    assert "classes: lorry" in capsys.readouterr().out


def test_builders_of_all_data_sets_are_doors_in_a_checkout_too(capsys):
    for name in building.DATA_SETS:
        door = (pathlib.Path(__file__).parents[2] / "data" / f"{name}.py").read_text()
        assert f'run_as("build", "{name}")' in door
        assert build([name]) == 2
        assert "one folder, the source" in capsys.readouterr().err.replace("\n", " ") or name in ("hrsid", "ssdd")
    assert tuple(building.DATA_SETS) == build_command.DATA_SETS
