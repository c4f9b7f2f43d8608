"""Label formats: small files made to each format's public description give the same objects as DOTA's text."""

import json
import math
import random
import re
import shutil
import socket
import time

import cv2
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import boxes_to_polygons, polygons_to_boxes
from haksnet_jax.labels import dota
from haksnet_jax.labels.classes import read_class_names
from haksnet_jax.labels.formats import structured
from haksnet_jax.labels.label_set import FORMATS, LabelSet, recognise_format
from haksnet_jax.results import detections, formats

CLASSES = ("ship", "Small Car")
WIDTH, HEIGHT = 200, 100
# (centre x, centre y, width, height, radians clockwise on the screen, class, difficulty)
OBJECTS = ((60.0, 40.0, 50.0, 20.0, 0.5, "ship", 0), (140.0, 60.0, 30.0, 10.0, -1.2, "Small Car", 1))
CORNERS = boxes_to_polygons([box[:5] for box in OBJECTS])


@pytest.fixture
def folder(tmp_path):
    """A folder `images` with one image, a.png."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def yolo_obb(folder):
    lines = [
        f"{CLASSES.index(box[5])} " + " ".join(f"{value:.6f}" for value in (corners / [WIDTH, HEIGHT]).ravel())
        for box, corners in zip(OBJECTS, CORNERS, strict=True)
    ]
    write(folder / "labels/a.txt", "\n".join(lines))
    write(folder / "data.yaml", "path: .\nnames:\n  0: ship\n  1: Small Car\n")


def rolabelimg(folder):
    items = "".join(
        f"<object><type>robndbox</type><name>{name}</name><difficult>{difficulty}</difficult><robndbox><cx>{cx}</cx>"
        f"<cy>{cy}</cy><w>{w}</w><h>{h}</h><angle>{angle % math.pi}</angle></robndbox></object>\n"
        for cx, cy, w, h, angle, name, difficulty in OBJECTS
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    write(folder / "labels/a.xml", f"<annotation><filename>a</filename>{size}{items}</annotation>")


def cvat(folder):
    boxes = "".join(
        f'<box label="{name}" xtl="{cx - w / 2}" ytl="{cy - h / 2}" xbr="{cx + w / 2}" ybr="{cy + h / 2}" '
        f'rotation="{math.degrees(angle) % 360}"><attribute name="difficult">{difficulty}</attribute></box>'
        for cx, cy, w, h, angle, name, difficulty in OBJECTS
    )
    names = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    image = f'<image id="0" name="batch/a.png" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>'
    text = f"<annotations><version>1.1</version><meta><task><labels>{names}</labels></task></meta>{image}</annotations>"
    write(folder / "labels/annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>{text}')


def coco_content(annotations):
    categories = [{"id": 1, "name": "ship"}, {"id": 7, "name": "Small Car"}]
    images = [{"id": 3, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    common = [
        {"id": 10 + i, "image_id": 3, "category_id": (1, 7)[CLASSES.index(box[5])], "iscrowd": box[6]}
        for i, box in enumerate(OBJECTS)
    ]
    both = [{**one, **more} for one, more in zip(common, annotations, strict=True)]
    return {"images": images, "annotations": both, "categories": categories}


def coco(folder):
    outlines = [{"segmentation": [corners.ravel().tolist()]} for corners in CORNERS]
    write(folder / "labels/instances.json", coco_content(outlines))


def labelme(folder):
    shapes = [
        {"label": box[5], "points": corners.tolist(), "shape_type": "polygon", "flags": {}, "difficult": bool(box[6])}
        for box, corners in zip(OBJECTS, CORNERS, strict=True)
    ]
    content = {"version": "5.4.1", "shapes": shapes, "imagePath": "a.png", "imageData": None, "imageHeight": HEIGHT}
    write(folder / "labels/a.json", content)


def label_studio(folder):
    def result(box):
        cx, cy, w, h, angle, name, _ = box
        first = boxes_to_polygons([(cx, cy, w, h, angle)])[0, 0]  # the corner that the rotation is about
        value = {"x": first[0] / WIDTH * 100, "y": first[1] / HEIGHT * 100, "rotation": math.degrees(angle)}
        value |= {"width": w / WIDTH * 100, "height": h / HEIGHT * 100, "rectanglelabels": [name]}
        return {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}

    results = [*map(result, OBJECTS), {"type": "choices", "value": {"choices": ["good"]}}]
    task = {"id": 1, "data": {"image": "/data/upload/1/01234abc-a.png"}, "annotations": [{"result": results}]}
    write(folder / "labels/export.json", [task])


def dota_text(folder):
    lines = [dota.format_label_line(corners, box[5], box[6]) for box, corners in zip(OBJECTS, CORNERS, strict=True)]
    write(folder / "labels/a.txt", "imagesource:x\n" + "\n".join(lines))


WRITERS = {
    "dota": dota_text,
    "yolo-obb": yolo_obb,
    "rolabelimg": rolabelimg,
    "cvat": cvat,
    "coco": coco,
    "labelme": labelme,
    "label-studio": label_studio,
}
WITHOUT_DIFFICULTY = ("yolo-obb", "label-studio")


def assert_the_objects(found, with_difficulty=True):
    objects, problems = found
    assert problems == []
    assert [CLASSES[label] for label in objects.labels] == [box[5] for box in OBJECTS]
    assert objects.difficulty.tolist() == [box[6] if with_difficulty else 0 for box in OBJECTS]
    # 2e-3 px: DOTA's lines have three decimals, YOLO's six of the image
    ours, _ = polygons_to_boxes(objects.polygons)
    np.testing.assert_allclose(ours, polygons_to_boxes(CORNERS)[0], atol=2e-3)


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_same_objects_and_is_recognised(folder, name):
    WRITERS[name](folder)
    found = LabelSet(folder / "labels", "auto")
    assert found.format == name and found.problems == []
    assert list(found.files) == ["a"]
    assert_the_objects(found.read("a", CLASSES, folder / "images/a.png"), name not in WITHOUT_DIFFICULTY)
    if name in ("yolo-obb", "coco", "cvat"):
        assert found.class_names == CLASSES
    else:
        assert set(found.found_class_names()) <= {*CLASSES, "Small-Car"}


@pytest.mark.parametrize("system", ["own", "wgs84", "undeclared wgs84"])
def test_geojson_over_a_geotiff_comes_back_to_pixels(folder, system):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.warp import transform

    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "images/a.tif", "w", crs="EPSG:32632", transform=place, **profile) as file:
        file.write(np.zeros((1, HEIGHT, WIDTH), np.uint8))
    features = []
    for box, corners in zip(OBJECTS, CORNERS, strict=True):
        xs, ys = 400_000 + 0.5 * corners[:, 0], 5_000_000 - 0.5 * corners[:, 1]
        if system != "own":
            xs, ys = transform("EPSG:32632", "EPSG:4326", xs, ys)
        ring = [list(point) for point in zip(xs, ys, strict=True)]
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"label": box[5], "difficult": box[6]}})
    names = {"own": "urn:ogc:def:crs:EPSG::32632", "wgs84": "urn:ogc:def:crs:OGC:1.3:CRS84"}
    crs = {"crs": {"type": "name", "properties": {"name": names[system]}}} if system in names else {}
    write(folder / "labels/a.geojson", {"type": "FeatureCollection", **crs, "features": features})
    found = LabelSet(folder / "labels", "auto")
    assert found.format == "geojson"
    assert_the_objects(found.read("a", CLASSES, folder / "images/a.tif"))
    _, (problem,) = found.read("a", CLASSES, folder / "images/a.png")
    assert "not georeferenced" in problem.detail


def test_coco_boxes_are_turned_counter_clockwise_by_detectron2_and_clockwise_by_cvat(folder):
    five = [{"bbox": [cx, cy, w, h, -math.degrees(angle)]} for cx, cy, w, h, angle, _, _ in OBJECTS]
    four = [
        {"bbox": [cx - w / 2, cy - h / 2, w, h], "attributes": {"rotation": math.degrees(angle)}}
        for cx, cy, w, h, angle, _, _ in OBJECTS
    ]
    for annotations in (five, four):
        write(folder / "labels/instances.json", coco_content(annotations))
        assert_the_objects(LabelSet(folder / "labels/instances.json", "coco").read("a", CLASSES))


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"iscrowd": None}, None, ""),
        ({"iscrowd": "x"}, "bad_object", r"\$\.annotations\[0\]\.iscrowd"),
        ({"iscrowd": 10**30}, "bad_difficulty", "annotation 10"),
        ({"segmentation": {"counts": [1], "size": [2, 2]}}, "no_outline", "outline as polygons"),
        ({"segmentation": [[1, 2, 3]]}, "bad_number", "annotation 10"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e300]]}, "bad_number", "annotation 10"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9, 3, 3]]}, "zero_area", "annotation 10"),
        ({"segmentation": None}, "no_outline", "annotation 10"),
        ({"category_id": 99}, "unknown_class", "category 99"),
        ({"category_id": [1]}, "bad_object", r"\$\.annotations\[0\]\.category_id"),
    ],
)
def test_one_bad_annotation_is_named_and_the_others_are_read(folder, change, reason, words):
    content = coco_content([{"segmentation": [corners.ravel().tolist()]} for corners in CORNERS])
    content["annotations"][0].update(change)
    path = write(folder / "labels/instances.json", content)
    objects, problems = LabelSet(path, "coco").read("a", CLASSES)
    assert len(objects.labels) >= 1
    assert [problem.reason for problem in problems] == ([reason] if reason else [])
    if reason:
        assert problems[0].path == str(path)
        assert re.search(words, problems[0].detail)


def test_annotations_of_images_that_are_not_listed_and_names_outside_the_folder_are_no_files(folder):
    content = coco_content([{"segmentation": [corners.ravel().tolist()]} for corners in CORNERS])
    content["images"][0]["file_name"] = "../../secret/a.png"
    content["annotations"][1]["image_id"] = 4
    found = LabelSet(write(folder / "labels/c.json", content), "coco")
    assert list(found.files) == ["a"]
    assert [problem.reason for problem in found.problems] == ["labels_without_image"]


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation><object><name>&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b'<?xml version="1.0" encoding="foobar"?><annotation/>', "bad_encoding", "foobar"),
        (b'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\xff</annotation>', "bad_encoding", "utf-8"),
        (b"<annotation><object></annotation>", "bad_xml", "mismatched"),
        (b"", "bad_xml", ""),
        (BOMB.encode(), "bad_xml", "outside itself"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', "bad_xml", "outside itself"),
        (b"<a>" * 200 + b"</a>" * 200, "bad_xml", "elements are nested"),
    ],
)
def test_xml_that_cannot_be_read_is_one_problem(folder, data, reason, words):
    (folder / "labels").mkdir()
    (folder / "labels/a.xml").write_bytes(data)
    objects, problems = LabelSet(folder / "labels", "rolabelimg").read("a", CLASSES)
    assert not len(objects.labels)
    assert [problem.reason for problem in problems] == ([reason] if reason else [])
    assert all(words in problem.detail for problem in problems)


@pytest.mark.parametrize("encoding", ["gbk", "GB2312", "utf-16", "iso-8859-1", "big5"])
def test_xml_is_read_in_the_encoding_that_it_declares(folder, encoding):
    letters = "é" if encoding == "iso-8859-1" else "高"
    rolabelimg(folder)
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + (folder / "labels/a.xml").read_text().replace(
        "ship", letters
    )
    (folder / "labels/a.xml").write_bytes(text.encode(encoding))
    objects, problems = LabelSet(folder / "labels", "rolabelimg").read("a", (letters, "Small Car"))
    assert (objects.labels.tolist(), problems) == ([0, 1], [])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labelme", '{"shapes": ' + "[" * 100_000, "deeply"),
        ("labelme", '{"shapes": 3}', r"$.shapes"),
        ("labelme", '{"shapes": [{"label": 3, "points": []}]}', "$.shapes[0].label"),
        ("labelme", '{"shapes": [{"label": "ship", "points": [[1, 2], [3, 4]], "shape_type": "line"}]}', "line"),
        ("labelme", '{"shapes": [{"label": "ship", "points": [[1, 2, 3]]}]}', "$.shapes[0].points[0]"),
        ("coco", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "$.images[0]"),
        ("coco", "{", "JSON"),
        ("label-studio", "[3]", "$[0]"),
        ("label-studio", '[{"data": {"text": "x"}}]', "names no image"),
        ("cvat", "<annotation/>", "CVAT"),
        ("yolo-obb", "0 10 10 20 10 20 20 10 20", "pixels"),
        ("yolo-obb", "0 0.5 0.5 0.1 0.1", "axis-parallel"),
        ("yolo-obb", "7 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "index 7"),
    ],
)
def test_files_of_another_form_are_named_with_the_path_inside_them(folder, name, content, words):
    endings = {"yolo-obb": "txt", "cvat": "xml"}
    write(folder / f"labels/a.{endings.get(name, 'json')}", content)
    found = LabelSet(folder / "labels", name)
    problems = [
        *found.problems,
        *(p for stem in found.files for p in found.read(stem, CLASSES, folder / "images/a.png")[1]),
    ]
    assert len(problems) == 1 and words in problems[0].detail
    assert str(problems[0]).isprintable()


def test_sizes_are_limited(folder, monkeypatch):
    labelme(folder)
    monkeypatch.setattr(structured, "MAX_BYTES", 10)
    _, (problem,) = LabelSet(folder / "labels", "labelme").read("a", CLASSES)
    assert problem.reason == "too_large"


def test_formats_that_are_not_there_are_one_sentence(folder):
    for format, path, words in (
        ("yolo", folder, "among auto, dota"),
        ("coco", folder / "nowhere", "found nothing"),
        ("coco", folder / "images", r"files \.json, found none"),
        ("auto", folder / "images", "expected label files"),
    ):
        with pytest.raises(UserError, match=words):
            LabelSet(path, format)
    write(folder / "data.yaml", "names: {0: a, 2: b}")
    yolo = write(folder / "labels/a.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
    with pytest.raises(UserError, match=r"data\.yaml.*indices"):
        LabelSet(yolo.parent, "yolo-obb")


def test_hidden_files_lists_of_classes_and_the_case_of_endings_are_alike_in_all_formats(folder):
    dota_text(folder)
    (folder / "labels/a.txt").rename(folder / "labels/a.TXT")
    write(folder / "labels/._a.txt", "\0\5\x16")
    write(folder / "labels/Classes.txt", "ship")
    found = LabelSet(folder / "labels", "auto")
    assert list(found.files) == ["a"] and recognise_format(folder / "labels") == "dota"


def mutated(rng, data):
    """A copy with a few bytes changed, removed, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        a, b = sorted(rng.randrange(len(data)) for _ in "ab")
        kind = rng.randrange(4)
        if kind == 0:
            data[a] = rng.choice(b'\0\x1b"<>{}[]&;,.-0919eE \n\xff')
        elif kind == 1:
            del data[a : min(b, a + 40)]
        elif kind == 2:
            data[a:a] = data[a : min(b, a + 40)]
        else:
            data[a:a] = rng.choice(
                [b"null", b"1e999", b"-1", b"99999999999999999999", b"[]", b"{}", b"<x>", b"NaN", b'"']
            )
        data = data or bytearray(b" ")
    return bytes(data)


