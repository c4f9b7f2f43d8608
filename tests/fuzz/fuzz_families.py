"""Families of files that may come from strangers: how each is damaged, and what is done with it afterwards.

`FAMILIES[name](folder)` gives a function of random.Random that writes a damaged file and returns a function which uses
it as the program does. That may raise a UserError and nothing else.
"""

import io
import json
import struct
import zipfile

import cv2
import fuzz_data
import fuzz_images
import fuzz_mutate
import numpy as np
from torch_files import TINY, Call, Global, Raw, make_weights, pickle_bytes, stored, tensor, write_legacy

from haksnet_jax import json_files
from haksnet_jax.distributed import messages
from haksnet_jax.images import headers, reader
from haksnet_jax.labels import label_set
from haksnet_jax.pipeline import prepared
from haksnet_jax.results import detections_json
from haksnet_jax.weights import convert, model_schema, sums, torch_reader
from haksnet_jax.weights.stored_tensors import StoredTensor

CLASSES = ("ship", "Small Car")
_LARGEST_IMAGE = 1 << 22  # pixels: larger ones are allowed, and take their time


# ------------------------------------------------------------------------------------------------------------- weights


def _read_weights(path):
    found = torch_reader.read_checkpoint(path)
    stack, seen = [found.tree], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StoredTensor):
            value.numpy()
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value


