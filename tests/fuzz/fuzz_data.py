"""Prepared data sets and masks: how they are damaged, and what is done with them (see fuzz_families)."""

import io
import json
import zipfile

import cv2
import fuzz_images
import fuzz_mutate
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from haksnet_jax.labels import masks as mask_files
from haksnet_jax.pipeline import record_index
from haksnet_jax.pipeline.record_source import TfdsSource

_CLASSES = ("ship", "Small Car")
_CORNERS = np.array([35, 24, 79, 48, 69, 56, 25, 32], np.float32)


class _Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Two records, as the builders of this package make them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = {
            "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=list(_CLASSES)),
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
        image = cv2.imencode(".png", fuzz_images.pixels())[1].tobytes()
        for number, name in enumerate("ab"):
            objects = [{"polygon": _CORNERS, "label": number, "difficulty": number}] * (1 + number)
            yield name, {"image": image, "image_id": name, "objects": objects}


def records(folder):
    """A folder of records of which one file is damaged: description, index, or the records themselves."""
    builder = _Small(data_dir=str(folder / "made"), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    place = builder.data_path
    source = TfdsSource(place, "train")
    index = [source.labels(number) for number in range(2)]
    arrays = [np.concatenate([one[name] for one in index]) for name in ("polygons", "labels", "difficulty")]
    record_index.write(place, {"train": record_index.RecordIndex(np.array(list("ab")), source.num_objects, *arrays)})
    (place / "images.json").write_text(json.dumps({"bands": [3, 2, 1], "limits": [0, 2047], "mean": [1, 2, 3]}))
    (data,) = place.glob("*.array_record*")
    whole = {name: (place / name).read_bytes() for name in ("features.json", "dataset_info.json", "index.npz")}
    whole |= {data.name: data.read_bytes(), "images.json": (place / "images.json").read_bytes()}
    ways = {
        "features.json": lambda draw, content: fuzz_mutate.damage_json(draw, json.loads(content)),
        "dataset_info.json": lambda draw, content: fuzz_mutate.damage_json(draw, json.loads(content)),
        "images.json": lambda draw, content: fuzz_mutate.damage_json(draw, json.loads(content)),
        "index.npz": _damaged_index,
        data.name: fuzz_mutate.damage_bytes,
    }
    changed = []

    def use():
        source = TfdsSource(place, "train", filter_empty=True)
        source.labels(0)
        source[len(source) - 1]

    def make(draw):
        while changed:  # whole again
            name = changed.pop()
            fuzz_mutate.write(place / name, whole[name])
        name = draw.choice((*ways, "index.npz", "index.npz", data.name))
        changed.append(name)
        fuzz_mutate.write(place / name, ways[name](draw, whole[name]))
        if name == data.name and draw.random() < 0.5:  # without an index everything comes from the records
            changed.append("index.npz")
            (place / "index.npz").unlink()
        return use

    return make


def _damaged_index(draw, content):
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    for _ in range(draw.choice((0, 1, 1, 2))):
        name = draw.choice(tuple(arrays))
        kind = draw.randrange(5)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            numbers = (
                arrays[name]
                if arrays[name].dtype.kind != "U"
                else np.arange(arrays[name].size).reshape(arrays[name].shape)
            )
            arrays[name] = numbers.astype(draw.choice(("i8", "u1", "f8", "f2", "U3", "b1", "c8")), casting="unsafe")
        elif kind == 2:
            arrays[name] = np.full(draw.choice(((), (0,), (1,), (3,), (3, 4, 2), (2, 1000))), draw.choice(_FILLS))
        elif kind == 3:
            arrays[name] = np.repeat(arrays[name], draw.choice((0, 2, 1000)), axis=0)
        else:
            arrays[draw.choice(("train/x", "x", "../x", "\x1b[2J"))] = arrays[name]
        if not arrays:
            break
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.lib.format.write_array(plain, np.asarray(array), allow_pickle=False)
            data = plain.getvalue()
            if draw.random() < 0.15:
                data = fuzz_mutate.damage_bytes(draw, data[:128]) + data[128:]
            if draw.random() < 0.02:
                data += bytes(draw.choice((1, 10**6, 10**7)))
            file.writestr(f"{name}.npy", data)
    data = buffer.getvalue()
    return fuzz_mutate.damage_bytes(draw, data) if draw.random() < 0.3 else data


_FILLS = (0, 1, -1, 2**31 - 1, 2**63 - 1, 1e308, float("nan"), float("inf"), "x", True)


def masks(folder):
    """Masks of numbers, palettes and colours as PNG, TIFF and BMP, and the palette beside them."""
    classes = (np.arange(16 * 20).reshape(16, 20) % 3).astype(np.uint8)
    indexed = Image.fromarray(classes)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    pictures = {
        "numbers": Image.fromarray(classes),
        "indexed": indexed,
        "colours": indexed.convert("RGB"),
        "alpha": indexed.convert("RGBA"),
        "sixteen": Image.fromarray(classes.astype(np.uint16)),
        "bilevel": Image.fromarray(classes > 0),
    }
    pngs, others = [], []
    for picture in pictures.values():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        pngs.append(fuzz_images.chunks_of(buffer.getvalue()))
        for kind in ("TIFF", "BMP"):
            if kind == "BMP" and picture.mode == "I;16":
                continue
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            others.append((kind.lower()[:4], buffer.getvalue()))
    palette = "# colours\n000000 background\nFF0000 ship\n0 255 0 ignored\n#0000ff Small Car\n"

    def make(draw):
        choice = draw.random()
        if choice < 0.5:
            path, data = folder / "a.png", fuzz_images.damaged_png(draw, draw.choice(pngs))
        elif choice < 0.8:
            ending, data = draw.choice(others)
            path = folder / f"a.{ending}"
            cut = draw.choice((60, len(data)))
            data = fuzz_mutate.damage_bytes(draw, data[:cut]) + data[cut:]
        elif choice < 0.9:
            path, data = folder / "a.tif", fuzz_images.damaged_tiff(draw)
        else:
            path, data = folder / "palette.txt", fuzz_mutate.damage_text(draw, palette)
        fuzz_mutate.write(path, data)
        in_colours = draw.random() < 0.4

        def use():
            if path.suffix == ".txt":
                mask_files.read_palette(path)
                return
            names, colours = mask_files.parse_palette(palette.splitlines(), "palette")
            rows, columns = mask_files.read_mask_size(path)
            if rows * columns > 1 << 22:
                return  # allowed, and takes its time
            mask = mask_files.read_mask(path, colours if in_colours else mask_files.number_legend(len(names)))
            if mask.labels.shape != (rows, columns):
                raise AssertionError("header and pixels differ")
            if mask.unknown:
                mask_files.describe_unknown(mask.unknown)

        return use

    return make