@pytest.mark.parametrize("name", WRITERS)
def test_mutated_files_give_objects_and_problems_and_nothing_else(folder, name):
    rng = random.Random(name)
    WRITERS[name](folder)
    (path,) = (path for path in (folder / "labels").iterdir())
    data = path.read_bytes()
    for _ in range(150):
        path.write_bytes(mutated(rng, data))
        found = LabelSet(folder / "labels", name)
        problems = list(found.problems)
        for stem in found.files:
            objects, odd = found.read(stem, CLASSES, folder / "images/a.png")
            problems += odd
            assert np.isfinite(objects.polygons).all() and (objects.labels < 2).all() and (objects.labels >= 0).all()
            found.names_in(stem)
        assert all(str(problem).isprintable() for problem in problems)


def test_every_format_has_a_test():
    assert set(FORMATS) == {"auto", "geojson", *WRITERS}


@pytest.mark.parametrize(
    "text",
    [
        "names: server\n",
        "names:\n  web: nginx\n  cache: redis\n",
        "names: [{first: a}]\n",
        "usernames: [a\n",  # is no YAML, and has no `names`
        "names: [ship]\n" + "# long\n" * 2**16,
    ],
)
def test_yaml_files_of_other_programs_above_labels_are_passed_over(folder, text):
    write(folder / "labels/train/a.txt", "1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
    write(folder / "labels/compose.yaml", text)
    assert LabelSet(folder / "labels/train", "yolo-obb").class_names is None
    write(folder / "data.yaml", "names: [plane, ship]\n")
    assert LabelSet(folder / "labels/train", "yolo-obb").class_names == ("plane", "ship")
    with pytest.raises(UserError, match=r"compose\.yaml"):  # named by the user
        read_class_names(str(folder / "labels/compose.yaml"))


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfnames: [plane, ship]\n",
        b"{names: [plane, ship], nc: 2}\n",
        b"{nc: 2, 'names': [plane, ship]}\n",
        b"nc: 2\rnames: [plane, ship]\r",
        "names: [plane, ship]\n".encode("utf-16"),
    ],
)
def test_names_of_a_yaml_are_found_however_it_is_written(folder, data):
    write(folder / "labels/a.txt", "1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
    (folder / "data.yaml").write_bytes(data)
    assert LabelSet(folder / "labels", "yolo-obb").class_names == ("plane", "ship")
    assert read_class_names(str(folder / "data.yaml")) == ("plane", "ship")


def test_a_yaml_of_lists_in_lists_is_refused_at_once(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]  # 10^12 names as text
    write(folder / "data.yaml", "\n".join([*lines, "names: [*a11, ship]"]))
    write(folder / "labels/a.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2")
    with pytest.raises(UserError, match=r"data\.yaml.*names of classes"):
        LabelSet(folder / "labels", "yolo-obb")


def test_what_predict_writes_is_read_back_as_labels(folder):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(0.5, 0.1, 400_000, 0.1, -0.5, 5_000_000)  # turned against the map
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 1, "dtype": "uint8"}
    image = folder / "images/a.tif"
    with rasterio.open(image, "w", crs="EPSG:32632", transform=place, **profile) as file:
        file.write(np.zeros((1, HEIGHT, WIDTH), np.uint8))
    boxes = np.array([box[:5] for box in OBJECTS])
    labels = [CLASSES.index(box[5]) for box in OBJECTS]
    about = {"image": "a", "path": image, "size": (WIDTH, HEIGHT)}
    found = detections.Detections(boxes, [0.9, 0.8], labels, CLASSES, **about)
    formats.write_geojson(folder, [found], CLASSES)
    formats.FORMATS["yolo-obb"](folder, [found], CLASSES)
    (folder / "yolo-obb/classes.txt").write_text("\n".join(CLASSES))
    for name, path in (("geojson", folder / "geojson"), ("yolo-obb", folder / "yolo-obb")):
        objects, problems = LabelSet(path, name).read("a", CLASSES, image)
        assert problems == [] and objects.labels.tolist() == labels
        # 2e-3 px: six decimals of the image in YOLO's lines, millimetres on the ground
        np.testing.assert_allclose(polygons_to_boxes(objects.polygons)[0], polygons_to_boxes(CORNERS)[0], atol=2e-3)


