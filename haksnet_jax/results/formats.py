"""The formats that detections leave in: one table, a function for each, which takes the `Detections` of many images.

What is written: the folder's `detections.json` always; the others as they are asked for. docs/prediction.md describes
each of them; `labels/formats` reads those that are formats of labels too.
"""

import csv
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels import name_lists
from haksnet_jax.results import detections_json, dota, geojson, tiles, visualize
from haksnet_jax.results.detections import Detections

_CSV_COLUMNS = (
    "image",
    "label",
    "score",
    "cx",
    "cy",
    "w",
    "h",
    "angle",
    *(f"{a}{n}" for n in range(1, 5) for a in "xy"),
)


class Written(NamedTuple):
    """What a format's function has written.

    Attributes:
      paths: the files.
      left_out: {reason: number of images} that the format could not hold.
    """

    paths: list[pathlib.Path]
    left_out: dict[str, int]


def write_task1(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`task1/Task1_<class>.txt`, a file for every class."""
    by_image = {one.image: one.as_dict() for one in _by_stem(images)}
    return Written([pathlib.Path(path) for path in dota.write_task1(folder / "task1", by_image, class_names)], {})


def write_geojson(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`geojson/NAME.geojson` in the image's coordinate system, and `NAME.wgs84.geojson` in longitude and latitude.

    Tiles whose scene has a place on the ground (`haksnet split` notes it) are merged into files of the scenes.
    """
    written, scenes, by_tile = Written([], {}), {}, {}
    for one in _by_stem(images):
        scene = geojson.scene_of_tile(one.path) if one.path is not None else None
        if scene is not None:
            scenes[tiles.parse_tile_name(one.image).image] = scene
            by_tile[one.image] = {**one.as_dict(), "size": one.size}
            continue
        georeference, reason = geojson.read_georeference(one.path) if one.path is not None else (None, "")
        if georeference is None:
            if one.path is not None and one.path.suffix.lower() in (".tif", ".tiff"):  # nobody expects it of the others
                _count(written, reason)
            continue
        _write_geojson_of(folder, one.image, one.as_dict(), class_names, georeference, written)
    for name, detections in tiles.merge_tiles(by_tile).items():
        _write_geojson_of(folder, name, detections, class_names, scenes[name], written)
    return written


def _write_geojson_of(folder, name, detections, class_names, georeference, written):
    """Writes the two files of an image. Args: as `geojson.feature_collection`; written, Written that is added to."""
    (folder / "geojson").mkdir(exist_ok=True)
    for wgs84, ending in ((False, ".geojson"), (True, ".wgs84.geojson")):
        try:
            collection = geojson.feature_collection(detections, class_names, georeference, wgs84=wgs84, image=name)
        except ValueError as error:
            _count(written, f"in WGS84, {error}" if wgs84 else str(error))
            continue
        path = folder / "geojson" / f"{name}{ending}"
        geojson.write_geojson(path, collection)
        written.paths.append(path)


def write_geopackage(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`detections.gpkg`, a layer `detections` of polygons for each coordinate system.

    Images without a place on the ground are in a layer of their own, in pixels with y growing upwards from the top left
    corner (that is, below zero), as map programs draw them.
    """
    del class_names
    return _write_geopackage(folder / "detections.gpkg", images)


def write_coco(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`coco/results.json`, and `coco/images.json` with the numbers of images and categories that it refers to."""
    folder = folder / "coco"
    folder.mkdir(exist_ok=True)
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    described, first = [], True
    with files.whole(folder / "results.json") as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for number, one in enumerate(images, start=1):
            size = {} if one.size is None else {"width": int(one.size[0]), "height": int(one.size[1])}
            described.append({"id": number, "file_name": one.image, **size})
            for entry in coco_entries(one, number):
                file.write(("" if first else ",") + "\n" + json.dumps(entry))
                first = False
        file.write("\n]\n")
    text = json.dumps({"images": described, "annotations": [], "categories": categories}, ensure_ascii=False, indent=1)
    files.write_text(folder / "images.json", text + "\n")
    return Written([folder / "results.json", folder / "images.json"], {})


def coco_entries(detections: Detections, image_id: int) -> list[dict[str, Any]]:
    """Entries of a COCO results file, see `Detections.to_coco`."""
    corners = boxes_to_corners(detections.boxes.astype(np.float64))
    low, high = corners.min(axis=1), corners.max(axis=1)
    boxes = np.concatenate([low, high - low], axis=1).round(2).tolist()
    polygons = corners.reshape(-1, 8).round(2).tolist()
    columns = (boxes, polygons, detections.scores.tolist(), detections.labels.tolist())
    return [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": box,
            "segmentation": [polygon],
            "score": round(score, 6),
        }
        for box, polygon, score, label in zip(*columns, strict=True)
    ]


def write_yolo_obb(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`yolo-obb/NAME.txt`: number of the class, corners in shares of the image, and score, a line an object."""
    folder, written = folder / "yolo-obb", Written([], {})
    folder.mkdir(exist_ok=True)
    files.write_text(folder / "classes.txt", name_lists.as_text(class_names))
    for one in _by_stem(images):
        if one.size is None:
            _count(written, "the size of the image is not known")
            continue
        corners = boxes_to_corners(one.boxes.astype(np.float64)) / np.asarray(one.size, np.float64)
        rows = zip(one.labels.tolist(), corners.reshape(-1, 8).tolist(), one.scores.tolist(), strict=True)
        text = "".join(f"{k} {' '.join(f'{v:.6f}' for v in points)} {score:.6f}\n" for k, points, score in rows)
        files.write_text(folder / f"{one.image}.txt", text, sync=False)
        written.paths.append(folder / f"{one.image}.txt")
    return written


def write_labels(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`labels/NAME.txt`: DOTA's label lines with the score as a last column; readable as labels."""
    folder, written = folder / "labels", Written([], {})
    folder.mkdir(exist_ok=True)
    for one in _by_stem(images):
        files.write_text(folder / f"{one.image}.txt", _label_lines(one, class_names), sync=False)
        written.paths.append(folder / f"{one.image}.txt")
    return written


def write_csv(folder: pathlib.Path, images: Iterable[Detections], class_names: Sequence[str]) -> Written:
    """`detections.csv`: a row an object, in pixels of its image."""
    del class_names
    return _write_csv(folder / "detections.csv", images)


# What `--format` takes; `json` is always written, by the output folder itself.
FORMATS: dict[str, Callable[..., Written]] = {
    "task1": write_task1,
    "geojson": write_geojson,
    "gpkg": write_geopackage,
    "coco": write_coco,
    "yolo-obb": write_yolo_obb,
    "labels": write_labels,
    "csv": write_csv,
}
DEFAULT = ("task1", "geojson")


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """Formats by their names, each once.

    Raises:
      UserError: there is no such format, or it needs a package that is not installed.
    """
    wanted = tuple(dict.fromkeys(name for name in names if name != "json"))
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise UserError(f"format: expected some of json, {', '.join(FORMATS)}, got {', '.join(unknown)}")
    if "gpkg" in wanted:
        _pyogrio()
    return wanted


def save(path: pathlib.Path, detections: Detections) -> pathlib.Path:
    """Writes the detections of one image to a file, see `Detections.save`."""
    ending = path.suffix.lower()
    names = detections.class_names
    if ending in (".jpg", ".jpeg", ".png", ".bmp"):
        visualize.write_image(path, detections.plot())
    elif ending == ".json":
        width, height = detections.size or (None, None)
        detections_json.write(path, [(detections.image or "", width, height, detections.as_dict())], names)
    elif ending == ".geojson":
        if detections.georeference is None:
            raise UserError(f"{path}: the image has no place on the ground, so there is no GeoJSON of it")
        collection = geojson.feature_collection(
            detections.as_dict(), names, detections.georeference, image=detections.image
        )
        geojson.write_geojson(path, collection)
    elif ending == ".gpkg":
        _write_geopackage(path, [detections])
    elif ending == ".csv":
        _write_csv(path, [detections])
    elif ending == ".txt":
        files.write_text(path, _label_lines(detections, names))
    else:
        raise UserError(f"{path}: expected a name ending in .jpg, .png, .json, .geojson, .gpkg, .csv or .txt")
    return path


def _by_stem(images):
    """The same, called by the image's name without its ending, as files of results are."""
    for one in images:
        stem = dota.image_stem(one.image)
        yield one if stem == one.image else one.renamed(stem)


def _count(written, reason):
    written.left_out[reason] = written.left_out.get(reason, 0) + 1


def _label_lines(one, class_names):
    from haksnet_jax.labels.dota import format_label_line

    corners = boxes_to_corners(one.boxes.astype(np.float64))
    rows = zip(corners, one.names, one.scores.tolist(), strict=True)
    return "".join(f"{format_label_line(c, name, 0, class_names)} {score:.6f}\n" for c, name, score in rows)


def _write_csv(path, images):
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_CSV_COLUMNS)
        for one in images:
            boxes = one.boxes.astype(np.float64)
            numbers = np.concatenate([boxes[:, :4].round(3), boxes[:, 4:].round(7)], axis=1).tolist()
            corners = boxes_to_corners(boxes).reshape(-1, 8).round(3).tolist()
            for name, score, box, points in zip(one.names, one.scores.tolist(), numbers, corners, strict=True):
                writer.writerow([one.image, name, round(score, 6), *box, *points])
    return Written([path], {})


def _pyogrio():
    try:
        import pyogrio
    except ImportError as error:
        raise UserError(f"GeoPackage needs the package pyogrio ({error}): pip install pyogrio") from error
    return pyogrio


def _write_geopackage(path, images):
    """One layer for each coordinate system; the file appears whole or not at all."""
    pyogrio = _pyogrio()
    import shapely

    layers: dict[str | None, list[list]] = {}  # by the definition of the coordinate system
    for one in images:
        corners, crs = one.geo_polygons, None
        if corners is None:
            corners = boxes_to_corners(one.boxes.astype(np.float64)) * (1, -1)
        elif one.georeference.crs is not None:
            crs = one.georeference.crs.to_wkt()
        rows = layers.setdefault(crs, [[], [], [], []])
        rows[0] += shapely.to_wkb(shapely.polygons(corners)).tolist() if len(corners) else []
        rows[1] += [one.image or ""] * len(one)
        rows[2] += one.names
        rows[3] += one.scores.tolist()
    with files.whole(path, sync=False) as temporary:
        for number, (crs, (geometry, image, label, score)) in enumerate(layers.items() or [(None, ([], [], [], []))]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that a layer in pixels has no coordinate system
                pyogrio.raw.write(
                    str(temporary),
                    np.array(geometry, object),
                    [np.array(image, object), np.array(label, object), np.array(score, np.float64)],
                    np.array(["image", "label", "score"]),
                    layer="detections" if number == 0 else f"detections_{number + 1}",
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=crs,
                    append=number > 0,
                )
    return Written([path], {})
