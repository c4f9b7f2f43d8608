"""What a file or folder is: a model, a run, weights of PyTorch, an image, labels or records, as named facts."""

import collections
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from haksnet_jax import demo, files, json_files
from haksnet_jax.errors import UserError
from haksnet_jax.wording import counted

_SHOWN = 20  # classes that are named one by one
_LABEL_ENDINGS = (".txt", ".xml", ".json", ".geojson")


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Says what a path is.

    Args:
      path: of a checkpoint, run, `.pth` or `.safetensors` file, image, folder of images or labels, or records.

    Returns:
      dict of facts by name, the first of which is "what"; values are numbers, texts, or dicts of these.

    Raises:
      UserError: there is nothing, or it is none of these.
    """
    path = pathlib.Path(demo.or_path(path, demo.MODEL)) if not files.is_bucket(path) else files.reachable(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    describe_it = _of_folder if path.is_dir() else _of_file
    return describe_it(path)


def table(facts: Mapping[str, Any], indent: str = "") -> str:
    """The facts as lines for a terminal."""
    width = max((len(name) for name in facts), default=0)
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *table(value, indent + "  ").splitlines()]
        else:
            lines.append(f"{indent}{name:{width}}  {json_files.printable(str(value))}")
    return "\n".join(lines)


def _of_folder(path):
    if (path / "dataset_info.json").exists():
        return _records(path)
    if any((path / name).exists() for name in ("state", "model.json", "checkpoints", "best")):
        return _model(path)
    from haksnet_jax.images import files as image_files

    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    if any(image_files.is_image(name) for name in names):
        return _images(path)
    if any(name.lower().endswith(_LABEL_ENDINGS) for name in names):
        return _labels(path)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    raise UserError(
        f"{path}: expected a run, a model, records, or a folder of images or labels; it holds {inside or 'nothing'}"
    )


def _of_file(path):
    from haksnet_jax.images import files as image_files

    name = path.name.lower()
    if image_files.is_image(path.name):
        return _image(path)
    if name.endswith((".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")):
        return _weights(path)
    if name.endswith(_LABEL_ENDINGS):
        return _labels(path)
    raise UserError(
        f"{path}: expected an image, weights (.pth, .safetensors) or labels (.txt, .xml, .json); a model is a folder"
    )


# --------------------------------------------------------------------------------------------------- models and weights


def _model(path):
    from haksnet_jax.weights import model_folder

    folder, info_path = model_folder.resolve(str(path))
    arrays, info = model_folder.load_model(str(path))
    learned = sum(value.size for name, value in arrays.items() if not name.endswith((".mean", ".var")))
    architecture = info["architecture"]
    stored = ", ".join(sorted({str(value.dtype) for value in arrays.values()}))
    facts = {
        "what": f"{'checkpoint of a run' if 'step' in info else 'model'}, {info.get('task', 'detection')}",
        "weights": f"{folder}, {sum(value.nbytes for value in arrays.values()) / 1e6:.1f} MB",
        "parameters": f"{learned:,}",
        "operations": _operations(info),
        "precision": f"stored as {stored}; computed in float32, or with --precision=bfloat16",
        "architecture": {name: str(value) for name, value in architecture.items() if value is not None},
    }
    if info.get("class_names"):
        facts["classes"] = f"{len(info['class_names'])}: {', '.join(info['class_names'][:_SHOWN])}"
    facts["input"] = {
        name: str(info[name])
        for name in ("input_size", "bands", "limits", "nodata", "pixel_mean", "pixel_std", "keep_ratio")
        if info.get(name) is not None
    }
    numbers = {name: value for name, value in info.items() if isinstance(value, float)}
    if numbers:
        facts["scores"] = {name: f"{100 * value:.2f} %" for name, value in numbers.items()}
    if info.get("source"):
        facts["made from"] = {name: str(value) for name, value in info["source"].items()}
    return facts | _run_facts(path if (path / "config.json").exists() else info_path.parent)


def _operations(info):
    """Text: what the model computes for one image."""
    from haksnet_jax.tools import operations

    count, (rows, columns) = operations.of_model(info)
    what = "a pair" if info.get("task") == "change" else "an image"
    billions = f"{count / 1e9:.3g} billion multiply-adds, {2 * count / 1e9:.3g} GFLOP,"
    return f"{billions} for {what} of {rows} x {columns} pixels"


def _run_facts(folder):
    """State of the run in a folder; nothing where there is none."""
    facts, folder = {}, pathlib.Path(folder)
    if not (folder / "config.json").exists():
        return {}
    config = _object_in(folder / "config.json")
    steps = sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    facts["configuration"] = config.get("name", "")
    facts["checkpoints"] = f"steps {', '.join(map(str, steps))}" if steps else "none"
    facts["best"] = str(folder / "best") if (folder / "best").exists() else "none yet"
    if (folder / "result.json").exists():
        card = _object_in(folder / "result.json").get("facts")
        card = card if isinstance(card, dict) else {}
        shown = ("steps", "global_batch", "learning_rate", "pretrained", "hardware", "seed", "commit", "jax", "date")
        facts["training"] = {name.replace("_", " "): str(card[name]) for name in shown if card.get(name) is not None}
    else:
        facts["training"] = "not at its end: the same command goes on"
    return {"run": facts}


def _object_in(path):
    """The object that a JSON file holds."""
    found = json_files.load(path)
    json_files.check(found, {"type": "object", "description": "an object"}, where=path)
    return found


def _weights(path):
    from haksnet_jax.weights import torch_reader
    from haksnet_jax.weights.convert import read_torch_model

    checkpoint = torch_reader.read_checkpoint(path)
    form = {"zip": "PyTorch checkpoint", "legacy": "PyTorch checkpoint of the older form"}.get(
        checkpoint.kind, "safetensors"
    )
    facts = {"what": f"{form}, {path.stat().st_size / 1e6:.1f} MB"}
    try:
        model = read_torch_model(path, allow_missing=["*"])
    except UserError as error:
        facts["HAKSNet"] = f"no: {error}"
        return facts
    architecture = model.info["architecture"]
    is_detector = architecture.get("fpn_channels") is not None
    facts["HAKSNet"] = "detector" if is_detector else "backbone alone"
    facts["parameters"] = f"{sum(v.size for name, v in model.params.items() if not name.endswith(('.mean', '.var'))):,}"
    facts["architecture"] = {name: str(value) for name, value in architecture.items() if value is not None}
    if model.info.get("class_names"):
        facts["classes"] = ", ".join(model.info["class_names"][:_SHOWN])
    facts["sha256"] = (model.info.get("source") or {}).get("sha256", "")
    facts["next"] = f"haksnet convert --input={path} --output=DIR"
    return facts


# ----------------------------------------------------------------------------------------------------------------- data


def _image(path):
    from haksnet_jax.images.reader import ImageFile

    with ImageFile(path) as image:
        header, names = image.header, [name or f"band {n}" for n, name in enumerate(image.band_names, start=1)]
        chosen, nodata = image.chosen, {value for value in image.nodata if value is not None}
    facts = {
        "what": f"{header.format} image, {path.stat().st_size / 1e6:.1f} MB",
        "size": f"{header.width} x {header.height} pixels (columns x rows)",
        "bands": f"{len(names)}: {', '.join(names)}",
        "read as": ", ".join(names[index] for index in chosen),
        "bits": f"{header.bits}, {header.kind}",
    }
    if header.orientation != 1:
        facts["orientation"] = f"{header.orientation}: turned when it is read"
    if header.pages > 1:
        facts["pages"] = f"{header.pages}: the first one is read"
    if nodata:
        facts["nodata"] = ", ".join(map(str, sorted(nodata)))
    return facts | _place(path, header)


def _place(path, header):
    """Coordinate system and extent of a georeferenced TIFF."""
    if header.format != "TIFF":
        return {}
    from haksnet_jax.images import geotiff
    from haksnet_jax.images.headers import ImageError

    try:
        with geotiff.open_image(path) as file:
            if file.crs is None:
                return {"coordinate system": "none"}
            bounds = ", ".join(f"{value:.6g}" for value in file.bounds)
            return {
                "coordinate system": str(file.crs),
                "extent": bounds,
                "pixel": f"{file.res[0]:.4g} x {file.res[1]:.4g}",
            }
    except ImageError as error:
        if error.reason != "needs_rasterio":
            raise
        return {"coordinate system": "not looked at: pip install rasterio"}


def _images(path):
    from haksnet_jax.images import files as image_files
    from haksnet_jax.images.headers import ImageError, read_header

    counts, sizes, unusable = collections.Counter(), [], 0
    for one in image_files.list_images(path):
        try:
            header = read_header(one)
        except (ImageError, OSError):
            unusable += 1
            continue
        counts[f"{header.format}, {header.channels} bands of {header.bits} bits"] += 1
        sizes.append((header.width, header.height))
    facts = {"what": f"folder of {counted(len(sizes), 'image')}", "kinds": dict(counts.most_common())}
    if sizes:
        facts["smallest"] = "{} x {} pixels".format(*min(sizes, key=lambda size: size[0] * size[1]))
        facts["largest"] = "{} x {} pixels".format(*max(sizes, key=lambda size: size[0] * size[1]))
    if unusable:
        facts["cannot be used"] = f"{unusable}: haksnet validate --images={path} names them"
    return facts


def _labels(path):
    from haksnet_jax.labels import dota, label_set

    try:
        form = label_set.recognise_format(path)
    except UserError as error:
        raise UserError(
            f"{path}: not recognised as labels of objects; expected one of the formats "
            f"{', '.join(label_set.FORMATS[1:])}, or a run, a model, an image or a folder of them"
        ) from error
    facts = {"what": f"labels, {'DOTA text' if form == 'dota' else form}"}
    if form != "dota":
        facts["next"] = f"haksnet validate --images=DIR --labels={path} --format={form}"
        return facts
    paths = [path] if path.is_file() else sorted(one for one in path.glob("*.txt") if one.name != "classes.txt")
    names = tuple(sorted({name for one in paths for name in dota.written_class_names(one)}))
    counts, num_problems, empty = collections.Counter(), 0, 0
    for one in paths:
        objects, problems = dota.read_labels(one, names)
        counts.update(names[label] for label in objects.labels)
        empty += not len(objects.labels)
        num_problems += len(problems)
    facts |= {"files": len(paths), "without objects": empty, "objects": sum(counts.values())}
    facts["classes"] = dict(counts.most_common(_SHOWN))
    if num_problems:
        facts["problems"] = f"{num_problems}: haksnet validate names them"
    return facts


def _records(path):
    from haksnet_jax.labels import encodings
    from haksnet_jax.pipeline import prepared

    prepared.check(path)
    info = json_files.load(path / "dataset_info.json")
    splits = {}
    for split in info.get("splits", ()):
        lengths = [int(length) for length in split.get("shardLengths", ())]
        splits[split["name"]] = f"{sum(lengths)} images, {int(split.get('numBytes', 0)) / 1e6:.1f} MB"
    facts = {"what": f"records, {info.get('name', '')} {info.get('version', '')}", "splits": splits}
    for names in path.glob("*label*.txt"):
        classes = [name for name in encodings.read_lines(names) if name]
        facts["classes"] = f"{len(classes)}: {', '.join(classes[:_SHOWN])}"
    description = re.sub(r"\s+", " ", str(info.get("description", ""))).strip()
    return facts | ({"description": description[:200]} if description else {})