def test_one_bad_entry_of_a_file_for_many_images_ends_nothing(folder):
    """COCO: an image without a name, a category without one, an id that is two images; the others are read."""
    content = coco_content([{"segmentation": [corners.ravel().tolist()]} for corners in CORNERS])
    content["images"] += [{"id": 8, "name": "b.png"}, {"id": 9, "file_name": "c.png"}, {"id": 9, "file_name": "d.png"}]
    content["images"] += [{"id": 10, "file_name": "other/a.png"}, None]
    content["categories"].append({"id": 70})
    extra = {**content["annotations"][0], "id": 77}
    content["annotations"] += [{**extra, "image_id": key} for key in (8, 8, 9, 10)]
    found = LabelSet(write(folder / "labels/c.json", content), "coco")
    assert sorted(found.files) == ["a", "d"] or sorted(found.files) == ["a"]
    assert_the_objects(found.read("a", CLASSES))
    told = [(str(problem.reason), problem.detail) for problem in found.problems]
    for reason, words in [
        ("bad_object", r"categories\[2\]"),
        ("bad_object", r"file_name.*images\[1\].*left out with it: 2 annotations"),
        ("bad_object", r"image 9 is both c and d.*left out with it: 1 annotation$"),
        ("same_name", r"other/a\.png is left out.*left out with it: 1 annotation$"),
        ("bad_object", r"images\[5\]"),
    ]:
        assert any(key == reason and re.search(words, detail) for key, detail in told), (words, told)
    assert len(told) == 5


