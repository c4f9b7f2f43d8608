"""What surrounds the detector: augmentation, label files, cutting of images, merging of tiles, average precision."""

import pathlib
import tempfile
from typing import Any

import cv2
import numpy as np

from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.labels.dota import read_labels
from haksnet_jax.pipeline import transforms
from haksnet_jax.preparation import splitting
from haksnet_jax.results import dota, tiles
from haksnet_jax.results.mean_ap import mean_average_precision
from haksnet_jax.tools.parity.rows import Comparison, Fixture, Row, equal_row

_BOXES = {"absolute": 2e-3, "relative": 1e-5}  # px, the manifest's, and of the width


class _Greys:
    """Images compared by grey levels: at most `levels` for a share of the values."""

    def __init__(self, fixture, what, share, levels=1):
        self._fixture, self._what, self._share, self._levels = fixture, what, share, levels
        self._within, self._largest, self._passed = 1.0, 0, True

    def add(self, ours, theirs):
        if ours.shape != theirs.shape:
            raise ValueError(f"{self._what}: the reference's image is {theirs.shape}, ours {ours.shape}")
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        self._largest = max(self._largest, int(difference.max()))
        self._within = min(self._within, float((difference <= self._levels).mean()))

    def row(self):
        return Row(
            self._fixture.name, f"{self._what}, grey levels", self._largest, self._largest / 255,
            f"{self._levels} for {self._share:.1%} of values", self._within >= self._share,
            f"{self._within:.2%} within {self._levels}",
        )  # fmt: skip


def augment_rows(fixture: Fixture) -> list[Row]:
    """Flips, rotations and resizing of images with their boxes."""
    image, boxes, labels = fixture["image"], fixture["boxes"], fixture["labels"]
    flipped, turned, resized = (
        Comparison(fixture, f"{what}: boxes", **_BOXES) for what in ("flips", "rotations", "sizes")
    )
    # The reference's OpenCV placed the samples of a rotation on 1/32 of a pixel, later releases place them exactly:
    # with a slope of 255 a pixel in both directions, which noise has, that is at most 8 grey levels.
    greys = {
        what: _Greys(fixture, what, share, levels)
        for what, share, levels in (("flips", 1.0, 1), ("rotations", 1.0, 8), ("sizes", 0.995, 1))
    }
    label_pairs, ties = [], 0
    shapes: list[tuple[Any, Any]] = []
    for direction in transforms.FLIPS:
        if f"flip_{direction}/boxes" in fixture:
            ours, ours_boxes = transforms.flip(image, boxes, direction)
            greys["flips"].add(ours, fixture[f"flip_{direction}/image"])
            flipped.add_boxes(ours_boxes, fixture[f"flip_{direction}/boxes"])
    for case, settings in fixture.manifest["cases"].items():
        if "angle_degrees" in settings:
            ours, ours_boxes = transforms.rotate(image, boxes, settings["angle_degrees"])
            if f"{case}/image" in fixture:
                greys["rotations"].add(ours, fixture[f"{case}/image"])
            # Rounding decides about a side of exactly the limit of 5 pixels.
            tie = np.abs(ours_boxes[:, 3] - 5) < 1e-4
            keep = transforms.usable(ours_boxes, ours.shape[:2], min_side=5.0) & ~tie
            theirs = fixture[f"{case}/boxes"]
            kept_theirs = np.abs(theirs[:, 3] - 5) >= 1e-4
            ties += int(tie.sum())
            turned.add_boxes(ours_boxes[keep], theirs[kept_theirs])
            if f"{case}/labels" in fixture:
                label_pairs.append((labels[keep], fixture[f"{case}/labels"][kept_theirs]))
        elif "img_scale" in settings:
            stored = f"{case}/input" in fixture
            given = fixture[f"{case}/input"] if stored else np.zeros((*settings["input_hw"], 3), np.uint8)
            ours, ours_boxes, scale = transforms.resize_keep_ratio(given, boxes, settings["img_scale"])
            shapes.append((ours.shape, settings["img_shape"]))
            shapes.append((np.asarray(scale, np.float32), np.asarray(settings["scale_factor"][:2], np.float32)))
            resized.add_boxes(ours_boxes, fixture[f"{case}/boxes"])
            if f"{case}/image" in fixture:
                greys["sizes"].add(ours, fixture[f"{case}/image"])
    return [
        flipped.row(),
        turned.row(f"{ties} boxes with a side of exactly the limit left out" if ties else ""),
        resized.row(),
        equal_row(fixture, "rotations: labels left", label_pairs),
        equal_row(fixture, "sizes: shapes and factors", shapes),
        *(one.row() for one in greys.values()),
    ]