def _pickles():
    """Well-formed programs, with the bytes of their storages."""
    namespace = Call(Global("argparse", "Namespace"), (), {"lr": 0.1, "img_size": 224}, b"\x81")
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, np.int64)}
    dtype = Call(Global("numpy", "dtype"), ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    array = Call(
        Global("numpy.core.multiarray", "_reconstruct"),
        (Global("numpy", "ndarray"), (0,), b"b"),
        (1, (1,), dtype, False, b"abcd"),
    )
    trees = [
        {
            "state_dict": values,
            "meta": {"CLASSES": CLASSES, "config": "mean=[1, 2, 3]", "epoch": 12},
            "args": namespace,
        },
        {"model": values, "array": array, "set": {1, 2}, "nested": [[(1, None)], {"a": (True, 1.5)}], "text": "é"},
    ]
    for tree in trees:
        storages = {}
        yield pickle_bytes(stored(tree, storages)), storages


def _zip(draw, program, storages):
    """The zip form, sometimes damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw.choice((zipfile.ZIP_STORED,) * 40 + (zipfile.ZIP_DEFLATED,))) as file:
        root = draw.choice(("archive/", "archive/", "a/b/", ""))
        file.writestr(f"{root}data.pkl", program)
        for key, (data, _) in storages.items():
            file.writestr(f"{root}data/{key}", data)
        if draw.random() < 0.3:
            file.writestr(f"{root}byteorder", draw.choice((b"little",) * 8 + (b"big", b"", b"x" * 100)))
        if draw.random() < 0.05:
            file.writestr(draw.choice(("code/x.py", "b/data.pkl", "../x", "\x1b[2J")), b"x")
    data = bytearray(buffer.getvalue())
    if draw.random() < 0.12:  # a field of the directory
        entry = data.index(b"PK\x01\x02")
        for _ in range(draw.randrange(4)):
            entry = data.find(b"PK\x01\x02", entry + 1) if data.find(b"PK\x01\x02", entry + 1) > 0 else entry
        end = data.index(b"PK\x05\x06")
        place, form = draw.choice(
            [(entry + offset, "<H") for offset in (8, 10, 28, 30, 32)]
            + [(entry + offset, "<I") for offset in (16, 20, 24, 42)]
            + [(end + 10, "<H"), (end + 12, "<I"), (end + 16, "<I")]
        )
        struct.pack_into(form, data, place, draw.choice(fuzz_mutate.NUMBERS) % (1 << 8 * struct.calcsize(form)))
    return fuzz_mutate.damage_bytes(draw, data) if draw.random() < 0.08 else bytes(data)


def pth(folder):
    programs = [(fuzz_mutate.operations(program), storages) for program, storages in _pickles()]
    path, legacy = folder / "current.pth", folder / "plain.pth"
    others = [operation for parts, _ in programs for operation in parts]
    write_legacy(legacy, {"state_dict": {"w": np.arange(6, dtype=np.float32)}})
    whole = legacy.read_bytes()
    magic = len(pickle_bytes(0x1950A86A20F9469CFC6C))

    def make(draw):
        parts, storages = draw.choice(programs)
        if draw.random() < 0.2:  # the older form: five programs in a row
            if draw.random() < 0.5:
                data = whole[:magic] + fuzz_mutate.damage_bytes(draw, whole[magic:])
            else:
                data = whole[:magic] + fuzz_mutate.damage_pickle(draw, parts, others) + whole[magic:]
            fuzz_mutate.write(path, data)
        else:
            fuzz_mutate.write(path, _zip(draw, fuzz_mutate.damage_pickle(draw, parts, others), storages))
        return lambda: _read_weights(path)

    return make


def model_pth(folder):
    """A whole small detector: finding the weights, their names and shapes."""
    weights = {name: value for name, value in make_weights(TINY, "fuzz").items() if value.dtype == np.float32}
    whole = np.concatenate([value.reshape(-1) for value in weights.values()])
    views, offset, names = {}, 0, tuple(f"class {number}" for number in range(15))
    for name, value in weights.items():  # all in one storage, which is written sooner
        view = tensor("float32", "0", whole.size, value.shape, None, offset)
        views[name] = Raw(pickle_bytes(view)[2:-1])  # (what stands between a pickle's first and last operation)
        offset += value.size
    storages = {"0": (whole.tobytes(), whole.size)}
    parts = fuzz_mutate.operations(pickle_bytes({"state_dict": views, "meta": {"CLASSES": names}}))
    path = folder / "current.pth"

    def make(draw):
        if draw.random() < 0.6:
            program = pickle_bytes({"state_dict": _other_weights(draw, views), "meta": {"CLASSES": names}})
            fuzz_mutate.write(path, _zip(draw, program, storages))
        else:
            fuzz_mutate.write(path, _zip(draw, fuzz_mutate.damage_pickle(draw, parts, parts), storages))
        options = {"ema": draw.random() < 0.1, "part": draw.choice((None,) * 8 + ("teacher",))}
        return lambda: convert.read_torch_model(path, **options)

    return make


def _other_weights(draw, views):
    """Weights of which some have other names, shapes or kinds, or are missing or there twice."""
    views = dict(views)
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        name = draw.choice(tuple(views))
        change = draw.randrange(6)
        if change == 0:
            del views[name]
        elif change == 1:
            views[draw.choice(("module.", "teacher.", "ema.", "\x1b[2J", "x" * 3000)) + name] = views[name]
        elif change == 2:
            shape = draw.choice(((), (0,), (1,), (8,), (8, 8), (8, 3, 7, 7), (1,) * 33, (2**40, 0)))
            views[name] = tensor("float32", "0", draw.choice((8, 10**6)), shape)
        elif change == 3:
            views[name] = draw.choice((None, 1.5, "text", [1], {"a": 1}, (1, 2), True))
        elif change == 4:
            views[name.replace(draw.choice((".0.", ".1.", "block", "norm")), draw.choice((".999.", "..", "9", "")))] = (
                views[name]
            )
        else:
            views = {
                name.replace("backbone.", draw.choice(("", "backbone.backbone."))): one for name, one in views.items()
            }
    return views


def safetensors(folder):
    path = folder / "current.safetensors"
    header = {
        "__metadata__": {"format": "pt", "classes": json.dumps(CLASSES), "haksnet_jax": "{}"},
        "backbone.a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "backbone.b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
        "c": {"dtype": "BF16", "shape": [4, 0], "data_offsets": [32, 32]},
        "d": {"dtype": "F16", "shape": [2], "data_offsets": [32, 36]},
    }

    def make(draw):
        text = fuzz_mutate.damage_json(draw, header)
        size = draw.choice((len(text),) * 9 + fuzz_mutate.NUMBERS[:3] + (2**40,))
        data = struct.pack("<Q", size) + text + draw.randbytes(draw.choice((36, 36, 36, 0, 35, 37, 1000)))
        fuzz_mutate.write(path, fuzz_mutate.damage_bytes(draw, data) if draw.random() < 0.1 else data)
        return lambda: _read_weights(path)

    return make


# -------------------------------------------------------------------------------------------------------------- images


def _look_at(path):
    header = headers.read_header(path)
    if header.width * header.height <= _LARGEST_IMAGE:
        reader.read(path)


def tiff(folder):
    path = folder / "current.tif"

    def make(draw):
        fuzz_mutate.write(path, fuzz_images.damaged_tiff(draw))
        return lambda: _look_at(path)

    return make


def jpeg(folder):
    path, seed = folder / "current.jpg", fuzz_images.jpeg_segments()

    def make(draw):
        fuzz_mutate.write(path, fuzz_images.damaged_jpeg(draw, seed))
        return lambda: _look_at(path)

    return make


def png(folder):
    image = fuzz_images.pixels()
    seeds = [fuzz_images.png_chunks(one) for one in (image, image[..., 0], image.astype(np.uint16) * 99)]
    bmp = cv2.imencode(".bmp", image)[1].tobytes()
    path = folder / "current.png"

    def make(draw):
        if draw.random() < 0.2:
            fuzz_mutate.write(path, fuzz_mutate.damage_bytes(draw, bmp[:60]) + bmp[60:])
        else:
            fuzz_mutate.write(path, fuzz_images.damaged_png(draw, draw.choice(seeds)))
        return lambda: _look_at(path)

    return make


# -------------------------------------------------------------------------------------------------------------- labels

_CORNERS = [[35.0, 24.0], [79.0, 48.0], [69.0, 56.0], [25.0, 32.0]]
_TEXTS = {
    "dota": (
        "txt",
        "imagesource:GoogleEarth\ngsd:0.1\n35 24 79 48 69 56 25 32 ship 0\n1.5 2 3 4 5 6 7 8 Small Car 1\n",
    ),
    "yolo-obb": ("txt", "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4\n1 0.5 0.5 0.6 0.5 0.6 0.7 0.5 0.7\n"),
    "rolabelimg": (
        "xml",
        "<annotation><size><width>200</width><height>100</height><depth>3</depth></size><object><type>robndbox</type>"
        "<name>ship</name><difficult>0</difficult><robndbox><cx>60</cx><cy>40</cy><w>50</w><h>20</h><angle>0.5</angle>"
        "</robndbox></object><object><name>Small Car</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
        "<ymax>40</ymax></bndbox></object></annotation>",
    ),
    "cvat": (
        "xml",
        '<annotations><meta><task><labels><label><name>ship</name></label></labels></task></meta><image id="0" '
        'name="a.png" width="200" height="100"><polygon label="ship" points="35,24;79,48;69,56;25,32" occluded="0"/>'
        '<box label="Small Car" xtl="1" ytl="2" xbr="30" ybr="40" rotation="30"/></image></annotations>',
    ),
}
_OBJECTS = {
    "labelme": {
        "version": "5.0",
        "imagePath": "a.png",
        "imageWidth": 200,
        "imageHeight": 100,
        "shapes": [
            {"label": "ship", "points": _CORNERS, "shape_type": "polygon", "flags": {}},
            {"label": "Small Car", "points": [[1, 2], [30, 40]], "shape_type": "rectangle", "group_id": None},
        ],
    },
    "geojson": {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"label": "ship"},
                "geometry": {"type": "Polygon", "coordinates": [[*_CORNERS, _CORNERS[0]]]},
            }
        ],
    },
    "coco": {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "Small Car"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[35.0, 24.0, 79.0, 48.0, 69.0, 56.0, 25.0, 32.0]],
                "iscrowd": 0,
                "area": 1.0,
            },
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [1, 2, 30, 40]},
        ],
    },
    "label-studio": [
        {
            "id": 1,
            "data": {"image": "/data/upload/a.png"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "rectanglelabels",
                            "original_width": 200,
                            "original_height": 100,
                            "value": {
                                "x": 10,
                                "y": 10,
                                "width": 20,
                                "height": 10,
                                "rotation": 30,
                                "rectanglelabels": ["ship"],
                            },
                        }
                    ]
                }
            ],
        }
    ],
}
_ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    '<?xml version="1.0" encoding="gbk"?>',
    '<?xml version="1.0" encoding="utf-99"?>',
)


def labels(folder):
    image = folder / "a.png"
    cv2.imwrite(str(image), np.zeros((100, 200, 3), np.uint8))

    def make(draw):
        kind = draw.choice((*_TEXTS, *_OBJECTS))
        place = folder / kind
        place.mkdir(exist_ok=True)
        if kind in _TEXTS:
            ending, text = _TEXTS[kind]
            if ending == "xml":
                text = draw.choice(("",) * 6 + _ENTITIES) + text.replace("<", " <").replace(">", "> ")
                if draw.random() < 0.02:
                    text = "<a>" * draw.choice((100, 100_000)) + text
            data = fuzz_mutate.damage_text(draw, text)
        else:
            ending, data = "json", fuzz_mutate.damage_json(draw, _OBJECTS[kind])
        fuzz_mutate.write((place / f"a.{ending}"), data)

        def use():
            found = label_set.LabelSet(place, draw.choice((kind, kind, kind, "auto")))
            found.found_class_names()
            for stem in found.files:
                _, problems = found.read(stem, CLASSES, image)
                for problem in problems:
                    str(problem)

        return use

    return make


# ---------------------------------------------------------------------------------------------------------------- JSON

_MODEL = {
    "task": "detection",
    "architecture": {
        "backbone": "haksnet",
        "in_channels": 3,
        "channels": [8, 16, 24, 32],
        "depths": [1, 1, 2, 1],
        "mlp_ratios": [8, 8, 4, 4],
        "fpn_channels": 32,
        "hidden": 64,
        "num_classes": 2,
    },
    "class_names": list(CLASSES),
    "pixel_mean": [1.0, 2.0, 3.0],
    "pixel_std": [1.0, 2.0, 3.0],
    "input_size": [192, 192],
    "keep_ratio": True,
    "padding_divisor": 32,
    "proposals": {"candidates_per_level": 200, "iou_threshold": 0.8},
    "source": {"file": "a", "sha256": "0"},
}
_DETECTIONS = {
    "classes": list(CLASSES),
    "images": [
        {
            "image": "a.png",
            "width": 200,
            "height": 100,
            "detections": [{"label": "ship", "score": 0.9, "box": [60.0, 40.0, 50.0, 20.0, 0.5]}],
        },
        {"image": "b.png", "detections": []},
    ],
}
_MESSAGE = {"host": 1, "num_hosts": 2, "name": "host", "facts": {"code": "a", "n": 1}, "challenge": "x"}
_CORE = "tensorflow_datasets.core.features"
_FEATURES = {
    "pythonClassName": f"{_CORE}.features_dict.FeaturesDict",
    "featuresDict": {
        "features": {
            "image": {
                "pythonClassName": f"{_CORE}.image_feature.Image",
                "image": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "3"]}},
            },
            "objects": {
                "pythonClassName": f"{_CORE}.sequence_feature.Sequence",
                "sequence": {"length": "-1", "feature": {"pythonClassName": f"{_CORE}.text_feature.Text", "text": {}}},
            },
        }
    },
}
_INFO = {
    "fileFormat": "array_record",
    "name": "tiny",
    "version": "1.0.0",
    "splits": [{"name": "train", "numBytes": "8", "shardLengths": ["3"], "filepathTemplate": "{DATASET}-{SPLIT}"}],
}


def json_of_ours(folder):
    def use_model(path):
        model_schema.check(json_files.load(path), path)

    def use_message(path):
        line = path.read_bytes()
        messages.is_report(messages.verified(line, "token", "x"))
        for check in (messages.is_report, messages.is_answer, messages.is_end):
            check(messages.parsed(line))

    def use_prepared(path):
        prepared.check(path.parent)

    kinds = {
        "model.json": (_MODEL, use_model),
        "manifest.json": ({"state/a": [1, 2], "model.json": [3, 4]}, lambda path: sums.difference(path.parent)),
        "detections.json": (_DETECTIONS, detections_json.read),
        "message.json": (_MESSAGE, use_message),
        "features.json": (_FEATURES, use_prepared),
        "dataset_info.json": (_INFO, use_prepared),
    }
    for name, (value, _) in kinds.items():
        (folder / name).mkdir()
        (folder / name / "features.json").write_text(json.dumps(_FEATURES))
        (folder / name / "dataset_info.json").write_text(json.dumps(_INFO))
        (folder / name / name).write_text(json.dumps(value))

    def make(draw):
        name = draw.choice(tuple(kinds))
        value, use = kinds[name]
        path = folder / name / name
        fuzz_mutate.write(path, fuzz_mutate.damage_json(draw, value))
        return lambda: use(path)

    return make


FAMILIES = {
    "pth": pth,
    "model_pth": model_pth,
    "safetensors": safetensors,
    "tiff": tiff,
    "jpeg": jpeg,
    "png": png,
    "labels": labels,
    "json": json_of_ours,
    "records": fuzz_data.records,
    "masks": fuzz_data.masks,
}