def test_one_bad_image_of_cvat_or_label_studio_ends_nothing(folder):
    cvat(folder)
    path = folder / "labels/annotations.xml"
    box = '<box label="ship" xtl="1" ytl="2" xbr="3" ybr="4"/>'
    text = path.read_text().replace("</annotations>", f'<image id="3">{box}</image></annotations>')
    path.write_text(
        text.replace("</annotations>", f'<image id="4" name="other/a.png">{box}{box}</image></annotations>')
    )
    found = LabelSet(folder / "labels", "cvat")
    assert_the_objects(found.read("a", CLASSES))
    assert [str(problem.reason) for problem in found.problems] == ["missing_tag", "same_name"]
    assert "left out with it: 1 object" in found.problems[0].detail
    assert "left out with it: 2 objects" in found.problems[1].detail

    label_studio(folder)
    path = folder / "labels/export.json"
    tasks = json.loads(path.read_text())
    path.write_text(json.dumps([5, {"data": {"image": 7}, "annotations": []}, {"data": [], "annotations": 1}, *tasks]))
    found = LabelSet(path, "label-studio")
    assert_the_objects(found.read("a", CLASSES), with_difficulty=False)
    assert len(found.problems) == 3


def test_label_studio_images_of_local_files_are_found(folder):
    label_studio(folder)
    path = folder / "labels/export.json"
    tasks = json.loads(path.read_text())
    tasks[0]["data"] = {"image": "/data/local-files/?d=my%20images/a.png"}
    path.write_text(json.dumps(tasks))
    assert_the_objects(LabelSet(path, "label-studio").read("a", CLASSES), with_difficulty=False)