def label_rows(fixture: Fixture) -> list[Row]:
    """Label files: the boxes and classes that training sees, by threshold of difficulty."""
    manifest = fixture.manifest
    boxes_compared = Comparison(fixture, "boxes", absolute=1e-3, relative=1e-5)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for case, images in manifest["expected"].items():
            threshold = int(case.split("_")[1])
            for image, record in images.items():
                stem = pathlib.Path(image).stem
                path = pathlib.Path(folder) / f"{stem}.txt"
                path.write_text(manifest["files"][stem])
                objects, _ = read_labels(path, CLASSES["dota10"])
                boxes, valid = polygons_to_boxes(objects.polygons, min_side=2.0)
                keep = valid & (objects.difficulty <= threshold)
                pairs.append((objects.labels[keep], np.asarray(record["labels"])))
                boxes_compared.add_boxes(boxes[keep], np.reshape(record["bboxes"], (-1, 5)))
    return [boxes_compared.row(), equal_row(fixture, "labels", pairs)]


def split_rows(fixture: Fixture) -> list[Row]:
    """Windows of the splitting tool, and the label lines of every tile."""
    manifest = fixture.manifest
    rows = []
    for protocol, expected in manifest["expected"].items():
        config = expected["config"]
        if len(set(config["sizes"])) > 1 or len(set(config["gaps"])) > 1:
            raise ValueError(f"{protocol}: one size and one gap are understood, found {config}")
        parameters = splitting.Parameters(
            tile=config["sizes"][0],
            overlap=config["gaps"][0],
            rates=tuple(config["rates"]),
            min_inside=config["iof_thr"],
            min_image_rate=config["img_rate_thr"],
        )
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name in ("images", "labelTxt"):
                (folder / name).mkdir()
            for name, (width, height) in manifest["image_sizes_wh"].items():
                if not cv2.imwrite(str(folder / "images" / f"{name}.png"), np.zeros((height, width), np.uint8)):
                    raise OSError(f"{folder} cannot be written to")
                (folder / "labelTxt" / f"{name}.txt").write_text(manifest["labels"][name])
            splitting.split([folder / "images"], [folder / "labelTxt"], folder / "tiles", parameters, num_workers=0)
            rows += _tile_rows(fixture, protocol, folder / "tiles", expected["windows"])
    return rows