HUGE = (1e308, -1e308, 1e39, 10**30, 10**400)


@pytest.mark.parametrize("number", HUGE, ids=("1e308", "-1e308", "1e39", "10^30", "10^400"))
@pytest.mark.filterwarnings("error")
def test_numbers_beyond_any_image_are_named_in_every_format_and_compute_nothing(folder, number):
    """One number of one object after the other; the other object stays."""
    text = json.dumps(number) if isinstance(number, float) else str(number)
    shape = {"label": "ship", "shape_type": "circle", "points": [[1, "@"], [3, 4]]}
    value = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 5, "rectanglelabels": ["ship"]}
    whole = {"original_width": 200, "original_height": 100}
    cases = [("labelme", {"shapes": [shape, {**shape, "shape_type": "polygon", "points": [[1, 2], [9, 2], [9, 9]]}]})]
    good = {"type": "rectanglelabels", **whole, "value": value}
    for key in ("x", "width", "rotation"):
        bad = {**good, "value": {**value, key: "@"}}
        cases.append(("label-studio", [{"data": {"image": "a.png"}, "annotations": [{"result": [bad, good]}]}]))
    bad = {**good, "original_width": "@"}
    cases.append(("label-studio", [{"data": {"image": "a.png"}, "annotations": [{"result": [bad, good]}]}]))
    box = {"bbox": [10, 20, 30, 10]}
    turned = {**box, "attributes": {"rotation": "@"}}
    for bad in ({"bbox": [1, "@", 3, 4, 5]}, {"bbox": [1, 2, 3, 4, "@"]}, {"bbox": [1, 2, "@", 4]}, turned):
        cases += [("coco", coco_content([bad, box]))]
    for name, content in cases:
        path = write(folder / "labels/a.json", json.dumps(content).replace('"@"', text))
        objects, problems = LabelSet(path if name != "labelme" else path.parent, name).read("a", CLASSES)
        assert len(objects.labels) == 1, (name, content, problems)
        assert problems[0].reason in ("bad_number", "bad_object"), problems


@pytest.mark.filterwarnings("error")
def test_negative_sides_and_angles_of_many_turns_are_named(folder):
    good = {"bbox": [10, 20, 30, 10]}
    for bad in ({"bbox": [1, 2, -3, 4]}, {"bbox": [1, 2, 3, 4, 1e6]}, {**good, "attributes": {"rotation": True}}):
        path = write(folder / "labels/c.json", coco_content([bad, good]))
        objects, problems = LabelSet(path, "coco").read("a", CLASSES)
        assert len(objects.labels) == 1 and [problem.reason for problem in problems] == ["bad_number"]


def test_a_line_of_yolo_that_lacks_a_number_is_no_triangle(folder):
    line = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"
    write(folder / "labels/a.txt", f"{line}\n{line[:-4]}\n{line} 0.9\n{line} 0.3\n")
    objects, problems = LabelSet(folder / "labels", "yolo-obb").read("a", CLASSES, folder / "images/a.png")
    assert len(objects.labels) == 3
    assert [(problem.line, str(problem.reason)) for problem in problems if problem.loses] == [(2, "bad_number")]


def test_a_coordinate_system_that_is_an_address_or_a_file_is_not_opened(folder):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "images/a.tif", "w", crs="EPSG:32632", transform=place, **profile) as file:
        file.write(np.zeros((1, HEIGHT, WIDTH), np.uint8))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/crs"
        (folder / "named").write_text(rasterio.crs.CRS.from_epsg(32632).to_wkt())  # GDAL would read this file
        for name in (address, f"/vsicurl/{address}", str(folder / "named"), "EPSG:999999", "+proj=x", "\x1b[2J", 5):
            crs = {"type": "name", "properties": {"name": name}}
            ring = [[400_010, 4_999_990], [400_020, 4_999_990], [400_020, 4_999_980]]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            feature = {"type": "Feature", "geometry": geometry, "properties": {"label": "ship"}}
            write(folder / "labels/a.geojson", {"type": "FeatureCollection", "crs": crs, "features": [feature]})
            _, (problem,) = LabelSet(folder / "labels", "geojson").read("a", CLASSES, folder / "images/a.tif")
            assert problem.reason == "bad_json" and "coordinate system" in problem.detail
        with pytest.raises(TimeoutError):
            listening.accept()