def _tile_rows(fixture, protocol, folder, expected):
    windows = [window for found in expected.values() for window in found]
    names = sorted(path.stem for path in (folder / "images").iterdir())
    coordinates = Comparison(fixture, f"{protocol}: coordinates, px", absolute=1e-3)
    pairs, num_marked = [], 0
    for window in windows:
        path = folder / "labelTxt" / f"{window['id']}.txt"
        ours = [line.rsplit(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []
        theirs = [line.rsplit(maxsplit=2) for line in window["lines"]]
        if len(ours) != len(theirs):
            pairs.append(([len(ours)], [len(theirs)]))
            continue
        for one, other, inside in zip(ours, theirs, window["inside_fraction"], strict=True):
            coordinates.add(np.array(one[0].split(), float), np.array(other[0].split(), float))
            if inside > 1 - 1e-6 and one[2] != other[2]:
                num_marked += 1
                one = [*one[:2], other[2]]
            pairs.append((one[1:], other[1:]))
    return [
        equal_row(fixture, f"{protocol}: windows", [(names, sorted(window["id"] for window in windows))]),
        coordinates.row(),
        equal_row(
            fixture, f"{protocol}: classes and difficulties", pairs,
            f"the reference marks {num_marked} complete objects as truncated, through rounding",
        ),
    ]  # fmt: skip


def merge_rows(fixture: Fixture) -> list[Row]:
    """Detections of tiles merged into those of images, and the lines of a submission."""
    manifest = fixture.manifest
    rows = fixture["tiles/index_class_box_score"]
    by_tile = {}
    for index, name in enumerate(manifest["tile_ids"]):
        own = rows[rows[:, 0] == index]
        by_tile[name] = {"boxes": own[:, 2:7], "scores": own[:, 7], "labels": own[:, 1].astype(int)}
    merged = tiles.merge_tiles(by_tile, iou_threshold=manifest["iou_threshold"])
    counts = [([len(merged[name]["scores"])], [count]) for name, count in manifest["num_merged"].items()]
    boxes = Comparison(fixture, "merged boxes and scores", absolute=1e-3)
    for name, one in merged.items():
        tables = (np.column_stack([one["labels"], one["boxes"], one["scores"]]), fixture[f"merged/{name}"])
        boxes.add(*(table[np.lexsort((table[:, 6], table[:, 0]))] for table in tables))
    coordinates = Comparison(fixture, "Task-1 lines: coordinates, px", absolute=0.011)
    scores = Comparison(fixture, "Task-1 lines: scores", absolute=1e-8)
    recorded = {}
    for name in manifest["num_merged"]:
        table = fixture[f"merged/{name}"]
        recorded[name] = {"boxes": table[:, 1:6], "scores": table[:, 6], "labels": table[:, 0]}
    texts = dota.format_task1(recorded, manifest["class_names"])
    for name in manifest["class_names"]:
        ours = sorted(texts[dota.task1_file_name(name)].splitlines())
        theirs = sorted(manifest["task1_lines"].get(name, []))
        numbers = [np.array([line.split()[1:] for line in lines], float).reshape(-1, 9) for lines in (ours, theirs)]
        scores.add(numbers[0][:, 0], numbers[1][:, 0])
        coordinates.add(numbers[0][:, 1:], numbers[1][:, 1:])
    return [equal_row(fixture, "merged boxes", counts), boxes.row(), coordinates.row(), scores.row()]


def average_precision_rows(fixture: Fixture) -> list[Row]:
    """Average precision of every class, as the reference and as the official tool compute it."""
    manifest, table = fixture.manifest, fixture["det/image_class_box_score"]
    detections, labels = {}, {}
    for image in range(manifest["num_images"]):
        own = table[table[:, 0] == image]
        detections[image] = {"boxes": own[:, 2:7], "scores": own[:, 7], "labels": own[:, 1].astype(int)}
        counts, ignored = fixture["ann/bboxes_image"] == image, fixture["ann/bboxes_ignore_image"] == image
        boxes = np.concatenate([fixture["ann/bboxes"][counts], fixture["ann/bboxes_ignore"][ignored]])
        labels[image] = {
            "polygons": boxes_to_corners(boxes.astype(np.float64)),
            "labels": np.concatenate([fixture["ann/labels"][counts], fixture["ann/labels_ignore"][ignored]]).astype(
                int
            ),
            "difficulty": np.repeat([0, 1], [counts.sum(), ignored.sum()]),
        }
    names = manifest["class_names"]
    result = mean_average_precision(detections, labels, names)
    reference = Comparison(fixture, "AP, of the reference", absolute=1e-5)
    official = Comparison(fixture, "AP, of the official tool", absolute=1e-5)
    counts = []
    for key, expected in manifest["eval_rbbox_map"].items():
        column, figures = _figures(result, key)
        for label, one in enumerate(expected["classes"]):
            counts.append(([result.num_gts[label], result.num_detections[label]], [one["num_gts"], one["num_dets"]]))
            if one["num_gts"]:
                reference.add(figures[label, column], one["ap"], scale=1)
        reference.add(np.nanmean(figures[:, column]), expected["mAP"], scale=1)
    for key, expected in manifest["devkit"]["results"].items():
        column, figures = _figures(result, key)
        for name, one in expected.items():
            if isinstance(one, dict) and one["ap"] is not None:
                official.add(figures[names.index(name), column], one["ap"], scale=1)
    return [reference.row(), official.row(), equal_row(fixture, "objects and detections", counts)]


def _figures(result, key):
    """(column, table) of a result named like "iou_0.5_voc07"."""
    _, threshold, metric = key.split("_")
    return result.threshold_index(float(threshold)), result.ap_voc07 if metric == "voc07" else result.ap_voc12