def test_time_grows_with_the_size_of_a_file_and_no_faster(folder):
    """Each took minutes: text that the parser gives in pieces, and a line of 200,000 words."""
    write(folder / "labels/a.xml", f"<annotation>{'a&amp;' * 1_000_000}</annotation>")
    write(folder / "labels/a.txt", f"1 1 5 1 5 5 1 5 {'ship ' * 200_000}0\n")
    started = time.process_time()
    assert len(structured.read_tree(folder / "labels/a.xml").text) == 2_000_000
    _, (problem,) = dota.read_labels(folder / "labels/a.txt", CLASSES)
    assert problem.reason == "unknown_class"
    assert time.process_time() - started < 10


@pytest.mark.parametrize("encoding", ["punycode", "idna", "unicode_escape", "utf-7", "rot13"])
def test_an_xml_that_declares_what_is_no_encoding_of_files_is_refused_at_once(folder, encoding):
    # (decoding 200 kB of punycode takes a minute: its time grows with the square of the length)
    path = folder / "labels/a.xml"
    path.parent.mkdir()
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + b"a" * 100_000 + b"-" + b"z" * 100_000)
    started = time.process_time()
    _, (problem,) = LabelSet(folder / "labels", "rolabelimg").read("a", CLASSES)
    assert problem.reason == "bad_encoding" and encoding in problem.detail
    assert time.process_time() - started < 1


def test_a_class_index_of_thousands_of_digits_is_an_unknown_class(folder):
    write(folder / "labels/a.txt", "9" * 5000 + " 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n")
    found, problems = LabelSet(folder / "labels", "yolo-obb").read("a", CLASSES, folder / "images/a.png")
    assert [problem.reason for problem in problems] == ["unknown_class"] and not len(found.labels)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: {'0': ship, '1': plane}", ("ship", "plane")),
        ("names: [no, on, 1.0]", ("no", "on", "1.0")),  # words, where YAML 1.1 has truth values
        ("names: [0x" + "f" * 20_000 + "]", None),  # Python makes no decimal digits of such a number
        ("names: [1" + ":59" * 20_000 + "]", None),  # nor does this become one
    ],
)
def test_names_in_a_yaml_stay_text(folder, text, names):
    yolo_obb(folder)
    write(folder / "data.yaml", text)
    write(folder / "labels/docker.yml", "a: !vault [\n")  # another program's, without names
    (folder / "labels/folder.yaml").mkdir()
    if names is not None:
        assert LabelSet(folder / "labels", "yolo-obb").class_names == names
        return
    with pytest.raises(UserError, match="letters"):
        LabelSet(folder / "labels", "yolo-obb")


def test_json_and_xml_in_utf_16_are_recognised_and_read(folder):
    for make in (rolabelimg, coco):
        make(folder)
        for path in (*folder.glob("labels/*"), *folder.glob("*.json")):
            path.write_bytes(path.read_text().encode("utf-16"))
        place = folder / "labels" if make is rolabelimg else next(iter(folder.rglob("*.json")))
        labels = LabelSet(place, "auto")
        assert len(labels.read("a", CLASSES)[0].labels) == 2
        if place.is_dir():
            shutil.rmtree(place)


def test_a_video_of_cvat_and_names_that_cannot_be_printed_are_named(folder):
    write(folder / "labels.xml", '<annotations><track id="0" label="ship"><box frame="0"/></track></annotations>')
    (problem,) = LabelSet(folder / "labels.xml", "cvat").problems
    assert problem.reason == "other_format" and "video" in problem.detail
    for name in (" ", "a\x1b[2J"):
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
        write(folder / "labels.json", content | {"categories": [{"id": 1, "name": name}, {"id": 2, "name": "ship"}]})
        labels = LabelSet(folder / "labels.json", "coco")
        assert labels.class_names == ("ship",) and [problem.reason for problem in labels.problems] == ["bad_object"]


def test_a_json_that_cannot_be_read_is_not_only_not_recognised(folder):
    write(folder / "labels.json", '{"images": [], "annotations": [{"bbox": [NaN]}]}')
    with pytest.raises(UserError, match="no JSON that can be read"):
        LabelSet(folder / "labels.json", "auto")
